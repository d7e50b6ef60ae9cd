"""One process of a ranking in several: it scores every n-th batch of the queue into the shared cells."""

from __future__ import annotations

import os
import pickle
import signal
import sys
from pathlib import Path
from types import FrameType

from src.children import prepare_child
from src.config import UserError


def main(job: Path) -> None:
    prepare_child()  # before the imports, which take seconds
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the parent ends this one
    signal.signal(signal.SIGTERM, _end)
    from src.cells import Cells
    from src.progress import quiet_libraries
    from src.ranking.work import batches, run_batches

    quiet_libraries()
    open_scorer, queue, work, folder = pickle.loads(job.read_bytes())
    try:
        if work.device == "cuda":
            os.environ["CUDA_VISIBLE_DEVICES"] = device_of(int(os.environ["SLURM_LOCALID"]), _visible())
        mine = batches(queue, work.batch_tokens)[int(os.environ["SLURM_PROCID"]) :: work.workers]
        if mine:
            run_batches(open_scorer(work), queue, mine, Cells(folder), work, lambda _: None)
    except UserError as error:
        sys.exit(str(error))


def _end(number: int, frame: FrameType | None) -> None:
    """Once: what is finished is being saved from here on."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(128 + number)


def device_of(number: int, visible: list[str]) -> str:
    """Of worker `number` of a node. SLURM may have given each task a device of its own."""
    if len(visible) == 1:
        return visible[0]
    if number >= len(visible):
        raise UserError(f"hardware.ranking.workers: worker {number} of a node that shows {len(visible)} CUDA devices")
    return visible[number]


def _visible() -> list[str]:
    import torch

    told = os.environ.get("CUDA_VISIBLE_DEVICES")
    return told.split(",") if told else [str(n) for n in range(torch.cuda.device_count())]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
