"""Which job makes which artifact: a file beside the store's artifacts, so that any shell and any other sweep knows.

A submission is written before sbatch is called, and again with the job's number afterwards; the later line counts. One
that was cut off in between is found in the queue by its token, which is the job's comment. A line is the crc32 of the
rest in hex, and JSON; a damaged line is named and left out.
"""

from __future__ import annotations

import json
import os
import sys
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from src.kernel.artifact import Node, fingerprint_hash
from src.kernel.cells import json_of, with_crc
from src.kernel.config import UserError
from src.kernel.disk import make_folder, sync
from src.kernel.locks import locked
from src.launch.slurm import client
from src.launch.slurm.client import Queued

FOLDER = ".jobs"
NEVER = "DependencyNeverSatisfied"
"""The reason of a job that SLURM is about to cancel."""
Living = Mapping[tuple[str, int | None], Queued]
"""Jobs of the queue, by the token of their submission and their index: a script may have been submitted by hand."""


@dataclass
class Submission:
    """An array as it was submitted."""

    token: str
    name: str
    folder: str
    """Of its script and its logs."""
    elements: dict[int, list[str]]
    """Index -> keys of what it makes; of a report, its own key and the run folder."""
    waits: dict[int, list[str]] = field(default_factory=dict)
    """Index -> keys whose makers it waits for."""
    group: str = ""
    """The same for arrays that are of use together only, as the shares of an artifact are."""
    job: str | None = None
    """None: cut off before its number was known."""

    @property
    def script(self) -> Path:
        return Path(self.folder) / f"{self.name}-{self.token}.sbatch"


@dataclass(frozen=True, eq=False)
class Maker:
    """An element of a submission."""

    submission: Submission
    index: int

    @property
    def job(self) -> str:
        """As `afterok` and `scancel` know it: 77, or 77_3."""
        job = self.submission.job
        return f"{job}_{self.index}" if len(self.submission.elements) > 1 else str(job)

    @property
    def log(self) -> Path:
        return Path(self.submission.folder) / "logs" / f"{self.submission.name}-{self.submission.job}_{self.index}.out"

    @property
    def makes(self) -> list[str]:
        return self.submission.elements[self.index]

    @property
    def waits(self) -> list[str]:
        return self.submission.waits.get(self.index, [])

    def queued(self, living: Living) -> Queued | None:
        return living.get((self.submission.token, self.index if len(self.submission.elements) > 1 else None))


def mark(token: str, index: int | str) -> str:
    """Names the file beside the ledger that an element with a share of answers leaves when it has ended well."""
    return f"done-{token}-{index}"


def keys_word(nodes: Iterable[Node]) -> str:
    """Stands for the artifacts that a job is to make. It begins with a letter, or YAML might read a number."""
    return f"k{fingerprint_hash(sorted(node.key for node in nodes))[:12]}"


_LINE = TypeAdapter[Submission | list[str]](Submission | list[str])
"""A line of the ledger: a submission, or jobs that were cancelled."""


@dataclass
class Ledger:
    """All submissions of a store, in order."""

    file: Path
    submissions: dict[str, Submission] = field(default_factory=dict)
    """By token."""
    cancelled: set[str] = field(default_factory=set)
    """Jobs."""

    @classmethod
    def of(cls, store: Path) -> Ledger:
        ledger = cls(store / FOLDER / "ledger.jsonl")
        lines = ledger.file.read_bytes().split(b"\n") if ledger.file.exists() else []
        for number, line in enumerate(lines, 1):
            try:
                entry = _LINE.validate_python(json_of(line, old=b"{"))
            except ValueError:
                if line and number < len(lines):  # a crash tears the last one: it was not submitted
                    print(f"{ledger.file}:{number}: damaged; the jobs it told of are not known", file=sys.stderr)
                continue
            if isinstance(entry, Submission):
                ledger.submissions[entry.token] = entry
            else:
                ledger.cancelled.update(entry)
        return ledger

    def intend(
        self, name: str, folder: Path, elements: dict[int, list[str]], waits: dict[int, list[str]], group: str = ""
    ) -> Submission:
        """Notes that an array is about to be submitted."""
        token = uuid.uuid4().hex[:8]
        submission = Submission(token, name, str(folder), elements, waits, group or token)
        self.submissions[token] = submission
        self._write(asdict(submission))
        return submission

    def submitted(self, submission: Submission, job: str) -> None:
        """Notes the number of its job."""
        submission.job = job
        self._write(asdict(submission))

    def cancel(self, jobs: Sequence[str]) -> None:
        """Notes that these jobs are being ended."""
        self.cancelled.update(jobs)
        self._write(list(jobs))

    def _write(self, entry: dict[str, Any] | list[str]) -> None:
        make_folder(self.file.parent)
        new = not self.file.exists()
        with self.file.open("a") as file:
            file.write(f"\n{with_crc(json.dumps(entry))}")  # a torn line before it stays alone
            file.flush()
            os.fsync(file.fileno())
        if new:
            sync(self.file.parent)

    def adopt(self, queued: Sequence[Queued]) -> None:
        """Gives submissions that were cut off the job that bears their token."""
        cut = {one.token: one for one in self.submissions.values() if one.job is None}
        for job in queued:
            if job.token in cut:
                self.submitted(cut.pop(job.token), job.job.partition("_")[0])

    def cut(self) -> set[str]:
        """Returns the groups that were not submitted whole."""
        return {one.group for one in self.submissions.values() if one.job is None}

    def elements(self) -> Iterator[Maker]:
        """Every element of every submission."""
        for submission in self.submissions.values():
            yield from (Maker(submission, index) for index in submission.elements)

    def makers(self) -> dict[str, list[Maker]]:
        """Returns, by key, the elements of the last group that was to make it: several where it is made in shares."""
        makers: dict[str, list[Maker]] = {}
        for maker in self.elements():
            for key in maker.makes:
                earlier = makers.setdefault(key, [])
                if earlier and earlier[-1].submission.group != maker.submission.group:
                    earlier.clear()
                earlier.append(maker)
        return makers

    def living(self, queued: Sequence[Queued]) -> Living:
        """Leaves out jobs that were cancelled, which may take a while to save and end."""
        jobs = (job for job in queued if job.reason != NEVER and job.job not in self.cancelled)
        return {(job.token, job.index): job for job in jobs}

    def split(self, makers: Sequence[Maker], living: Living) -> tuple[list[Queued], list[Maker]]:
        """Returns the jobs that will make something which is not there, and the makers that died without it.

        A share that is done is neither: its mark says so, for the others may go on.
        """
        jobs = [(maker, maker.queued(living)) for maker in makers]
        dead = [maker for maker, job in jobs if not job and mark(maker.submission.token, maker.index) not in self.marks]
        return [job for _, job in jobs if job], dead

    @cached_property
    def marks(self) -> set[str]:
        """Names of the marks that are there: one look at the folder, not one an element."""
        return {path.name for path in self.file.parent.glob("done-*")}


@contextmanager
def alone(store: Path) -> Iterator[None]:
    """Holds the lock of submissions: one at a time."""
    make_folder(store / FOLDER)
    with locked(store / FOLDER / ".lock", f"{store}: another submission is under way; waiting"):
        yield


def queued_keys(store: Path, keys: set[str]) -> tuple[set[str], set[str]]:
    """Returns which of these artifacts jobs in the queue make, and which any job was to make."""
    ledger = Ledger.of(store)
    makers = {key: makers for key, makers in ledger.makers().items() if key in keys}
    if not makers:
        return set(), set()
    try:
        living = ledger.living(client.queue())
    except UserError as error:
        print(f"{error}; what was submitted is kept")
        return set(makers), set(makers)
    return {key for key, elements in makers.items() if any(one.queued(living) for one in elements)}, set(makers)
