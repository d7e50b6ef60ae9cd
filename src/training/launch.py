"""Training in several processes, started by `accelerate launch`.

The processes (worker.py) share the stage's own folder. What ends them in order is left in `outcome.json`, since an exit
code says too little; a signal to the process that launched them reaches them as the file `stop`.
"""

from __future__ import annotations

import json
import os
import pickle
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from src.artifact import WORK, write_atomic
from src.children import check_allocation, prepare_child, srun
from src.config import Stopped, UserError
from src.training.checkpoints import STOP, StopOnSignal
from src.training.stage import Devices, Train
from src.training.worker import LOG, OUTCOME, SHOWN_AT

SHOWN_LINES = 60
"""Of the log of processes that died."""


def train_in_processes(stage: Train, reference: Path, policy: Path, out: Path) -> None:
    """Train as `trainer.train` does, in `stage.devices.count` processes.

    Raises UserError and Stopped as the processes do, RuntimeError when they end in any other way.
    """
    work = (out / WORK).resolve()
    work.mkdir(parents=True, exist_ok=True)
    for leftover in (OUTCOME, STOP):
        (work / leftover).unlink(missing_ok=True)
    job = work / "job.pickle"
    job.write_bytes(pickle.dumps((stage, reference.resolve(), policy.resolve(), out.resolve())))
    command = launch_command(stage.devices, job)
    (work / "launch.txt").write_text(shlex.join(command) + "\n")
    code = _run(command, _environment(stage.devices), work)
    _raise_outcome(work / OUTCOME)
    if not code and (work / STOP).exists():  # it came too late for them
        os.kill(os.getpid(), int((work / STOP).read_text()))
    if code:
        lines = (work / LOG).read_text(errors="replace").splitlines()
        first = next((n for n, line in enumerate(lines) if "Traceback" in line), max(0, len(lines) - SHOWN_LINES))
        said = lines[first : first + SHOWN_LINES]  # the launcher's own summary comes last and says little
        raise RuntimeError("\n".join([*said, f"train: {shlex.join(command)} ended with exit code {code}"]))


def launch_command(devices: Devices, job: Path) -> list[str]:
    """`accelerate launch` on this node, or through srun once a node of the SLURM allocation."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--use_deepspeed", "--dynamo_backend", "no"]
    launch += ["--mixed_precision", "no", "--num_processes", str(devices.count), "--num_machines", str(devices.nodes)]
    launch += ["--config_file", str(_own_settings(job.parent))]
    module = ["--module", "src.training.worker", str(job)]
    if devices.nodes == 1:
        return [*launch, "--main_process_port", "0", *module]
    host, port = _rendezvous(devices.nodes)
    launch += [
        "--main_process_ip",
        host,
        "--main_process_port",
        str(port),
        "--deepspeed_multinode_launcher",
        "standard",
    ]
    return srun(devices.nodes, 1, f"{shlex.join(launch)} --machine_rank $SLURM_PROCID {shlex.join(module)}")


def _own_settings(work: Path) -> Path:
    """Instead of what the user once answered to `accelerate config`."""
    file = work / "accelerate.json"
    file.write_text(json.dumps({"compute_environment": "LOCAL_MACHINE", "distributed_type": "DEEPSPEED"}))
    return file


def _rendezvous(nodes: int) -> tuple[str, int]:
    """The first host of the allocation, and a port that no other job picks."""
    check_allocation("hardware.devices.nodes", nodes, ("scontrol", "srun"))
    nodelist = os.environ["SLURM_JOB_NODELIST"]
    hosts = subprocess.run(["scontrol", "show", "hostnames", nodelist], capture_output=True, text=True)
    if hosts.returncode:
        raise UserError(f"hardware.devices.nodes: scontrol cannot tell the hosts of {nodelist}: {hosts.stderr.strip()}")
    return hosts.stdout.split()[0], 20000 + int(os.environ["SLURM_JOB_ID"]) % 20000


def _environment(devices: Devices) -> dict[str, str]:
    found = dict(os.environ) | {SHOWN_AT: f"/proc/{os.getpid()}/fd/2"}
    found.setdefault("PYTHONWARNINGS", "ignore::FutureWarning")  # DeepSpeed calls what torch calls deprecated
    if devices.device == "cpu":
        found["DS_ACCELERATOR"] = "cpu"
        found.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // devices.count)))
    return found


def _run(command: list[str], environment: dict[str, str], work: Path) -> int:
    """The command in a session of its own, so that a signal to this one's group cannot tear a checkpoint."""
    root = Path(__file__).parents[2]
    with (
        (work / LOG).open("wb") as log,
        subprocess.Popen(
            command, env=environment, cwd=root, stderr=log, start_new_session=True, preexec_fn=prepare_child
        ) as process,
    ):
        try:
            with _signals_as_file(work / STOP):
                return process.wait()
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise


@contextmanager
def _signals_as_file(file: Path) -> Iterator[None]:
    def ask(number: int, frame: FrameType | None) -> None:
        write_atomic(file, str(number).encode())

    old = {number: signal.signal(number, ask) for number in StopOnSignal.SIGNALS}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _raise_outcome(file: Path) -> None:
    outcome = json.loads(file.read_text()) if file.exists() else {}
    if "stopped" in outcome:
        raise Stopped(outcome["stopped"])
    if "error" in outcome:
        raise UserError(outcome["error"])
