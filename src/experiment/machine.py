"""Is this the machine that `hardware` describes? Asked before any work, of what there is to make."""

from __future__ import annotations

from pathlib import Path

from src.experiment.run import Run
from src.generation.engine import Extra
from src.generation.stage import Generate
from src.kernel.artifact import Node
from src.kernel.config import UserError
from src.ranking.stage import Rank
from src.training.stage import Train

CPUINFO = Path("/proc/cpuinfo")


def check_machine(run: Run, nodes: list[Node]) -> None:
    """Raises UserError where `nodes` need CUDA devices that are not visible, or packages that are not there."""
    for stage in (node.stage for node in nodes):
        if isinstance(engine := getattr(stage, "engine", None), Extra):
            engine.check_installed("hardware.engine")
    needs = _needs(run, nodes)
    if not needs:
        return
    import torch

    present = torch.cuda.device_count()
    if present == 0:
        raise UserError("hardware: a CUDA device is asked for, none is present; try hardware=cpu")
    devices = run.hardware.devices
    if "hardware.devices.count" in needs and devices.deepspeed is None and present > 1:
        raise UserError(f"hardware: {present} CUDA devices are visible, one is used; set CUDA_VISIBLE_DEVICES=0")
    for key, count in needs.items():
        if present < count:
            remedy = "lower it, or choose the hardware of this machine"
            raise UserError(f"{key}: {count} a node, but {present} CUDA devices are visible; {remedy}")


def slow_bf16(run: Run, nodes: list[Node]) -> str:
    """A line for those whose processor multiplies bf16 several times slower than fp32; empty for others."""
    devices = run.hardware.devices
    if (devices.device, devices.precision) != ("cpu", "bfloat16") or not any(_computes(node) for node in nodes):
        return ""
    try:
        flags = set(CPUINFO.read_text().split())
    except OSError:  # no Linux
        return ""
    if flags & {"avx512_bf16", "amx_bf16"} or "flags" not in flags:  # other architectures name them otherwise
        return ""
    return "hardware: this processor has no bf16 instructions and is several times faster with hardware=cpu_fp32"


def _computes(node: Node) -> bool:
    return isinstance(node.stage, Generate | Rank | Train)


def _needs(run: Run, nodes: list[Node]) -> dict[str, int]:
    """Key -> CUDA devices of a node that its stages take."""
    hardware, needs = run.hardware, dict[str, int]()
    for stage in (node.stage for node in nodes):
        if isinstance(stage, Generate):
            if stage.engine.device == "cuda":
                workers = hardware.generation.workers // hardware.generation.nodes
                needs["hardware.generation.workers"] = workers * stage.engine.devices_each
        elif isinstance(stage, Rank):
            work = getattr(stage.ranker, "work", None)
            if work is not None and work.device == "cuda":
                needs["hardware.ranking.workers"] = work.workers // work.nodes
            elif getattr(stage.ranker, "device", "cpu") == "cuda":
                needs["ranker.device"] = 1
        elif isinstance(stage, Train):
            if stage.devices.device == "cuda":
                needs["hardware.devices.count"] = hardware.devices.count // hardware.devices.nodes
        elif getattr(stage, "device", "cpu") == "cuda":
            needs.setdefault("hardware.devices.device", 1)
    return needs
