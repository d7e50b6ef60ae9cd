"""Carry out a run: make what is missing, keep the run folder true, show the end."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

from src.experiment.chosen import chosen_of, wanted_of
from src.experiment.command import command
from src.experiment.graph import START
from src.experiment.links import LINKS, drop_stale_links
from src.experiment.point import Point
from src.experiment.preflight import check_early, check_keys, check_machine, check_settings, slow_bf16
from src.experiment.run import Run
from src.experiment.run_folder import is_reported, write_command
from src.generation.stage import Generate
from src.kernel.artifact import Node
from src.kernel.config import UserError
from src.kernel.disk import check_place, turn
from src.kernel.record import MARK
from src.kernel.store import Store, by_origin, repair, repair_inputs
from src.launch.folder import LOCK, RunFolder, opened, repeated, shown
from src.launch.inputs import await_all, await_inputs
from src.reporting.card import write_cards
from src.reporting.hub import check_push, push
from src.reporting.metrics_file import METRICS
from src.training.stage import Train


def execute(point: Point, alone: bool = False) -> Path:
    """Make every missing artifact of the run; returns the run folder, or with `only` that of the last artifact named.

    `alone`: what the named artifacts need must be there; without `only`, all of them.
    """
    with by_origin(point.nodes, Store(point.run.store)):
        return _execute(point, alone)


def _execute(point: Point, alone: bool) -> Path:
    run = point.run
    nodes, store = point.nodes, Store(run.store)
    chosen, wanted = chosen_of(run, nodes), wanted_of(run, nodes, alone)
    if alone and not chosen:
        await_all(nodes, store)
    check(point, alone)
    if chosen:
        return _make_alone(point, nodes, chosen, store) if alone else _make_only(point, nodes, wanted, store)
    folder = point.folder
    check_place("runs", folder)
    _check_store_is_there(run.store, folder)
    with turn(folder / LOCK, str(folder), "carrying out this run", ends=True):
        stale = drop_stale_links(nodes, store, folder)
        finished = not stale and _is_finished(point, store)
        if not finished:
            write_command(point, anew=stale)
        _repair_told(nodes, store, alone)
        with opened(point, store) as shown_folder:
            if finished and (folder / METRICS).exists():  # which may tell of more than this command asks for
                shown_folder.link_all()
                shown_folder.mirror.update()
            else:
                _make(shown_folder, nodes, store)
            shown_folder.report()
        push(run, nodes, store)
    return folder


def _check_store_is_there(store: Path, folder: Path) -> None:
    """Raises UserError where the run folder's artifacts are gone with their store: a disk may not be mounted."""
    links = [path for path in (folder / LINKS).rglob("*") if path.is_symlink()]
    if links and not (store / MARK).exists() and not any(link.exists() for link in links):
        raise UserError(f"store: {store} is no store, yet {folder} leads into it; mount it, or remove that folder")


def check(point: Point, alone: bool = False) -> None:
    """Raises UserError for what is known to end `execute`, before any work; says what is known to make it slow."""
    run, store = point.run, Store(point.run.store)
    if not run.only:
        check_push(run)
    if missing := [node for node in wanted_of(run, point.nodes, alone) if not store.has(node)]:
        check_settings(missing)
        check_keys(missing, store)
        check_machine(run, missing)
        for place in ("", ".locks", *sorted({node.stage.kind for node in missing})):
            check_place("store", run.store / place)
        if told := slow_bf16(run, missing):
            print(told, file=sys.stderr)


def _is_finished(point: Point, store: Store) -> bool:
    return all(store.has(node) for node in point.nodes) and is_reported(point)


def _repair_told(nodes: list[Node], store: Store, alone: bool) -> None:
    """What cards, metrics and reports are made of, which is all but weights."""
    for node in nodes:
        if store.has(node):
            repair(node, store, alone, weights=False)


def _make_only(point: Point, nodes: list[Node], wanted: list[Node], store: Store) -> Path:
    """The last of `wanted` and what it needs; with `part`, a share of its cells."""
    run, (*needed, target) = point.run, wanted
    for node in needed:
        _look_ahead(node, wanted, nodes, store)
        _make_one(run, node, store)
    _look_ahead(target, wanted, nodes, store)
    if run.part:
        _fill(run.part, target, store)
    else:
        if store.has(target):
            repair(target, store)
        _make_one(run, target, store)
        print(f"only: {store.path(target)}")
        for line in write_cards(run, nodes, store, command(point.overrides)):
            print(line)
    return store.path(target)


def _fill(part: str, node: Node, store: Store) -> None:
    """A share of its cells; whoever finds all of them there makes the artifact."""
    number, count = map(int, part.split("/"))
    if not store.has(node):
        repair_inputs(node, store, alone=True)
    if store.has(node) or store.fill(node, number - 1, count):
        print(f"only: {store.make(node)}")


def _make_alone(point: Point, nodes: list[Node], chosen: list[Node], store: Store) -> Path:
    """What is named, and nothing it needs: that is for other jobs. The run folder shows it, unless another shows it."""
    run, names = point.run, {node.key for node in chosen}
    parents = {parent.key: parent for node in chosen for parent in node.inputs if parent.key not in names}
    await_inputs(list(parents.values()), store)
    if run.part:
        _fill(run.part, chosen[0], store)
        return store.path(chosen[0])
    _repair_told(nodes, store, alone=True)
    with opened(point, store) as folder, shown(folder) as look:
        for node in chosen:
            if not store.has(node):
                folder.mirror.begin(node)
            with repeated(look):
                _make_one(run, node, store, alone=True)
            look()
            print(f"only: {store.path(node)}", flush=True)
    return store.path(chosen[-1])


def _make_one(run: Run, node: Node, store: Store, alone: bool = False) -> None:
    if not store.has(node):
        repair_inputs(node, store, alone)
    if isinstance(node.stage, Train) and not store.has(node):
        _check_memory(run, store.path(node.inputs[1]))
    store.make(node)
    _free_memory()


def _make(folder: RunFolder, nodes: list[Node], store: Store) -> None:
    run = folder.point.run
    missing = [node for node in nodes if not store.has(node)]
    start = next(node for node in nodes if node.name == START)
    trains = any(isinstance(node.stage, Train) and node is not start for node in missing)
    if trains and store.has(start):
        _check_memory(run, store.path(start))
    print(f"run: {folder.path}", flush=True)
    folder.show()
    for number, node in enumerate(missing, 1):
        print(f"[{number}/{len(missing)}] {node.name}", flush=True)
        folder.remove_report()
        folder.mirror.begin(node)
        with repeated(folder.update):
            repair_inputs(node, store)
            _look_ahead(node, missing, nodes, store)
            store.make(node)
        _free_memory()
        if trains and node is start:
            _check_memory(run, store.path(start))
        folder.show()


def _look_ahead(node: Node, wanted: list[Node], nodes: list[Node], store: Store) -> None:
    """Before the first of the answers that are wanted."""
    first = next((other for other in wanted if isinstance(other.stage, Generate) and not store.has(other)), None)
    if node is first:
        check_early(wanted, next(one for one in nodes if one.name == START), store)


def _free_memory() -> None:
    """Models of the finished stage, held by cycles, are not for the next one to share memory with."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _check_memory(run: Run, policy: Path) -> None:
    """Refuse a training that cannot fit before the hours that lead to it."""
    from src.training.memory import check_memory

    print(f"train: {check_memory(policy, run.train, run.hardware.devices)}", flush=True)
