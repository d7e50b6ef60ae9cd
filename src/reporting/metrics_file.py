"""`metrics.jsonl` of a run folder: a row a training step and one an artifact, rebuilt from the artifacts each time."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from src.evaluation.benchmark import SCORES
from src.kernel.artifact import Node
from src.kernel.disk import write_atomic
from src.kernel.rows import Row
from src.kernel.store import Store

METRICS = "metrics.jsonl"


class Metrics(NamedTuple):
    """A row, and the artifact that it is of."""

    node: Node
    row: Row


def write_metrics(nodes: list[Node], store: Store, folder: Path) -> None:
    """Rebuild `metrics.jsonl` from the artifacts up to the first missing one, and the steps that one has made so far.

    Rows are only ever added at the end, but for one case: after a kill, steps beyond the last checkpoint are gone until
    they are made again.
    """
    rows = [row for _, row in rows_of(in_order(nodes), store)]
    write_atomic(folder / METRICS, "".join(json.dumps(row) + "\n" for row in rows).encode())


def in_order(nodes: Sequence[Node]) -> list[Node]:
    """Put what reads nothing, such as prompts, before its first reader: then a further iteration only adds rows."""
    ordered, sources = list[Node](), {node.key: node for node in nodes if not node.inputs}
    for node in nodes:
        if node.inputs:
            ordered += [sources.pop(parent.key) for parent in node.inputs if parent.key in sources]
            ordered.append(node)
    return [*ordered, *sources.values()]


def rows_of(nodes: Iterable[Node], store: Store) -> list[Metrics]:
    """Read the rows of the nodes up to the first that is missing, and the steps that one has made so far."""
    rows: list[Metrics] = []
    for node in nodes:
        finished = store.has(node)
        folder = store.path(node) if finished else store.work(node)
        rows += [Metrics(node, row) for row in metric_rows(node, folder)] if folder else []
        if not finished:
            break
    return rows


def prefix_of(node: Node) -> str:
    """What the keys of its metrics begin with: `pairs` of `it2/pairs`, `ifeval` of `base/ifeval/scores`."""
    _, benchmark, stage = node.place
    return "/".join(filter(None, (benchmark, stage if stage != SCORES else "")))


def metric_rows(node: Node, folder: Path) -> list[Row]:
    """Read the numbers in the folder of an artifact: a row a training step, or one row.

    Keys are `<stage>/<metric>`, beside `iteration` and `artifact` (`<kind>/<key>`, its place in the store). Those of a
    benchmark are `<its name>/<metric>`; the start policy is iteration 0.
    """
    if node.place.iteration is None or (node.place.iteration == 0 and not node.place.benchmark):
        return []
    head = {"iteration": node.place.iteration, "artifact": f"{node.stage.kind}/{node.key}"}
    steps, single = folder / METRICS, folder / "metrics.json"
    if steps.exists():
        return [head | {f"train/{key}": value for key, value in entry.items()} for entry in _entries(steps)]
    if single.exists():
        return [head | {f"{prefix_of(node)}/{key}": value for key, value in json.loads(single.read_text()).items()}]
    return []


_warned: set[Path] = set()


def _entries(steps: Path) -> list[Row]:
    """Read the steps of a training, one under way too; damaged lines are left out, which is said once."""
    entries, damaged = list[Row](), 0
    for line in steps.read_bytes().splitlines():
        try:
            entries.append(dict(json.loads(line)))
        except (ValueError, TypeError, RecursionError):
            damaged += 1
    if damaged and steps not in _warned:
        _warned.add(steps)
        print(f"{steps}: {damaged} damaged lines, which are left out", file=sys.stderr, flush=True)
    return entries
