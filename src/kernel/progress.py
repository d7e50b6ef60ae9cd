"""Progress bars with an ETA, and the one place that quiets libraries."""

from __future__ import annotations

import logging
import os
import sys
import warnings

from tqdm import tqdm


def bar(name: str, total: int, done: int, unit: str) -> tqdm:
    """Return a bar on stderr; `done` of `total` units were finished by an earlier attempt.

    Without a terminal (a batch job's log) it writes one line every ten seconds.
    """
    interval = 0.5 if sys.stderr.isatty() else 10.0
    end = {} if sys.stderr.isatty() else {"ncols": 90, "ascii": True}
    return tqdm(desc=name, total=total, initial=done, unit=unit, mininterval=interval, maxinterval=30, **end)


def quiet_libraries() -> None:
    """Silence weight-loading bars and advice of libraries: the run's own lines are the ones to read."""
    for name, value in {
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "WANDB_SILENT": "true",
        # Two spinning OpenMP threads beside any other busy process lose most of their time to each other.
        "OMP_WAIT_POLICY": "PASSIVE",
    }.items():
        os.environ.setdefault(name, value)
    # DeepSpeed is imported by accelerate and reports that there is no GPU; it sets its level itself, so filter.
    logging.getLogger("DeepSpeed").addFilter(lambda record: record.levelno >= logging.ERROR)
    warnings.filterwarnings("ignore", module="torch|transformers|accelerate|deepspeed")
