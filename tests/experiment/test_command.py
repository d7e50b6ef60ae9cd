"""The command in a run folder: it makes the same artifacts anywhere, whoever started the run."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import get_args

import pytest
from sweep_points import points_of
from tiny_run import ROOT, typed

from src.experiment import command as module
from src.experiment.command import command, lasting
from src.experiment.graph import nodes_of
from src.kernel.artifact import Job
from src.launch.slurm.script import overrides
from src.launch.slurm.site import Resources, shape

OF_JOB = ["launcher=allocation", "launcher.alone=true"]
ONE = ["hardware.generation.workers=1"]
WORDS: list[tuple[list[str], list[str]]] = [
    # overrides, what of them lasts
    ([], []),
    (["method=sppo", "iter=3"], ["method=sppo", "iter=3"]),
    (["seed=1", "only=[it1/pairs,it1/policy]", *OF_JOB], ["seed=1"]),
    (["only=it1/responses", *ONE, "part=2/8", *OF_JOB, "a=1"], ["a=1"]),
    ([*ONE, "hardware.ranking.workers=1", "a=1"], ["a=1"]),
    (["+sweep=eta", "method.eta=10", "launcher=slurm"], ["method.eta=10"]),
    (["+sweep=nowhere", "a=1"], ["a=1"]),
    (["slurm@launcher.site=mine", "+slurm@launcher.site=mine", "launcher.jobs.setup.partition=cpu"], []),
    (["++launcher.x=1", "~launcher.y", "+part=1/2", "++only=base/policy", "launcher.mark=x"], []),
    (
        ["name=only=1", "partition=1", "+only_x=1", "sweep_x=1"],
        ["name=only=1", "partition=1", "+only_x=1", "sweep_x=1"],
    ),
    (["~train.lora", "+variant=paper", "name='a b'"], ["~train.lora", "+variant=paper", "name='a b'"]),
]


def test_what_says_which_run_it_is_lasts() -> None:
    for given, kept in WORDS:
        assert lasting(given) == kept
        assert shlex.split(command(given)) == ["python", "-m", "src.main", *kept]
    for file in (ROOT / "sweeps").glob("*.yaml"):
        assert lasting([f"+sweep={file.stem}"]) == [], "a grid of the house sets nothing else"


def test_what_a_job_adds_goes_and_the_artifacts_are_the_same() -> None:
    own = ["+sweep=eta", "method.eta=30", "iter=1", "train.lr=2e-6", "hardware=8xa100_80gb"]
    kept, run = [word for word in own if word != "+sweep=eta"], typed(*own)
    keys = [node.key for node in nodes_of(run)]
    for job in get_args(Job):
        needs = shape(job, run, Resources(minutes=1, cpus=1, memory_gb=None))
        words = [*overrides([*own, "launcher=slurm"]), "only=[it1/responses]", *needs.overrides, "part=2/8", *OF_JOB]
        assert lasting(words) == kept, job
    assert [node.key for node in nodes_of(typed(*lasting(own)))] == keys


def test_what_a_sweep_sets_beside_its_grid_is_said_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the point's own, which win."""
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "mine.yaml").write_text(
        "# @package _global_\n"
        'iter: 2\nname: it\'s "mine"\ntrain: {lr: 1.0e-6, epochs: 1, lora: null}\ndata: {parts: [a b.jsonl, c]}\n'
        'hydra: {sweeper: {params: {method.eta: "1,2"}}}\n'
    )
    monkeypatch.setattr(module, "CONF", tmp_path)
    words = lasting(["seed=1", "+sweep=mine", "method.eta=2", "train.lr=3e-6"])
    assert words == [
        "++iter=2",
        '++name="it\'s \\"mine\\""',
        "++train.lr=1e-06",
        "++train.epochs=1",
        "++train.lora=null",
        '++data.parts=["a b.jsonl", "c"]',
        *["seed=1", "method.eta=2", "train.lr=3e-6"],
    ]
    words.remove('++name="it\'s \\"mine\\""')
    words.remove("++train.epochs=1")
    (point,) = points_of(*words)
    assert (point.run.iter, point.run.seed, point.run.train.lr) == (2, 1, 3e-6)
    assert point.cfg.data.parts == ["a b.jsonl", "c"]
