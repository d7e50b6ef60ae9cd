"""`metrics.jsonl` of a run folder: one row per training step and per artifact, rebuilt from the artifacts each time."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from src.evaluation.benchmark import SCORES
from src.kernel.artifact import Node
from src.kernel.disk import write_atomic
from src.kernel.rows import Row, read_metrics
from src.kernel.store import Store

METRICS = "metrics.jsonl"


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


def rows_of(nodes: Iterable[Node], store: Store) -> list[tuple[Node, Row]]:
    """Read the rows of the nodes up to the first that is missing, and the steps that one has made so far."""
    rows: list[tuple[Node, Row]] = []
    for node in nodes:
        finished = store.has(node)
        if folder := store.path(node) if finished else store.work(node):
            rows += [(node, row) for row in _rows(node, folder)]
        if not finished:
            break
    return rows


def prefix_of(node: Node) -> str:
    """Return what the keys of its metrics begin with: `pairs` of `it2/pairs`, `ifeval` of `base/ifeval/scores`."""
    _, benchmark, stage = node.place
    return "/".join(filter(None, (benchmark, stage if stage != SCORES else "")))


def _rows(node: Node, folder: Path) -> Iterator[Row]:
    """Yield the numbers in the folder of an artifact: a row a training step, or one row.

    Keys are `<stage>/<metric>`, beside `iteration` and `artifact` (`<kind>/<key>`, its place in the store). Those of a
    benchmark are `<its name>/<metric>`; the start policy is iteration 0.
    """
    if node.place.iteration is None or (node.place.iteration == 0 and not node.place.benchmark):
        return
    head = {"iteration": node.place.iteration, "artifact": f"{node.stage.kind}/{node.key}"}
    steps, single = folder / METRICS, folder / "metrics.json"
    if steps.exists():
        for line in steps.read_bytes().splitlines():
            # the last line of a training under way may be half written
            with suppress(AttributeError, RecursionError, ValueError):
                yield head | {f"train/{key}": value for key, value in json.loads(line).items()}
    elif single.exists():
        numbers = read_metrics(folder).items()
        yield head | {f"{prefix_of(node)}/{key.removeprefix('answers/')}": value for key, value in numbers}
