"""What a command asks for: its verb taken off, its points composed, and the verb carried out on them."""

from __future__ import annotations

import os
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from functools import partial

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from src.experiment.point import Point, Queue
from src.experiment.run import Run
from src.experiment.secret_words import refuse_words
from src.kernel.config import CONF, Fault, Stopped, UserError
from src.kernel.faults import explain
from src.kernel.processes import quiet_libraries
from src.launch.compose import APART, alone_in_job, apart, compose, take
from src.launch.mistakes import one_line

OF_FOLDERS = ("compare", "sync")
"""Verbs that take run folders in place of a config."""
VERBS = ("plan", "parity", "status", "cancel", "retry", "verify", "clean", "score", *OF_FOLDERS)
GRAPH = "hydra/launcher=graph"
DEBUG = "debug=true"
MULTIRUN = ("-m", "--multirun")


def main() -> int:
    """Carry out the command in sys.argv; returns the exit code."""
    words = sys.argv[1:]
    verb = words.pop(0) if words and words[0] in VERBS else "run"
    confirmed = verb == "clean" and "--yes" in words
    words = [word for word in words if not (verb == "clean" and word == "--yes")]
    sys.argv[1:] = words = sorted(words, key=lambda word: word not in MULTIRUN)  # Hydra wants that in front
    return guarded(partial(_obey, verb, confirmed, words))


def _obey(verb: str, confirmed: bool, words: list[str]) -> int:
    """Compose what the words ask for and do what the verb says; returns the exit code."""
    refuse_words(words)
    if verb in OF_FOLDERS:
        return _with_folders(verb, [word for word in words if word != DEBUG])
    _refuse_combinations(verb, words)
    if verb == "score":
        from src.launch.score import take_given

        given = take_given(words)
        sys.argv[1:] = words
        act = partial(_score, given)
    else:
        act = partial(carry_out, verb, confirmed)
    return act(compose(_task, act, verb))


def _score(given: dict[str, str], points: list[Point]) -> int:
    from src.launch.score import score

    if len(points) > 1:
        raise UserError("score: takes no sweep; leave out -m")
    return score(points[0].run, given, points[0].overrides) if points else 0


def _with_folders(verb: str, words: list[str]) -> int:
    if verb == "compare":
        from src.reporting.compare.command import compare

        return compare(words)
    from src.launch.composer import read_point
    from src.reporting.wandb import sync

    return sync(words, read_point)


def _refuse_combinations(verb: str, words: list[str]) -> None:
    """Raises UserError for words that say two things at once of how a sweep is started."""
    other = next((word for word in words if word.startswith("hydra/launcher=") and word != GRAPH), None)
    if other and verb != "run":
        raise UserError(f"{other}: with it a sweep can be run; leave it out to {verb}")
    given = (word.lstrip("+").partition("=") for word in words)
    shared = next((key for key, _, value in given if key in APART and value not in ("", "null")), None)
    if other and shared:
        raise UserError(apart(shared))
    swept = next((word for word in words if word.startswith("+sweep=")), None)
    if swept and not {*MULTIRUN, "launcher.alone=true"}.intersection(words):
        raise UserError(f"{swept}: a sweep wants -m too")


def guarded(act: Callable[[], int]) -> int:
    """Turn mistakes into one line and their exit code; `debug=true` shows where they rose."""
    quiet_libraries()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach us instead of Hydra's own report
    try:
        return act()
    except (UserError, HydraException, OmegaConfBaseException) as error:
        _say(one_line(error, sys.argv[1:], VERBS))
        return 3 if isinstance(error, Fault) else 2
    except Exception as error:
        if (line := explain(error)) is None:
            raise
        _say(line)
        return 3
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return stopped.exit_code
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130


def _say(line: str) -> None:
    if DEBUG in sys.argv:
        traceback.print_exc()
    print(f"error: {line}", file=sys.stderr)


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def _task(cfg: DictConfig) -> float | None:
    """What Hydra calls: with the one point of a command, or in a process of its own with one of another launcher's."""
    if HydraConfig.get().mode == RunMode.RUN:
        take(cfg)
        return None
    points: list[Point] = []

    def act() -> int:
        points.append(alone_in_job(cfg))
        return carry_out("run", False, points)

    if code := guarded(act):
        sys.exit(code)
    (point,) = points
    return None if point.run.only or not point.run.iter else point.launcher.await_win(point)


def carry_out(verb: str, confirmed: bool, points: list[Point]) -> int:
    """Do what the verb says to all points; returns the exit code."""
    if not points:
        return 0
    launcher = points[0].launcher
    if any(point.launcher != launcher for point in points):
        raise UserError("launcher: all points of a sweep are launched by one; leave it out of the sweep")
    points = _distinct(points)
    _refuse_shared_folders(points)
    if verb == "run":
        return launcher.launch(points)
    if verb == "plan":
        return launcher.plan(points)
    if verb in ("status", "cancel", "retry"):
        if not isinstance(launcher, Queue):
            raise UserError(f"launcher: {verb} is for what launcher=slurm has submitted; add it to the words")
        return getattr(launcher, verb)(points)
    return max(_look(verb, confirmed, point.run) for point in points)


def _distinct(points: list[Point]) -> list[Point]:
    """Keep points that are the same run, as variants of an experiment may be, once."""
    distinct: dict[object, Point] = {}
    for point in points:
        run = point.run
        same = (point.folder, run.store, run.iter, *run.wanted, run.part, *(node.key for node in point.nodes))
        if same in distinct:
            print(f"sweep: {' '.join(point.overrides)} is the same run as {' '.join(distinct[same].overrides)}")
        distinct.setdefault(same, point)
    return list(distinct.values())


def _refuse_shared_folders(points: list[Point]) -> None:
    from src.reporting.hub import check_apart

    counts = Counter(point.folder for point in points if not point.run.only)
    doubled = next((folder for folder, count in counts.items() if count > 1), None)
    if doubled is not None:
        raise UserError(f"name: points of the sweep share the run folder {doubled}; leave it null or sweep it too")
    check_apart([point.run for point in points])


def _look(verb: str, confirmed: bool, run: Run) -> int:
    if verb == "parity":
        from src.launch.parity import print_parity

        return print_parity(run)
    from src.launch import housekeeping

    return housekeeping.verify(run) if verb == "verify" else housekeeping.clean(run, confirmed)
