"""The W&B run of one family: what it lacks is shown, in order and once, by one process at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from src.kernel.artifact import Node
from src.kernel.store import Store
from src.reporting.tracking.columns import summary_of
from src.reporting.tracking.families import label
from src.reporting.tracking.metrics import Shown, rows_of
from src.reporting.tracking.opening import STEP, Opener
from src.reporting.tracking.recovery import look
from src.reporting.tracking.samples import Samples, plots_of, shown
from src.reporting.tracking.spool import mark_unsent
from src.reporting.tracking.state import Place, followed, fresh, read_state, row_hash, write_state

PLOTS = "plots"
GLANCE_S = 0.5
"""For which `sync` may hold a lock that it looks at."""


class OneRun:
    """Open while a stage of its family works; else opened to show what is new, and finished.

    Where the rows that were shown are no longer the first ones, another experiment has the folder: it gets a run of
    its own.
    """

    def __init__(self, place: Place, nodes: Sequence[Node], store: Store, samples: Samples, opener: Opener) -> None:
        """`nodes` are those of the family."""
        self.place, self.nodes, self.store, self.samples, self.opener = place, nodes, store, samples, opener
        self.lock = FileLock(place.lock, thread_local=False)  # taken and given back by any thread
        self.run: Any = None
        self.state = fresh(place, 0)
        self.begun = self.unsure = False

    def begin(self) -> None:
        """A stage starts; W&B's figures of the machine are of this run until `finish`."""
        self.begun = True
        with self._turn() as free:
            if free:
                self._open()

    def update(self) -> None:
        """Show the rows and artifacts that were not shown yet, unless another process has the family."""
        rows = rows_of(self.nodes, self.store)
        if not (self.begun or self._lacks(rows)):
            return
        with self._turn() as free:
            if free:
                self._show(rows)

    def report(self) -> None:
        """Show the plots of the report, where they are others than those that were shown."""
        plots, digest = plots_of(self.place.folder / PLOTS)
        if not plots or read_state(self.place).report == digest:
            return
        with self._turn() as free:
            if free and self.state.report != digest:
                self._open()
                self._show_plots(plots)
                self.state.report = digest
                write_state(self.place, self.state)

    def preempt(self) -> None:
        """W&B gives a trial to the next agent; after SIGTERM not, which may be W&B's own stop."""
        if self.run is not None:
            self.run.mark_preempting()

    def finish(self, code: int = 0) -> None:
        self.begun = False
        try:
            self.pause(code)
        finally:
            self.lock.release()

    def pause(self, code: int = 0) -> None:
        """Finish the W&B run, and keep the family."""
        if self.run is None:
            return
        run, self.run = self.run, None
        try:
            run.finish(exit_code=code)
        except TimeoutError:  # W&B has not got all, and would not say so later
            mark_unsent(Path(run.settings.sync_dir))
        if not self.unsure:  # else W&B's file will tell
            self.state.finish()
        write_state(self.place, self.state)

    @contextmanager
    def _turn(self) -> Iterator[bool]:
        """Hold the lock; False where another process has it."""
        if not self.lock.is_locked:
            self.place.lock.parent.mkdir(exist_ok=True)
            try:
                self.lock.acquire(timeout=GLANCE_S)
            except Timeout:
                yield False
                return
            self.state = look(self.place, {label(node) for node in self.nodes})
        try:
            yield True
        finally:
            if not self.begun:
                self.finish()

    def _lacks(self, rows: list[Shown]) -> bool:
        state = self.state = self.state if self.lock.is_locked else read_state(self.place)
        return bool(state.unfinished or len(rows) > len(state.rows) or self._is_other(rows) or self._new_artifacts())

    def _is_other(self, rows: list[Shown]) -> bool:
        return any(row_hash(each.row) != old for each, old in zip(rows, self.state.rows, strict=False))

    def _new_artifacts(self) -> list[Node]:
        """Prompts and start policies, which read nothing, are nobody's."""
        return [n for n in self.nodes if n.inputs and label(n) not in self.state.artifacts and self.store.has(n)]

    def _open(self) -> None:
        if self.run is None:
            place = dataclasses.replace(self.place, entity=self.state.entity)
            self.run = self.opener.open(place, self.state.id, self.nodes, self.state.cut)
            self.state.entity = self.run.entity or self.state.entity  # W&B knows the account's own
            self.unsure = False
            self.state.open(Path(self.run.settings.sync_dir).name)
            write_state(self.place, self.state)

    def _show(self, rows: list[Shown]) -> None:
        if self._is_other(rows):
            self.pause()
            self.state = followed(self.place, self.state)
        made = self._new_artifacts()
        if self.begun or made or len(rows) > len(self.state.rows):
            self._open()
        if made or len(rows) > len(self.state.rows):
            with self._told():
                self._log_rows(rows)
                self._log_artifacts(made)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Remember what was shown, and where a signal or a failure came in between, that this is not certain."""
        try:
            yield
        except BaseException:
            self.unsure = True
            raise
        finally:
            write_state(self.place, self.state)

    def _log_rows(self, rows: list[Shown]) -> None:
        total, begin = 0, len(self.state.rows)
        for number, (node, row) in enumerate(rows):
            total += "train/step" in row
            if number >= begin:
                steps = {STEP: total} if "train/step" in row else {}
                self._log(row | steps | self.samples.of(node))
                self.state.rows.append(row_hash(row))
        if len(rows) > begin:
            self.run.summary.update(summary_of(row for _, row in rows))

    def _log(self, row: dict[str, Any]) -> None:
        """Written at once: a step that stays open would be the first to be lost."""
        self.run.log(shown(row), step=self.state.steps, commit=True)
        self.state.steps += 1

    def _log_artifacts(self, made: list[Node]) -> None:
        from src.reporting.tracking.lineage import log_outputs

        if made:
            log_outputs(self.run, made, self.store)
            self.state.artifacts |= {label(node): [label(parent) for parent in node.inputs] for node in made}

    def _show_plots(self, plots: dict[str, Path]) -> None:
        import wandb

        rows = rows_of(self.nodes, self.store)
        iteration = {"iteration": rows[-1].row["iteration"]} if rows else {}
        with self._told():
            self._log(iteration | {f"{PLOTS}/{name}": wandb.Image(str(path)) for name, path in plots.items()})
