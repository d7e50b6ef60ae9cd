"""One process of a job in several (workers.py)."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import FrameType

from src.kernel.children import prepare_child
from src.kernel.config import Fault, UserError
from src.kernel.faults import GOES_ON, explain
from src.kernel.handover import take_over
from src.kernel.workers import REFUSED, Crew

FAILED = 3
"""The exit code where the machine or the store has failed."""


def main(file: Path) -> None:
    prepare_child()  # before the imports, which take seconds
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the parent ends this one
    signal.signal(signal.SIGTERM, _end)
    from src.kernel.progress import quiet_libraries

    quiet_libraries()
    try:
        job, crew = take_over(file)
        if crew.device == "cuda":
            mine = devices_of(int(os.environ["SLURM_LOCALID"]), crew, _visible())
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(mine)
        job(int(os.environ["SLURM_PROCID"]), crew.count)
    except Exception as error:
        mine = isinstance(error, UserError)
        said = str(error) if mine else explain(error)
        if said is None:
            raise
        print(said.removesuffix(GOES_ON), file=sys.stderr, flush=True)
        sys.exit(REFUSED if mine and not isinstance(error, Fault) else FAILED)


def _end(number: int, frame: FrameType | None) -> None:
    """Once: what is finished is being saved from here on."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(128 + number)


def devices_of(number: int, crew: Crew, visible: list[str]) -> list[str]:
    """Of worker `number` of a node. On several nodes SLURM may have given each task devices of its own."""
    each = crew.devices_each
    if crew.nodes > 1 and len(visible) == each:
        return visible
    if (number + 1) * each > len(visible):
        raise UserError(f"{crew.key}.workers: worker {number} of a node that shows {len(visible)} CUDA devices")
    return visible[number * each : (number + 1) * each]


def _visible() -> list[str]:
    import torch

    told = os.environ.get("CUDA_VISIBLE_DEVICES")
    return told.split(",") if told else [str(n) for n in range(torch.cuda.device_count())]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
