"""Carry out a run: make what is missing, keep the run folder true, show the end."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Any

from src.artifact import Node, Store, fingerprint_hash, locked, write_atomic
from src.config import UserError, fingerprint
from src.pipeline import Run
from src.tracking import Mirror, write_metrics

LINKS = "artifacts"


def run_name(run: Run) -> str:
    """The run folder's name: never a time of day, and the same for every `iter`."""
    return run.name or f"{run.model.name}-{run.method.name}-s{run.seed}-{experiment(run)[:6]}"


def experiment(run: Run) -> str:
    """Hash of all that can change the run's results but its number of iterations."""
    return fingerprint_hash(fingerprint(run))


def execute(run: Run, settings: str, config: dict[str, Any]) -> Path:
    """Make every missing artifact of the run; returns the run folder.

    `settings` is the composed config as YAML, `config` the same as a dict for W&B.
    """
    _check_machine(run)
    folder = run.runs / run_name(run)
    with locked(folder / ".lock", f"{folder}: another process is carrying out this run; waiting"):
        _execute(run, folder, settings, config)
    return folder


def _execute(run: Run, folder: Path, settings: str, config: dict[str, Any]) -> None:
    nodes, store = run.nodes(), Store(run.store)
    missing = [node for node in nodes if not store.has(node)]
    if missing or _read(folder / "config.yaml") != settings:
        (folder / "report.md").unlink(missing_ok=True)
    write_atomic(folder / "config.yaml", settings.encode())
    write_atomic(folder / "command.txt", (shlex.join(["python", "-m", "src.main", *sys.argv[1:]]) + "\n").encode())
    print(f"run: {folder}", flush=True)
    mirror = run.tracking.open(folder, experiment(run), config)
    try:
        _show(nodes, store, folder, mirror)
        for number, node in enumerate(missing, 1):
            print(f"[{number}/{len(missing)}] {node.name}", flush=True)
            store.make(node)
            _show(nodes, store, folder, mirror)
    finally:
        mirror.close()
    _report(run, nodes, store, folder)


def _show(nodes: list[Node], store: Store, folder: Path, mirror: Mirror) -> None:
    for node in nodes:
        if store.has(node):
            link(folder, node, store)
    write_metrics(nodes, store, folder)
    mirror.update()


def _report(run: Run, nodes: list[Node], store: Store, folder: Path) -> None:
    report = folder / "report.md"
    if not report.exists():
        from src.report.write import write_report

        write_report(run, nodes, store, folder)
    print((folder / "summary.txt").read_text(), end="")
    print(f"report: {report}\npicture: {folder / 'plots' / 'win_rate.png'}")


def _read(path: Path) -> str | None:
    return path.read_text() if path.exists() else None


def _check_machine(run: Run) -> None:
    """Refuse, before any work, a machine that is not the one `hardware` describes."""
    store, devices = Store(run.store), run.hardware.devices
    if all(store.has(node) for node in run.nodes()):
        return
    if devices.count > 1:
        raise UserError("hardware.devices.count: training on several devices is not started from here yet; use 1")
    if "cuda" not in {getattr(part, "device", "cpu") for part in (devices, run.hardware.engine, run.ranker)}:
        return
    import torch

    present = torch.cuda.device_count()
    if present == 0:
        raise UserError("hardware: a CUDA device is asked for, none is present; try hardware=cpu")
    if present > 1:
        raise UserError(f"hardware: {present} CUDA devices are visible, one is used; set CUDA_VISIBLE_DEVICES=0")


def link(folder: Path, node: Node, store: Store) -> None:
    """`<run>/artifacts/it2/pairs` -> the artifact in the store."""
    place = folder / LINKS / node.name
    target = os.path.relpath(store.path(node).resolve(), place.parent.resolve())
    if place.is_symlink() and os.readlink(place) == target:
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    place.symlink_to(target)
