"""A real SLURM cluster on this machine that tests start and throw away: daemons, ports, key and folder of its own."""

from __future__ import annotations

import os
import random
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
from debian import SLURM, SYSTEM_PATH, lacking

from src.kernel.processes import die_with_parent

LAST_RESORT_S = 800.0
EXPORTED = ("PATH", "HOME", "PYTHONPATH", "OMP_NUM_THREADS", "WANDB_MODE", "ITERPREF_TEST_LEASE_S")
CONFIGURATION = """\
ClusterName=throwaway
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
AuthInfo=socket={root}/run/munge.sock,cred_expire={requeue_wait}
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool/%n
SlurmctldPidFile={root}/run/slurmctld.pid
SlurmdPidFile={root}/run/%n.pid
SlurmctldLogFile={root}/log/slurmctld.log
SlurmdLogFile={root}/log/%n.log
ProctrackType=proctrack/linuxproc
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1,bf_window=60
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=100
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
SlurmdTimeout=300
BatchStartTimeout=60
MessageTimeout=60
KillWait=10
MinJobAge=36000
ReturnToService=2
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName=n[1-{nodes}] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{node_ports}] CPUs={cpus} RealMemory={memory_mb} \
Gres=gpu:8
PartitionName=DEFAULT Nodes=ALL DefaultTime=10 MaxTime=60
PartitionName=main Default=YES PriorityTier=10 PreemptMode=OFF
PartitionName=low PriorityTier=1 PreemptMode=REQUEUE GraceTime=10
PartitionName=high PriorityTier=50 PreemptMode=OFF
"""


def slurm_words(*more: str) -> list[str]:
    """Return overrides that submit small jobs."""
    return ["launcher=slurm_small", "launcher.parts=2", f"launcher.site.export=[{','.join(EXPORTED)}]", *more]


class Job(NamedTuple):
    """A job, or an element of an array, as squeue shows it."""

    state: str
    token: str
    """Its comment."""


class Cluster:
    """Nodes n1, n2, ..., with pretended CPUs, memory and 8 GPUs; partitions main (the default), low and high.

    A job in `high` has one in `low` requeued, which gets its own --signal at once. The daemons die with the thread that
    started them. As a context manager the cluster ends with the block, and its jobs with it.
    """

    def __init__(self, nodes: int = 2, *, cpus: int = 4, memory_mb: int = 64_000, requeue_wait: int = 60) -> None:
        """`requeue_wait`: seconds before a requeued job may start again, and that the start of any job may take."""
        self.root = Path(tempfile.mkdtemp(prefix="sl", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
        self.env = {"SLURM_CONF": str(self.root / "etc/slurm.conf")}
        """Variables by which a process finds this cluster."""
        self.nodes = [f"n{number + 1}" for number in range(nodes)]
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        for folder in ("run", "log", "state", "jobs", "etc", *(f"spool/{node}" for node in self.nodes)):
            (self.root / folder).mkdir(parents=True)
        self.root.chmod(0o755)
        settings = {"nodes": nodes, "cpus": cpus, "memory_mb": memory_mb, "requeue_wait": requeue_wait}
        host, (port, *node_ports) = socket.gethostname().split(".")[0], _free_ports(nodes + 1)
        names = {"root": self.root, "host": host, "port": port, "node_ports": ",".join(map(str, node_ports))}
        (self.root / "etc/slurm.conf").write_text(CONFIGURATION.format(**settings, **names))
        for number in range(8):  # a GPU must be a device, of whatever kind
            (self.root / f"etc/nvidia{number}").symlink_to("/dev/null")
        (self.root / "etc/gres.conf").write_text(f"AutoDetect=off\nName=gpu File={self.root}/etc/nvidia[0-7]\n")
        (self.root / "etc/munge.key").touch(0o600)
        (self.root / "etc/munge.key").write_text(secrets.token_hex(64))

    def __enter__(self) -> Cluster:
        try:
            self._spawn("munged")
            self.until("munged answers", lambda: self._call("munge", "-n", "-S", f"{self.root}/run/munge.sock")[0] == 0)
            for daemon in ("slurmctld", *self.nodes):
                self._spawn(daemon)
            self.until("the controller and its nodes are up", self._up)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """End daemons and jobs, whatever they do, and remove the folder."""
        while processes := self._processes():
            for process in processes:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            time.sleep(0.05)
        for daemon in self._daemons.values():
            daemon.wait()
        shutil.rmtree(self.root)

    def _processes(self) -> list[psutil.Process]:
        """Return the processes that find this cluster, but for this one, and their children."""
        ours = set[psutil.Process]()
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get("SLURM_CONF") == self.env["SLURM_CONF"] and process.pid != os.getpid():
                    ours |= {process, *process.children(recursive=True)}
        return [process for process in ours if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]

    def lose(self, node: str) -> None:
        """Kill the daemon of a node and have the controller take the node for lost; its processes go on."""
        process = self._daemons.pop(node)
        process.kill()
        process.wait()
        self.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=lost")

    def run(self, *words: str) -> str:
        """Return what a command of SLURM prints. Raises AssertionError when it fails."""
        code, output = self._call(*words)
        assert code == 0, self._story(f"{' '.join(words)}: exit code {code}\n{output}")
        return output.strip()

    def sbatch(self, *words: str) -> str:
        """Submit a job; return its id."""
        return self.run("sbatch", "--parsable", *words)

    def jobs(self) -> dict[str, Job]:
        """Return each job (77) and each element of an array (77_3), ended or not, by id."""
        text = self.run("squeue", "--noheader", "--array", "--states=all", "--format=%F|%K|%T|%k")
        rows = [line.split("|") for line in text.splitlines()]
        return {f"{job}_{index}".removesuffix("_N/A"): Job(*more) for job, index, *more in rows}

    def alive(self) -> set[str]:
        """Return jobs and elements that wait, run, or are about to end."""
        return {job for job, one in self.jobs().items() if one.state in ("PENDING", "RUNNING", "COMPLETING")}

    def until(self, what: str, true: Callable[[], object]) -> None:
        """Wait for it; the limit is the last resort."""
        end = time.monotonic() + LAST_RESORT_S
        while not true():
            dead = [name for name, process in self._daemons.items() if process.poll() is not None]
            assert not dead and time.monotonic() < end, self._story(f"dead: {dead}; not there: {what}")
            time.sleep(0.1)

    def _environment(self) -> dict[str, str]:
        """Return this process's environment without what another cluster may have put there."""
        others = ("SLURM_", "SBATCH_", "SRUN_")
        kept = {key: value for key, value in os.environ.items() if not key.startswith(others)}
        return kept | self.env | {"PATH": SYSTEM_PATH}

    def _call(self, *words: str) -> tuple[int, str]:
        done = subprocess.run(
            words, cwd=self.root / "jobs", env=self._environment(), capture_output=True, text=True, timeout=60
        )
        return done.returncode, done.stdout + done.stderr

    def _spawn(self, daemon: str) -> None:
        run, log = self.root / "run", self.root / "log"
        munge = ["munged", "--foreground", "--force", f"--log-file={log}/munge"]
        munge += [f"--{file}-file={run}/munge.{file}" for file in ("pid", "seed")]
        munge += [f"--key-file={self.root}/etc/munge.key", f"--socket={run}/munge.sock"]
        words = {"munged": munge, "slurmctld": ["slurmctld", "-D"]}.get(daemon, ["slurmd", "-D", "-N", daemon])
        with (log / f"{daemon}.out").open("ab") as out:
            pipes = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": subprocess.STDOUT}
            apart: Any = {"start_new_session": True, "preexec_fn": die_with_parent}
            self._daemons[daemon] = subprocess.Popen(words, cwd=self.root, env=self._environment(), **pipes, **apart)

    def _up(self) -> bool:
        code, text = self._call("sinfo", "--noheader", "--Node", "--partition=main", "--format=%N %T")
        return code == 0 and dict(map(str.split, text.splitlines())) == dict.fromkeys(self.nodes, "idle")

    def _story(self, text: str) -> str:
        """Return the text, and the last lines of the daemons' logs."""
        logs = [f"--- {path.name}\n{path.read_text(errors='replace')[-2000:]}" for path in self.root.glob("log/*")]
        return "\n".join([text, *logs])


def _free_ports(count: int) -> list[int]:
    """Return ports below those the system gives to outgoing connections, drawn by its random source."""
    with ExitStack() as held:
        ports = list[int]()
        while len(ports) < count:
            port = random.SystemRandom().randrange(10_000, 32_000)
            with suppress(OSError):
                held.enter_context(socket.socket()).bind(("127.0.0.1", port))
                ports.append(port)
        return ports


@pytest.fixture(scope="session")
def running() -> Iterator[Cluster]:
    """The session's cluster, which starts at its first use."""
    if reason := lacking(SLURM):
        pytest.skip(reason)
    with Cluster() as cluster:
        yield cluster


@pytest.fixture
def cluster(running: Cluster, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """The session's cluster, which this test and its children find, and no other test does."""
    for key, value in running.env.items():
        monkeypatch.setenv(key, value)
    return running
