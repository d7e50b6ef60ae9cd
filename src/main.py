"""`python -m src.main [verb] [overrides]`: compose the config, build one typed Run, do what the verb says.

verbs: (none) make what is missing and report | plan | parity | status | cancel | retry | verify | clean [--yes]
       score benchmark=… from=… [out=…], of files that others made
       compare runs=… [out=…] | sync [runs=…], which take run folders in place of a config
exit codes: 0 done, 2 a mistake of the user, 3 a failure of the machine or a damaged store, 128+n stopped by signal n
"""

from __future__ import annotations

import signal
import sys
from types import FrameType

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from src.experiment.launcher import Point, Queue
from src.experiment.run import Run
from src.experiment.secret_words import refuse_words
from src.kernel.config import Fault, Stopped, UserError
from src.kernel.faults import explain
from src.kernel.progress import quiet_libraries
from src.launch.compose import APART, apart, compose
from src.launch.composer import build, read_point
from src.launch.mistakes import one_line

OF_FOLDERS = ("compare", "sync")
"""Verbs that take run folders in place of a config."""
VERBS = ("plan", "parity", "status", "cancel", "retry", "verify", "clean", "score", *OF_FOLDERS)
GRAPH = "hydra/launcher=graph"
DEBUG = "debug=true"
MULTIRUN = ("-m", "--multirun")
__all__ = ["build", "main"]


def main() -> int:
    """Take the verb off, let Hydra compose, and carry it out; returns the exit code."""
    words = sys.argv[1:]
    verb = words.pop(0) if words and words[0] in VERBS else "run"
    confirmed = verb == "clean" and "--yes" in words
    words = [word for word in words if not (verb == "clean" and word == "--yes")]
    sys.argv[1:] = words = sorted(words, key=lambda word: word not in MULTIRUN)  # Hydra wants that in front

    def act() -> int:
        refuse_words(words)
        if verb in OF_FOLDERS:
            return _with_folders(verb, words)
        other = next((word for word in words if word.startswith("hydra/launcher=") and word != GRAPH), None)
        if other and verb != "run":
            raise UserError(f"{other}: with it a sweep can be run; leave it out to {verb}")
        shared = next((key for key in map(_set_by, words) if key in APART), None)
        if other and shared:
            raise UserError(apart(shared))
        swept = next((word for word in words if word.startswith("+sweep=")), None)
        if swept and not {*MULTIRUN, "launcher.alone=true"}.intersection(words):
            raise UserError(f"{swept}: a sweep wants -m too")
        do = partial(_score, _given(words)) if verb == "score" else partial(carry_out, verb, confirmed)
        return do(compose(do, verb))

    return guarded(act)


def _with_folders(verb: str, words: list[str]) -> int:
    words = [word for word in words if word != DEBUG]
    if verb == "compare":
        from src.reporting.compare.command import compare

        return compare(words)
    from src.reporting.wandb import sync

    return sync(words, read_point)


def _given(words: list[str]) -> dict[str, str]:
    """What `score` is given beside the config's words, which are left to Hydra."""
    from src.launch.score import take_given

    given = take_given(words)
    sys.argv[1:] = words
    return given


def _score(given: dict[str, str], points: list[Point]) -> int:
    from src.launch.score import score

    if len(points) > 1:
        raise UserError("score: takes no sweep; leave out -m")
    return score(points[0].run, given, points[0].overrides) if points else 0


def _set_by(word: str) -> str | None:
    """The key that an override gives a value; none where that is null."""
    key, _, value = word.partition("=")
    return None if value in ("", "null") else key.lstrip("+")


def guarded(act: Callable[[], int]) -> int:
    """Turn mistakes into one line and their exit code; `debug=true` shows where they rose."""
    quiet_libraries()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach us instead of Hydra's own report
    traced = DEBUG in sys.argv
    try:
        return act()
    except (UserError, HydraException, OmegaConfBaseException) as error:
        if traced:
            traceback.print_exc()
        print(f"error: {one_line(error, sys.argv[1:], VERBS)}", file=sys.stderr)
        return 3 if isinstance(error, Fault) else 2
    except Exception as error:
        if (said := explain(error)) is None:
            raise
        if traced:
            traceback.print_exc()
        print(f"error: {said}", file=sys.stderr)
        return 3
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return stopped.exit_code
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130


def carry_out(verb: str, confirmed: bool, points: list[Point]) -> int:
    """Do what the verb says to all points; returns the exit code."""
    if not points:
        return 0
    launcher = points[0].run.launcher
    if any(point.run.launcher != launcher for point in points):
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
    """Points that are the same run, as variants of an experiment may be, once."""
    found: dict[object, Point] = {}
    for point in points:
        run = point.run
        same = (point.folder, run.store, run.iter, *run.wanted, run.part, *(node.key for node in point.nodes))
        if same in found and len(points) > 1:
            print(f"sweep: {' '.join(point.overrides)} is the same run as {' '.join(found[same].overrides)}")
        found.setdefault(same, point)
    return list(found.values())


def _refuse_shared_folders(points: list[Point]) -> None:
    from src.reporting.card.push import check_apart

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


def _stop(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # once is enough, and it may come again while the interpreter ends
    raise Stopped(number)


if __name__ == "__main__":
    for number in (signal.SIGTERM, signal.SIGUSR1):  # SLURM's end, and its warning; training saves first
        signal.signal(number, _stop)
    sys.exit(main())
