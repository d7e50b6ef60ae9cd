"""Carry out a run: make what is missing, keep the run folder up to date, and show the result."""

from __future__ import annotations

import gc
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from src.experiment.graph import START
from src.experiment.point import Mirror, Point
from src.experiment.preflight import check_keys, check_machine, check_places, check_settings, look_ahead
from src.experiment.run_folder import COMMAND, LINKS, REPORT, drop_stale, is_reported, link, made_again, write_command
from src.kernel.artifact import Divisible, Node
from src.kernel.config import UserError
from src.kernel.disk import remove, remove_temporaries, turn
from src.kernel.processes import release_memory
from src.kernel.store import MARK, Store, by_origin, repair, repair_inputs
from src.reporting.card import write_cards
from src.reporting.hub import check_push, push
from src.reporting.metrics_file import METRICS, write_metrics
from src.reporting.published import measured, results_of
from src.reporting.tables import terminal

LOCK = ".lock"
WATCH_S = 10.0
"""Seconds between two updates of the run folder while a training is under way."""
SEEN_LATE_S = 90.0
"""Seconds for which files that another machine has written may stay unseen."""


def check(point: Point, alone: bool = False) -> None:
    """Raise UserError for what is known to end `execute`, before any work; print what is known to make it slow."""
    run, store = point.run, Store(point.run.store)
    if not run.only:
        check_push(run)
    makes = point.wanted(alone) if run.only or not alone else []  # the job of a report makes nothing
    missing = [node for node in makes if not store.has(node)]
    check_places(missing, store, [point.folder])
    check_settings(missing)
    check_keys(missing, store)
    check_machine(run, missing)
    look_ahead(missing, next(node for node in point.nodes if node.name == START), store)


def execute(point: Point, alone: bool = False) -> None:
    """Make every missing artifact of a point that was checked, and its report.

    With `only`, what it names and what that needs is made, and no report. `alone`: in a job whose inputs other jobs
    make; they must be there, and all artifacts for the job of a report.
    """
    run, nodes, store = point.run, point.nodes, Store(point.run.store)
    wanted = point.wanted(alone)
    if alone:
        keys = {node.key for node in wanted}
        inputs = {parent.key: parent for node in wanted for parent in node.inputs if parent.key not in keys}
        _await(list(inputs.values()) if run.only else wanted, store, gathers=bool(run.only))
    with by_origin(nodes, store), open_run_folder(point, store) as folder:
        for node in nodes:
            if store.has(node):
                repair(node, store, alone, weights=node.name in run.wanted)
        *needed, last = wanted
        make_missing(folder, needed if run.part else wanted, alone)
        if run.part:
            _fill(run.part, last, store)
        elif run.only:
            print(f"only: {store.path(last)}", flush=True)
            for title, numbers in measured(results_of(run, wanted, store)).values():
                print(terminal(title, numbers), end="", flush=True)
        else:
            folder.report()
    if not run.only:
        push(run, nodes, store)


def make_missing(folder: RunFolder, wanted: Sequence[Node], alone: bool = False) -> None:
    """Make what is missing of `wanted`, inputs first, and show it in the run folder as it comes.

    Before the first stage that reads something, stages are asked what they foresee: models and prompts are there then.
    """
    store, nodes = folder.store, folder.point.nodes
    missing = [node for node in wanted if not store.has(node)]
    start = next(node for node in nodes if node.name == START)
    reading = next((node for node in missing if node.inputs), None)
    folder.show()
    for number, node in enumerate(missing, 1):
        print(f"[{number}/{len(missing)}] {node.name}", flush=True)
        folder.begin(node)
        with repeated(folder.update):
            repair_inputs(node, store, alone)
            if node is reading and store.has(start):
                for line in look_ahead(missing, start, store):
                    print(line, flush=True)
            store.make(node)
        gc.collect()  # the stage's models are held by cycles, and the next one needs their memory
        release_memory()
        if (torch := sys.modules.get("torch")) and torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        folder.show()


class RunFolder:
    """Shows the artifacts of a point in its run folder and in its mirror."""

    def __init__(self, point: Point, store: Store, mirror: Mirror, ours: bool) -> None:
        """`ours`: this process alone keeps the folder up to date. The mirror is for every process."""
        self.point, self.store, self.mirror, self.ours = point, store, mirror, ours
        self.path, self.finished = point.folder, False

    def begin(self, node: Node) -> None:
        """Note that a stage starts: the report is no longer up to date."""
        self.finished = False
        if not self.point.run.only:
            remove(self.path / REPORT)
        self.mirror.begin(node)

    def show(self) -> None:
        """Link all artifacts that are there, write their cards, and update."""
        if self.ours:
            self.link_all()
        self.update()

    def update(self) -> None:
        """Write metrics.jsonl anew, unless the run was finished, and have the mirror show what is new."""
        if self.ours and not self.finished:
            write_metrics(self.point.nodes, self.store, self.path)
        self.mirror.update()

    def link_all(self) -> list[str]:
        """Link all artifacts that are there and write their cards; return a line for each that cannot be written."""
        for node in self.point.nodes:
            if self.store.has(node):
                link(self.path, node, self.store)
        words = (self.path / COMMAND).read_text(errors="replace")
        return write_cards(self.point.run, self.point.nodes, self.store, words)

    def report(self) -> None:
        """Write the report where it is not there, print its summary, and say where it is."""
        if not (self.path / REPORT).exists():
            from src.reporting.report import write_report

            write_report(self.point.run, self.point.nodes, self.store, self.path)
        for line in self.link_all():
            print(line)
        print((self.path / "summary.txt").read_text(errors="replace"), end="")
        print(f"report: {self.path / REPORT}")
        if self.point.run.iter:
            print(f"picture: {self.path / 'plots' / 'win_rate.png'}")
        self.mirror.report()


@contextmanager
def open_run_folder(point: Point, store: Store) -> Iterator[RunFolder]:
    """Lock the run folder, write settings and command there, and open the mirror, which is closed at the end.

    With `only`, another process may have the folder and keeps it up to date then. Raises UserError where the folder
    cannot be written, or its artifacts are gone with their store.
    """
    run, path = point.run, point.folder
    links = [place for place in (path / LINKS).rglob("*") if place.is_symlink()]
    if links and not (run.store / MARK).exists() and not any(place.exists() for place in links):
        raise UserError(f"store: {run.store} is no store, yet {path} leads into it; mount it, or remove that folder")
    whole = not run.only
    with turn(path / LOCK, str(path), "carrying out this run", waits=whole) as ours:
        folder = RunFolder(point, store, point.tracking.open(point), ours)
        try:
            if ours:
                remove_temporaries(path, "*.tmp")
            if whole:
                print("".join(f"{line}\n" for line in made_again(point)), end="")
                stale = drop_stale(point.nodes, path)
                complete = all(store.has(node) for node in point.nodes) and (path / METRICS).exists()
                folder.finished = complete and not stale and is_reported(point)
                if not folder.finished:
                    write_command(point, anew=stale)
                print(f"run: {path}", flush=True)
            elif folder.ours and not (path / COMMAND).exists():
                write_command(point)
            yield folder
        finally:
            folder.mirror.close()


@contextmanager
def repeated(act: Callable[[], None]) -> Iterator[None]:
    """Call `act` every WATCH_S seconds in a thread while the body runs."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(WATCH_S):
            with suppress(OSError):  # an artifact moves into its place while it is looked at
                act()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _await(nodes: Sequence[Node], store: Store, gathers: bool) -> None:
    """Wait for what other jobs have made; files of other nodes may show late. Raises UserError for what stays missing.

    `gathers`: two shares that ended at once may each have missed the other, so this makes the artifact of their cells.
    """
    until = time.monotonic() + SEEN_LATE_S
    while (missing := [node for node in nodes if not store.has(node)]) and time.monotonic() <= until:
        time.sleep(1)
    for node in missing:
        if not (gathers and isinstance(node.stage, Divisible) and store.begun(node)):
            what = f"{node.name} is missing (in all: {len(missing)}), whose job has not ended well"
            remedy = "`retry` submits it again, launcher.alone=false makes it here"
            raise UserError(f"launcher.alone: {what}; {remedy}")
        store.make(node)


def _fill(part: str, node: Node, store: Store) -> None:
    """Make a share of the cells of a node; whoever finds all of them there makes the artifact."""
    number, count = map(int, part.split("/"))
    if not store.has(node):
        repair_inputs(node, store, alone=True)
    if store.has(node) or store.fill(node, number - 1, count):
        print(f"only: {store.make(node)}")
