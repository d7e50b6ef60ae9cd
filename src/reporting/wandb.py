"""W&B as a mirror of a run folder: live while the run goes on, or later.

python -m src.main sync [runs=...]     a glob of run folders (runs/*), one folder, several by commas, or a sweep's name

A run folder has one W&B run per family of stages: generate, rank, train, evaluate, or a benchmark. Its id follows from
the run folder, the family and the experiment, and row k of its metrics is step k. A process that opens it asks W&B for
the next step and logs the rows from there on: a kill, a requeue and a second `sync` neither double nor lose a row, and
nothing is kept here about what W&B has.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Annotated, Any

from filelock import FileLock, Timeout

from src.experiment.point import Mirror, Point
from src.experiment.selection import folders, group_of
from src.kernel.artifact import Node, fingerprint_hash, place_of
from src.kernel.config import Free, Stopped, UserError, config, matching
from src.kernel.store import Store
from src.reporting import wandb_tables as tables
from src.reporting.metrics_file import in_order, prefix_of, rows_of

STEP = "train/total_step"
"""The step of a training counted over all iterations; `train/step` begins anew with each."""
OPENED_S, FINISHED_S = 30.0, 60.0
"""How long W&B may take to open a run, and to take the rest of it at its end."""


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
    """Weights & Biases, where there is a key of it and WANDB_MODE does not say offline or disabled."""

    project: Free[Annotated[str, matching(r"[^/\\#?%:]{1,128}", "W&B takes 1 to 128 characters without / \\ # ? % :")]]
    entity: Free[str | None]
    group: Free[str | None]
    """Group of the W&B runs; null: the sweep, else the experiment, else the run folder."""

    def open(self, point: Point) -> Mirror:
        online = os.environ.get("WANDB_MODE", "online") == "online" and has_key()
        return Guarded(Runs(point, self)) if online else Off()


class Guarded:
    """The mirror of a run. What fails in it is one line on stderr, and never stops the run."""

    def __init__(self, runs: Runs) -> None:
        self.runs, self.failed = runs, False

    def begin(self, node: Node) -> None:
        self._try(lambda: self.runs.begin(node))

    def update(self) -> None:
        self._try(self.runs.update)

    def report(self) -> None:
        self.failed = False  # W&B may be back, and this shows all that it lacks
        self._try(self.runs.show_all)

    def close(self) -> None:
        error = sys.exc_info()[1]
        self._try(lambda: self.runs.close(error))

    def _try(self, act: Callable[[], object]) -> None:
        if self.failed:
            return
        try:
            act()
        except Exception as error:
            remedy = "metrics.jsonl has every row, and `python -m src.main sync` shows them later"
            print(f"tracking: W&B failed ({reason_of(error)}); {remedy}", file=sys.stderr)
            self.failed = True
            with suppress(Exception):
                self.runs.finish(1)


class Runs:
    """The W&B runs of a run folder. One at a time is open: that of the stage that works."""

    def __init__(self, point: Point, tracking: WandB) -> None:
        self.point, self.tracking, self.store = point, tracking, Store(point.run.store)
        self.nodes: dict[str, list[Node]] = {}
        """The nodes of each family, in the order of their rows."""
        for node in in_order(point.nodes):
            if family := tables.family_of(node):
                self.nodes.setdefault(family, []).append(node)
        self.run: Any = None
        self.family = ""
        """The family whose W&B run is open."""
        self.lock: Any = None
        self.next = 0
        """The step of the open W&B run that is logged next."""

    def begin(self, node: Node) -> None:
        """Open the W&B run of a stage that starts: its figures of the machine are that family's."""
        if family := tables.family_of(node):
            self.enter(family)
        else:
            self.finish()

    def update(self) -> None:
        """Log the rows that the open W&B run lacks."""
        if self.run is None:
            return
        total, rows = 0, rows_of(self.nodes[self.family], self.store)
        for step, (node, row) in enumerate(rows):
            total += "train/step" in row
            if step >= self.next:
                more = {STEP: total} if "train/step" in row else {}
                more |= tables.samples_of(node, self.point.nodes, self.store, self.point.run.estimator)
                self.run.log(tables.as_logged(row | more), step=step, commit=True)
        self.next = max(self.next, len(rows))
        self.run.summary.update(tables.summary_of([row for _, row in rows]))

    def show_all(self) -> None:
        """Log what any family lacks, and lineage, but for families that another process shows just now."""
        families = [family for family, nodes in self.nodes.items() if rows_of(nodes, self.store)]
        for family in families:
            if self.enter(family):
                self.update()
                tables.log_made(self.run, self.nodes[family], self.store)
        for family in families:  # when all is logged: W&B takes what is used before it was made for nobody's output
            if self.enter(family):
                tables.log_used(self.run, self.nodes[family], self.store)

    def close(self, error: BaseException | None = None) -> None:
        """End the open W&B run as the run itself ended."""
        code = 0 if error is None else getattr(error, "exit_code", 1)
        if self.run is not None and isinstance(error, Stopped) and code == 128 + signal.SIGUSR1:
            self.run.mark_preempting()  # a trial goes to the next agent; after SIGTERM not, which may be W&B's own stop
        self.finish(code)

    def enter(self, family: str) -> bool:
        """Open the W&B run of a family unless it is open; False where another process has it open."""
        if self.run is not None and family == self.family:
            return True
        self.finish()
        file = self.point.folder / "wandb" / f"{family}.lock"
        file.parent.mkdir(parents=True, exist_ok=True)
        self.lock = FileLock(file, timeout=0, thread_local=False)
        try:
            self.lock.acquire()
        except Timeout:
            return False
        try:
            self.run, self.family = self._open(family), family
        except BaseException:
            self.lock.release()
            raise
        self.next = self.run.starting_step  # `run.step` is 0 for a while after a run is resumed
        return True

    def finish(self, code: int = 0) -> None:
        """Finish the open W&B run, if there is one, and remove the files that it leaves."""
        run, self.run = self.run, None
        if run is not None:
            try:
                run.finish(exit_code=code)
                shutil.rmtree(run.settings.sync_dir, ignore_errors=True)
            finally:
                self.lock.release()

    def _open(self, family: str) -> Any:
        import wandb

        wandb.setup(wandb.Settings(silent=True))
        point, run = self.point, self.point.run
        sweep, keys = group_of(point.folder), {node.name: node.key for node in point.nodes}
        group = self.tracking.group or sweep or run.experiment or point.folder.name
        opened = wandb.init(
            project=self.tracking.project,  # in a trial W&B takes project, entity and id of the sweep
            entity=self.tracking.entity,
            id=run_id(point.folder, family, experiment_of(keys)),
            name=tables.name_of(run),
            group=group[: 2 * tables.LONGEST],
            job_type=family if family in (*tables.FAMILIES, tables.TRIAL) else "evaluate",
            tags=[tag[: tables.LONGEST] for tag in {run.method.name, run.model.name, run.experiment, sweep} if tag],
            mode="online",
            resume="allow",
            reinit="create_new",
            dir=point.folder,
            config=tables.config_of(point),
            settings=wandb.Settings(
                console="off",
                symlink=False,
                disable_git=True,  # the diff of a working tree may hold anything; the commit is a column
                x_disable_machine_info=True,  # it has the words of the command and SLURM's variables
                x_skip_transaction_log=True,
                init_timeout=OPENED_S,
                finish_timeout=FINISHED_S,
                finish_timeout_raises=True,
                x_graphql_retry_max=4,  # by default W&B's library would go on for a quarter hour
            ),
        )
        for prefix in dict.fromkeys([*map(prefix_of, self.nodes[family]), "samples"]):
            axes = ("train/*", STEP) if prefix == "policy" else (f"{prefix}/*", "iteration")
            opened.define_metric(axes[0], step_metric=axes[1])
        return opened


def experiment_of(keys: Mapping[str, str]) -> str:
    """Hash the keys of the first iteration, which more iterations leave as they are; else that of the start policy.

    `keys`: the key of each artifact of a run by its name.
    """
    places = {name: place_of(name) for name in keys}
    first = [keys[name] for name, place in places.items() if place.iteration == 1 and not place.benchmark]
    return fingerprint_hash(sorted(first or [keys["base/policy"]]))[:8]


def run_id(folder: Path, family: str, experiment: str) -> str:
    """Return the id of a W&B run: 16 hex digits."""
    return hashlib.sha256(f"{folder.resolve()}\n{family}\n{experiment}".encode()).hexdigest()[:16]


def has_key() -> bool:
    """Look for a key of W&B in the environment and, from `wandb login`, in the netrc file; a sweep's agent has one."""
    if any(os.environ.get(name) for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_SWEEP_ID")):
        return True
    import wandb
    from requests.utils import get_netrc_auth

    with suppress(Exception):  # a netrc file or settings of W&B that cannot be read hold no key
        return get_netrc_auth(os.environ.get("WANDB_BASE_URL") or wandb.setup().settings.base_url) is not None
    return False


def reason_of(error: BaseException) -> str:
    """Say in one line what went wrong."""
    return " ".join(str(error).split()) or repr(error)


def sync(words: Sequence[str], read: Callable[[Path], Point]) -> int:
    """Show run folders to W&B, whatever it lacks of them; return the exit code.

    `read` makes a point of a run folder. Raises UserError where W&B cannot be had or does not take all.
    """
    if words[1:] or not all(word.startswith("runs=") for word in words):
        raise UserError(f"{' '.join(words)}: sync takes one runs=…, with run folders, globs or sweeps by commas")
    if not has_key():
        raise UserError("sync: not logged in to W&B; `wandb login` or WANDB_API_KEY=…, then the same command")
    left_out = 0
    for folder in folders(words[0].removeprefix("runs=") if words else "runs/*"):
        try:
            point = read(folder)
            if not isinstance(point.tracking, WandB):
                raise UserError("its tracking= is not wandb")
            with closing(Runs(point, point.tracking)) as runs:
                runs.show_all()
            print(f"{folder}: shown")
        except Exception as error:  # in this folder: the others are shown
            left_out += 1
            print(f"{folder}: left out: {reason_of(error)}")
    if left_out:
        raise UserError(f"sync: {left_out} run folders left out, the reasons are above; the same command tries again")
    return 0
