"""What points cost, by the seconds of their artifacts' records, and what sharing saved."""

from __future__ import annotations

from typing import NamedTuple

from src.reporting.compare.artifacts import Artifact
from src.reporting.compare.gather import Folder
from src.reporting.compare.points import Comparison

FAMILIES = {
    "generate": ("own_responses", "responses"),
    "rank": ("ranking", "pairs"),
    "train": ("reference", "policy"),
}
"""By the name within an iteration; outside answers are generated, all that is left is evaluation or setup."""


class Cost(NamedTuple):
    """Of a run, in seconds of one device."""

    run: Folder
    by_family: dict[str, float]
    own: float
    """Of artifacts that no other run here has."""
    shared: float
    """Of artifacts that others have too, each in full."""
    part: float
    """Of those, divided by the runs that have them."""
    at_least: bool
    """Some artifact went on after a stop; its record has the time since then alone."""

    @property
    def alone(self) -> float:
        """Were nothing shared."""
        return self.own + self.shared


class Shared(NamedTuple):
    """Artifacts of one name that several runs have."""

    name: str
    kind: str
    artifacts: int
    runs: int
    """That have one of them."""
    seconds: float
    """Of a device, spent."""
    saved: float
    """Of a device, were each run to make its own."""


def costs(found: Comparison) -> list[Cost]:
    """In the order of the runs."""
    users = _users(found)
    return [_cost(run, users) for run in found.runs]


def _cost(run: Folder, users: dict[str, list[Folder]]) -> Cost:
    by_family = dict.fromkeys((*FAMILIES, "evaluate", "prepare"), 0.0)
    own = shared = part = 0.0
    for artifact in _each_once(run):
        seconds, count = artifact.device_seconds, len(users[_identity(artifact)])
        by_family[family(artifact.name)] += seconds
        part += seconds / count if count > 1 else 0.0
        own, shared = (own, shared + seconds) if count > 1 else (own + seconds, shared)
    resumed = any(artifact.record.get("resumed") for artifact in run.artifacts.values())
    return Cost(run, by_family, own, shared, part, resumed)


def family(name: str) -> str:
    """Of an artifact: generate, rank, train, evaluate or prepare."""
    head, _, stage = name.partition("/")
    if head in ("base", "null") and stage != "policy":
        return "evaluate"
    if not head.startswith("it") or stage == "prompts":
        return "prepare"
    if stage.startswith("outside_"):
        return "generate"
    return next((which for which, stages in FAMILIES.items() if stage in stages), "evaluate")


def shared(found: Comparison) -> list[Shared]:
    """What was saved most first."""
    users = _users(found)
    groups: dict[tuple[str, str], dict[str, Artifact]] = {}
    for run in found.runs:
        for artifact in _each_once(run):
            if len(users[_identity(artifact)]) > 1:
                groups.setdefault((artifact.name, artifact.kind), {})[_identity(artifact)] = artifact
    rows = [_shared(name, kind, artifacts, users) for (name, kind), artifacts in groups.items()]
    return sorted(rows, key=lambda row: (-row.saved, row.name))


def _shared(name: str, kind: str, artifacts: dict[str, Artifact], users: dict[str, list[Folder]]) -> Shared:
    counts = {identity: len(users[identity]) for identity in artifacts}
    seconds = {identity: artifact.device_seconds for identity, artifact in artifacts.items()}
    saved = sum(seconds[identity] * (count - 1) for identity, count in counts.items())
    return Shared(name, kind, len(artifacts), sum(counts.values()), sum(seconds.values()), saved)


def spent(found: Comparison) -> float:
    """Seconds of a device for all artifacts, each once."""
    once = {_identity(artifact): artifact for run in found.runs for artifact in run.artifacts.values()}
    return sum(artifact.device_seconds for artifact in once.values())


def _users(found: Comparison) -> dict[str, list[Folder]]:
    """Artifact -> runs that have it."""
    users: dict[str, list[Folder]] = {}
    for run in found.runs:
        for artifact in _each_once(run):
            users.setdefault(_identity(artifact), []).append(run)
    return users


def _each_once(run: Folder) -> list[Artifact]:
    """One that has two names in a run was made once."""
    return list({_identity(artifact): artifact for artifact in run.artifacts.values()}.values())


def _identity(artifact: Artifact) -> str:
    return f"{artifact.kind}/{artifact.key}"
