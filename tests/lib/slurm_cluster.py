"""A real SLURM cluster on this machine that tests start and throw away: daemons, ports, key and folder of its own.

`from slurm_cluster import cluster, running` gives tests one for the session; each is told of it only while it runs.
"""

from __future__ import annotations

import functools
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Self

import psutil
import pytest
from debian import SLURM, SYSTEM_PATH, lacking
from slurm_conf import CONFIGURATION, free_ports, listens

from src.kernel.processes import die_with_parent

LAST_RESORT_S = 800.0
UP = {"idle", "allocated", "mixed", "completing"}
GUARD = "import sys; sys.stdin.read(); sys.path.insert(0, sys.argv[1]); import slurm_cluster as s; s.sweep(sys.argv[2])"
"""A process that ends the cluster when the one that started it is gone, for whatever reason."""


class ClusterError(Exception):
    """The cluster did not do what it was told; ends with the last lines of the daemons' logs."""


class Cluster:
    """Nodes n1, n2, ..., with pretended CPUs, memory and GPUs; partitions main (the default), low and high.

    A job in `high` has one in `low` requeued, which gets its own --signal at once. The daemons die with the thread that
    started them.
    """

    def __init__(
        self,
        nodes: int = 2,
        *,
        cpus: int = 4,
        memory_mb: int = 8000,
        gpus: int = 8,
        requeue_wait: int = 60,
        kill_wait: int = 30,
    ) -> None:
        """`requeue_wait`: seconds before a requeued job may start again, and that the start of any job may take.
        `kill_wait`: from TERM to KILL.
        """
        settings: dict[str, object] = {key: value for key, value in locals().items() if key != "self"}
        self.root = Path(tempfile.mkdtemp(prefix="sl", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
        self.env = {"SLURM_CONF": str(self.root / "etc/slurm.conf")}
        """By which a process finds this cluster."""
        self.nodes = [f"n{i + 1}" for i in range(nodes)]
        self._ports = dict(zip(["slurmctld", *self.nodes], free_ports(nodes + 1), strict=True))
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self._guard: subprocess.Popen[bytes] | None = None
        self._configure(settings)
        self._start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _start(self) -> None:
        """Returns when jobs can run. When that fails, nothing is left."""
        words, none = [sys.executable, "-c", GUARD, str(Path(__file__).parent), str(self.root)], subprocess.DEVNULL
        folder, pipe = Path(__file__).parents[2], subprocess.PIPE
        self._guard = subprocess.Popen(words, cwd=folder, stdin=pipe, stdout=none, stderr=none, start_new_session=True)
        try:
            self._spawn("munged")
            asks = ("munge", "-n", "-S", f"{self.root}/run/munge.sock")
            self.until("munged answers", lambda: self._call(*asks).returncode == 0)
            for daemon in ("slurmctld", *self.nodes):
                self._spawn(daemon)
            self._until_up()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Ends daemons and jobs, whatever they do, and removes the folder: it cannot be started again."""
        for daemon in sorted(self._daemons, key=lambda name: name != "slurmctld"):  # first who might start more
            self.kill(daemon)
        if self.root.exists():
            sweep(self.root)
        if self._guard is not None:
            self._guard.kill()
            self._guard.communicate()

    def kill(self, daemon: str) -> None:
        """SIGKILL to slurmctld, n1, ...; jobs go on. What the controller has not saved is lost: see settle()."""
        process = self._daemons.pop(daemon)
        process.kill()
        process.wait()

    def restart(self, daemon: str) -> None:
        """Starts one that was killed; returns when all nodes that have a daemon are up."""
        self._spawn(daemon)
        self._until_up()

    def settle(self) -> None:
        """Waits until the controller has saved what it knows now, which it does within 5 seconds of a change."""
        now, saved = time.time(), self.root / "state/job_state"
        while time.time() < now + 6 and not (saved.exists() and saved.stat().st_mtime > now):
            time.sleep(0.1)

    def run(self, *words: str) -> str:
        """What a command of SLURM says, called in `root / "jobs"`. Raises ClusterError when it fails."""
        done = self._call(*words)
        if done.returncode:
            raise self._error(f"{' '.join(words)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout.strip()

    def sbatch(self, *words: str) -> str:
        """The job's id."""
        return self.run("sbatch", "--parsable", *words)

    def jobs(self) -> dict[str, str]:
        """State of each job (77) and of each element of an array (77_3), ended or not, by id."""
        found = self.run("squeue", "--noheader", "--array", "--states=all", "--format=%F %K %T")
        rows = [line.split() for line in found.splitlines()]
        return {f"{job}_{element}".removesuffix("_N/A"): state for job, element, state in rows}

    def by_token(self) -> dict[str, list[str]]:
        """Jobs and elements, ended or not, by their comment."""
        found = dict[str, list[str]]()
        for line in self.run("squeue", "--noheader", "--array", "--states=all", "--format=%k %F %K").splitlines():
            token, job, element = line.rsplit(maxsplit=2)
            found.setdefault(token, []).append(f"{job}_{element}".removesuffix("_N/A"))
        return found

    def alive(self) -> set[str]:
        """Jobs and elements that wait, run, or are about to end."""
        return {job for job, state in self.jobs().items() if state in ("PENDING", "RUNNING", "COMPLETING")}

    def times(self) -> tuple[dict[str, str], dict[str, str]]:
        """When each job, or element, began and ended; later ones are greater."""
        found = self.run("squeue", "--noheader", "--array", "--states=all", "--format=%F %K %S %e")
        rows = [
            (f"{job}_{index}".removesuffix("_N/A"), *times) for job, index, *times in map(str.split, found.splitlines())
        ]
        return {job: begun for job, begun, _ in rows}, {job: ended for job, _, ended in rows}

    def _configure(self, settings: dict[str, object]) -> None:
        for folder in ("run", "log", "state", "jobs", "etc", *(f"spool/{node}" for node in self.nodes)):
            (self.root / folder).mkdir(parents=True)
        self.root.chmod(0o755)
        settings["first_job"] = int(time.time()) % 6_000_000 * 10 + 1  # no job of ours has the number of another's
        settings |= {"root": self.root, "host": socket.gethostname().split(".")[0], "port": self._ports["slurmctld"]}
        settings |= {"node_ports": ",".join(str(self._ports[node]) for node in self.nodes)}
        devices = [self.root / f"etc/nvidia{i}" for i in range(int(str(settings["gpus"])))]
        for device in devices:  # it must be a device, of whatever kind
            device.symlink_to("/dev/null")
        files = {"slurm.conf": CONFIGURATION.format(**settings)}
        files["gres.conf"] = "AutoDetect=off\n" + "".join(f"Name=gpu File={device}\n" for device in devices)
        for name, content in {**files, "munge.key": random.SystemRandom().randbytes(64).hex()}.items():
            (self.root / "etc" / name).touch(0o600)
            (self.root / "etc" / name).write_text(content)

    def _environment(self) -> dict[str, str]:
        """Without what another cluster may have told this process."""
        own = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "SBATCH_", "SRUN_"))}
        return own | self.env | {"PATH": SYSTEM_PATH}

    def _call(self, *words: str) -> subprocess.CompletedProcess[str]:
        env, folder = self._environment(), self.root / "jobs"
        return subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, timeout=60, check=False)

    def _spawn(self, daemon: str) -> None:
        run = self.root / "run"
        munge = ("munged", "--foreground", "--force", f"--key-file={self.root}/etc/munge.key")
        munge += (f"--pid-file={run}/munge.pid", f"--seed-file={run}/munge.seed", f"--log-file={self.root}/log/munge")
        words = {
            "munged": (*munge, f"--socket={run}/munge.sock"),
            **{node: ("slurmd", "-D", "-N", node) for node in self.nodes},
        }.get(daemon, (daemon, "-D"))
        with (self.root / f"log/{daemon}.out").open("ab") as out:
            self._daemons[daemon] = subprocess.Popen(
                words,
                cwd=self.root,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )

    def _until_up(self) -> None:
        def up() -> bool:
            started = self._daemons.keys() & {"slurmctld", *self.nodes}
            if not all(listens(self._ports[daemon]) for daemon in started):
                return False
            found = self._call("sinfo", "--noheader", "--Node", "--partition=main", "--format=%N %T").stdout
            states = dict(line.split() for line in found.splitlines())
            for node in self.nodes:
                if node in started and states.get(node, "").startswith(("down", "drain")):
                    self._call("scontrol", "update", f"NodeName={node}", "State=RESUME")  # or it has come back already
            return all(states.get(node) in UP for node in started - {"slurmctld"})

        self.until("the controller and its nodes are up", up)

    def until(self, what: str, true: Callable[[], object]) -> None:
        """Waits for it; the limit is the last resort."""
        end = time.monotonic() + LAST_RESORT_S
        while not true():
            dead = [f"{name} died; " for name, process in self._daemons.items() if process.poll() is not None]
            if dead or time.monotonic() > end:
                raise self._error(f"{''.join(dead)}not within {LAST_RESORT_S} s: {what}")
            time.sleep(0.1)

    def _error(self, text: str) -> ClusterError:
        tails = {path: path.read_text(errors="replace").splitlines()[-15:] for path in self.root.glob("log/*")}
        logs = [f"--- {path.name}\n" + "\n".join(tail) for path, tail in sorted(tails.items()) if tail]
        queue = self._call("squeue", "--states=all").stdout if "slurmctld" in self._daemons else ""
        return ClusterError("\n".join([text, queue, *logs]))


def sweep(root: str | Path) -> None:
    """Ends every process of the cluster in this folder, jobs too, and removes it."""
    end = time.monotonic() + 20
    while (left := processes(Path(root))) and time.monotonic() < end:
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        time.sleep(0.05)
    shutil.rmtree(root)


def processes(root: Path) -> list[psutil.Process]:
    """Of the cluster in this folder, but for this one: who has its logs open, who was told of a job, their children."""
    found = set[psutil.Process]()
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            told = process.environ()
            job = "SLURM_JOB_ID" in told and told.get("SLURM_CONF") == f"{root}/etc/slurm.conf"
            if job or any(file.path.startswith(f"{root}/log/") for file in process.open_files()):
                found |= {process, *process.children(recursive=True)}
    return [process for process in found if process.pid != os.getpid()]


_shared = functools.cache(Cluster)
"""One of a process, though each module that imports the fixture has a fixture of its own."""


@pytest.fixture(scope="session")
def running() -> Iterator[Cluster]:
    """Started at its first use; it ends with the session."""
    if reason := lacking(SLURM):
        pytest.skip(reason)
    own = _shared()
    yield own
    own.stop()


@pytest.fixture
def cluster(running: Cluster, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """That of the session, which this test and its children find, and no other test does."""
    for key, value in running.env.items():
        monkeypatch.setenv(key, value)
    return running
