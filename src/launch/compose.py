"""From the words of a command to points, and back to the sweeper that wants their results."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from src.experiment.launcher import Point, Queue
from src.experiment.sweep_note import TOLD, search_of, telling
from src.kernel.config import CONF, UserError
from src.launch.composer import Composer, build
from src.launch.mistakes import of_value

CarryOut = Callable[[list[Point]], int]
GRIDS = ("hydra_plugins.iterpref.GridSweeper", "hydra._internal.core_plugins.basic_sweeper.BasicSweeper")
"""Sweepers that want no result."""
APART = ("name", "push_to_hub")
"""Keys that no two points may share."""

OPTIONS = "settings are key=value, --hydra-help shows the options, and --yes is clean's"


class _Command:
    """The one that is being carried out."""

    points: list[Point] = []
    words: tuple[str, ...] = ()
    verb: str = "run"
    carry_out: CarryOut
    shown: Any = None


def compose(carry_out: CarryOut, verb: str = "run") -> list[Point]:
    """The points of sys.argv; none where Hydra only shows something (`--help`, `--cfg job`).

    A sweeper that wants results before it proposes the next points has its points carried out, and none is left.
    """
    _Command.points, _Command.words, _Command.verb = [], tuple(sys.argv[1:]), verb
    _Command.carry_out, _Command.shown = carry_out, sys.stderr
    said, given = io.StringIO(), sys.argv
    sys.argv = [given[0], *telling(_Command.words)]
    try:
        with contextlib.redirect_stderr(said):
            _collect()
    except SystemExit as stop:  # argparse: usage, then one line that says what is wrong
        if stop.code:
            lines = said.getvalue().strip().splitlines() or [f"exit code {stop.code}"]
            raise UserError(f"{lines[-1].partition('error: ')[2] or lines[-1]}; {OPTIONS}") from None
        return []
    except ValueError as error:  # Hydra's own, for an override that is no name of an option
        raise UserError(of_value(error, given[1:])) from error
    finally:
        sys.argv = given
    sys.stderr.write(said.getvalue())
    return _Command.points


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def _collect(cfg: DictConfig) -> float | None:
    """A single point; or, under another launcher of Hydra, one of a sweep in a process of its own."""
    typed: Any = OmegaConf.to_container(HydraConfig.get().overrides, resolve=False)
    words, mode = list(typed["task"]), HydraConfig.get().mode
    if mode == RunMode.RUN:
        _Command.points.append(Point(build(cfg), words, lambda: cfg, _Command.words))
        return None
    from src.main import carry_out, guarded

    found: list[Point] = []

    def act() -> int:
        found.append(_alone(Point(build(cfg), words, lambda: cfg), _search()))
        return carry_out("run", False, found)

    code = guarded(act)
    if code:
        sys.exit(code)
    return None if found[0].run.only or not found[0].run.iter else _win(found[0])


def check_sweeper(master: DictConfig) -> None:
    """Raises UserError where there is a verb, but no grid: to be told points, the sweeper would want results."""
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
        with contextlib.redirect_stderr(_Command.shown):
            return _results(points)
    _Command.points += points
    return [JobReturn(overrides=point.overrides, status=JobStatus.COMPLETED) for point in points]


def _search() -> str:
    """Told by the command to its jobs, which know one point's words; else all that have a folder of Hydra's."""
    own = HydraConfig.get()
    return own.job.env_set.get(TOLD) or search_of([str(Path(own.sweep.dir).resolve())])


def _alone(point: Point, search: str) -> Point:
    """One that is carried out by itself, others of its sweep being unknown: its command is its own words."""
    for key in APART:
        if getattr(point.run, key) is not None:
            raise UserError(apart(key))
    words = tuple(word for word in point.overrides if not word.startswith("+sweep="))
    return dataclasses.replace(point, command=words, search=search)


def apart(key: str) -> str:
    return f"{key}: points of this sweep are made apart and would share it unseen; leave it null"


def _results(points: list[Point]) -> list[JobReturn]:
    """One that fails is told as such: its sweeper knows whether it goes on. Jobs of all are submitted at once."""
    found: list[JobReturn] = []
    waiting: list[Point] = []
    for point in points:
        begun = _told(point, _begin)
        if begun.status == JobStatus.FAILED and waiting:  # when these have ended, the queue has room
            found += [_told(other, _win) for other in waiting]
            waiting, begun = [], _told(point, _begin)
        if begun.status == JobStatus.FAILED:
            found.append(begun)
        elif isinstance(point.run.launcher, Queue):
            waiting.append(point)
        else:
            found.append(_told(point, _win))
    return found + [_told(point, _win) for point in waiting]


def _told(point: Point, act: Callable[[Point], float | None]) -> JobReturn:
    try:
        return JobReturn(overrides=point.overrides, status=JobStatus.COMPLETED, _return_value=act(point))
    except Exception as error:
        return JobReturn(overrides=point.overrides, status=JobStatus.FAILED, _return_value=error)


def _begin(point: Point) -> None:
    code = _Command.carry_out([point])
    if code:
        raise UserError(f"{' '.join(point.overrides)}: exit code {code}")


def _win(point: Point) -> float:
    return point.run.launcher.await_win(point)
