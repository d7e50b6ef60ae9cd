"""The real command on a tiny model: overrides that make a run of seconds, and the command called in this process."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from src import main as main_module
from src.experiment.graph import nodes_of
from src.experiment.point import Point
from src.experiment.run import Run
from src.experiment.run_folder import LINKS
from src.kernel.artifact import Node
from src.kernel.record import read_record
from src.kernel.rows import SPEED
from src.kernel.store import Store
from src.launch import compose as launch_compose
from src.launch.compose import build
from src.launch.local import Local
from src.reporting.wandb import Off

ROOT = Path(__file__).parents[2]
PARTS, PROMPTS, HELD_OUT, K = 3, 4, 6, 3
FORGED = "Say <b>hi</b> | *now*"


def composed(*overrides: str) -> DictConfig:
    """Return the config of `python -m src.main *overrides`, before it is built."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("config", list(overrides))


def typed(*overrides: str) -> Run:
    """Return the Run of `python -m src.main *overrides`; paths in the config start at the root of the repository."""
    with contextlib.chdir(ROOT):
        return build(composed(*overrides))


def typed_point(*overrides: str) -> Point:
    """Return the point of `python -m src.main *overrides`, with its launcher and its tracking."""
    (point,) = points_of(*overrides)
    return point


def points_of(*words: str) -> list[Point]:
    """Return the points that `python -m src.main *words` would carry out, composed and built."""
    with contextlib.chdir(ROOT):
        return launch_compose.points_of(list(words))


def made_point(run: Run, overrides: list[str] | None = None, command: tuple[str, ...] = ()) -> Point:
    """Return a point that is carried out here and mirrored nowhere, and whose composed config is empty."""
    return Point(run, Local(), Off(), OmegaConf.create(), overrides or [], command)


def call(*words: str, cwd: Path = ROOT) -> int:
    """Run `python -m src.main *words` in this process; return the exit code and leave nothing changed behind."""
    with (
        pytest.MonkeyPatch.context() as patch,
        mock.patch.dict(os.environ),
        warnings.catch_warnings(),
        contextlib.chdir(cwd),
    ):
        patch.setattr(sys, "argv", ["src/main.py", *words])
        for name in ("stdout", "stderr"):  # the command puts its own in their place
            patch.setattr(sys, name, getattr(sys, name))
        gc.freeze()  # a run collects garbage after each stage, and would look through all that is imported
        try:
            return main_module.main()
        finally:
            gc.unfreeze()


def folders(place: Path) -> list[str]:
    """Return overrides that keep store and runs under `place`."""
    return [f"store={place / 'store'}", f"runs={place / 'runs'}"]


def tiny_ranker(llama: Path) -> list[str]:
    """Return overrides that give the embedded ranker a tiny frozen model."""
    model, was = "ranker.frozen_model", ("~ranker.frozen_model.package", "~ranker.frozen_model.file")
    named = (f"{model}._target_=src.modeling.checkpoints.Checkpoint", f"{model}.name=tiny")
    return [*named, f"+{model}.repo={llama}", f"+{model}.revision=main", *was]


def tiny(llama: Path, place: Path, *more: str, ranker: list[str] | None = None) -> list[str]:
    """Return overrides of a run of seconds: 4 prompts, K=3, 8 tokens, 6 held-out prompts, two steps per iteration."""
    parts = [_write_prompts(place / f"part{part}.jsonl", f"part {part}", PROMPTS) for part in range(PARTS)]
    held_out = _write_prompts(place / "held_out.jsonl", "held out", HELD_OUT)
    return [
        *("model=mistral_7b_instruct_v02", "model.name=tiny", f"model.repo={llama}"),  # whose repo may be a folder
        *(f"data.parts=[{','.join(map(str, parts))}]", f"data.held_out_file={held_out}"),
        *(f"data.prompts_per_iteration={PROMPTS}", f"data.held_out_prompts={HELD_OUT}"),
        *(f"sampling.K={K}", "sampling.max_new_tokens=8", "held_out.divergence_prompts=3", "train.batch_pairs=2"),
        *("held_out.ranker=${ranker}", "~ranker@held_out.second", "held_out.sampling=${sampling}", "tracking=off"),
        *("hardware.devices.row_tokens=1", "hardware.devices.save_minutes=0.000001"),  # a checkpoint at every step
        *(*folders(place), *(tiny_ranker(llama) if ranker is None else ranker), *more),
    ]


class World(NamedTuple):
    """A finished run of two iterations; `words` are its overrides without `iter`, `store` and `runs`."""

    place: Path
    words: list[str]

    @property
    def store(self) -> Store:
        return Store(self.place / "store")

    @property
    def folder(self) -> Path:
        (folder,) = (self.place / "runs").iterdir()
        return folder

    def artifact(self, name: str) -> Path:
        return self.folder / LINKS / name

    def metrics(self, name: str) -> dict[str, float]:
        return json.loads((self.artifact(name) / "metrics.json").read_text())

    def nodes(self) -> list[Node]:
        return nodes_of(typed(*self.words, *folders(self.place), "iter=2"))

    def run(self, *more: str) -> int:
        return call(*self.words, *folders(self.place), *more)


def contents(store: Store) -> dict[str, dict[str, str]]:
    """Return kind/key -> file -> sha256 of every artifact; metrics without the figures of the clock."""
    artifacts = {}
    for path in store.artifacts():
        files = {name: file["sha256"] for name, file in read_record(path)["files"].items()}
        if (path / "metrics.jsonl").exists():
            files["metrics.jsonl"] = repr(metric_lines(path))
        artifacts[f"{path.parent.name}/{path.name}"] = files
    return artifacts


def metric_lines(folder: Path) -> list[dict[str, float]]:
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in row.items() if SPEED not in key} for row in rows]


def _write_prompts(path: Path, topic: str, count: int) -> Path:
    """Write prompts with a check of a trained and one of an unseen kind, and one that tries to break a report."""
    checks = [{"kind": "words_at_least", "n": 2}, {"kind": "no_digits"}]
    questions = [f"{topic} {number}: what is it? {FORGED}" for number in range(count)]
    rows: list[dict[str, Any]] = [{"messages": [{"role": "user", "content": q}], "checks": checks} for q in questions]
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
