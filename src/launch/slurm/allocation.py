"""`launcher=allocation`: in the SLURM job around this process, which may have been started before."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

from pydantic import Field

from src.experiment.point import Point
from src.experiment.sweep_note import note_sweep
from src.kernel.config import Free, UserError, config
from src.kernel.processes import cores
from src.launch.slurm.ledger import FOLDER, keys_word


@config
class Allocation:
    """Carries out one point after the other, unless SLURM has started this job too often."""

    alone: Free[bool]
    """What other jobs make must be there: inputs of what `only` names; without it, all but the report."""
    keys: Free[Annotated[str, Field(pattern=r"^k[0-9a-f]{12}$")] | None]
    """Stands for the keys of the artifacts that this job was submitted to make."""
    restarts: Free[Annotated[int, Field(ge=0)]]
    """How often SLURM may start the job again."""
    mark: Free[Annotated[str, Field(pattern=r"^[\w-]+$")] | None]
    """Of a job that makes a share: the file beside the ledger that says it is done."""

    def launch(self, points: Sequence[Point]) -> int:
        import torch

        from src.launch.runner import execute

        self._check_job()
        for point in points:
            self._check_keys(point)
        note_sweep(points)
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(cores())
        for point in map(_in_one_process, points) if self.alone else points:
            execute(point, self.alone)
            if self.mark:
                (point.run.store / FOLDER / self.mark).touch()
        return 0

    def _check_job(self) -> None:
        """Raises UserError outside of a job, and in one that was started too often: something keeps ending it."""
        job = os.environ.get("SLURM_JOB_ID")
        if job is None:
            raise UserError("launcher: allocation is for SLURM jobs; here, launcher=local")
        if int(os.environ.get("SLURM_RESTART_COUNT") or 0) > self.restarts:
            raise UserError(
                f"launcher.restarts: SLURM has started job {job} again {self.restarts} times, and it has not ended; "
                "mend what stops it, and submit it again"
            )

    def _check_keys(self, point: Point) -> None:
        """Raises UserError where this process composes another run than the one that submitted the job."""
        wanted = point.run.wanted
        nodes = [node for node in point.nodes if not wanted or node.name in wanted]
        if self.keys and keys_word(nodes) != self.keys:
            raise UserError(
                f"launcher.keys: the artifacts of this job ({', '.join(wanted) or 'all of the run'}) are no longer "
                "those that were submitted: conf/, a data file or the code was edited since; give the command again"
            )


def _in_one_process(point: Point) -> Point:
    """Return the point with one process a stage where stages take GPUs: its job has those of one process alone."""
    hardware = point.run.hardware
    if hardware.engine.device == "cuda":
        hardware = replace(hardware, generation=replace(hardware.generation, workers=1))
    if hardware.ranking.device == "cuda":
        hardware = replace(hardware, ranking=replace(hardware.ranking, workers=1))
    return replace(point, run=replace(point.run, hardware=hardware))
