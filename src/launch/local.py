"""launcher=local: the points of a command in this process, one after the other."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from src.experiment.plan import print_forecast, print_plan, print_stages
from src.experiment.point import Point
from src.experiment.selection import note_sweep
from src.experiment.sweep import Sweep
from src.kernel.config import config
from src.launch.runner import check, execute
from src.reporting.hub import print_push_plan


def show_plan(points: Sequence[Point]) -> None:
    """Print the graph of one point, or what all points want together."""
    if len(points) > 1:
        print_stages(Sweep(points))
        return
    (point,) = points
    print_plan(point)
    print_push_plan(point.run, point.nodes)


@config
class Local:
    """Carries out the points in this process, one after the other."""

    def launch(self, points: Sequence[Point]) -> int:
        for point in points:
            check(point)
        name = note_sweep(points)
        for point in points:
            if not point.run.only:
                print_forecast(point)
            execute(point)
        if name and not points[0].run.only:
            print(f"the points side by side: python -m src.main compare {shlex.quote(f'runs={name}')}")
        return 0
