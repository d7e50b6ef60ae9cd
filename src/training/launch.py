"""Training in several processes, started by `accelerate launch`.

The processes (worker.py) share the stage's own folder. What ends them in order is left in `outcome.json`, since an exit
code says too little; a signal to the process that launched them reaches them as the file `stop`.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from src.kernel.artifact import WORK
from src.kernel.config import Fault, Stopped, UserError
from src.kernel.disk import write_atomic
from src.kernel.faults import LOST, explain
from src.kernel.processes import check_allocation, cores, hand_over, killed_by, prepare_child, srun
from src.methods.method import Method
from src.training.checkpoints import STOP, StopOnSignal
from src.training.recipe import Devices, Recipe
from src.training.worker import LOG, OUTCOME, SHOWN_AT

_KILLED = re.compile(r"failed \(exitcode: -(\d+)\) local_rank: (\d+)")
"""The launcher's line on a process that a signal ended."""
_OF_RANK = re.compile(r"^\[rank\d+\]: ?")
"""How torch begins the lines of a traceback."""


def train_in_processes(
    method: Method, recipe: Recipe, devices: Devices, seed: int, reference: Path, policy: Path, out: Path
) -> None:
    """Trains as `trainer.train` does, in `devices.count` processes.

    Raises UserError and Stopped as the processes do, Fault when they end in any other way.
    """
    work = (out / WORK).resolve()
    work.mkdir(parents=True, exist_ok=True)
    for leftover in (OUTCOME, STOP):
        (work / leftover).unlink(missing_ok=True)
    job = hand_over(work, (method, recipe, devices, seed, reference.resolve(), policy.resolve(), out.resolve()))
    command = launch_command(devices, job)
    (work / "launch.txt").write_text(shlex.join(command) + "\n")
    code = _run(command, _environment(devices), work)
    _raise_outcome(work / OUTCOME)
    if not code and (work / STOP).exists():  # it came too late for them
        os.kill(os.getpid(), int((work / STOP).read_text()))
    if code:
        log = work / LOG
        raise Fault(
            f"train: its processes ended with exit code {code}: {_last_words(log)} ({log}); "
            "checkpoints are kept, the same command goes on"
        )


def _last_words(log: Path) -> str:
    """Says what a signal killed, or else the first error that is not for the loss of another process."""
    lines = [_OF_RANK.sub("", line) for line in log.read_text(errors="replace").splitlines() if line.strip()]
    if killed := next(filter(None, map(_KILLED.search, lines)), None):
        return f"process {killed[2]} {killed_by(int(killed[1]))}"
    errors = [line for line in _errors(lines) if "ChildFailedError" not in line]  # the launcher's own says little
    for line in errors:
        if not (explain(RuntimeError(line)) or "").startswith(LOST):
            return line
    return next(iter([*(explain(RuntimeError(line)) or "" for line in errors), *lines[-1:]]), "they said nothing")


def _errors(lines: list[str]) -> Iterator[str]:
    """Yields the line that ends each traceback."""
    inside = False
    for line in lines:
        if inside and not line.startswith(" "):
            yield line
        inside = line.startswith("Traceback") or (inside and line.startswith(" "))


def launch_command(devices: Devices, job: Path) -> list[str]:
    """Builds the command: `accelerate launch` on this node, or through srun once a node of the SLURM allocation."""
    settings = job.parent / "accelerate.json"  # instead of what the user once answered to `accelerate config`
    settings.write_text(json.dumps({"compute_environment": "LOCAL_MACHINE", "distributed_type": "DEEPSPEED"}))
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--use_deepspeed", "--dynamo_backend", "no"]
    launch += ["--mixed_precision", "no", "--num_processes", str(devices.count), "--num_machines", str(devices.nodes)]
    launch += ["--config_file", str(settings)]
    module = ["--module", "src.training.worker", str(job)]
    if devices.nodes == 1:
        return [*launch, "--main_process_port", "0", *module]
    host, port = _rendezvous(devices.nodes)
    launch += ["--main_process_ip", host, "--main_process_port", str(port)]
    launch += ["--deepspeed_multinode_launcher", "standard"]
    return srun(devices.nodes, f"{shlex.join(launch)} --machine_rank $SLURM_PROCID {shlex.join(module)}")


def _rendezvous(nodes: int) -> tuple[str, int]:
    """Returns the first host of the allocation, and a port that no other job picks."""
    check_allocation("hardware.devices.nodes", nodes, ("scontrol", "srun"))
    nodelist = os.environ["SLURM_JOB_NODELIST"]
    words = ["scontrol", "show", "hostnames", nodelist]
    done = subprocess.run(words, capture_output=True, text=True, errors="replace")
    if done.returncode:
        raise UserError(f"hardware.devices.nodes: scontrol cannot tell the hosts of {nodelist}: {done.stderr.strip()}")
    host = next(iter(done.stdout.split()), "")
    if not re.fullmatch(r"[A-Za-z0-9_.:-]+", host):
        said = f"scontrol show hostnames {nodelist} begins with {host[:60]!r}, no host"
        raise UserError(f"hardware.devices.nodes: {said}; is it SLURM's?")
    return host, 20000 + int(os.environ["SLURM_JOB_ID"]) % 20000


def _environment(devices: Devices) -> dict[str, str]:
    environment = dict(os.environ) | {SHOWN_AT: f"/proc/{os.getpid()}/fd/2"}
    environment.setdefault("PYTHONWARNINGS", "ignore::FutureWarning")  # DeepSpeed calls what torch calls deprecated
    if devices.device == "cpu":
        environment["DS_ACCELERATOR"] = "cpu"
        environment.setdefault("OMP_NUM_THREADS", str(max(1, cores() // devices.count)))
    return environment


def _run(command: list[str], environment: dict[str, str], work: Path) -> int:
    """Runs the command in a session of its own, so that a signal to this one's group cannot tear a checkpoint."""
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
    """Writes the number of a signal into `file`: in their own session the processes do not get the signal itself."""

    def ask_to_stop(number: int, frame: FrameType | None) -> None:
        write_atomic(file, str(number).encode())

    handlers = {number: signal.signal(number, ask_to_stop) for number in StopOnSignal.SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _raise_outcome(file: Path) -> None:
    """Raises what the processes left as their end, if they did; Fault where it cannot be read."""
    if not file.exists():
        return
    try:
        outcome: Any = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        outcome = None
    match outcome:
        case {"stopped": int(number)} if number in signal.valid_signals():
            raise Stopped(number)
        case {"error": str(line), **rest}:
            raise (Fault if rest.get("fault") else UserError)(line)
        case _:
            raise Fault(f"train: {file}: damaged, so why its processes ended is not known; the same command goes on")
