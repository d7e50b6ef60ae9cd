"""Launchers that carry out the points in this process: `local`, and `allocation` in the SLURM job around it."""

from __future__ import annotations

import os
import shlex
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated

from pydantic import Field

from src.experiment.plan import print_forecast
from src.experiment.point import Point
from src.experiment.selection import note_sweep
from src.kernel.config import Free, UserError, config, matching
from src.kernel.processes import cores, slurm_number
from src.launch.mistakes import exit_code
from src.launch.runner import check, execute
from src.launch.slurm.ledger import keys_word


@config
class Local:
    """Carries out one point after the other."""

    def launch(self, points: Sequence[Point]) -> int:
        for point in points:
            check(point)
        name = note_sweep(points)
        codes: list[int] = []
        for point in points:
            with _others_go_on(points, point, codes):
                if not point.run.only:
                    print_forecast(point)
                execute(point)
        if name and not points[0].run.only:
            print(f"the points side by side: python -m src.main compare {shlex.quote(f'runs={name}')}")
        return codes[0] if codes else 0


@config
class Allocation:
    """Carries out the points in the SLURM job around this process, unless SLURM has started that job too often."""

    alone: Free[bool]
    """Whether what other jobs make must be there: inputs of what `only` names; without `only`, all but the report."""
    keys: Free[Annotated[str, matching("k[0-9a-f]{12}", "wants k and 12 hex digits; null is no check")] | None]
    """A hash of the keys of the artifacts that this job was submitted to make; null: no check."""
    restarts: Free[Annotated[int, Field(ge=0)]]
    """How often SLURM may start the job again."""

    def launch(self, points: Sequence[Point]) -> int:
        """Carry out the points. Raises UserError where the job never ends, or its artifacts are others by now."""
        import torch

        job = os.environ.get("SLURM_JOB_ID")
        if job is None:
            raise UserError("launcher: allocation is for SLURM jobs; here, launcher=local")
        if slurm_number("SLURM_RESTART_COUNT", 0) > self.restarts:
            again = f"SLURM has started job {job} again {self.restarts} times, and it has not ended"
            raise UserError(f"launcher.restarts: {again}; mend what stops it, and submit it again")
        for point in points:
            wanted = point.run.wanted
            nodes = [node for node in point.nodes if not wanted or node.name in wanted]
            if self.keys and keys_word(nodes) != self.keys:
                what = f"the artifacts of this job ({', '.join(wanted) or 'all of the run'}) are not those submitted"
                why = "conf/, a data file or a version in the code changed; give the command again"
                raise UserError(f"launcher.keys: {what}: {why}")
        note_sweep(points)
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(cores())
        for point in points:
            check(point, self.alone)
        codes: list[int] = []
        for point in points:
            with _others_go_on(points, point, codes):
                execute(point, self.alone)
        return codes[0] if codes else 0


@contextmanager
def _others_go_on(points: Sequence[Point], point: Point, codes: list[int]) -> Iterator[None]:
    """Where a point of several fails, say so and add its exit code to `codes`; one that is alone fails as it does."""
    try:
        yield
    except Exception as error:
        if len(points) == 1:
            raise
        try:
            codes.append(exit_code(error, point.overrides))
        except Exception:  # a mistake in the code
            traceback.print_exc()
            codes.append(1)
        print(f"this point failed, and the others go on: {shlex.join(point.overrides)}", file=sys.stderr)
