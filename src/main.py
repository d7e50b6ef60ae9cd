"""`python -m src.main [verb] [overrides]`: compose the config, build one typed Run, do what the verb says.

verbs: (none) make what is missing and report | plan | parity | verify | clean [--yes]
exit codes: 0 done, 2 a mistake of the user, 3 a damaged store, 128+n stopped by signal n
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import traceback
from itertools import takewhile
from types import FrameType
from typing import Any, NamedTuple

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from src.config import Stopped, UserError, explain
from src.pipeline import Run
from src.progress import quiet_libraries
from src.sources import register

VERBS = ("plan", "parity", "verify", "clean")
register()


def main() -> int:
    """Take the verb off, let Hydra compose, turn mistakes into one line; HYDRA_FULL_ERROR=1 shows where they rose."""
    quiet_libraries()
    traced = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach us instead of Hydra's own report
    words = sys.argv[1:]
    verb = words.pop(0) if words and words[0] in VERBS else "run"
    confirmed = verb == "clean" and "--yes" in words
    sys.argv[1:] = [word for word in words if not (verb == "clean" and word == "--yes")]
    try:
        return _carry_out(verb, confirmed, _compose())
    except (UserError, HydraException, OmegaConfBaseException) as error:
        if traced:
            traceback.print_exc()
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return stopped.exit_code
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130


class Point(NamedTuple):
    """A composed config, and the overrides that make it."""

    cfg: DictConfig
    overrides: list[str]


def _compose() -> list[Point]:
    """One point, or those of a sweep; none where Hydra only shows something (`--help`, `--cfg job`)."""
    points: list[Point] = []

    @hydra.main(version_base="1.3", config_path="../conf", config_name="config")
    def collect(cfg: DictConfig) -> None:
        points.append(Point(cfg, list(HydraConfig.get().overrides.task)))

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            collect()
    except SystemExit as stop:  # argparse: usage, then one line that says what is wrong
        if stop.code:
            raise UserError(said.getvalue().strip().splitlines()[-1].partition("error: ")[2]) from None
        return []
    except ValueError as error:  # Hydra's own, for an override that is no name of an option
        raise UserError(f"{' '.join(sys.argv[1:])}: {error}") from error
    sys.stderr.write(said.getvalue())
    return points


def _carry_out(verb: str, confirmed: bool, points: list[Point]) -> int:
    """Every point of a sweep is built before the first one starts, and the first failure ends it."""
    runs = _distinct([(build(point.cfg), point) for point in points])
    _refuse_shared_folders([run for run, _ in runs])
    return max((_do(verb, confirmed, run, point) for run, point in runs), default=0)


def _distinct(runs: list[tuple[Run, Point]]) -> list[tuple[Run, Point]]:
    """Points that are the same run, as variants of an experiment may be, once."""
    from src.runner import run_name

    found: dict[object, tuple[Run, Point]] = {}
    for run, point in runs:
        same = (run_name(run), run.runs, run.store, run.iter, run.only, run.part, *(node.key for node in run.nodes()))
        if same in found and len(runs) > 1:
            print(f"sweep: {' '.join(point.overrides)} is the same run as {' '.join(found[same][1].overrides)}")
        found.setdefault(same, (run, point))
    return list(found.values())


def _refuse_shared_folders(runs: list[Run]) -> None:
    from src.card.push import check_apart
    from src.runner import run_name

    names = [run.runs / run_name(run) for run in runs if not run.only]
    doubled = next((name for name in names if names.count(name) > 1), None)
    if doubled is not None:
        raise UserError(f"name: points of the sweep share the run folder {doubled}; leave it null or sweep it too")
    check_apart(runs)


def _do(verb: str, confirmed: bool, run: Run, point: Point) -> int:
    if verb == "plan":
        from src.plan import print_plan

        return print_plan(run)
    if verb == "parity":
        from src.parity import print_parity

        return print_parity(run)
    if verb in ("verify", "clean"):
        from src import housekeeping

        return housekeeping.verify(run) if verb == "verify" else housekeeping.clean(run, confirmed)
    from src.plan import print_forecast
    from src.runner import execute

    if not run.only:
        print_forecast(run)
    settings: Any = OmegaConf.to_container(point.cfg, resolve=True)
    execute(run, point.overrides, OmegaConf.to_yaml(point.cfg, resolve=True), settings)
    return 0


def build(cfg: DictConfig) -> Run:
    """The typed Run of a composed config. Raises UserError naming the full key of a refused value."""
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise UserError(f"{missing[0]}: missing; give it a value")
    try:
        return hydra.utils.instantiate(cfg)
    except InstantiationException as error:
        raise UserError(_explain(error)) from error


def _explain(error: InstantiationException) -> str:
    """Hydra's message ends in `full_key: a.b`; the cause says what pydantic or the class refused."""
    text, cause = str(error), error.__cause__
    key = text.rpartition("full_key: ")[2].strip() if "full_key: " in text else ""
    if isinstance(cause, ValidationError):
        return explain(cause, key)
    reason = str(cause or text).strip().splitlines()[0]
    return f"{key or 'config'}: {reason}"


def one_line(error: BaseException) -> str:
    """The first line that says something, with the choices or the hint that Hydra has for it."""
    if isinstance(error, OverrideParseException):
        if "=" in error.override:
            return f"{error.override}: Hydra cannot read this value; quote it"
        return f"{error.override}: no override (key=value), and no verb ({', '.join(VERBS)}) in the first place"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first, rest = (lines or [repr(error)])[0], lines[1:]
    if any(line.startswith("To append to your config use") for line in rest):
        key = first.partition("'")[2].partition("'")[0]
        return f"{key}: unknown key; --cfg job shows all keys"
    choices = list(takewhile(lambda line: not line.startswith("Config search path"), rest))
    if choices and choices[0].startswith("Available options in"):
        return f"{first}; there are {', '.join(choices[1:])}"
    return " ".join([first, *(line for line in rest if line.startswith("To append to your default list use"))])


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped(number)


if __name__ == "__main__":
    for number in (signal.SIGTERM, signal.SIGUSR1):  # SLURM's end, and its warning; training saves first
        signal.signal(number, _stop)
    sys.exit(main())
