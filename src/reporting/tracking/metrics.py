"""Metrics: `metrics.jsonl` of a run is rebuilt from its artifacts."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from src.evaluation.benchmark import SCORES
from src.kernel.artifact import Node
from src.kernel.disk import write_atomic
from src.kernel.rows import Row
from src.kernel.store import Store

METRICS = "metrics.jsonl"
ITERATION = re.compile(r"it\d+")


class Shown(NamedTuple):
    """A row, and the artifact that it is of."""

    node: Node
    row: Row


def write_metrics(nodes: list[Node], store: Store, folder: Path) -> None:
    """Rebuild `metrics.jsonl` from the artifacts up to the first missing one, and the steps that one has made so far.

    After a kill, steps beyond the last checkpoint are gone until they are made again; else rows are only added.
    """
    rows = [row for _, row in rows_of(nodes, store)]
    write_atomic(folder / METRICS, "".join(json.dumps(row) + "\n" for row in rows).encode())


def rows_of(nodes: Iterable[Node], store: Store) -> list[Shown]:
    """Rows of the nodes up to the first that is missing, and the steps that one has made so far."""
    found: list[Shown] = []
    for node in _as_read(nodes):
        finished = store.has(node)
        place = store.path(node) if finished else store.work(node)
        found += [Shown(node, row) for row in metric_rows(node, place)] if place else []
        if not finished:
            break
    return found


def _as_read(nodes: Iterable[Node]) -> Iterator[Node]:
    """What reads nothing, such as prompts, before its first reader: a further iteration only adds rows."""
    told = list(nodes)
    sources = {node.key: node for node in told if not node.inputs}
    for node in told:
        if node.inputs:
            read = (sources.pop(parent.key, None) for parent in node.inputs)
            yield from (source for source in read if source)
            yield node
    yield from sources.values()


def prefix_of(node: Node) -> str:
    """What the keys of its metrics begin with: `pairs` of `it2/pairs`, `ifeval` of `base/ifeval/scores`."""
    return node.name.partition("/")[2].removesuffix(f"/{SCORES}")


def metric_rows(node: Node, folder: Path) -> list[Row]:
    """The numbers in the folder of an artifact: a row a training step, or one row.

    Keys are `<stage>/<metric>`, beside `iteration` and `artifact` (`<kind>/<key>`, its place in the store). Those of a
    benchmark are `<its name>/<metric>`; the start policy is iteration 0.
    """
    iteration, _, stage = node.name.partition("/")
    if not ITERATION.fullmatch(iteration) and not (iteration == "base" and "/" in stage):
        return []
    t = 0 if iteration == "base" else int(iteration.removeprefix("it"))
    stage, head = prefix_of(node), {"iteration": t, "artifact": f"{node.stage.kind}/{node.key}"}
    steps, single = folder / METRICS, folder / "metrics.json"
    if steps.exists():
        return [head | {f"train/{key}": value for key, value in entry.items()} for entry in _entries(steps)]
    if single.exists():
        return [head | {f"{stage}/{key}": value for key, value in json.loads(single.read_text()).items()}]
    return []


_told: set[Path] = set()


def _entries(steps: Path) -> list[Row]:
    """Of a training under way too, whose file has no record yet; damaged lines are left out, and told once."""
    found, damaged = list[Row](), 0
    for line in steps.read_bytes().splitlines():
        try:
            found.append(dict(json.loads(line)))
        except (ValueError, TypeError, RecursionError):
            damaged += 1
    if damaged and steps not in _told:
        _told.add(steps)
        print(f"{steps}: {damaged} damaged lines, which are left out", file=sys.stderr, flush=True)
    return found
