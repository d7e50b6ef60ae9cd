"""Stages, and the nodes of the graph that a run makes: each is an artifact under the hash of what makes it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

from src.kernel.config import fingerprint

WORK = "work"


Job = Literal["setup", "generation", "ranking", "reference", "training", "evaluation", "judging", "report"]


@runtime_checkable
class Stage(Protocol):
    """A frozen config that is also the function it configures: reads finished folders, writes one."""

    kind: ClassVar[str]
    """Folder of the store; stages that write the same kind of rows share it."""
    version: ClassVar[int] = 1
    """Raised when the code changes results that the config does not show."""
    resumable: ClassVar[bool] = False
    """True: finds its own progress in the folder WORK of `out` after a crash. False: starts from an empty folder."""

    def __call__(self, *inputs: Path, out: Path) -> None: ...


@runtime_checkable
class Sharing(Protocol):
    """A stage whose artifacts have parts in common, kept in the folder `work/cells` (src/kernel/cells.py) of each."""

    def shared(self) -> Any:
        """Return a JSON-able value: artifacts with equal ones, and equal inputs but for the first, share cells."""


@runtime_checkable
class Divisible(Sharing, Protocol):
    """A stage whose cells can be made in parts, by processes that know nothing of each other."""

    def fill(self, *inputs: Path, out: Path, part: int, parts: int) -> bool:
        """Make the missing cells of one part (from 0) of the artifact `out`; True when those of all parts are there."""
        ...


class Takes(NamedTuple):
    """The devices that a stage computes on."""

    key: str
    """The key of the config that says how many."""
    devices: int = 1
    """Their number in all."""
    per_node: int = 1
    cuda: bool = True


@runtime_checkable
class Computing(Protocol):
    """A stage that computes on devices."""

    def takes(self) -> Takes: ...


@runtime_checkable
class Requiring(Protocol):
    """A stage that wants more of a machine than Python and devices."""

    def check_here(self) -> None:
        """Raise UserError where this machine lacks it. A plan asks too, so torch is not imported."""


@runtime_checkable
class Refusing(Protocol):
    """A stage that knows before any work what would end it."""

    def check(self, node: Node) -> None:
        """Raise UserError for what is known to fail; `node` is the stage's own, with its inputs and its work."""


@runtime_checkable
class Foreseeing(Protocol):
    """A stage that knows more of how it will go once models and prompts are there, before anything is sampled."""

    def foresee(self, inputs: Sequence[Path | None], start: Path | None) -> str:
        """Return a line for the user, such as the memory that it will take, or nothing.

        `inputs`: the folders that it reads, None for one that is not there yet. `start`: the start policy, from which a
        policy that is not made yet is trained; None where that is not there. Raises UserError for what would end the
        stage.
        """
        ...


@runtime_checkable
class Asking(Protocol):
    """A stage that may ask a server about as often as its work says."""

    def asks(self) -> tuple[str, Any] | None:
        """Return the endpoint's key in the config, and the endpoint; None where no server is asked."""


class Place(NamedTuple):
    """The parts of an artifact's name: `it2/pairs`, `it2/ifeval/scores` or `ifeval/questions`."""

    scope: str
    """`base`, `null`, `held_out`, `ranker` or `it<t>`; of what all policies of a benchmark share, its name."""
    benchmark: str | None
    stage: str
    """The rest of the name."""

    @property
    def iteration(self) -> int | None:
        """The iteration t; 0 for the start policy, None for what belongs to no policy."""
        if self.scope == "base":
            return 0
        return int(self.scope[2:]) if re.fullmatch(r"it\d+", self.scope) else None


def place_of(name: str) -> Place:
    """Return the parts of the name of an artifact."""
    if match := re.fullmatch(r"(held_out|base|null|ranker|it\d+)/(?:(?<!held_out/)([^/]*)/)?(.*)", name):
        return Place(*match.groups())
    scope, _, stage = name.partition("/")
    return Place(scope, scope, stage)


@dataclasses.dataclass(frozen=True, eq=False)
class Node:
    """One artifact of a plan: the stage that makes it and the nodes it reads."""

    name: str
    """Its name in a run, such as `it2/pairs`."""
    stage: Stage
    inputs: tuple[Node, ...] = ()
    rows: int = 0
    """Expected number of rows; 0 for what has none."""
    work: int | None = 0
    """Expected amount of work in the stage's own unit (answers, pairs …); None: unknown, 0: takes seconds."""
    workload: str = ""
    """Kind of work, model and hardware, on which the cost of a unit of work depends. For forecasts."""
    job: Job = "setup"
    """The kind of machine it wants, where a launcher gives each kind its own jobs."""

    @cached_property
    def place(self) -> Place:
        return place_of(self.name)

    @cached_property
    def key(self) -> str:
        """The artifact's key, 20 hex digits: hash of stage, version, result-changing config and keys of the inputs."""
        parts = {"kind": self.stage.kind, "version": self.stage.version, "config": fingerprint(self.stage)}
        return fingerprint_hash(parts | {"inputs": [node.key for node in self.inputs]})[:20]


def with_ancestors(*nodes: Node) -> list[Node]:
    """Return the nodes and all they need, each once and after everything it reads."""
    collected: dict[str, Node] = {}

    def collect(nodes: Iterable[Node]) -> None:
        for node in nodes:
            if node.key not in collected:
                collect(node.inputs)
                collected[node.key] = node

    collect(nodes)
    return list(collected.values())


def fingerprint_hash(value: Any) -> str:
    """Return the sha256 of a JSON-able value, the same on every machine."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
