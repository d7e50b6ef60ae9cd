"""The W&B runs of a run folder: a run a family of stages, whose rows are logged from W&B's next step on.

A family is generate, rank, train, evaluate or a benchmark. The id of its W&B run follows from the run folder, the
family and the experiment, and row k of its metrics is step k. Whoever opens it asks W&B for the next step and logs the
rows from there on: a kill, a requeue and a second `sync` neither double nor lose a row, and nothing is kept here about
what W&B has. Offline there is nobody to ask: each time the whole run is written, and takes the place of the one before.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from filelock import FileLock, Timeout

from src.experiment.run_folder import LINKS
from src.kernel.artifact import Node, fingerprint_hash, place_of
from src.kernel.config import REHEARSAL, Stopped
from src.kernel.store import Store
from src.reporting.metrics_file import in_order, prefix_of, rows_of
from src.reporting.wandb_tables import HELD_OUT, as_logged, config_of, eta, log_made, log_used, samples_of, summary_of

if TYPE_CHECKING:
    from src.experiment.point import Point
    from src.experiment.run import Run

FAMILIES = ("generate", "rank", "train", "evaluate")
TRIAL = "trial"
"""All families: a trial of a W&B sweep is one W&B run."""
FOLDER = "wandb"
"""W&B's own folder in a run folder."""
STEP = "train/total_step"
"""The step of a training counted over all iterations; `train/step` begins anew with each."""
OPENED_S, FINISHED_S = 30.0, 60.0
"""How long W&B may take to open a run, and to take the rest of it at its end."""
LONGEST_TAG, LONGEST_NAME = 64, 128
"""Characters that W&B lets a tag have, and a name or a group."""
RETRIES = 4
"""How often W&B's library repeats a question to a server that fails; by default it would go on for a quarter hour."""


class Runs:
    """The W&B runs of a run folder. One at a time is open: that of the stage that works."""

    def __init__(self, point: Point, mode: str, project: str, entity: str | None, group: str | None) -> None:
        self.point, self.mode, self.project, self.entity, self.group = point, mode, project, entity, group
        self.store = Store(point.run.store)
        self.trial = {"WANDB_SWEEP_ID", "WANDB_RUN_ID"} <= os.environ.keys()
        names = [TRIAL] if self.trial else [*FAMILIES, *point.run.benchmark]
        self.nodes = {family: nodes_of(family, in_order(point.nodes)) for family in names}
        self.run: Any = None
        self.family: str | None = None
        self.lock: Any = None
        self.next = 0
        """The step of the open W&B run that is logged next."""

    def begin(self, node: Node) -> None:
        """Open the W&B run of a stage that starts: its figures of the machine are that family's."""
        family = TRIAL if self.trial else family_of(node.name)
        if self.mode == "online" and family in self.nodes:
            self.enter(family)
        else:
            self.finish()

    def update(self) -> None:
        """Log the rows that the open W&B run lacks."""
        if self.run is None or self.family is None:
            return
        total, rows = 0, rows_of(self.nodes[self.family], self.store)
        for step, (node, row) in enumerate(rows):
            total += "train/step" in row
            if step >= self.next:
                more = {STEP: total} if "train/step" in row else {}
                more |= samples_of(node, self.point.nodes, self.store, self.point.run.estimator)
                self.run.log(as_logged(row | more), step=step, commit=True)
        self.next = max(self.next, len(rows))
        self.run.summary.update(summary_of([row for _, row in rows]))

    def report(self) -> None:
        """Show what W&B lacks, now that the run is complete. Offline all is written at the end."""
        if self.mode == "online":
            self.show_all()

    def show_all(self) -> list[str]:
        """Log what any family lacks, plots and lineage; returns the families that another process has open."""
        families = [family for family, nodes in self.nodes.items() if rows_of(nodes, self.store)]
        shown = list[str]()
        for family in families:
            if self.enter(family):
                shown.append(family)
                self.update()
                if family in ("evaluate", TRIAL):
                    self._log_plots()
                if self.mode == "online":
                    log_made(self.run, self.nodes[family], self.store)
        for family in reversed(shown if self.mode == "online" else []):
            if self.enter(family):
                log_used(self.run, self.nodes[family], self.store)
        return [family for family in families if family not in shown]

    def close(self, error: BaseException | None) -> None:
        """End the open W&B run as the run itself ended."""
        code = 0 if error is None else getattr(error, "exit_code", 1)
        if self.mode == "offline" and not isinstance(error, Stopped | KeyboardInterrupt):
            self.show_all()
        if self.run is not None and isinstance(error, Stopped) and code == 128 + signal.SIGUSR1:
            self.run.mark_preempting()  # a trial goes to the next agent; after SIGTERM not, which may be W&B's own stop
        self.finish(code)

    def enter(self, family: str) -> bool:
        """Open the W&B run of a family unless it is open; False where another process has it open."""
        if self.run is not None and family == self.family:
            return True
        self.finish()
        file = self.point.folder / FOLDER / f"{family}.lock"
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(file, timeout=0, thread_local=False)
        with suppress(Timeout):
            lock.acquire()
        if not lock.is_locked:
            return False
        self.family, self.lock = family, lock
        try:
            self.run = self._init(family)
        except BaseException:
            lock.release()
            raise
        _define_axes(self.run, self.nodes[family])
        self.next = self.run.starting_step  # `run.step` is 0 for a while after a run is resumed
        return True

    def finish(self, code: int = 0) -> None:
        """Finish the open W&B run, if there is one. Of all its files only the last one that is whole is kept."""
        run, self.run = self.run, None
        if run is None:
            return
        last = Path(run.settings.sync_dir)
        try:
            run.finish(exit_code=code)
            for folder in last.parent.glob(f"*run-*-{run.id}*"):
                if self.mode == "online" or folder != last:
                    shutil.rmtree(folder, ignore_errors=True)
        finally:
            self.lock.release()

    def _init(self, family: str) -> Any:
        import wandb

        wandb.setup(wandb.Settings(silent=True))
        point, mode = self.point, cast(Any, self.mode)
        environment = os.environ if self.trial else {}
        group, sweep = group_of(point, self.group)
        return wandb.init(
            project=environment.get("WANDB_PROJECT") or self.project,
            entity=environment.get("WANDB_ENTITY") or self.entity,
            mode=mode,
            id=environment.get("WANDB_RUN_ID") or run_id(point.folder, family, experiment_of(point.nodes)),
            name=name_of(point.run),
            group=group,
            job_type=family if family in (*FAMILIES, TRIAL) else "evaluate",
            tags=tags_of(point.run, sweep),
            resume="allow",
            reinit="create_new",
            dir=point.folder,
            config=config_of(point),
            settings=wandb.Settings(
                silent=True,
                console="off",
                symlink=False,
                disable_git=True,  # the diff of a working tree may hold anything; the commit is a column
                x_disable_machine_info=True,  # it has the words of the command and SLURM's variables
                x_skip_transaction_log=self.mode == "online",
                init_timeout=OPENED_S,
                finish_timeout=FINISHED_S,
                finish_timeout_raises=True,
                x_graphql_retry_max=RETRIES,
            ),
        )

    def _log_plots(self) -> None:
        """Put the report's plots into the summary: as rows they would take the steps of rows to come."""
        import wandb

        plots = sorted((self.point.folder / "plots").glob("*.png"))
        if plots:
            self.run.summary.update({f"plots/{path.stem}": wandb.Image(str(path)) for path in plots})


def _define_axes(run: Any, nodes: Iterable[Node]) -> None:
    """Plot training over all its steps and the rest over iterations.

    W&B's own aggregates are not asked for: they are columns of columns, and know only the rows of one process.
    """
    run.define_metric("iteration", hidden=True)
    for prefix in dict.fromkeys([*map(prefix_of, nodes), HELD_OUT.partition("/")[0]]):
        if prefix == "policy":
            run.define_metric(STEP, hidden=True)
            run.define_metric("train/*", step_metric=STEP)
        else:
            run.define_metric(f"{prefix}/*", step_metric="iteration")


def family_of(name: str) -> str | None:
    """Name the family of the artifact that a run shows as `it2/pairs`; None for what comes before all iterations.

    A benchmark is a family of its own: it may be asked for after iterations that come later.
    """
    scope, benchmark, stage = place_of(name)
    if not re.fullmatch(r"base|null|it\d+", scope):
        return None
    if benchmark:
        return benchmark
    if scope in ("base", "null"):
        return "evaluate" if stage.startswith("answers") else None
    if re.fullmatch(r"prompts|responses|own_responses|outside_.*", stage):
        return "generate"
    return {"ranking": "rank", "pairs": "rank", "reference": "train", "policy": "train"}.get(stage, "evaluate")


def nodes_of(family: str, nodes: Iterable[Node]) -> list[Node]:
    """Choose the nodes of a family; for TRIAL those of any."""
    return [node for node in nodes if (its := family_of(node.name)) and family in (its, TRIAL)]


def experiment_of(nodes: Iterable[Node]) -> str:
    """Hash the keys of the first iteration, which more iterations leave as they are; else that of the start policy."""
    keys = {node.name: node.key for node in nodes}
    first = [key for name, key in keys.items() if name.startswith("it1/") and not place_of(name).benchmark]
    return fingerprint_hash(sorted(first or [keys["base/policy"]]))[:8]


def experiment_in(folder: Path) -> str:
    """Compute the same from the links of a run folder, once its first iteration is complete."""
    links = [link for link in folder.glob(f"{LINKS}/it1/*") if link.is_symlink()]
    links = links or [link for link in folder.glob(f"{LINKS}/base/policy") if link.is_symlink()]
    return fingerprint_hash(sorted(Path(os.readlink(link)).name for link in links))[:8]


def run_id(folder: Path, family: str, experiment: str) -> str:
    """Return 16 hex digits; in a trial of a sweep W&B takes the id that its agent has set instead."""
    return hashlib.sha256(f"{folder.resolve()}\n{family}\n{experiment}".encode()).hexdigest()[:16]


def group_of(point: Point, chosen: str | None) -> tuple[str, str | None]:
    """Name what runs that belong together share; and the sweep, if there is one."""
    from src.experiment import sweep_note

    sweep = sweep_note.group_of(point.folder)
    return (chosen or sweep or point.run.experiment or point.folder.name)[:LONGEST_NAME], sweep


def name_of(run: Run) -> str:
    """Name the W&B runs of a run, such as `gemma2_9b_it sppo it2 η=1000 lr=5e-7 K=5`."""
    words = [REHEARSAL] if run.rehearsed else []
    words += [run.model.name, run.method.name, f"it{run.iter}", f"η={short(eta(run))}", f"lr={short(run.train.lr)}"]
    words += [f"K={run.sampling.K}", *([f"s{run.seed}"] if run.seed else [])]
    return " ".join(words)[:LONGEST_NAME]


def tags_of(run: Run, sweep: str | None) -> list[str]:
    """List the tags of a run, each once."""
    rehearsal = REHEARSAL if run.rehearsed else None
    tags = (rehearsal, run.method.name, run.model.name, run.experiment, run.variant, sweep, f"it{run.iter}")
    return list(dict.fromkeys(tag[:LONGEST_TAG] for tag in tags if tag))


def short(value: float) -> str:
    """Write 5e-07 as 5e-7."""
    return re.sub(r"e([+-])0*", lambda match: "e" + match[1].replace("+", ""), f"{value:g}")
