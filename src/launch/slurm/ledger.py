"""Which job makes which artifact: a file beside the store's artifacts, so that any shell and any other sweep knows.

A line is written before an array is submitted, and another with its job id afterwards. A submission that was cut off in
between is found in the queue by its token, which is the job's comment.

A line is the crc32 of the rest in hex, and JSON; one torn by a crash is not read, a damaged one neither. Lines of old
have no crc32.
"""

from __future__ import annotations

import json
import os
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from src.kernel.cells import json_of, with_crc
from src.kernel.config import UserError
from src.kernel.disk import make_folder, sync
from src.kernel.locks import locked
from src.launch.slurm.client import Queued

FOLDER = ".jobs"
NEVER = "DependencyNeverSatisfied"
"""The reason of a job that SLURM is about to cancel."""


@dataclass
class Submission:
    """An array as it was submitted."""

    token: str
    name: str
    folder: str
    """Of its script and its logs."""
    elements: dict[int, list[str]]
    """Index -> keys of what it makes, the point's run folder for its report."""
    after: str
    """What it waits for, in the words of --dependency."""
    job: str | None = None
    """None: cut off before its id was known."""
    group: str = ""
    """The same for arrays that are of use together only, as the parts of an artifact are."""
    needs: dict[str, list[str]] = field(default_factory=dict)
    """Of the job that submits the rest: by key of what is left, the jobs that it waits for."""

    @property
    def script(self) -> Path:
        return Path(self.folder) / f"{self.name}-{self.token}.sbatch"

    def log(self, index: int) -> Path:
        return Path(self.folder) / "logs" / f"{self.name}-{self.job}_{index}.out"

    def element(self, index: int) -> str:
        """As `afterok` and `scancel` know it."""
        return f"{self.job}_{index}" if len(self.elements) > 1 else str(self.job)


def mark(submission: Submission, index: int | str) -> str:
    return f"done-{submission.token}-{index}"


class Alive:
    """The jobs of the queue by their submission's token: a script may have been submitted again by hand."""

    def __init__(self, queued: Sequence[Queued], cancelled: Set[str] = frozenset()) -> None:
        """Without those `cancelled`, which may take a while to save and end."""
        own = (one for one in queued if one.reason != NEVER and one.job not in cancelled)
        self._jobs = {(one.token, one.index): one for one in own}

    def find(self, submission: Submission, index: int) -> Queued | None:
        return self._jobs.get((submission.token, index if len(submission.elements) > 1 else None))


@dataclass(frozen=True)
class Made:
    """Which job makes something: an element of a submission."""

    submission: Submission
    index: int

    @property
    def job(self) -> str:
        return self.submission.element(self.index)

    def alive(self, jobs: Alive) -> Queued | None:
        return jobs.find(self.submission, self.index)

    @property
    def log(self) -> Path:
        return self.submission.log(self.index)


_FORM, _JOBS = TypeAdapter(Submission), TypeAdapter(list[str])


@dataclass
class Ledger:
    """All submissions of a store, in order."""

    file: Path
    submissions: dict[str, Submission] = field(default_factory=dict)
    cancelled: set[str] = field(default_factory=set)
    """Jobs."""

    @classmethod
    def of(cls, store: Path) -> Ledger:
        ledger, whole = cls(store / FOLDER / "ledger.jsonl"), True
        lines = ledger.file.read_bytes().split(b"\n") if ledger.file.exists() else []
        for number, line in enumerate(lines, 1):
            try:
                entry = json_of(line, old=b"{")
            except ValueError:
                if line and number < len(lines):  # a crash tears the last one: it was not submitted
                    print(f"{ledger.file}:{number}: damaged; the jobs it told of are not known", file=sys.stderr)
                    whole = False
                continue
            try:
                ledger._read(entry, whole)
            except (ValueError, TypeError, KeyError):
                raise UserError(
                    f"{ledger.file}:{number}: no line of a ledger, which says what jobs make; mend it or delete it"
                ) from None
        return ledger

    def _read(self, entry: dict[str, Any], whole: bool) -> None:
        """`whole`: all lines before it were."""
        if "cancelled" in entry:
            self.cancelled.update(_JOBS.validate_python(entry["cancelled"]))
        elif "job" in entry:
            (job,) = _JOBS.validate_python([entry["job"]])
            if whole or entry["token"] in self.submissions:
                self.submissions[entry["token"]].job = job
        else:
            told = _FORM.validate_python(entry)
            self.submissions[told.token] = told

    def intend(
        self, name: str, keys: Mapping[int, list[str]], folder: Path, after: str, group: str = "", **more: Any
    ) -> Submission:
        """Note that an array is about to be submitted; `group` and `more` as Submission has them."""
        token = uuid.uuid4().hex[:8]
        told = Submission(token, name, str(folder), dict(keys), after, group=group or token, **more)
        self.submissions[told.token] = told
        self._write({name: value for name, value in vars(told).items() if name != "job"})
        return told

    def submitted(self, submission: Submission, job: str) -> None:
        submission.job = job
        self._write({"token": submission.token, "job": job})

    def cancel(self, jobs: Sequence[str]) -> None:
        """Note that they are being ended."""
        self.cancelled.update(jobs)
        self._write({"cancelled": list(jobs)})

    def _write(self, entry: dict[str, Any]) -> None:
        make_folder(self.file.parent)
        new = not self.file.exists()
        with self.file.open("a") as file:
            file.write(f"\n{with_crc(json.dumps(entry))}")  # a torn line before it stays alone
            file.flush()
            os.fsync(file.fileno())
        if new:
            sync(self.file.parent)

    def adopt(self, queued: list[Queued]) -> None:
        """Give submissions that were cut off the job that bears their token."""
        cut = {told.token: told for told in self.submissions.values() if told.job is None}
        for one in queued:
            if one.token in cut:
                self.submitted(cut.pop(one.token), one.job.partition("_")[0])

    def makers(self) -> dict[str, list[Made]]:
        """By key, those of the last group that was to make it: several where its parts are."""
        found: dict[str, list[Made]] = {}
        for told in self.submissions.values():
            for index, keys in told.elements.items():
                for key in keys:
                    before = found.setdefault(key, [])
                    if before and before[-1].submission.group != told.group:
                        before.clear()
                    before.append(Made(told, index))
        return found

    def cut(self) -> set[str]:
        """Groups that were not submitted whole."""
        return {told.group for told in self.submissions.values() if told.job is None}

    def split(self, makers: Sequence[Made], alive: Alive) -> tuple[list[Queued], list[Made]]:
        """Of the jobs that are to make something which is not there: those that live, and those that died.

        A share of it leaves a mark when it is done, for the others may go on.
        """
        found = [(made, made.alive(alive)) for made in makers]
        dead = [made for made, job in found if job is None and mark(made.submission, made.index) not in self.marks]
        return [job for _, job in found if job], dead

    @cached_property
    def marks(self) -> set[str]:
        """Names of those that are there: one look at the folder, not one an element."""
        return {path.name for path in self.file.parent.glob("done-*")}

    def mark(self, submission: Submission, index: int) -> Path:
        """Made by the element itself when it has ended well."""
        return self.file.parent / mark(submission, index)


@contextmanager
def alone(store: Path) -> Iterator[None]:
    """One submission at a time."""
    make_folder(store / FOLDER)
    with locked(store / FOLDER / ".lock", f"{store}: another submission is under way; waiting"):
        yield
