"""What a process hands to those that it starts: objects in a pickle, which runs whatever it says when it is read.

The file lies in the store, where others may write; so it is named by its sha256, the name reaches the reader by the
command line, and nothing else is read.
"""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any

from src.kernel.config import Fault

_NAME = "job-{}.pickle"


def hand_over(folder: Path, job: Any) -> Path:
    """Write the job; what earlier ones left in the folder goes."""
    data = pickle.dumps(job)
    for left in (*folder.glob(_NAME.format("*")), folder / "job.pickle"):
        left.unlink(missing_ok=True)
    file = folder.resolve() / _NAME.format(hashlib.sha256(data).hexdigest())
    with file.open("xb") as opened:  # a new file: no link of somebody else's is written through
        opened.write(data)
    return file


def take_over(file: Path) -> Any:
    """The job. Raises Fault where the file is another than its name says."""
    data = file.read_bytes()
    if file.name != _NAME.format(hashlib.sha256(data).hexdigest()):
        raise Fault(f"{file}: not what was written there, so it is not read; who else writes in this folder?")
    return pickle.loads(data)
