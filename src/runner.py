"""Carry out a run: make what is missing, keep the run folder true, show the end."""

from __future__ import annotations

import gc
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import yaml

from src.artifact import Divisible, Node, Store, fingerprint_hash, with_ancestors, write_atomic
from src.attempts import turn, turn_if_free
from src.card.push import check_push, push
from src.card.write import write_cards
from src.command import command
from src.config import REHEARSAL, UserError, fingerprint
from src.inputs import await_all, await_inputs
from src.launcher import Point
from src.links import drop_stale_links, link
from src.machine import check_machine
from src.pipeline import START, Run
from src.refusals import check_keys, check_settings
from src.tracking.metrics import METRICS, write_metrics
from src.tracking.mirror import Mirror
from src.training.stage import Train

COMMAND = "command.txt"
LOCK = ".lock"
WATCH_S = 10.0
"""Between two looks at the steps of a training that is under way."""


def run_name(run: Run) -> str:
    """The run folder's name: never a time of day, and the same for every `iter` but 0, which trains nothing."""
    model = f"{REHEARSAL}-{run.model.name}" if run.rehearsed else run.model.name
    model = model if run.iter else f"start-{model}"
    return run.name or f"{model}-{run.method.name}-s{run.seed}-{fingerprint_hash(fingerprint(run))[:6]}"


def execute(point: Point, alone: bool = False) -> Path:
    """Make every missing artifact of the run; returns the run folder, or with `only` that of the last artifact named.

    `alone`: what the named artifacts need must be there; without `only`, all of them.
    """
    run = point.run
    nodes, store = point.nodes, Store(run.store)
    chosen, wanted = _chosen(run, nodes), wanted_of(run, nodes, alone)
    if alone and not chosen:
        await_all(nodes, store)
    check(point, alone)
    if chosen:
        return _make_alone(point, nodes, chosen, store) if alone else _make_only(point, nodes, wanted, store)
    folder = point.folder
    _check_place("runs", folder)
    with turn(folder / LOCK, str(folder), "carrying out this run", ends=True):
        stale = drop_stale_links(nodes, store, folder)
        finished = not stale and _is_finished(point, store)
        if not finished:
            if stale or _read(folder / "config.yaml") != point.settings:
                (folder / "report.md").unlink(missing_ok=True)
            _write_command(point)
        with _mirrored(point) as mirror:
            if finished and (folder / METRICS).exists():  # which may tell of more than this command asks for
                _link_all(run, nodes, store, folder)
                mirror.update()
            else:
                _make(point, nodes, store, mirror)
            _report(run, nodes, store, folder)
            mirror.report()
        push(run, nodes, store)
    return folder


def check(point: Point, alone: bool = False) -> None:
    """Raises UserError for what is known to end `execute`, before any work."""
    run, store = point.run, Store(point.run.store)
    if not run.only:
        check_push(run)
    if missing := [node for node in wanted_of(run, point.nodes, alone) if not store.has(node)]:
        check_settings(missing)
        check_keys(missing, store)
        check_machine(run, missing)
        _check_place("store", run.store)


def wanted_of(run: Run, nodes: list[Node], alone: bool = False) -> list[Node]:
    """What `only` names and, unless `alone`, what that needs; without `only` all."""
    chosen = _chosen(run, nodes)
    return nodes if not chosen else chosen if alone else with_ancestors(*chosen)


def _write_command(point: Point) -> None:
    write_atomic(point.folder / "config.yaml", point.settings.encode())
    write_atomic(point.folder / COMMAND, f"{command(point.overrides)}\n".encode())


def _is_finished(point: Point, store: Store) -> bool:
    return all(store.has(node) for node in point.nodes) and is_reported(point)


def is_reported(point: Point) -> bool:
    """The report in its folder is of what it asks for: iterations and benchmarks, not hardware, say."""
    folder = point.folder
    settings, written = _read(folder / "config.yaml"), (folder / "report.md").exists() and (folder / COMMAND).exists()
    if settings is None or not written:
        return False
    try:
        told = yaml.safe_load(settings)
    except yaml.YAMLError:
        return False
    if not isinstance(told, dict):
        return False
    wanted, reported = ((one.get("benchmark") or {}).items() for one in (point.container, told))
    return told.get("iter") == point.run.iter and all(item in reported for item in wanted)


def _chosen(run: Run, nodes: list[Node]) -> list[Node]:
    """What `only` names. Raises UserError where there is no such artifact, or `part` has no meaning for it."""
    by_name = {node.name: node for node in nodes}
    for name in run.wanted:
        if name not in by_name:
            raise UserError(f"only: no artifact is called {name}; there are {', '.join(by_name)}")
        if run.part and not isinstance(by_name[name].stage, Divisible):
            parted = ", ".join(node.name for node in nodes if isinstance(node.stage, Divisible))
            raise UserError(f"part: {name} is made as a whole; made in parts are {parted}")
    return [node for node in nodes if node.name in run.wanted]


def _make_only(point: Point, nodes: list[Node], wanted: list[Node], store: Store) -> Path:
    """The last of `wanted` and what it needs; with `part`, a share of its cells."""
    run, (*needed, target) = point.run, wanted
    for node in needed:
        _make_one(run, node, store)
    if run.part:
        _fill(run.part, target, store)
    else:
        _make_one(run, target, store)
        print(f"only: {store.path(target)}")
        for line in write_cards(run, nodes, store, command(point.overrides)):
            print(line)
    return store.path(target)


def _fill(part: str, node: Node, store: Store) -> None:
    """A share of its cells; whoever finds all of them there makes the artifact."""
    number, count = map(int, part.split("/"))
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
    with _mirrored(point) as mirror, _shown(point, nodes, store, mirror) as show:
        for node in chosen:
            if not store.has(node):
                mirror.begin(node)
            with _repeated(show):
                _make_one(run, node, store)
            show()
            print(f"only: {store.path(node)}", flush=True)
    return store.path(chosen[-1])


@contextmanager
def _mirrored(point: Point) -> Iterator[Mirror]:
    mirror = point.run.tracking.open(point)
    try:
        yield mirror
    finally:
        mirror.close()


@contextmanager
def _shown(point: Point, nodes: list[Node], store: Store, mirror: Mirror) -> Iterator[Callable[[], None]]:
    """What keeps the run folder true, where no other process does; and the mirror, which sees to that itself."""
    folder = point.folder
    with turn_if_free(folder / LOCK, str(folder)) as free:
        if not free:
            yield mirror.update
            return
        if not (folder / COMMAND).exists():
            _write_command(point)
        yield lambda: _show(point.run, nodes, store, folder, mirror)


def _make_one(run: Run, node: Node, store: Store) -> None:
    if isinstance(node.stage, Train) and not store.has(node):
        _check_memory(run, store.path(node.inputs[1]))
    store.make(node)
    _free_memory()


def _make(point: Point, nodes: list[Node], store: Store, mirror: Mirror) -> None:
    run, folder = point.run, point.folder
    missing = [node for node in nodes if not store.has(node)]
    start = next(node for node in nodes if node.name == START)
    trains = any(isinstance(node.stage, Train) and node is not start for node in missing)
    if trains and store.has(start):
        _check_memory(run, store.path(start))
    print(f"run: {folder}", flush=True)
    _show(run, nodes, store, folder, mirror)
    for number, node in enumerate(missing, 1):
        print(f"[{number}/{len(missing)}] {node.name}", flush=True)
        (folder / "report.md").unlink(missing_ok=True)
        mirror.begin(node)
        with _repeated(lambda: _update(nodes, store, folder, mirror)):
            store.make(node)
        _free_memory()
        if trains and node is start:
            _check_memory(run, store.path(start))
        _show(run, nodes, store, folder, mirror)


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


def _show(run: Run, nodes: list[Node], store: Store, folder: Path, mirror: Mirror) -> None:
    _link_all(run, nodes, store, folder)
    _update(nodes, store, folder, mirror)


def _link_all(run: Run, nodes: list[Node], store: Store, folder: Path) -> None:
    """And write the cards."""
    for node in nodes:
        if store.has(node):
            link(folder, node, store)
    write_cards(run, nodes, store, (folder / COMMAND).read_text(), folder)


def _update(nodes: list[Node], store: Store, folder: Path, mirror: Mirror) -> None:
    write_metrics(nodes, store, folder)
    mirror.update()


@contextmanager
def _repeated(act: Callable[[], None]) -> Iterator[None]:
    """`act` every WATCH_S seconds, in a thread, while the body runs."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(WATCH_S):
            with suppress(OSError):  # an artifact moves into its place while it is looked at
                act()

    thread = threading.Thread(target=watch, daemon=True)
    try:
        thread.start()  # a signal may end the run right here
        yield
    finally:
        ended.set()
        with suppress(RuntimeError):  # it was not started yet
            thread.join()


def _report(run: Run, nodes: list[Node], store: Store, folder: Path) -> None:
    report = folder / "report.md"
    if not report.exists():
        from src.report.write import write_report

        write_report(run, nodes, store, folder)
    for line in write_cards(run, nodes, store, (folder / COMMAND).read_text(), folder):
        print(line)
    print((folder / "summary.txt").read_text(), end="")
    print(f"report: {report}")
    if run.iter:
        print(f"picture: {folder / 'plots' / 'win_rate.png'}")


def _read(path: Path) -> str | None:
    return path.read_text() if path.exists() else None


def _check_place(key: str, place: Path) -> None:
    """Refuse, before any work, a folder that cannot be written."""
    parent = next(folder for folder in (place, *place.absolute().parents) if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(f"{key}: cannot write below {parent}; is it a folder of yours?")
