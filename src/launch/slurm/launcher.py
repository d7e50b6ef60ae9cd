"""`launcher=slurm`: the graph of all points as job arrays; `status`, `cancel` and `retry` ask after them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field, PositiveInt

from src.experiment.links import link
from src.experiment.plan import print_stages
from src.experiment.point import Point
from src.experiment.preflight import check_keys, check_settings, remarks
from src.experiment.sweep import Sweep
from src.experiment.sweep_note import folder_of, note_sweep
from src.experiment.tasks import SETUP
from src.kernel.artifact import Job, Node
from src.kernel.config import Free, config
from src.launch.slurm import client
from src.launch.slurm.ledger import Ledger, alone
from src.launch.slurm.script import Jobs
from src.launch.slurm.site import Resources, Site
from src.launch.slurm.status import cancel, print_arrays, print_status
from src.launch.slurm.submit import check, plan, submit
from src.reporting.hub import check_push


@config
class Slurm:
    """Submits jobs and returns."""

    site: Free[Site]
    parts: Free[PositiveInt]
    """Tasks that share the answers of an iteration."""
    at_once: Free[PositiveInt | None]
    """Elements of an array that run at a time."""
    warn_seconds: Free[Annotated[int, Field(ge=1)]]
    jobs: Free[dict[Job, Resources]]

    def launch(self, points: Sequence[Point]) -> int:
        sweep = Sweep(points)
        for point in points:
            check_push(point.run)
        check_settings(sweep.to_make())
        for line in remarks(sweep.to_make(), sweep.store, queued=True):
            print(line)
        here = self._made_here(sweep)
        check(plan(sweep, Ledger.of(sweep.store.root), self.parts, client.queue(), client.limits()), self._jobs())
        check_keys(here, sweep.store)
        set_up(sweep, here)
        with alone(sweep.store.root):
            ledger = Ledger.of(sweep.store.root)
            ledger.adopt(queued := client.queue())
            planned = plan(sweep, ledger, self.parts, queued, client.limits())
            if not planned.arrays:
                note_sweep(points)
                keys = {node.key for node in sweep.to_make()}
                print(f"nothing to submit; {len(keys.intersection(planned.under_way))} artifacts are under way")
                return 0
            print(f"scripts and logs: {folder_of(points) / 'slurm'}; `status` with the same words shows how far it is")
            submit(planned, ledger, self._jobs())
        return 0

    def retry(self, points: Sequence[Point]) -> int:
        """Submits what is missing and not under way, as the command itself does."""
        return self.launch(points)

    def plan(self, points: Sequence[Point]) -> int:
        sweep, jobs = Sweep(points), self._jobs()
        print_stages(sweep)
        self._made_here(sweep)
        ledger = Ledger.of(sweep.store.root)
        try:
            planned = plan(sweep, ledger, self.parts, client.queue(), client.limits())
            check(planned, jobs)
            remark = "the cluster takes such jobs"
        except client.NoCluster as error:
            planned = plan(sweep, ledger, self.parts, [], client.DEFAULT_LIMITS)
            remark = f"not checked against a cluster ({error})"
        print_arrays(planned, jobs)
        print(remark)
        return 0

    def status(self, points: Sequence[Point]) -> int:
        return print_status(Sweep(points))

    def cancel(self, points: Sequence[Point]) -> int:
        return cancel(Sweep(points))

    def _jobs(self) -> Jobs:
        return Jobs(self.site, self.jobs, self.at_once, self.warn_seconds, os.environ)

    def _made_here(self, sweep: Sweep) -> list[Node]:
        """Returns models and prompts that no job fetches, and counts them as made."""
        nodes = [node for node in sweep.to_make() if node.job == SETUP and self.site.setup_here]
        for node in nodes:
            sweep.made(node)
        return nodes


def set_up(sweep: Sweep, nodes: Sequence[Node]) -> None:
    """Fetches models and prompts where the command is given, and links them in the run folders."""
    for number, node in enumerate(nodes, 1):
        print(f"[{number}/{len(nodes)}] {node.name}", flush=True)
        sweep.store.make(node)
        for point, wanted in zip(sweep.points, sweep.nodes, strict=True):
            if any(one.key == node.key for one in wanted):
                link(point.folder, node, sweep.store)
