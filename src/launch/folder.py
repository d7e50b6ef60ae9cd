"""The run folder kept true while a run goes on: links, cards, metrics, the mirror, and at last the report."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from src.experiment.links import link
from src.experiment.point import Mirror, Point
from src.experiment.run_folder import COMMAND, write_command
from src.kernel.disk import remove, turn
from src.kernel.store import Store
from src.reporting.card import write_cards
from src.reporting.metrics_file import write_metrics

LOCK = ".lock"
REPORT = "report.md"
WATCH_S = 10.0
"""Seconds between two looks at the steps of a training that is under way."""


class RunFolder:
    """Shows the artifacts of a point in its run folder and in its mirror."""

    def __init__(self, point: Point, store: Store, mirror: Mirror) -> None:
        self.point, self.nodes, self.store, self.mirror = point, point.nodes, store, mirror
        self.path = point.folder

    def show(self) -> None:
        """Link all artifacts that are there, write their cards, and update."""
        self.link_all()
        self.update()

    def link_all(self) -> list[str]:
        """Link all artifacts that are there and write their cards; returns the lines that say where these are."""
        for node in self.nodes:
            if self.store.has(node):
                link(self.path, node, self.store)
        words = (self.path / COMMAND).read_text(errors="replace")
        return write_cards(self.point.run, self.nodes, self.store, words, self.path)

    def update(self) -> None:
        """Write metrics.jsonl anew and have the mirror show what is new."""
        write_metrics(self.nodes, self.store, self.path)
        self.mirror.update()

    def report(self) -> None:
        """Write the report where it is not there, show its summary, and say where it is."""
        if not (self.path / REPORT).exists():
            from src.reporting.report import write_report

            write_report(self.point.run, self.nodes, self.store, self.path)
        for line in self.link_all():
            print(line)
        print((self.path / "summary.txt").read_text(errors="replace"), end="")
        print(f"report: {self.path / REPORT}")
        if self.point.run.iter:
            print(f"picture: {self.path / 'plots' / 'win_rate.png'}")
        self.mirror.report()

    def remove_report(self) -> None:
        remove(self.path / REPORT)


@contextmanager
def opened(point: Point, store: Store) -> Iterator[RunFolder]:
    """The run folder with the point's mirror, which is closed at the end, however that comes."""
    mirror = point.tracking.open(point)
    try:
        yield RunFolder(point, store, mirror)
    finally:
        mirror.close()


@contextmanager
def shown(folder: RunFolder) -> Iterator[Callable[[], None]]:
    """What one of several jobs calls to show its work: it keeps the run folder true where no other process does.

    The mirror is for all of them.
    """
    with turn(folder.path / LOCK, str(folder.path), waits=False) as free:
        if free and not (folder.path / COMMAND).exists():
            write_command(folder.point)
        yield folder.show if free else folder.mirror.update


@contextmanager
def repeated(act: Callable[[], None]) -> Iterator[None]:
    """Call `act` every WATCH_S seconds in a thread while the body runs."""
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
