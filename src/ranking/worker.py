"""One process of a ranking in several: it scores every n-th batch of the queue into the shared cells."""

from __future__ import annotations

import os
import pickle
import signal
import sys
from pathlib import Path


def main(job: Path) -> None:
    from src.training.worker import die_with_parent

    die_with_parent()  # before the imports, which take seconds
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that what is finished is saved
    from src.cells import Cells
    from src.config import UserError
    from src.progress import quiet_libraries
    from src.ranking.work import batches, run_batches

    quiet_libraries()
    open_scorer, queue, work, folder = pickle.loads(job.read_bytes())
    if work.device == "cuda":
        os.environ["CUDA_VISIBLE_DEVICES"] = _device(int(os.environ["SLURM_LOCALID"]))
    mine = batches(queue, work.batch_tokens)[int(os.environ["SLURM_PROCID"]) :: work.workers]
    try:
        if mine:
            run_batches(open_scorer(work), queue, mine, Cells(folder), work, lambda _: None)
    except UserError as error:
        sys.exit(str(error))


def _device(number: int) -> str:
    """Of the devices this process may see, the one for worker `number` of the node."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",")[number] if visible else str(number)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
