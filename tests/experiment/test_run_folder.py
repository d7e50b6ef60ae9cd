"""The run folder: its command makes the same artifacts anywhere, and it stays as it is where the store is lost."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_run import World
from toy_store import tree

from src.experiment.run_folder import command
from src.kernel.store import MARK

WORDS: list[tuple[list[str], list[str]]] = [
    # overrides, what of them lasts
    (["+sweep=eta", "method.eta=10", "launcher=slurm"], ["+sweep=eta", "method.eta=10"]),
    (["seed=1", "only=[it1/pairs]", "part=2/8", "launcher=allocation", "hardware.ranking.workers=1"], ["seed=1"]),
    (["slurm@launcher.site=mine", "+slurm@launcher.site=mine", "launcher.jobs.setup.partition=cpu"], []),
    (["++launcher.x=1", "~launcher.y", "+part=1/2", "++only=base/policy", "launcher.keys=x"], []),
    (["name=only=1", "partition=1", "+only_x=1"], ["name=only=1", "partition=1", "+only_x=1"]),
    (["~train.lora", "+variant=paper", "name='a b'"], ["~train.lora", "+variant=paper", "name='a b'"]),
]


def test_of_a_command_the_words_that_say_which_run_it_is_last() -> None:
    for words, kept in WORDS:
        assert shlex.split(command(words)) == ["python", "-m", "src.main", *kept]


LOST: dict[str, Callable[[Path], Any]] = {
    "a file": lambda store: store.write_text("not a folder"),
    "a dangling link": lambda store: store.symlink_to("/nowhere/store"),
    "empty, as an unmounted disk is": lambda store: store.mkdir(),
}
"""Mistakes in what is there are rows of tests/bad_inputs.md."""


def test_a_store_that_cannot_be_opened_is_one_line_and_report_and_links_stay(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    before, store = tree(world.place / "runs"), world.place / "store"
    store.rename(world.place / "kept")
    for name, spoil in LOST.items():
        spoil(store)
        capsys.readouterr()
        assert world.run("iter=2") == 2, name
        error = capsys.readouterr().err.splitlines()[-1]  # behind what a processor without bf16 is told
        assert error.startswith("error: ") and str(store) in error, error
        assert tree(world.place / "runs") == before, name
        store.rename(world.place / name)
    (world.place / "kept").rename(store)
    assert world.run("iter=2") == 0


def test_a_folder_whose_artifacts_are_gone_is_still_that_of_its_experiment(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    (world.place / "store").rename(world.place / "kept")
    (world.place / "store").mkdir()
    (world.place / "store" / MARK).touch()
    before = tree(world.place / "runs")
    assert world.run("iter=2", "method.eta=5", f"name={world.folder.name}") == 2
    assert "has another experiment: method.eta was" in capsys.readouterr().err and tree(world.place / "runs") == before


def test_what_a_killed_write_left_there_goes(world: World) -> None:
    (torn := world.folder / ".metrics.jsonl.0123abcd.tmp").touch()
    assert world.run("iter=2") == 0 and not torn.exists()
