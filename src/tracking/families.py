"""Families of stages: each has a W&B run of its own in a run folder."""

from __future__ import annotations

import re
from collections.abc import Iterable

from src.artifact import Node, fingerprint_hash

FAMILIES = ("generate", "rank", "train", "evaluate")
TRIAL = "trial"
"""All of them: a trial of a W&B sweep is one W&B run."""
_SAMPLED = re.compile(r"prompts|responses|own_responses|outside_.*")


def family_of(name: str) -> str | None:
    """Of the artifact that a run shows as `it2/pairs`; None for what comes before all iterations."""
    place, _, stage = name.partition("/")
    if place in ("base", "null"):
        return None if stage == "policy" else "evaluate"
    if not re.fullmatch(r"it\d+", place):
        return None
    if _SAMPLED.fullmatch(stage):
        return "generate"
    if stage in ("ranking", "pairs"):
        return "rank"
    return "train" if stage in ("reference", "policy") else "evaluate"


def label(node: Node) -> str:
    """What an artifact is at W&B, whatever runs call it."""
    return f"{node.stage.kind}:{node.key}"


def nodes_of(family: str, nodes: Iterable[Node]) -> list[Node]:
    """Those of a family; of TRIAL, those of any."""
    return [node for node in nodes if (found := family_of(node.name)) and family in (found, TRIAL)]


def experiment_of(nodes: Iterable[Node]) -> str:
    """8 hex digits of the first iteration, whose keys more iterations leave as they are."""
    return fingerprint_hash([node.key for node in nodes if node.name.startswith("it1/")])[:8]
