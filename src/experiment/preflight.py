"""Checks before any work, and before the first answer: stages say what they need, whom they ask and what must fail."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from src.experiment.point import Point
from src.experiment.run import Run
from src.experiment.run_folder import check_same
from src.kernel.artifact import Asking, Computing, Foreseeing, Node, Refusing, Requiring
from src.kernel.config import UserError
from src.kernel.disk import check_path, check_place
from src.kernel.record import damage
from src.kernel.store import Store
from src.modeling.checkpoints import PublishedModel
from src.modeling.endpoint import OPENAI, Endpoint

CPUINFO = Path("/proc/cpuinfo")


def check_paths(point: Point) -> None:
    """Raise UserError where the paths of store or run folder can lead to none, or one of them lies in the other."""
    run = point.run
    check_path("store", run.store)
    check_path("runs", point.folder)
    store, runs = run.store.resolve(), run.runs.resolve()
    if store.is_relative_to(runs) or runs.is_relative_to(store):
        raise UserError(f"runs: {run.runs} and the store {run.store} lie in each other; give each a folder of its own")


def check_places(nodes: Sequence[Node], store: Store, folders: Iterable[Path]) -> None:
    """Raise UserError where run folders, or for `nodes` the store, cannot be written."""
    for place in ("", ".locks", *sorted({node.stage.kind for node in nodes})) if nodes else ():
        check_place("store", store.root / place)
    for folder in folders:
        check_place("runs", folder)


def check_settings(nodes: Iterable[Node]) -> None:
    """Let stages refuse settings with which they would fail. Raises UserError."""
    for node in nodes:
        if isinstance(node.stage, Refusing):
            node.stage.check(node)


def check_here(nodes: Iterable[Node]) -> None:
    """Let stages refuse a machine that lacks what they want. Raises UserError."""
    for node in nodes:
        if isinstance(node.stage, Requiring):
            node.stage.check_here()


def check_keys(nodes: Iterable[Node], store: Store) -> None:
    """Raise UserError where `nodes` ask OpenAI's own servers without a key, or the environment cannot be used.

    Nodes that find replies in the store are passed over: it may have all that they need.
    """
    for key, endpoint, _ in _requests(node for node in nodes if not _has_replies(node, store)):
        endpoint.check_environment()
        if endpoint.host == OPENAI and not os.environ.get("OPENAI_API_KEY", "").strip():
            asked = f"{key}.model {endpoint.model} is asked at {OPENAI}"
            raise UserError(f"OPENAI_API_KEY: not set, and {asked}; set it, or {key}.base_url for another server")


def check_machine(run: Run, nodes: Sequence[Node]) -> None:
    """Raise UserError where `nodes` need CUDA devices that are not visible, or packages that are not there.

    Prints a line where the processor multiplies bf16 several times slower than fp32.
    """
    check_here(nodes)
    needs = [node.stage.takes() for node in nodes if isinstance(node.stage, Computing)]
    if cuda := [need for need in needs if need.cuda]:
        import torch

        present = torch.cuda.device_count()
        if short := next((need for need in cuda if need.per_node > present), None):
            message = f"{short.key}: {short.per_node} per node, but {present} CUDA devices are visible"
            raise UserError(f"{message}; lower it, or choose the hardware of this machine, such as hardware=cpu")
    if needs and (line := slow_bf16(run)):
        print(line, file=sys.stderr)


def slow_bf16(run: Run) -> str:
    """Return a line where the processor multiplies bf16 several times slower than fp32; else nothing."""
    devices = run.hardware.devices
    if (devices.device, devices.precision) == ("cpu", "bfloat16") and CPUINFO.exists():
        flags = set(CPUINFO.read_text().split())
        if "flags" in flags and not flags & {"avx512_bf16", "amx_bf16"}:  # other architectures name them otherwise
            return "hardware: this processor has no bf16 instructions; hardware=cpu_fp32 is several times faster"
    return ""


def look_ahead(nodes: Iterable[Node], start: Node, store: Store) -> list[str]:
    """Ask stages that are to run what they foresee of the models and prompts that are there; return their lines.

    `start`: the start policy. Raises UserError, before the first answer, for what would end the run after it was
    sampled.
    """

    def place(node: Node) -> Path | None:
        there = store.has(node) and not damage(store.path(node), weights=False)  # what is damaged is made again
        return store.path(node) if there else node.stage.here() if isinstance(node.stage, PublishedModel) else None

    foreseeing = ((node.stage, tuple(map(place, node.inputs))) for node in nodes if isinstance(node.stage, Foreseeing))
    cases = {(repr(stage), inputs): stage for stage, inputs in foreseeing}  # most iterations have the same
    lines = [stage.foresee(inputs, place(start)) for (_, inputs), stage in cases.items()]
    return list(dict.fromkeys(filter(None, lines)))


def remarks(nodes: Sequence[Node], store: Store, queued: bool = False, points: Sequence[Point] = ()) -> list[str]:
    """Return the lines of a plan about requests to servers and about refusals.

    `nodes`: what the plan makes. `queued`: jobs make it, whose environment may have what this one lacks. `points`:
    whose run folders are looked at.
    """
    counts: dict[tuple[str, str], list[int]] = {}
    for _, endpoint, most in _requests(nodes):
        counts.setdefault((endpoint.model, endpoint.host), []).append(most)
    lines = []
    for (model, host), requests in counts.items():
        unknown = "" if all(requests) else ", and some whose number is not known"
        lines.append(f"asks {model} at {host}: at most {sum(requests):,} requests{unknown}")
    unless = "refused by its jobs, unless they have it" if queued else "refused as it is"
    for prefix, check in (
        ("refused as it is", lambda: check_settings(nodes)),
        ("refused as it is", lambda: check_places(nodes, store, [point.folder for point in points])),
        ("refused as it is", lambda: check_same(points)),
        ("refused as it is, here", lambda: check_here(nodes)),
        (unless, lambda: check_keys(nodes, store)),
    ):
        try:
            check()
        except UserError as error:
            lines.append(f"{prefix}: {error}")
    if nodes and not queued:
        lines += sorted({line for point in points if (line := slow_bf16(point.run))})
    return lines


def _requests(nodes: Iterable[Node]) -> Iterator[tuple[str, Endpoint, int]]:
    """Yield the key of an endpoint in the config, the endpoint, and the most requests to it; 0: not known."""
    for node in nodes:
        if isinstance(node.stage, Asking) and (endpoint := node.stage.asks()):
            yield *endpoint, int(node.work or 0)


def _has_replies(node: Node, store: Store) -> bool:
    """Say whether the store keeps replies of the node's server."""
    cells = store.cells(node)
    if node.job == "judging" and not all(store.has(parent) for parent in node.inputs):
        return False  # its replies are shared by all policies, and this one has not answered yet
    return cells is not None and any(path.stat().st_size for path in cells.glob("*.jsonl"))
