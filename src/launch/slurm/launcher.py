"""`launcher=slurm` submits all points as job arrays; `launcher=allocation` runs in the SLURM job around the process."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field, PositiveInt

from src.experiment.plan import print_stages
from src.experiment.point import Point
from src.experiment.preflight import check_keys, check_settings, remarks
from src.experiment.selection import folder_of, note_sweep
from src.experiment.sweep import SETUP, Sweep
from src.kernel.artifact import Node
from src.kernel.config import Free, UserError, config
from src.kernel.processes import cores
from src.launch.slurm import client
from src.launch.slurm.jobs import Jobs
from src.launch.slurm.ledger import alone, keys_word
from src.launch.slurm.status import cancel, print_status
from src.launch.slurm.submit import check, plan, show, submit
from src.reporting.hub import check_push


@config
class Slurm(Jobs):
    """Submits jobs and returns."""

    parts: Free[PositiveInt]
    """Tasks that share the answers of an iteration."""

    def launch(self, points: Sequence[Point]) -> int:
        sweep = Sweep(points)
        for point in points:
            check_push(point.run)
        check_settings(sweep.to_make())
        for line in remarks(sweep.to_make(), sweep.store, queued=True):
            print(line)
        here = self._made_here(sweep)
        check(plan(sweep, self.parts, client.queue())[0], sweep, self)
        check_keys(here, sweep.store)
        for node in here:
            print(f"{node.name} is made here", flush=True)
            sweep.store.make(node)
        with alone(sweep.store.root):
            arrays, under_way = plan(sweep, self.parts, client.queue())
            if arrays:
                print(
                    f"scripts and logs: {folder_of(points) / 'slurm'}; `status` with the same words shows how far it is"
                )
                submit(arrays, under_way, sweep, self)
            else:
                note_sweep(points)
                keys = {node.key for node in sweep.to_make()}
                print(f"nothing to submit; {len(keys.intersection(under_way))} artifacts are under way")
        return 0

    retry = launch
    """The command itself submits what is missing and not under way."""

    def plan(self, points: Sequence[Point]) -> int:
        sweep = Sweep(points)
        print_stages(sweep)
        self._made_here(sweep)
        try:
            arrays, _ = plan(sweep, self.parts, client.queue())
            check(arrays, sweep, self)
            remark = "the cluster takes such jobs"
        except client.NoCluster as error:
            arrays, _ = plan(sweep, self.parts, [])
            remark = f"not checked against a cluster ({error})"
        show(arrays, sweep, self)
        print(remark)
        return 0

    def status(self, points: Sequence[Point]) -> int:
        return print_status(Sweep(points))

    def cancel(self, points: Sequence[Point]) -> int:
        return cancel(Sweep(points))

    def _made_here(self, sweep: Sweep) -> list[Node]:
        """Returns models and prompts that no job fetches, and counts them as made."""
        nodes = [node for node in sweep.to_make() if node.job == SETUP and self.site.setup_here]
        for node in nodes:
            sweep.made(node)
        return nodes


@config
class Allocation:
    """Carries out one point after the other, unless SLURM has started this job too often."""

    alone: Free[bool]
    """What other jobs make must be there: inputs of what `only` names; without it, all but the report."""
    keys: Free[Annotated[str, Field(pattern=r"^k[0-9a-f]{12}$")] | None]
    """Stands for the keys of the artifacts that this job was submitted to make."""
    restarts: Free[Annotated[int, Field(ge=0)]]
    """How often SLURM may start the job again."""

    def launch(self, points: Sequence[Point]) -> int:
        """Raises UserError where something keeps ending the job, and where it would make what it was not sent for."""
        import torch

        from src.launch.runner import check, execute

        job = os.environ.get("SLURM_JOB_ID")
        if job is None:
            raise UserError("launcher: allocation is for SLURM jobs; here, launcher=local")
        if int(os.environ.get("SLURM_RESTART_COUNT") or 0) > self.restarts:
            raise UserError(
                f"launcher.restarts: SLURM has started job {job} again {self.restarts} times, and it has not ended; "
                "mend what stops it, and submit it again"
            )
        for point in points:
            wanted = point.run.wanted
            nodes = [node for node in point.nodes if not wanted or node.name in wanted]
            if self.keys and keys_word(nodes) != self.keys:
                raise UserError(
                    f"launcher.keys: the artifacts of this job ({', '.join(wanted) or 'all of the run'}) are no longer "
                    "those that were submitted: conf/, a data file or the code was edited since; give the command again"
                )
        note_sweep(points)
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(cores())
        for point in points:
            check(point, self.alone)
        for point in points:
            execute(point, self.alone)
        return 0
