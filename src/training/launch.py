"""Training in several processes, started by `accelerate launch`; each of them is this module.

They share the working folder of the stage. An exit code says too little, so they leave there what ended them.
"""

from __future__ import annotations

import faulthandler
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from src.kernel import processes
from src.kernel.artifact import WORK
from src.kernel.config import Fault, Stopped, UserError
from src.kernel.disk import write_atomic
from src.kernel.faults import LOST, RESUMES, explain
from src.kernel.secret_words import scrubbed
from src.methods.method import Method
from src.training.recipe import Devices, Recipe

OUTCOME = "outcome.json"
LOG = "launch.log"
SHOWN_AT = "ITERPREF_STDERR"
"""Environment variable: the file to which the first process shows its progress. All other output goes to the log."""
_KILLED = re.compile(r"failed \(exitcode: -(\d+)\) local_rank: (\d+)")
"""The launcher's line on a process that a signal ended."""


def train_in_processes(
    method: Method, recipe: Recipe, devices: Devices, seed: int, reference: Path, policy: Path, out: Path
) -> None:
    """Train as `trainer.train` does, in `devices.count` processes.

    Raises UserError and Stopped as the processes do, Fault when they end in any other way.
    """
    work = (out / WORK).resolve()
    outcome, log = work / OUTCOME, work / LOG
    outcome.unlink(missing_ok=True)
    job = processes.hand_over(work, (method, recipe, devices, seed, *map(Path.resolve, (reference, policy, out))))
    command = launch_command(devices, job)
    (work / "launch.txt").write_text(shlex.join(command) + "\n")
    # DeepSpeed calls what torch calls deprecated.
    environment = {"PYTHONWARNINGS": "ignore::FutureWarning", **os.environ, SHOWN_AT: f"/proc/{os.getpid()}/fd/2"}
    if devices.device == "cpu":
        share = str(max(1, processes.cores() // devices.count))
        environment = {"OMP_NUM_THREADS": share, **environment, "DS_ACCELERATOR": "cpu"}
    with log.open("wb") as file:
        # They get a new session: a signal to the group of this process must not tear a checkpoint.
        options = {"start_new_session": True, "preexec_fn": processes.prepare_child}
        process = subprocess.Popen(command, env=environment, cwd=processes.ROOT, stderr=file, **options)
        try:
            code = process.wait()
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    ended = json.loads(outcome.read_bytes()) if outcome.exists() else {}
    text = log.read_text(errors="replace").strip()
    killed = _KILLED.search(text)
    if "stopped" in ended:
        raise Stopped(ended["stopped"])
    if "error" in ended and not (killed and LOST in ended["error"]):
        raise (Fault if ended["fault"] else UserError)(ended["error"])
    if code:
        last_line = text.rpartition("\n")[2] or "it said nothing"
        reason = f"process {killed[2]} {processes.killed_by(int(killed[1]))}" if killed else last_line
        raise Fault(f"train: its processes ended with exit code {code}: {reason} ({log}){RESUMES}")


def launch_command(devices: Devices, job: Path) -> list[str]:
    """Return the command: `accelerate launch` on this node, or through srun once per node of the SLURM allocation.

    Raises UserError for several nodes outside an allocation of as many.
    """
    nodes = str(devices.nodes)
    settings = job.parent / "accelerate.json"  # instead of what the user once answered to `accelerate config`
    settings.write_text(json.dumps({"compute_environment": "LOCAL_MACHINE", "distributed_type": "DEEPSPEED"}))
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--use_deepspeed", "--config_file", str(settings)]
    launch += f"--dynamo_backend no --mixed_precision no --num_processes {devices.count} --num_machines {nodes}".split()
    module = ["--module", "src.training.launch", str(job)]
    if devices.nodes == 1:
        return [*launch, "--main_process_port", "0", *module]
    if (given := os.environ.get("SLURM_JOB_NUM_NODES", "0")) != nodes:
        raise UserError(f"hardware.devices.nodes: {nodes}, started on {given} SLURM nodes; use sbatch --nodes={nodes}")
    port = 20000 + int(os.environ["SLURM_JOB_ID"]) % 20000  # no other job picks it
    launch += ["--deepspeed_multinode_launcher", "standard", "--main_process_port", str(port)]
    first = '$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)'
    words = f"{shlex.join(launch)} --main_process_ip {first} --machine_rank $SLURM_PROCID {shlex.join(module)}"
    # All: sbatch --export=NAMES would hold for srun too, and keep what was set since from the tasks.
    srun = ["srun", "--export=ALL", "--kill-on-bad-exit=1", "--nodes", nodes, "--ntasks", nodes]
    # srun does not inherit the CPUs.
    srun += ["--ntasks-per-node", "1", "--cpus-per-task", os.environ.get("SLURM_CPUS_ON_NODE", "1")]
    return [*srun, "bash", "-c", f"trap '' USR1; exec {words}"]


def main(job: Path) -> None:
    """Train as one of the processes, and leave in `outcome.json` what ended it."""
    processes.die_with_parent()  # before the imports, which take seconds
    faulthandler.enable()  # an abort leaves its stack in the log
    if os.environ.get("RANK", "0") == "0":
        with suppress(OSError), open(os.environ[SHOWN_AT], "ab", buffering=0) as stderr:
            os.dup2(stderr.fileno(), 2)
    processes.tidy_output()
    method, recipe, devices, seed, reference, policy, out = processes.take_over(job)
    if devices.device == "cpu":  # DeepSpeed would compile an operation that gloo does the work of
        import deepspeed.ops
        from deepspeed.accelerator import get_accelerator

        name = get_accelerator().create_op_builder("ShareMemCommBuilder").NAME  # pyright: ignore
        deepspeed.ops.__compatible_ops__[name] = False  # pyright: ignore
    from src.training.trainer import train

    outcome = out / WORK / OUTCOME
    try:
        train(method, recipe, devices, seed, reference, policy, out)
    except Stopped as stopped:
        write_atomic(outcome, json.dumps({"stopped": stopped.exit_code - 128}).encode())
    except Exception as error:
        refused = isinstance(error, UserError)
        line = str(error) if refused else f"train: {explain(error) or f'{error!r:.300}'}"
        if LOST not in line or not outcome.exists():  # another process may know why
            ended = {"error": scrubbed(line), "fault": not refused or isinstance(error, Fault)}
            write_atomic(outcome, json.dumps(ended).encode())
        raise  # the launcher ends the others
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # an interpreter that ends in order may abort under gloo's threads


if __name__ == "__main__":
    main(Path(sys.argv[1]))
