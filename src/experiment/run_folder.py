"""The run folder: links to what is made, cards, metrics, the report; kept true while the run goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import yaml

from src.experiment.command import command
from src.experiment.launcher import Point
from src.experiment.links import link
from src.experiment.run import Run
from src.kernel.artifact import Node, fingerprint_hash
from src.kernel.attempts import turn_if_free
from src.kernel.config import REHEARSAL, fingerprint
from src.kernel.disk import remove, write_atomic
from src.kernel.store import Store
from src.reporting.card.write import write_cards
from src.reporting.metrics_file import write_metrics
from src.reporting.wandb import Mirror

COMMAND = "command.txt"
LOCK = ".lock"
WATCH_S = 10.0
"""Between two looks at the steps of a training that is under way."""


def run_name(run: Run) -> str:
    """The run folder's name: never a time of day, and the same for every `iter` but 0, which trains nothing."""
    model = f"{REHEARSAL}-{run.model.name}" if run.rehearsed else run.model.name
    model = model if run.iter else f"start-{model}"
    return run.name or f"{model}-{run.method.name}-s{run.seed}-{fingerprint_hash(fingerprint(run))[:8]}"


def is_reported(point: Point) -> bool:
    """The report in its folder is of what it asks for: iterations and benchmarks, not hardware, say."""
    folder = point.folder
    settings = _read(folder / "config.yaml")
    if settings is None or not all((folder / name).exists() for name in (COMMAND, "report.md", "summary.txt")):
        return False
    wanted = (point.container.get("benchmark") or {}).items()
    try:
        told = yaml.safe_load(settings)
        reported = (told.get("benchmark") or {}).items()
        return told.get("iter") == point.run.iter and all(item in reported for item in wanted)
    except (yaml.YAMLError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError):
        return False  # damaged, or not of a run


def write_command(point: Point, anew: bool = False) -> None:
    """What the run was asked for; a report of other settings goes, or `anew` any."""
    folder = point.folder
    if anew or _read(folder / "config.yaml") != point.settings:
        remove(folder / "report.md")
    write_atomic(folder / "config.yaml", point.settings.encode())
    write_atomic(folder / COMMAND, f"{command(point.overrides)}\n".encode())


@contextmanager
def mirrored(point: Point) -> Iterator[Mirror]:
    mirror = point.run.tracking.open(point)
    try:
        yield mirror
    finally:
        mirror.close()


@contextmanager
def shown(point: Point, nodes: list[Node], store: Store, mirror: Mirror) -> Iterator[Callable[[], None]]:
    """What keeps the run folder true, where no other process does; and the mirror, which sees to that itself."""
    folder = point.folder
    with turn_if_free(folder / LOCK, str(folder)) as free:
        if not free:
            yield mirror.update
            return
        if not (folder / COMMAND).exists():
            write_command(point)
        yield lambda: show(point.run, nodes, store, folder, mirror)


def show(run: Run, nodes: list[Node], store: Store, folder: Path, mirror: Mirror) -> None:
    link_all(run, nodes, store, folder)
    update(nodes, store, folder, mirror)


def link_all(run: Run, nodes: list[Node], store: Store, folder: Path) -> None:
    """And write the cards."""
    for node in nodes:
        if store.has(node):
            link(folder, node, store)
    write_cards(run, nodes, store, (folder / COMMAND).read_text(errors="replace"), folder)


def update(nodes: list[Node], store: Store, folder: Path, mirror: Mirror) -> None:
    write_metrics(nodes, store, folder)
    mirror.update()


@contextmanager
def repeated(act: Callable[[], None]) -> Iterator[None]:
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


def report(run: Run, nodes: list[Node], store: Store, folder: Path) -> None:
    file = folder / "report.md"
    if not file.exists():
        from src.reporting.report.write import write_report

        write_report(run, nodes, store, folder)
    for line in write_cards(run, nodes, store, (folder / COMMAND).read_text(errors="replace"), folder):
        print(line)
    print((folder / "summary.txt").read_text(errors="replace"), end="")
    print(f"report: {file}")
    if run.iter:
        print(f"picture: {folder / 'plots' / 'win_rate.png'}")


def _read(path: Path) -> str | None:
    """None where it is not there; bytes that are no text are replaced, so that it is none of ours."""
    return path.read_text(errors="replace") if path.exists() else None
