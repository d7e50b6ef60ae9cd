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
_IN_TABLE = re.compile(r"rank *: (\d+) \(local_rank.*\n *exitcode *: -(\d+) \(pid: (\d+)\)")
"""The same in its table of all that failed, where the line is on another: two that end at once are one time to it."""
_CLOSED = re.compile(r"Sending process (\d+) closing signal")
_OF_RANK = re.compile(r"^\[rank\d+\]: ?")
"""How torch begins the lines of a traceback."""
_OF_LAUNCHER = "ChildFailedError"
"""Its own last words, which say little."""


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
    """Of the one that a signal killed, or else the first error that is not for the loss of another process."""
    text = log.read_text(errors="replace")
    lines = [_OF_RANK.sub("", line) for line in text.splitlines() if line.strip()]
    if killed := next(filter(None, map(_KILLED.search, lines)), None):
        return f"process {killed[2]} {killed_by(int(killed[1]))}"
    errors = [line for line in _errors(lines) if _OF_LAUNCHER not in line]
    said = [explain(RuntimeError(line)) or "" for line in errors]
    of_its_own = (line for line, told in zip(errors, said, strict=True) if not told.startswith(LOST))
    return next(of_its_own, None) or _died(text) or next(iter([*said, *lines[-1:]]), "they said nothing")


def _died(text: str) -> str | None:
    """The first of the launcher's table that a signal ended which was not the launcher's."""
    closed = set(_CLOSED.findall(text))
    found = (died for died in _IN_TABLE.finditer(text) if died[3] not in closed)
    return next((f"process {died[1]} {killed_by(int(died[2]))}" for died in found), None)


def _errors(lines: list[str]) -> Iterator[str]:
    """Yields the line that ends each traceback."""
    inside = False
    for line in lines:
        if inside and not line.startswith(" "):
            yield line
        inside = line.startswith("Traceback") or (inside and line.startswith(" "))


def launch_command(devices: Devices, job: Path) -> list[str]:
    """Builds the command: `accelerate launch` on this node, or through srun once a node of the SLURM allocation."""
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
    found = dict(os.environ) | {SHOWN_AT: f"/proc/{os.getpid()}/fd/2"}
    found.setdefault("PYTHONWARNINGS", "ignore::FutureWarning")  # DeepSpeed calls what torch calls deprecated
    if devices.device == "cpu":
        found["DS_ACCELERATOR"] = "cpu"
        found.setdefault("OMP_NUM_THREADS", str(max(1, cores() // devices.count)))
    return found


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
    def ask(number: int, frame: FrameType | None) -> None:
        write_atomic(file, str(number).encode())

    old = {number: signal.signal(number, ask) for number in StopOnSignal.SIGNALS}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _raise_outcome(file: Path) -> None:
    """Raises what the processes left as their end, if they did; Fault where it cannot be read."""
    if not file.exists():
        return
    match _json(file):
        case {"stopped": int(number)} if number in signal.valid_signals():
            raise Stopped(number)
        case {"error": str(line), **rest}:
            raise (Fault if rest.get("fault") else UserError)(line)
        case _:
            raise Fault(f"train: {file}: damaged, so why its processes ended is not known; the same command goes on")


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        return None
