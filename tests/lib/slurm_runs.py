"""Tiny runs as real SLURM jobs whose training and generation wait at a gate, and what a test asks of their jobs."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slurm_gate import LEASE, LONGEST_WAIT, TRAINING, Gate, alive

from src.slurm.ledger import FOLDER, Ledger
from src.store import Store

if TYPE_CHECKING:
    from pytest import TempPathFactory
    from slurm_cluster import Cluster

ROOT = Path(__file__).parents[2]
KINDS = ("setup", "generation", "ranking", "reference", "training", "evaluation", "report")
EXPORTED = ("PATH", "HOME", "PYTHONPATH", "OMP_NUM_THREADS", "WANDB_MODE", LEASE, LONGEST_WAIT)
REQUEUED = re.compile(r"^task: saved; job (\S+) goes back into the queue$", re.M)
WAIT_S = 90.0


def held_words(gate: Path) -> list[str]:
    """Overrides; the held training has a step a pair and two passes."""
    return [
        "method._target_=slurm_gate.HeldSPPO",
        f"+method.gate={gate}",
        "hardware.engine._target_=slurm_gate.HeldEngine",
        f"+hardware.engine.gate={gate}",
        "hardware.engine.batch_answers=1",
        "hardware.generation.save_seconds=1e-9",
        "train.batch_pairs=1",
        "train.epochs=2",
        "train.schedule_epochs=2",
        "iter=1",
    ]


def slurm_words(minutes: int = 10, **more: str) -> list[str]:
    """Overrides that submit small jobs; `more` are keys of the launcher."""
    jobs = [f"launcher.jobs.{kind}={{minutes: {minutes}, cpus: 1, memory_gb: 1}}" for kind in KINDS]
    own = [f"launcher.{key.replace('__', '.')}={value}" for key, value in more.items()]
    return ["launcher=slurm", "launcher.parts=2", f"launcher.site.export=[{','.join(EXPORTED)}]", *jobs, *own]


@dataclass
class Place:
    """A store, its run and its jobs. `words` are the overrides but for the launcher's."""

    cluster: Cluster
    folder: Path
    words: list[str]
    launcher: list[str]

    @property
    def gate(self) -> Gate:
        (self.folder / "gate").mkdir(exist_ok=True)
        return Gate(self.folder / "gate")

    @property
    def store(self) -> Store:
        return Store(self.folder / "store")

    def run(self, *verb: str) -> int:
        """The command, in this process; its exit code."""
        from tiny_run import call

        return call(*verb, *self.words, *self.launcher)

    def jobs(self) -> dict[str, list[str]]:
        """Ids of the jobs, elements one by one, by the name of the array; of several submissions the earliest first."""
        found: dict[str, list[str]] = {}
        for told in Ledger.of(self.folder / "store").submissions.values():
            if told.job:
                found.setdefault(told.name, []).extend(told.element(index) for index in told.elements)
        return found

    def job(self, name: str) -> str:
        """The last one."""
        return self.jobs()[name][-1]

    def states(self) -> dict[str, str]:
        """Of the last job of each name; of the elements of an array the last one's."""
        states = self.cluster.jobs()
        return {name: states[jobs[-1]] for name, jobs in self.jobs().items()}

    def log(self, name: str) -> str:
        """What the last job of a name has said, in all its starts."""
        told = [t for t in Ledger.of(self.folder / "store").submissions.values() if t.name == name][-1]
        logs = [told.log(index) for index in told.elements]
        return "".join(log.read_text(errors="replace") for log in logs if log.exists())

    def logs(self) -> str:
        """All that was said, for a failure's message."""
        paths = sorted(self.folder.glob("runs/*/slurm/logs/*.out")) + sorted(self.folder.glob("*.out"))
        return "\n".join(f"--- {path.name}\n{path.read_text(errors='replace')[-3000:]}" for path in paths)

    def until(self, what: str, true: Callable[[], Any], timeout: float = WAIT_S) -> Any:
        """What `true` says as soon as it says something."""
        end = time.monotonic() + timeout
        while not (said := true()):
            if time.monotonic() > end:
                queue = self.cluster.run("squeue", "--states=all", "--array", "--format=%i %j %T %r %N")
                raise AssertionError(f"not within {timeout} s: {what}\n{queue}\n{self.logs()}")
            time.sleep(0.1)
        return said

    def until_held(self, name: str = TRAINING, but: int | None = None) -> int:
        """The process that waits at the gate."""

        def held() -> list[int]:
            assert "FAILED" not in self.states().values(), self.logs()
            return [pid for pid in self.gate.held(name) if pid != but]

        return self.until(f"{name} is held", held)[0]

    def until_gone(self, pid: int) -> None:
        """The process has left the gate, or is dead."""
        self.until(f"process {pid} goes on", lambda: not alive(pid) or pid not in self.gate.held())

    def until_state(self, job: str, *states: str) -> str:
        return self.until(
            f"{job} is {' or '.join(states)}", lambda: (s := self.cluster.jobs().get(job, "")) in states and s
        )

    def shown(self, job: str) -> dict[str, str]:
        """What `scontrol show job` says."""
        return dict(
            word.split("=", 1) for word in self.cluster.scontrol("show", "job", "-o", job).split() if "=" in word
        )

    def weights(self) -> bytes:
        return weights(self.folder / "store")

    def whole(self) -> bool:
        """Whether `verify` finds every artifact so, and nobody has left anything unfinished."""
        from tiny_run import call

        return call("verify", *self.words) == 0 and not self.store.leftovers()

    def close(self) -> None:
        """End all its jobs."""
        jobs = [job for job, state in self.cluster.jobs().items() if state in ("PENDING", "RUNNING", "COMPLETING")]
        own = {job for jobs in self.jobs().values() for job in jobs}
        if ended := [job for job in jobs if job in own]:
            self.cluster.run("scancel", *ended)


def weights(store: Path) -> bytes:
    """Of the one trained policy in a store."""
    (found,) = [
        path for path in (store / "policy").glob("*/model.safetensors") if (path.parent / "metrics.jsonl").exists()
    ]
    return found.read_bytes()


def starts(store: Path, job: str) -> int:
    """Starts of a job without progress, as it has counted them."""
    import json

    file = store / FOLDER / f"starts-throwaway-{job}.json"
    return json.loads(file.read_text())["starts"] if file.exists() else 0


@dataclass
class Prepared:
    """A run made without interruption, and the store as its training found it."""

    folder: Path
    words: list[str]
    """But for those of a place."""
    more: list[str]
    weights: bytes

    def place(self, cluster: Cluster, folder: Path, *launcher: str, begun: bool = True) -> Place:
        """A run of its own; `begun`: nothing is missing but the training and what follows it."""
        from tiny_run import folders

        gate = folder / "gate"
        gate.mkdir()
        (folder / "runs").mkdir()
        if begun:
            shutil.copytree(self.folder / "begun", folder / "store", symlinks=True)
        return Place(cluster, folder, [*self.words, *held_words(gate), *folders(folder), *self.more], list(launcher))


_prepared: dict[tuple[str, ...], Prepared] = {}


def prepared(llama: Path, factory: TempPathFactory, *more: str) -> Prepared:
    """Makes it in this process, once; `more` are overrides."""
    from tiny_run import call, folders, tiny

    if more in _prepared:
        return _prepared[more]
    folder = factory.mktemp("prepared")
    (gate := folder / "gate").mkdir()
    words = [word for word in tiny(llama, folder) if word not in folders(folder)]
    whole = [*words, *held_words(gate), *folders(folder), *more]
    assert call(*whole, f"only=[{','.join(_before_training(whole))}]") == 0
    shutil.copytree(folder / "store", folder / "begun", symlinks=True)
    assert call(*whole) == 0
    _prepared[more] = Prepared(folder, words, list(more), weights(folder / "store"))
    return _prepared[more]


def _before_training(words: list[str]) -> list[str]:
    """Names of the artifacts that do not need the trained policy."""
    from tiny_run import typed

    nodes, late = typed(*words).nodes(), set[str]()
    for node in nodes:
        if node.name == "it1/policy" or any(parent.key in late for parent in node.inputs):
            late.add(node.key)
    return [node.name for node in nodes if node.key not in late]
