"""lm-eval in a process of its own: what it is told, how it is started, what it leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

from src.evaluation.ifeval.checker import copy_punkt
from src.evaluation.open_llm.columns import Column
from src.kernel.children import prepare_child
from src.kernel.config import Device, UserError

END_S = 30.0
"""For the process to end when it is told to."""
SHOWN = 65536
"""Bytes read at a time of what it says."""
_PROBE = """
import json, sys
from importlib import metadata
def version(name):
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
print(json.dumps({name: version(name) for name in sys.argv[1:]}))
"""


@cache
def installed(python: Path, packages: tuple[str, ...]) -> dict[str, str | None]:
    """Versions in the environment of an interpreter, None for what is not there. Raises UserError where none is."""
    try:
        said = subprocess.run([python, "-c", _PROBE, *packages], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError, ValueError) as error:
        raise UserError(f"{python}: no Python that can be run ({error})") from None
    return versions_of(said.stdout, python, packages)


def versions_of(said: bytes, python: Path, packages: tuple[str, ...]) -> dict[str, str | None]:
    """What the probe has printed. Raises UserError where it is anything else: a site's Python may talk, too."""
    try:
        found = json.loads(said)
        versions: dict[str, str | None] = {name: found[name] for name in packages}
        if all(version is None or version.isprintable() for version in versions.values()):
            return versions
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        pass
    told = said[:60].decode(errors="replace")
    raise UserError(f"{python}: it was asked for versions and says {told!r}; name a Python that prints nothing itself")


def check_environment(key: str, python: Path, columns: tuple[Column, ...]) -> str:
    """The version of lm-eval there. Raises UserError, naming the config's `key`, where a column cannot be run."""
    wanted = {name: (column, begins) for column in columns for name, begins in column.needs.items()}
    found = installed(python, ("lm-eval", *wanted))
    if not found["lm-eval"]:
        raise UserError(f"{key}: {python} has no lm-eval; pip install 'iterpref[eval]', or `make install`")
    for name, (column, begins) in wanted.items():
        version = found[name]
        if version is None or not version.startswith(begins):
            have = f"has {version}" if version else "has none"
            raise UserError(
                f"{key}: {column.title} needs {name} {begins}".rstrip() + f", and {python} {have}; make an environment "
                "apart (Hydra keeps ours at another antlr4), pip install 'lm-eval[hf,math,ifeval]==0.4.13' there, and "
                "give its bin/python here"
            )
    return found["lm-eval"]


def settings(
    column: Column, policy: Path, folder: Path, dtype: str, chat_template: bool, rest: dict[str, Any]
) -> dict[str, Any]:
    """`lm_eval run --config` of one column; its requests are cached in `folder`, so a killed run goes on."""
    told: dict[str, Any] = {
        "model": "hf",
        "model_args": {"pretrained": str(policy), "dtype": dtype},
        "tasks": [column.task],
        "num_fewshot": column.shots,
        "seed": [0, 1234, 1234, 1234],  # lm-eval's own: Python, numpy, torch, which examples are shown
        "use_cache": str(folder / "requests"),
        "output_path": str(folder / "found"),
        "log_samples": True,
    }
    if chat_template:
        told |= {"apply_chat_template": True, "fewshot_as_multiturn": True}
    return told | {name: value for name, value in rest.items() if value is not None}


def launch_command(python: Path, device: Device, count: int, config: Path) -> list[str]:
    """lm-eval on one device, or through `accelerate launch` on each of `count`, which share the items."""
    module = ["lm_eval", "run", "--config", str(config)]
    if device == "cpu" or count == 1:
        return [str(python), "-m", *module]
    own = config.with_name("accelerate.json")  # instead of what the user once answered to `accelerate config`
    own.write_text(json.dumps({"compute_environment": "LOCAL_MACHINE", "distributed_type": "MULTI_GPU"}))
    launch = ["accelerate.commands.launch", "--config_file", str(own), "--multi_gpu", "--num_processes", str(count)]
    launch += ["--num_machines", "1", "--main_process_port", "0", "--mixed_precision", "no", "--dynamo_backend", "no"]
    return [str(python), "-m", *launch, "--module", *module]


def run(command: list[str], folder: Path, title: str) -> None:
    """Show what it says, and keep it in `folder/log`. Raises UserError when it fails."""
    environment = dict(os.environ) | {"PYTHONUNBUFFERED": "1"}
    if copy_punkt(folder / "nltk"):  # IFEval would fetch it
        environment["NLTK_DATA"] = str(folder / "nltk")
    log = folder / "log"
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=prepare_child,
    )
    try:
        with log.open("wb") as file:
            assert process.stdout
            while said := os.read(process.stdout.fileno(), SHOWN):
                file.write(said)
                file.flush()
                sys.stderr.write(said.decode(errors="replace"))
        process.wait()
    finally:
        _end(process)
    if process.returncode:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        last = lines[-1].strip() if lines else "it said nothing"
        raise UserError(
            f"{title}: lm-eval ended with exit code {process.returncode}: {last} ({log}); what was answered is kept, "
            "the same command goes on"
        )


def collect(folder: Path) -> tuple[Path, list[Path]]:
    """The result file and the files of samples that lm-eval left in `folder/found`."""
    results = sorted((folder / "found").rglob("results_*.json"))
    samples = sorted((folder / "found").rglob("samples_*.jsonl"))
    if len(results) != 1 or not samples:  # it ends in order where it could not write them
        raise UserError(f"{folder}: lm-eval left no results; {folder / 'log'} says why")
    return results[0], samples


def _end(process: subprocess.Popen[bytes]) -> None:
    """With all that it started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if process.stdout:
        process.stdout.close()
