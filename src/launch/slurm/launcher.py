"""`launcher=slurm`: the graph of all points as job arrays; `status`, `cancel` and `retry` ask after them."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field, PositiveInt

from src.experiment.launcher import Point, win_of
from src.experiment.plan import print_stages
from src.experiment.refusals import check_keys, check_settings, remarks
from src.experiment.sweep import Sweep
from src.experiment.sweep_note import folder_of, note_sweep
from src.kernel.artifact import Job
from src.kernel.cells import SEEN_LATE_S
from src.kernel.config import Free, UserError, config
from src.launch.slurm import client
from src.launch.slurm.check import check_site
from src.launch.slurm.ledger import Ledger, alone
from src.launch.slurm.script import Jobs
from src.launch.slurm.setup_here import missing_setup, set_up
from src.launch.slurm.show import LOOK_S, cancel, print_arrays, print_status, state_of
from src.launch.slurm.site import Resources, Site
from src.launch.slurm.submit import Wish, plan, submit
from src.reporting.hub import check_push

LONGEST_SILENCE_S = 600.0
"""For which SLURM may fail to say what became of jobs that are waited for."""


@config
class Slurm:
    """Submits and returns."""

    site: Free[Site]
    parts: Free[PositiveInt]
    """Tasks that share the answers of an iteration."""
    at_once: Free[PositiveInt | None]
    """Elements of an array that run at a time."""
    warn_seconds: Free[Annotated[int, Field(ge=1)]]
    again: Free[bool]
    """Submit again what failed before."""
    jobs: Free[dict[Job, Resources]]

    def launch(self, points: Sequence[Point]) -> int:
        return self._submit(points, Wish(self.parts, self.again))

    def retry(self, points: Sequence[Point]) -> int:
        return self._submit(points, Wish(self.parts, again=True, only_failed=True))

    def plan(self, points: Sequence[Point]) -> int:
        sweep = Sweep(points)
        try:
            check_site(self.jobs, self.site, sweep, self.warn_seconds)
            queued, limits, told = client.queue(), client.limits(), "the cluster takes such jobs"
        except client.NoCluster as error:
            queued, limits, told = [], client.DEFAULT_LIMITS, f"not checked against a cluster ({error})"
        print_stages(sweep)
        if self.site.setup_here:
            for node in missing_setup(sweep):
                sweep.made(node)
        ledger, wish = Ledger.of(sweep.store.root), Wish(self.parts, self.again)
        print_arrays(plan(sweep, ledger, wish, queued, limits), self._jobs())
        print(told)
        return 0

    def await_win(self, point: Point) -> float:
        """Looks every LOOK_S. Raises UserError when a job of the point has failed, and still has SEEN_LATE_S later."""
        bad_since: float | None = None
        while (state := _patient_state(point)) != "done":
            now = time.monotonic()
            if state in ("running", "queued"):
                bad_since = None
            elif bad_since is None:
                bad_since = now
            elif now - bad_since >= SEEN_LATE_S:
                raise UserError(f"{' '.join(point.overrides)}: {state}; `status` shows what its jobs said")
            time.sleep(LOOK_S)
        return win_of(point)

    def status(self, points: Sequence[Point]) -> int:
        return print_status(Sweep(points))

    def cancel(self, points: Sequence[Point]) -> int:
        return cancel(Sweep(points))

    def _submit(self, points: Sequence[Point], wish: Wish) -> int:
        sweep = Sweep(points)
        for point in points:
            check_push(point.run)
        check_settings(sweep.to_make())
        for line in remarks(sweep.to_make(), sweep.store, queued=True):
            print(line)
        check_site(self.jobs, self.site, sweep, self.warn_seconds)
        if self.site.setup_here:
            check_keys(missing_setup(sweep), sweep.store)
            set_up(sweep)
        with alone(sweep.store.root):
            ledger = Ledger.of(sweep.store.root)
            ledger.adopt(queued := client.queue())
            planned = plan(sweep, ledger, wish, queued, client.limits())
            if not planned.arrays:
                note_sweep(points)
                own = {node.key for nodes in sweep.nodes for node in nodes if sweep.missing(node)}
                print(f"nothing to submit; {len(own.intersection(planned.under_way))} artifacts are under way")
                return 0
            print(f"scripts and logs: {folder_of(points) / 'slurm'}; `status` with the same words shows how far it is")
            submit(planned, ledger, self._jobs(), points[0].command)
        return 0

    def _jobs(self) -> Jobs:
        return Jobs(self.site, self.jobs, self.at_once, self.warn_seconds, os.environ)


def _patient_state(point: Point) -> str:
    """Asks until SLURM answers. Raises UserError when it has not for LONGEST_SILENCE_S."""
    until = time.monotonic() + LONGEST_SILENCE_S
    while True:
        try:
            return state_of(Sweep([point]))
        except UserError:
            if time.monotonic() > until:
                raise
        time.sleep(LOOK_S)
