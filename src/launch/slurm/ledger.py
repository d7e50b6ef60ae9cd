"""Which job makes which artifact: a file beside the store's artifacts, so that any shell and any other sweep knows.

A submission is written before sbatch is called. Its jobs bear its token as their comment: the queue says which of them
live, and nothing about them is kept here. A line is the crc32 of the rest in hex, and JSON; a damaged line is named and
left out.
"""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter

from src.kernel.artifact import Node, fingerprint_hash
from src.kernel.cells import line_of, value_of
from src.kernel.disk import make_folder, sync, turn
from src.launch.slurm.client import Queue, Queued

FOLDER = ".jobs"


@dataclass(frozen=True, eq=False)
class Submission:
    """An array as it was submitted."""

    token: str
    name: str
    folder: str
    """The folder of its script and its logs."""
    makes: dict[int, list[str]]
    """Index -> keys of what it makes; for a report, its own key and the run folder."""
    waits: dict[int, list[str]]
    """Index -> keys whose makers it waits for."""

    @property
    def script(self) -> Path:
        return Path(self.folder) / f"{self.name}-{self.token}.sbatch"

    def log(self, index: int | str) -> Path:
        return Path(self.folder) / "logs" / f"{self.name}-{self.token}_{index}.out"


@dataclass(frozen=True)
class Maker:
    """An element of a submission."""

    submission: Submission
    index: int

    @property
    def makes(self) -> list[str]:
        return self.submission.makes[self.index]

    @property
    def waits(self) -> list[str]:
        return self.submission.waits.get(self.index, [])

    def queued(self, queue: Queue) -> Queued | None:
        """Return its job in the queue."""
        return queue.get((self.submission.token, str(self.index) if len(self.submission.makes) > 1 else ""))


def keys_word(nodes: Iterable[Node]) -> str:
    """Return a word for the artifacts that a job is to make. It begins with a letter, or YAML might read a number."""
    return f"k{fingerprint_hash(sorted(node.key for node in nodes))[:12]}"


class Ledger:
    """All submissions of a store, in order."""

    def __init__(self, store: Path) -> None:
        self.file = store / FOLDER / "ledger.jsonl"
        self.submissions: list[Submission] = []
        lines = self.file.read_bytes().split(b"\n") if self.file.exists() else []
        for number, line in enumerate(lines, 1):
            try:
                self.submissions.append(TypeAdapter(Submission).validate_python(value_of(line)))
            except (RecursionError, ValueError):
                if line and number < len(lines):  # a crash tears the last one: it was not submitted
                    print(f"{self.file}:{number}: damaged; its jobs are not known", file=sys.stderr)

    def note(self, name: str, folder: Path, makes: dict[int, list[str]], waits: dict[int, list[str]]) -> Submission:
        """Write down that an array is about to be submitted."""
        submission = Submission(uuid.uuid4().hex[:8], name, str(folder), makes, waits)
        self.submissions.append(submission)
        make_folder(self.file.parent)
        with self.file.open("a") as file:
            file.write(f"\n{line_of(asdict(submission))}")  # a torn line before it stays alone
            file.flush()
            os.fsync(file.fileno())
        sync(self.file.parent)
        return submission

    def elements(self) -> Iterator[Maker]:
        """Yield every element of every submission."""
        for submission in self.submissions:
            yield from (Maker(submission, index) for index in submission.makes)

    def makers(self) -> dict[str, list[Maker]]:
        """Return the elements that were to make something, by its key: several for shares, or after a failure."""
        makers: dict[str, list[Maker]] = {}
        for maker in self.elements():
            for key in maker.makes:
                makers.setdefault(key, []).append(maker)
        return makers

    def under_way(self, queue: Queue) -> dict[str, list[str]]:
        """Return the numbers of jobs in the queue, by the keys of what they make."""
        queued = {key: [maker.queued(queue) for maker in makers] for key, makers in self.makers().items()}
        return {key: [job.job for job in jobs if job] for key, jobs in queued.items() if any(jobs)}


@contextmanager
def submission_lock(store: Path) -> Iterator[None]:
    """Hold the lock of submissions, so that one command submits at a time."""
    make_folder(store / FOLDER)
    with turn(store / FOLDER / ".lock", str(store), "submitting its jobs"):
        yield
