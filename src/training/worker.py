"""One process of a training in several: `accelerate launch` starts this module once a device."""

from __future__ import annotations

import faulthandler
import json
import os
import sys
from contextlib import suppress
from pathlib import Path

from src.kernel.processes import die_with_parent

OUTCOME = "outcome.json"
LOG = "launch.log"
SHOWN_AT = "ITERPREF_STDERR"
"""Where the first process shows its progress; what the launcher itself says goes to the log."""


def main(job: Path) -> None:
    """Trains, and leaves in `outcome.json` what ended it in order."""
    die_with_parent()  # before the imports, which take seconds
    faulthandler.enable()  # an abort leaves its stack in the log
    _show_progress()
    from src.kernel.artifact import WORK
    from src.kernel.config import Fault, Stopped, UserError
    from src.kernel.disk import write_atomic
    from src.kernel.faults import LOST, explain
    from src.kernel.processes import take_over
    from src.training.trainer import train

    method, recipe, devices, seed, reference, policy, out = take_over(job)
    if devices.device == "cpu":
        _leave_out_the_shared_memory_op()
    outcome = out / WORK / OUTCOME
    try:
        train(method, recipe, devices, seed, reference, policy, out)
    except Stopped as stopped:
        write_atomic(outcome, json.dumps({"stopped": stopped.exit_code - 128}).encode())
    except UserError as error:
        told = {"error": str(error), "fault": isinstance(error, Fault)}
        write_atomic(outcome, json.dumps(told).encode())
        sys.exit(2)  # the launcher ends the others
    except Exception as error:
        said = explain(error)
        if said and not said.startswith(LOST) and not outcome.exists():  # another may say why
            write_atomic(outcome, json.dumps({"error": f"train: {said}", "fault": True}).encode())
        raise
    _end()


def _end() -> None:
    """Ends at once, for all is written: an interpreter that ends in order may abort under gloo's threads."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _show_progress() -> None:
    if os.environ.get("RANK", "0") == "0":
        with suppress(OSError), open(os.environ[SHOWN_AT], "ab", buffering=0) as shown:
            os.dup2(shown.fileno(), 2)


def _leave_out_the_shared_memory_op() -> None:
    """Keeps DeepSpeed from compiling an operation at its first start that gloo does the work of."""
    import deepspeed.ops
    from deepspeed.accelerator import get_accelerator

    name = get_accelerator().create_op_builder("ShareMemCommBuilder").NAME  # pyright: ignore
    deepspeed.ops.__compatible_ops__[name] = False  # pyright: ignore


if __name__ == "__main__":
    main(Path(sys.argv[1]))
