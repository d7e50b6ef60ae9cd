"""Training in several processes: `accelerate launch` starts this module once a device.

The processes share the stage's own folder. What ends them in order is left in `outcome.json`, since an exit code says
too little; a signal to the process that launched them reaches them as the file `stop`.
"""

from __future__ import annotations

import ctypes
import json
import os
import pickle
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from src.artifact import WORK, write_atomic
from src.config import Stopped, UserError
from src.training.checkpoints import STOP, StopOnSignal
from src.training.stage import Devices, Train

OUTCOME = "outcome.json"
LOG = "launch.log"
SHOWN_AT = "ITERPREF_STDERR"
"""Where the first process shows its progress; what the launcher itself says goes to the log."""


def train_in_processes(stage: Train, reference: Path, policy: Path, out: Path) -> None:
    """Train as `trainer.train` does, in `stage.devices.count` processes.

    Raises UserError and Stopped as the processes do, RuntimeError when they end in any other way.
    """
    work = out / WORK
    work.mkdir(parents=True, exist_ok=True)
    for leftover in (OUTCOME, STOP):
        (work / leftover).unlink(missing_ok=True)
    job = work / "job.pickle"
    job.write_bytes(pickle.dumps((stage, reference.resolve(), policy.resolve(), out.resolve())))
    command = launch_command(stage.devices, job)
    (work / "launch.txt").write_text(shlex.join(command) + "\n")
    code = _run(command, _environment(stage.devices), work)
    _raise_outcome(work / OUTCOME)
    if code:
        said = (work / LOG).read_text(errors="replace").splitlines()[-40:]
        raise RuntimeError("\n".join([*said, f"train: {shlex.join(command)} ended with exit code {code}"]))


def launch_command(devices: Devices, job: Path) -> list[str]:
    """`accelerate launch` on this node, or through srun once a node of the SLURM allocation."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--use_deepspeed", "--dynamo_backend", "no"]
    launch += ["--mixed_precision", "no", "--num_processes", str(devices.count), "--num_machines", str(devices.nodes)]
    module = ["--module", "src.training.launch", str(job)]
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
    line = f"exec {shlex.join(launch)} --machine_rank $SLURM_PROCID {shlex.join(module)}"
    nodes = str(devices.nodes)
    return ["srun", "--nodes", nodes, "--ntasks", nodes, "--ntasks-per-node", "1", "bash", "-c", line]


def _rendezvous(nodes: int) -> tuple[str, int]:
    """The first host of the allocation, and a port that no other job picks."""
    allocated = os.environ.get("SLURM_JOB_NUM_NODES", "0")
    if int(allocated) != nodes:
        raise UserError(
            f"hardware.devices.nodes: {nodes}, started on {allocated} SLURM nodes; use sbatch --nodes={nodes}"
        )
    hosts = subprocess.run(
        ["scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]], capture_output=True, text=True, check=True
    )
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
            command, env=environment, cwd=root, stderr=log, start_new_session=True, preexec_fn=_die_with_parent
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


def _die_with_parent() -> None:
    """Linux: a process whose parent is killed is killed too, or it would go on writing."""
    set_death_signal = 1
    ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL)


def _worker(job: Path) -> None:
    """One of the processes."""
    _die_with_parent()
    _show_progress()
    stage, reference, policy, out = pickle.loads(job.read_bytes())
    if stage.devices.device == "cpu":
        _leave_out_the_shared_memory_op()
    from src.training.trainer import train

    outcome = out / WORK / OUTCOME
    try:
        train(stage, reference, policy, out)
    except Stopped as stopped:
        write_atomic(outcome, json.dumps({"stopped": stopped.exit_code - 128}).encode())
    except UserError as error:
        write_atomic(outcome, json.dumps({"error": str(error)}).encode())
        sys.exit(2)  # the launcher ends the others


def _show_progress() -> None:
    if os.environ.get("RANK", "0") == "0":
        with suppress(OSError), open(os.environ[SHOWN_AT], "ab", buffering=0) as shown:
            os.dup2(shown.fileno(), 2)


def _leave_out_the_shared_memory_op() -> None:
    """DeepSpeed would compile it at the first start; gloo does its work."""
    import deepspeed.ops
    from deepspeed.accelerator import get_accelerator

    deepspeed.ops.__compatible_ops__[get_accelerator().create_op_builder("ShareMemCommBuilder").NAME] = False  # pyright: ignore


if __name__ == "__main__":
    _worker(Path(sys.argv[1]))
