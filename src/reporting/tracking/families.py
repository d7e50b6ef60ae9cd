"""Families of stages: each has a W&B run of its own in a run folder."""

from __future__ import annotations

import re
from collections.abc import Iterable

from src.evaluation.benchmark import of_benchmark
from src.kernel.artifact import Node, fingerprint_hash

FAMILIES = ("generate", "rank", "train", "evaluate")
TRIAL = "trial"
"""All of them: a trial of a W&B sweep is one W&B run."""
_SAMPLED = re.compile(r"prompts|responses|own_responses|outside_.*")


def family_of(name: str) -> str | None:
    """Of the artifact that a run shows as `it2/pairs`; None for what comes before all iterations.

    A benchmark is a family of its own: it may be asked for after iterations that come later.
    """
    place, _, stage = name.partition("/")
    if "/" in stage and place in ("base", "null") or re.fullmatch(r"it\d+/.*/.*", name):
        return stage.partition("/")[0]
    if place in ("base", "null"):
        return "evaluate" if stage.startswith("answers") else None
    if not re.fullmatch(r"it\d+", place):
        return None
    if _SAMPLED.fullmatch(stage):
        return "generate"
    if stage in ("ranking", "pairs"):
        return "rank"
    return "train" if stage in ("reference", "policy") else "evaluate"


def job_type_of(family: str) -> str:
    """What W&B is told that a family does; a benchmark evaluates."""
    return family if family in (*FAMILIES, TRIAL) else "evaluate"


def label(node: Node) -> str:
    """What an artifact is at W&B, whatever runs call it."""
    return f"{node.stage.kind}:{node.key}"


def nodes_of(family: str, nodes: Iterable[Node]) -> list[Node]:
    """Those of a family; of TRIAL, those of any."""
    return [node for node in nodes if (found := family_of(node.name)) and family in (found, TRIAL)]


def experiment_of(nodes: Iterable[Node]) -> str:
    """8 hex digits of the first iteration, whose keys more iterations leave as they are; else of the start policy."""
    told = list(nodes)
    first = [node.key for node in told if node.name.startswith("it1/") and not of_benchmark(node.name)]
    return fingerprint_hash(first or [node.key for node in told if node.name == "base/policy"])[:8]
