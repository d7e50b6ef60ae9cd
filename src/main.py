"""`python -m src.main [verb] [overrides]`: compose the config, build one typed Run, do what the verb says.

verbs: (none) make what is missing and report | plan | verify | clean [--yes]
exit codes: 0 done, 2 a mistake of the user, 3 a damaged store, 128+n stopped by signal n
"""

from __future__ import annotations

import os
import sys
import traceback
from typing import Any

import hydra
from hydra.errors import HydraException, InstantiationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from src.config import Stopped, UserError, explain
from src.pipeline import Run
from src.progress import quiet_libraries

VERBS = ("plan", "verify", "clean")


def main() -> int:
    """Take the verb off, let Hydra compose, turn mistakes into one line."""
    quiet_libraries()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach us instead of Hydra's own report
    words = sys.argv[1:]
    verb = words.pop(0) if words and words[0] in VERBS else "run"
    confirmed = verb == "clean" and "--yes" in words
    sys.argv[1:] = [word for word in words if not (verb == "clean" and word == "--yes")]
    try:
        return _with_hydra(verb, confirmed)
    except (UserError, HydraException, OmegaConfBaseException) as error:
        if "debug=true" in sys.argv:
            traceback.print_exc()
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return stopped.exit_code
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130


def _with_hydra(verb: str, confirmed: bool) -> int:
    codes: list[int] = []
    errors: list[BaseException] = []

    @hydra.main(version_base="1.3", config_path="../conf", config_name="config")
    def composed(cfg: DictConfig) -> None:
        if errors:
            return  # a sweep stops at its first failing point
        try:
            codes.append(_do(verb, confirmed, cfg))
        except BaseException as error:  # raised below, where Hydra does not add lines of its own
            errors.append(error)

    try:
        composed()
    except ValueError as error:  # Hydra's own, for an override that is no name of an option
        raise UserError(f"{' '.join(sys.argv[1:])}: {error}") from error
    if errors:
        raise errors[0]
    return max(codes, default=0)


def _do(verb: str, confirmed: bool, cfg: DictConfig) -> int:
    run = build(cfg)
    if verb == "plan":
        from src.plan import print_plan

        return print_plan(run)
    if verb in ("verify", "clean"):
        from src import housekeeping

        return housekeeping.verify(run) if verb == "verify" else housekeeping.clean(run, confirmed)
    from src.runner import execute

    settings: Any = OmegaConf.to_container(cfg, resolve=True)
    execute(run, OmegaConf.to_yaml(cfg, resolve=True), settings)
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
    """The first line that says something, with Hydra's hint where it has one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    hints = [line for line in lines[1:] if line.startswith("To append to your config use")]
    return " ".join([*lines[:1], *hints])


if __name__ == "__main__":
    sys.exit(main())
