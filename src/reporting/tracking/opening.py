"""Opening a W&B run: what it is told once, and what happens where the network is gone."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from src.experiment.secret_words import holds_secret
from src.kernel.artifact import Node
from src.kernel.config import UserError
from src.reporting.tracking.columns import config_of, group_of, name_of, tags_of
from src.reporting.tracking.families import job_type_of
from src.reporting.tracking.login import Unusable, has_key
from src.reporting.tracking.metrics import prefix_of
from src.reporting.tracking.mirror import Refused
from src.reporting.tracking.spool import behind, full
from src.reporting.tracking.state import RUNS, Place

if TYPE_CHECKING:
    from src.experiment.point import Point
    from src.reporting.tracking.wandb_runs import WandB

SOURCE = Path(__file__).resolve().parents[3]
DIFF = "diff.patch"
"""What W&B calls it. Its own is of the folder that it writes to, which need not lie in the source tree."""
LONGEST_DIFF = 1_000_000
"""Bytes; a longer one is left out: the commit says `+dirty` all the same."""
LEAST_S = 10.0
"""That a server may take to answer."""
STEP = "train/total_step"
"""Of all iterations; `train/step` begins anew with each."""


class Opener:
    """Opens the W&B runs of a run folder; once W&B could not be reached, all of them offline."""

    def __init__(self, tracking: WandB, point: Point, mode: str, lost: Callable[[], None]) -> None:
        """`lost` is called when W&B could not be reached: W&B runs that are open are to be finished."""
        self.tracking, self.point, self.mode, self.lost = tracking, point, mode, lost
        self.told = False

    def open(self, place: Place, run_id: str, nodes: Sequence[Node], cut: str | None = None) -> Any:
        """`cut`: what a killed process left of the run. Raises Refused where too much waits to be uploaded."""
        late = self.mode == "online" and behind(place.folder, run_id, cut)
        if late and not self.told:
            print("tracking: earlier parts wait for `make sync`; going on offline behind them", file=sys.stderr)
            self.told = True
        run = self._online(place, run_id) if self.mode == "online" and not late else None
        if run is None:
            line = full(self.point.run.runs, self.tracking.spool_gb)
            if line:
                raise Refused(f"{line}; until then nothing is shown")
            run = self._init(place, run_id, "offline" if self.mode == "online" else self.mode)
        _define(run, nodes)
        _keep_diff(run)
        return run

    def _online(self, place: Place, run_id: str) -> Any | None:
        """None where W&B cannot be reached."""
        import wandb

        before = _folders(place, run_id)
        try:
            return self._init(place, run_id, "online")
        except (wandb.Error, OSError) as error:
            reason = str(error).strip().splitlines()[0]
            print(f"tracking: W&B cannot be reached ({reason}); going on offline, `make sync` uploads", file=sys.stderr)
        self.lost()
        self.mode = "offline"
        wandb.teardown()  # its process holds the id that could not be opened
        for folder in _folders(place, run_id) - before:
            shutil.rmtree(folder, ignore_errors=True)
        return None

    def _init(self, place: Place, run_id: str, mode: str) -> Any:
        import wandb

        run, patience = self.point.run, self.tracking.patience_seconds
        group, sweep = group_of(self.point, self.tracking.group)
        chosen: Any = mode
        return wandb.init(
            project=place.project,
            entity=place.entity,
            mode=chosen,
            id=run_id,
            name=name_of(run),
            group=group,
            job_type=job_type_of(place.family),
            tags=tags_of(run, sweep),
            resume="allow",
            reinit="create_new",
            dir=place.folder,
            config=config_of(self.point),
            settings=wandb.Settings(
                silent=True,
                console="off",
                use_dot_wandb=False,  # or our own folder of that name would become its
                git_root=str(SOURCE),
                **_clean_remote(),
                init_timeout=patience,
                finish_timeout=patience,
                finish_timeout_raises=True,
                x_graphql_retry_max=_tries(patience),
                x_graphql_timeout_seconds=max(LEAST_S, patience / _tries(patience)),
            ),
        )


def _tries(patience: float) -> int:
    """Of a question to the server, 2, 4, 8 ... s apart: what is asked of an artifact is no part of W&B's own limit for
    the end of a run, and without this an end under a server that only fails would wait for three quarters of an hour.
    """
    return max(1, int(math.log2(patience / 2 + 1)))


def mode_of(chosen: str) -> str:
    """Of `auto`, WANDB_MODE; else online where somebody is logged in, else offline. Raises Unusable."""
    if chosen != "auto":
        return chosen
    trial = "WANDB_SWEEP_ID" in os.environ  # its agent has logged in, with a key or otherwise
    return os.environ.get("WANDB_MODE") or ("online" if trial or _logged_in() else "offline")


def _logged_in() -> bool:
    try:
        return has_key()
    except Unusable:
        raise
    except UserError:
        return True  # W&B will say what is wrong with the key


def _define(run: Any, nodes: Sequence[Node]) -> None:
    """Axes. No aggregates: W&B makes them columns of columns, and of the rows that one process showed.

    Without one the table of runs has each metric's last value; src/reporting/tracking/columns.py has the best.
    """
    stages = dict.fromkeys(prefix_of(node) for node in nodes if node.name.startswith(("it", "base/")))
    run.define_metric("iteration", hidden=True)
    for stage in (*stages, "samples", "plots"):
        if stage == "policy":
            run.define_metric(STEP, hidden=True)
            run.define_metric("train/*", step_metric=STEP)
        else:
            run.define_metric(f"{stage}/*", step_metric="iteration")


def _keep_diff(run: Any) -> None:
    diff = source_diff()
    if diff:
        (Path(run.dir) / DIFF).write_bytes(diff)
        run.save(str(Path(run.dir) / DIFF), base_path=run.dir, policy="now")


@lru_cache
def source_diff() -> bytes:
    """What the source tree has changed since its commit; empty where that is nothing, unknown or too much."""
    words = ("git", "diff", "--no-ext-diff", "HEAD")
    try:
        found = subprocess.run(words, cwd=SOURCE, capture_output=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        return b""
    if holds_secret(found.decode(errors="replace")):
        print(f"tracking: what {SOURCE} has changed looks as if it holds a key; W&B is not shown it", file=sys.stderr)
        return b""
    return found if len(found) <= LONGEST_DIFF else b""


@lru_cache
def _clean_remote() -> dict[str, Any]:
    """Settings that keep the name in a remote's address, which may be a key, from W&B, that takes off passwords alone.

    Empty where the address has none.
    """

    def git(*words: str) -> str:
        return subprocess.run(("git", *words), cwd=SOURCE, capture_output=True, text=True, check=True).stdout.strip()

    try:
        parts = urlsplit(git("config", "--get", "remote.origin.url"))
        if parts.username is None or not parts.hostname:
            return {}
        bare = parts._replace(netloc=parts.netloc.rpartition("@")[2])
        return {"git_remote_url": urlunsplit(bare), "git_commit": git("rev-parse", "HEAD")}
    except (OSError, ValueError, subprocess.SubprocessError):
        return {}


def _folders(place: Place, run_id: str) -> set[Path]:
    return set((place.folder / RUNS).glob(f"run-*-{run_id}*"))
