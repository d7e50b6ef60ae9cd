"""From the words of a command to points, and back to the sweeper that wants their results."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig, OmegaConf

from src.experiment.point import Point, Queue
from src.experiment.sweep_note import TOLD, search_of, telling
from src.kernel.config import UserError
from src.launch.composer import Composer, point_of
from src.launch.mistakes import of_value

CarryOut = Callable[[list[Point]], int]
GRIDS = ("hydra_plugins.iterpref.GridSweeper", "hydra._internal.core_plugins.basic_sweeper.BasicSweeper")
"""Sweepers that want no result."""
APART = ("name", "push_to_hub")
"""Keys that no two points may share."""

OPTIONS = "settings are key=value, --hydra-help shows the options, and --yes is clean's"


class _Command:
    """The one that is being carried out: Hydra calls back by module, and its plugins have no other way to know it."""

    points: list[Point] = []
    words: tuple[str, ...] = ()
    verb: str = "run"
    carry_out: CarryOut
    stderr: Any = None


def compose(task: Callable[[], Any], carry_out: CarryOut, verb: str = "run") -> list[Point]:
    """Return the points of sys.argv; none where Hydra only shows something (`--help`, `--cfg job`).

    `task` is the function that Hydra's decorator made. A sweeper that wants results before it proposes the next points
    has its points carried out, and none is left.
    """
    _Command.points, _Command.words, _Command.verb = [], tuple(sys.argv[1:]), verb
    _Command.carry_out, _Command.stderr = carry_out, sys.stderr
    messages, given = io.StringIO(), sys.argv
    sys.argv = [given[0], *telling(_Command.words)]
    try:
        with contextlib.redirect_stderr(messages):
            task()
    except SystemExit as stop:  # argparse: usage, then one line that says what is wrong
        if stop.code:
            lines = messages.getvalue().strip().splitlines() or [f"exit code {stop.code}"]
            raise UserError(f"{lines[-1].partition('error: ')[2] or lines[-1]}; {OPTIONS}") from None
        return []
    except ValueError as error:  # Hydra's own, for an override that is no name of an option
        raise UserError(of_value(error, given[1:])) from error
    finally:
        sys.argv = given
    sys.stderr.write(messages.getvalue())
    return _Command.points


def take(cfg: DictConfig) -> None:
    """Note the single point of the command."""
    _Command.points.append(point_of(cfg, _overrides(), lambda: cfg, _Command.words))


def alone_in_job(cfg: DictConfig) -> Point:
    """Return the point of this process, which another launcher of Hydra has started for it alone."""
    hydra = HydraConfig.get()
    search = hydra.job.env_set.get(TOLD) or search_of([str(Path(hydra.sweep.dir).resolve())])
    return _alone(point_of(cfg, _overrides(), lambda: cfg, _Command.words), search)


def _overrides() -> list[str]:
    overrides: Any = OmegaConf.to_container(HydraConfig.get().overrides, resolve=False)
    return list(overrides["task"])


def check_sweeper(master: DictConfig) -> None:
    """Raises UserError where there is a verb, but no grid: the sweeper would want results to propose points."""
    sweeper = master.hydra.sweeper._target_
    if _Command.verb != "run" and sweeper not in GRIDS:
        raise UserError(
            f"hydra/sweeper: {sweeper.rpartition('.')[2]} chooses its points as it goes; {_Command.verb} takes the "
            "words of one of them (command.txt of its run folder), or a grid"
        )


def launched(loader: Any, master: DictConfig, batch: list[list[str]]) -> list[JobReturn]:
    """What GraphLauncher does with the points that a sweeper proposes."""
    points = Composer(loader, master, _Command.words).points(batch)
    if master.hydra.sweeper._target_ not in GRIDS:
        points = [_alone(point, search_of(_Command.words)) for point in points]
        with contextlib.redirect_stderr(_Command.stderr):
            return _results(points)
    _Command.points += points
    return [JobReturn(overrides=point.overrides, status=JobStatus.COMPLETED) for point in points]


def _alone(point: Point, search: str) -> Point:
    """Return the point as one that is carried out by itself, the others of its sweep being unknown."""
    for key in APART:
        if getattr(point.run, key) is not None:
            raise UserError(apart(key))
    words = tuple(word for word in point.overrides if not word.startswith("+sweep="))
    return dataclasses.replace(point, command=words, search=search)


def apart(key: str) -> str:
    return f"{key}: points of this sweep are made apart and would share it unseen; leave it null"


def _results(points: list[Point]) -> list[JobReturn]:
    """Carry out every point; a failed one is returned as FAILED, so that the sweeper can decide whether to go on.

    With a launcher that queues, all points are submitted before any is awaited.
    """
    results: list[JobReturn] = []
    waiting: list[Point] = []
    for point in points:
        begun = _result(point, _begin)
        if begun.status == JobStatus.FAILED and waiting:  # when these have ended, the queue has room
            results += [_result(other, _win) for other in waiting]
            waiting, begun = [], _result(point, _begin)
        if begun.status == JobStatus.FAILED:
            results.append(begun)
        elif isinstance(point.launcher, Queue):
            waiting.append(point)
        else:
            results.append(_result(point, _win))
    return results + [_result(point, _win) for point in waiting]


def _result(point: Point, act: Callable[[Point], float | None]) -> JobReturn:
    try:
        return JobReturn(overrides=point.overrides, status=JobStatus.COMPLETED, _return_value=act(point))
    except Exception as error:
        return JobReturn(overrides=point.overrides, status=JobStatus.FAILED, _return_value=error)


def _begin(point: Point) -> None:
    code = _Command.carry_out([point])
    if code:
        raise UserError(f"{' '.join(point.overrides)}: exit code {code}")


def _win(point: Point) -> float:
    return point.launcher.await_win(point)
