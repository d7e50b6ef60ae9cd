"""A SLURM that is made up: it takes everything, and the test says what became of it."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tiny_run import typed

from src.artifact import Node
from src.launcher import Point
from src.slurm import client
from src.slurm.client import Limits, Queued
from src.slurm.ledger import Ledger
from src.slurm.submit import REST, Plan, Wish, plan, submit
from src.sweep import Sweep

ROOMY = Limits(1001, None)


class Slurm:
    """A queue whose jobs end when the test says so."""

    def __init__(self, place: Path, monkeypatch: pytest.MonkeyPatch, iterations: int = 1, points: int = 3) -> None:
        self.place, self.numbers = place, itertools.count(100)
        self.iterations, self.etas = iterations, range(1, points + 1)
        self.tokens: dict[str, str] = {}
        self.alive: set[str] = set()
        self.crashes_at, self.crashes_late = "nothing", False
        """The command dies at an array of this name: before SLURM hears of it, or after."""
        monkeypatch.setattr(client, "slurm", self._slurm)

    def _slurm(self, *words: str) -> str:
        if words[0] == "squeue":
            rows = [(one, "N/A" if one.index is None else one.index) for one in self.queue()]
            return "".join(f"{q.job.partition('_')[0]}|{index}|{q.state}|None|{q.token}\n" for q, index in rows)
        if words[0] == "scancel":
            self.alive -= set(words[1:])
            return ""
        if self.crashes_at in words[-1] and not self.crashes_late:
            raise KeyboardInterrupt
        job, token = str(next(self.numbers)), words[-1].rpartition("-")[2].partition(".")[0]
        (told,) = [one for one in self.ledger.submissions.values() if one.token == token]
        self.alive |= {f"{job}_{index}" if len(told.elements) > 1 else job for index in told.elements}
        self.tokens[job] = token
        if self.crashes_at in words[-1]:
            raise KeyboardInterrupt
        return job

    @property
    def ledger(self) -> Ledger:
        return Ledger.of(self.place / "store")

    def queue(self) -> list[Queued]:
        return [Queued(job, "PENDING", "None", self.tokens[job.partition("_")[0]]) for job in sorted(self.alive)]

    def sweep(self) -> Sweep:
        run: Any = typed(
            f"iter={self.iterations}", f"store={self.place}/store", f"runs={self.place}/runs", "launcher=slurm"
        )
        method = [dataclasses.replace(run.method, eta=float(eta)) for eta in self.etas]
        runs = [dataclasses.replace(run, method=one) for one in method]
        return Sweep([Point(one, [f"method.eta={i}"], lambda: pytest.fail("composed")) for i, one in enumerate(runs)])

    def plan(self, again: bool = True, only_failed: bool = False, limits: Limits = ROOMY, parts: int = 2) -> Plan:
        return plan(self.sweep(), self.ledger, Wish(parts, again, only_failed), self.queue(), limits)

    def submit(self, planned: Plan) -> list[str]:
        """Names of what went into the queue."""
        launcher: Any = planned.sweep.points[0].run.launcher
        before = len(self.ledger.submissions)
        submit(planned, self.ledger, launcher._jobs(), ["-m", "x"])
        return [told.name for told in list(self.ledger.submissions.values())[before:] if told.job]

    def end(self, *failing: str) -> None:
        """All that is queued ends: well, but for the named and those that need what they would have made."""
        sweep, ended = self.sweep(), self.alive
        told = [one for one in self.ledger.submissions.values() if one.name != REST]
        made = Counter(k for one in told for i, keys in one.elements.items() for k in keys if one.element(i) in ended)
        wanted = Counter(k for one in told for keys in one.elements.values() for k in keys)
        for one in told:
            for index in one.elements:
                if one.name not in failing and one.element(index) in ended and "generation" in one.name:
                    self.ledger.mark(one, index).touch()
        bad = {key for one in told if one.name in failing for keys in one.elements.values() for key in keys}
        for nodes in sweep.nodes:
            for node in nodes:
                parts = 2 if node.job == "generation" else 1
                there = all(sweep.store.has(parent) for parent in node.inputs)
                if made[node.key] >= parts and wanted and there and node.key not in bad:
                    finish(sweep, node)
        self.alive = set()


def finish(sweep: Sweep, node: Node) -> None:
    sweep.store.path(node).mkdir(parents=True, exist_ok=True)
    (sweep.store.path(node) / "record.json").touch()


def sizes(planned: Plan) -> dict[str, int]:
    return {array.name: len(array.elements) for array in planned.arrays}


ALL = {"start-setup": 1, "base-evaluation": 1, "it1-generation": 2, "null-evaluation": 1, "it1-ranking": 1}
ALL |= {"it1-reference": 1, "it1-training": 3, "it1-evaluation": 3, "report": 3}
