"""W&B as a mirror of a run folder: live while the run goes on, or later.

python -m src.main sync [runs=...]     a glob of run folders (runs/*), one folder, several by commas, or a sweep's name
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from src.experiment.point import Mirror, Point
from src.experiment.select import folders
from src.kernel.artifact import Node
from src.kernel.config import Free, UserError, config, explain
from src.reporting.wandb_runs import Runs

ASKED_S = 10.0
"""How long the server may take to answer when asked whether it is there."""
REMEDY = "metrics.jsonl has every row, and `python -m src.main sync` shows them later"


@config
class Off:
    """`metrics.jsonl` only."""

    def open(self, point: Point) -> Mirror:
        return self

    def begin(self, node: Node) -> None: ...

    def update(self) -> None: ...

    def report(self) -> None: ...

    def close(self) -> None: ...


@config
class WandB:
    """Weights & Biases runs whose ids follow the run folder."""

    project: Free[str]
    entity: Free[str | None]
    mode: Free[Literal["auto", "online", "offline"]]
    """auto: what WANDB_MODE says, else online with an API key; without one `sync` shows the run later."""
    group: Free[str | None]
    """Group of the W&B runs; null: the sweep, else the experiment, else the run folder."""

    def open(self, point: Point) -> Mirror:
        try:
            mode = mode_of(self.mode)
        except Exception as error:  # whatever W&B's library says to its settings is no end of a run
            print(f"tracking: {reason_of(error)}; W&B is shown nothing until that is mended", file=sys.stderr)
            return Off()
        return Off() if mode == "disabled" else Guarded(self.runs(point, mode))

    def runs(self, point: Point, mode: str) -> Runs:
        return Runs(point, mode, self.project, self.entity, self.group)


class Guarded:
    """The mirror of a run. What fails in it is said once, in one line, and never stops the run."""

    def __init__(self, runs: Runs) -> None:
        self.runs, self.failed, self.warned = runs, False, False

    def begin(self, node: Node) -> None:
        self._try(lambda: self.runs.begin(node))

    def update(self) -> None:
        self._try(self.runs.update)

    def report(self) -> None:
        self.failed = False  # W&B may be back, and this shows all that it lacks
        self._try(self.runs.report)

    def close(self) -> None:
        error = sys.exc_info()[1]
        self._try(lambda: self.runs.close(error))

    def _try(self, act: Callable[[], object]) -> None:
        if self.failed:
            return
        try:
            act()
        except Exception as error:
            if not self.warned:
                print(f"tracking: W&B failed ({reason_of(error)}); {REMEDY}", file=sys.stderr)
            self.failed = self.warned = True
            with suppress(Exception):
                self.runs.finish(1)


def mode_of(chosen: str) -> str:
    """Resolve `auto`: WANDB_MODE, else online with a key, else disabled. A trial's agent has logged in, however it did.

    Raises UserError for online without a key: W&B's library would wait for somebody to type one.
    """
    mode = os.environ.get("WANDB_MODE", "auto") if chosen == "auto" else chosen
    if mode not in ("auto", "online", "offline", "disabled"):
        raise UserError(f"WANDB_MODE: {mode} is none of online, offline and disabled")
    if mode in ("offline", "disabled"):
        return mode
    if "WANDB_SWEEP_ID" in os.environ or has_key():
        return "online"
    if mode == "online":
        raise UserError("tracking.mode: online wants a key of W&B; `wandb login` or WANDB_API_KEY=…")
    return "disabled"


def has_key() -> bool:
    """Look for a key of W&B in the environment and, from `wandb login`, in the netrc file."""
    from requests.utils import get_netrc_auth

    if any(os.environ.get(name) for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")):
        return True
    try:
        return get_netrc_auth(server()) is not None
    except UnicodeDecodeError:
        raise UserError("W&B's key: the netrc file is no text") from None


def server() -> str:
    """Return W&B's address. Raises UserError for settings that its library refuses."""
    import wandb

    try:
        return os.environ.get("WANDB_BASE_URL") or wandb.setup().settings.base_url
    except (ValidationError, wandb.Error, OSError) as error:
        raise UserError(f"W&B's settings: {reason_of(error)}") from error


def reachable(address: str) -> bool:
    """Ask whether a server is there; any answer will do."""
    import requests

    try:
        requests.get(address, timeout=ASKED_S, stream=True).close()
        return True
    except requests.RequestException:
        return False


def reason_of(error: BaseException) -> str:
    """Say in one line what went wrong; of a setting that W&B's library refuses, its name and value."""
    if isinstance(error, ValidationError):
        return explain(error, "")
    return (str(error).strip() or repr(error)).splitlines()[0]


def sync(words: Sequence[str], read: Callable[[Path], Point]) -> int:
    """Show run folders to W&B, whatever it lacks of them; returns the exit code.

    `read` makes a point of a run folder. Raises UserError where W&B cannot be had or does not take all.
    """
    if wrong := [word for word in words if not word.startswith("runs=")] or words[1:]:
        raise UserError(f"sync: {wrong[0]} is not one runs=…, with run folders, globs or sweeps by commas")
    if not has_key():
        raise UserError("sync: not logged in to W&B; `wandb login` or WANDB_API_KEY=…, then the same command")
    address, left = server(), list[Path]()
    for folder in folders(words[0].removeprefix("runs=") if words else "runs/*"):
        if not reachable(address):
            raise UserError(f"sync: {address} does not answer; the same command goes on later")
        try:
            busy = _show(read(folder))
            print(f"{folder}: shown" + f", but for {', '.join(busy)}, which a run shows just now" * bool(busy))
        except Exception as error:  # in this folder: the others are shown
            left.append(folder)
            print(f"{folder}: left out: {reason_of(error)}")
    if left:
        raise UserError(f"sync: {len(left)} run folders left out, the reasons are above; the same command tries again")
    return 0


def _show(point: Point) -> list[str]:
    """Open the mirror of a run folder online, whatever its own mode is."""
    tracking = point.tracking
    if not isinstance(tracking, WandB):
        raise UserError("its tracking= is not wandb")
    runs = tracking.runs(point, "online")
    try:
        return runs.show_all()
    finally:
        runs.finish()
