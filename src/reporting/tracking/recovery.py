"""What was shown, told by W&B's own files: after a kill, and where the state file is lost or damaged.

A killed process takes with it what W&B had not written yet, so where a W&B run was never finished, its own file says
what was shown. The same files say it where there is no state; where they do not say all, what is shown next is shown
in a W&B run of its own, for no row may come twice in one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from random import randrange
from typing import Any

from src.kernel.config import Fault
from src.kernel.rows import Row
from src.reporting.tracking.spool import places, run_id
from src.reporting.tracking.state import (
    RUNS,
    Damaged,
    Place,
    State,
    read_all,
    read_state,
    row_hash,
    write_all,
    write_state,
)

PATIENCE_S = 120.0
MOST = 4096
"""Numbers by which a family's W&B runs are looked for; those of the upper half are drawn where none is known."""


def look(place: Place, own: Collection[str]) -> State:
    """What is known of a family, whose lock is held; `own` are its artifacts in this experiment, as `kind:key`."""
    lost = _set_aside(place.file)
    if not place.file.exists():
        runs = _rebuilt(place, own)
        if (runs or lost) and not any(run.plan for run in runs):
            runs.append(_unknown(place))
        if runs:
            write_all(place.file, runs)
    state = read_state(place)
    if state.unfinished:
        recover(place, state)
        write_state(place, state)
    return state


def recover(place: Place, state: State) -> None:
    """After a kill: what W&B has written of the run that was open, which may be less than it was handed, or more."""
    if state.unfinished is None or state.before is None:
        return
    file, before = place.folder / RUNS / state.unfinished / f"run-{state.id}.wandb", state.before
    if file.exists():
        try:
            shown = list(_rows(_records(file)))
        except (subprocess.SubprocessError, ValueError) as error:
            said = str(error).partition("\n")[0]
            raise Fault(f"{file}: W&B's own tool cannot read it ({said}); move its folder away") from None
        hashes = [row_hash(row) for row in shown if "artifact" in row]
        state.rows = state.rows[: before.rows] + hashes
        state.artifacts = dict(list(state.artifacts.items())[: before.artifacts])  # twice they are one version
        state.report = state.report if len(hashes) < len(shown) else before.report
        state.steps = max((row["_step"] + 1 for row in shown), default=before.steps)
    state.cut = state.unfinished
    state.finish()


def _set_aside(file: Path) -> bool:
    """Whether it was damaged; says so."""
    try:
        read_all(file)
    except Damaged:
        aside = file.with_name(f"{file.name}.damaged")
        file.replace(aside)
        print(f"tracking: {file}: damaged; now {aside.name}, and made again from W&B's files", file=sys.stderr)
        return True
    return False


def _rebuilt(place: Place, own: Collection[str]) -> list[State]:
    """The W&B runs that a family has files of. Those that are not whole, or of another experiment, are of no plan."""
    found: dict[tuple[int, str], list[list[Row] | None]] = {}
    there = places(place.folder)
    numbers = place.numbers(MOST) if there else {}
    for folder in there:
        if run_id(folder) in numbers:
            records = _readable(folder)
            opened = next((record["run"] for record in records or () if record["type"] == "run"), {})
            key = numbers[run_id(folder)], opened.get("project") or place.project
            found.setdefault(key, []).append(records)
    return [_state(place, number, project, parts, own) for (number, project), parts in sorted(found.items())]


def _state(place: Place, number: int, project: str, parts: list[list[Row] | None], own: Collection[str]) -> State:
    records = [record for part in parts for record in part or ()]
    shown = list(_rows(records))
    rows = [row for row in shown if "artifact" in row]
    entities = {record["run"].get("entity") for record in records if record["type"] == "run"} - {None, ""}
    whole = None not in parts and [row["_step"] for row in shown] == list(range(len(shown))) and len(entities) < 2
    ours = whole and any(row["artifact"].replace("/", ":") in own for row in rows)
    state = State(
        place.run_id(number), project, next(iter(entities), None), place.plan if ours else "", number, steps=len(shown)
    )
    state.rows = [row_hash(row) for row in rows]
    state.artifacts = dict(_made(records))
    return state


def _unknown(place: Place) -> State:
    """A W&B run of which nothing is left: the next one has an id that none had before."""
    number = randrange(MOST // 2, MOST - 64)
    return State(place.run_id(number), place.project, place.entity, "", number)


def _rows(records: list[Row]) -> Iterator[Row]:
    return (record["history"]["item"] for record in records if record["type"] == "history")


def _made(records: list[Row]) -> Iterator[tuple[str, list[str]]]:
    """Artifacts as `kind:key`, and those that each was made from; what lineage.py has not written is none."""
    for record in records:
        with suppress(ValueError, AttributeError, LookupError, TypeError):
            artifact = record["artifact"]
            told = _loaded(artifact["metadata"])
            inputs = [name for name in told["inputs"] if isinstance(name, str)]
            if not artifact.get("user_created"):  # those are used
                yield f"{artifact['type']}:{told['key']}", inputs


def _readable(folder: Path) -> list[Row] | None:
    """Of W&B's file in its folder; None where it cannot be read."""
    with suppress(subprocess.SubprocessError, ValueError):
        return [record for file in folder.glob("*.wandb") for record in _records(file)]
    return None


def _records(file: Path) -> list[Row]:
    """What a file of W&B holds, read by its own tool."""
    words = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
    quiet = os.environ | {"WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false"}  # it would tell W&B of errors
    quiet.setdefault("WANDB_DIR", tempfile.gettempdir())  # for a log, else in the folder where somebody is
    done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE_S, check=True, env=quiet)
    return [_record(line) for line in done.stdout.splitlines()]


def _record(line: str) -> Row:
    """One whose kind is read here has what is read of it. Raises ValueError."""
    record = _loaded(line)
    try:
        if record["type"] == "run":
            known = all(isinstance(record["run"].get(name), str | None) for name in ("project", "entity"))
        else:
            item = record["history"]["item"] if record["type"] == "history" else {"_step": 0}
            known = type(item["_step"]) is int and isinstance(item.get("artifact", ""), str)
    except (AttributeError, LookupError, TypeError):
        known = False
    if not known:
        raise ValueError(f"no record of a W&B run: {line[:60]!r}")
    return record


def _loaded(text: str) -> Any:
    """JSON that can be written again. Raises ValueError."""
    try:
        found = json.loads(text)
    except RecursionError as error:
        raise ValueError(str(error)) from None
    json.dumps(found, ensure_ascii=False).encode()  # no half of a character
    return found
