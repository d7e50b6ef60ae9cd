"""Tiny runs as real SLURM jobs whose training waits at a gate, and what a test asks of their jobs."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slurm_cluster import Cluster
from slurm_gate import LEASE, Gate
from tiny_run import call, folders, tiny, typed

from src.experiment.graph import nodes_of
from src.kernel.store import Store
from src.launch.slurm.ledger import Ledger, Submission

KINDS = ("setup", "generation", "ranking", "reference", "training", "evaluation", "report")
EXPORTED = ("PATH", "HOME", "PYTHONPATH", "OMP_NUM_THREADS", "WANDB_MODE", LEASE)
REQUEUED = re.compile(r"^task: saved; job (\S+) goes back into the queue$", re.M)


def slurm_words(*more: str) -> list[str]:
    """Overrides that submit small jobs."""
    jobs = [f"launcher.jobs.{kind}={{minutes: 20, cpus: 1, memory_gb: 1}}" for kind in KINDS]
    return ["launcher=slurm", "launcher.parts=2", f"launcher.site.export=[{','.join(EXPORTED)}]", *jobs, *more]


@dataclass
class Place:
    """A store, its run and its jobs. `words` are the overrides but for the launcher's."""

    cluster: Cluster
    folder: Path
    words: list[str]
    launcher: list[str]

    def __post_init__(self) -> None:
        self.gate = Gate(self.folder / "gate")

    def run(self, *verb: str) -> int:
        """The command, in this process; its exit code."""
        return call(*verb, *self.words, *self.launcher)

    def submissions(self) -> list[Submission]:
        return Ledger(self.folder / "store").submissions

    def jobs(self) -> dict[str, list[str]]:
        """Ids of the jobs, elements one by one, by the name of the array; of several submissions the earliest first."""
        jobs, by_token = dict[str, list[str]](), self.cluster.by_token()
        for one in self.submissions():
            jobs.setdefault(one.name, []).extend(by_token.get(one.token, []))
        return jobs

    def job(self, name: str) -> str:
        """The last one."""
        return self.jobs()[name][-1]

    def log(self, name: str) -> str:
        """What the last job of a name has said, in all its starts."""
        last = [one for one in self.submissions() if one.name == name][-1]
        logs = [last.log(index) for index in last.makes]
        return "".join(log.read_text(errors="replace") for log in logs if log.exists())

    def until(self, what: str, true: Callable[[], Any]) -> Any:
        """What `true` says as soon as it says something."""
        found: list[Any] = []
        try:
            self.cluster.until(what, lambda: found.append(true()) or found[-1])
        except Exception as error:
            logs = [*self.folder.glob("runs/*/slurm/logs/*.out"), *self.folder.glob("*.out")]
            error.add_note("\n".join(f"--- {log.name}\n{log.read_text(errors='replace')[-3000:]}" for log in logs))
            raise
        return found[-1]

    def until_held(self, but: int | None = None) -> int:
        """The process that waits at the gate."""
        return self.until("a training is held", lambda: [pid for pid in self.gate.held() if pid != but])[0]

    def until_gone(self, pid: int) -> None:
        """The process has left the gate, or is dead."""
        self.until(f"process {pid} goes on", lambda: pid not in self.gate.held())

    def until_state(self, job: str, *states: str) -> None:
        self.until(f"{job} is {' or '.join(states)}", lambda: self.cluster.jobs().get(job) in states)

    def shown(self, job: str) -> dict[str, str]:
        """What `scontrol show job` says."""
        said = self.cluster.run("scontrol", "show", "job", "-o", job).split()
        return dict(word.split("=", 1) for word in said if "=" in word)

    def weights(self) -> bytes:
        """Of the one trained policy."""
        (metrics,) = (self.folder / "store" / "policy").glob("*/metrics.jsonl")
        return (metrics.parent / "model.safetensors").read_bytes()

    def whole(self) -> bool:
        """Whether `verify` finds every artifact so, and nobody has left anything unfinished."""
        return call("verify", *self.words) == 0 and not Store(self.folder / "store").leftovers()


@dataclass
class Prepared:
    """A run made without interruption, and the store as its training found it."""

    folder: Path
    words: list[str]
    """But for those of a place."""

    @classmethod
    def of(cls, llama: Path, folder: Path, *more: str) -> Prepared:
        """Makes it in this process; `more` are overrides."""
        (folder / "gate").mkdir(parents=True)
        held = ["method._target_=slurm_gate.HeldSPPO", "iter=1"]
        held += [f"train.{word}" for word in ("batch_pairs=1", "epochs=2", "schedule_epochs=2")]  # steps enough
        own = cls(folder, [word for word in tiny(llama, folder, *held) if word not in folders(folder)] + list(more))
        words, late = own._words(folder), set[str]()
        nodes = nodes_of(typed(*words))
        for node in nodes:
            if node.name == "it1/policy" or any(parent.key in late for parent in node.inputs):
                late.add(node.key)
        early = [node.name for node in nodes if node.key not in late]
        assert call(*words, f"only=[{','.join(early)}]") == 0
        shutil.copytree(folder / "store", folder / "begun", symlinks=True)
        assert call(*words) == 0
        return own

    def _words(self, folder: Path) -> list[str]:
        return [*self.words, f"+method.gate={folder / 'gate'}", *folders(folder)]

    def weights(self, cluster: Cluster) -> bytes:
        return Place(cluster, self.folder, [], []).weights()

    def place(self, cluster: Cluster, folder: Path, *launcher: str, begun: bool = True) -> Place:
        """A run of its own; `begun`: nothing is missing but the training and what follows it."""
        for name in ("gate", "runs"):
            (folder / name).mkdir(parents=True)
        if begun:
            shutil.copytree(self.folder / "begun", folder / "store", symlinks=True)
        return Place(cluster, folder, self._words(folder), list(launcher))
