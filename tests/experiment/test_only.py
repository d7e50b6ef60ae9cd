"""`only=` one artifact, `part=` a share of its cells: what tasks of a job array are started with."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from tiny_run import PROMPTS, K, World, call, tiny

from src.kernel.artifact import Node
from src.kernel.cells import CELLS, value_of
from src.kernel.store import Store


def made(place: Path) -> list[str]:
    """Return the kind of each artifact in the store."""
    return sorted(path.parent.name for path in Store(place / "store").artifacts())


def cells(place: Path) -> list[str]:
    """Return the names of all cells in the store."""
    files = (place / "store" / f".{CELLS}").glob("*/*.jsonl")
    return sorted(value_of(line)[0] for file in files for line in file.read_bytes().splitlines() if line)


def test_tasks_of_an_array_make_a_share_each_and_the_run_only_what_is_missing(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = tiny(llama, tmp_path, "iter=2", "only=it1/responses")
    for part in ("1/3", "3/3", "3/3"):  # the second task failed, the third was requeued
        assert call(*words, f"part={part}") == 0
    assert "all 3 answers are there" in capsys.readouterr().out
    assert made(tmp_path) == ["policy", "prompts"], "one artifact, and what it needs"
    shares = cells(tmp_path)
    assert len(shares) == len(set(shares)) == K * 3, "4 prompts in shares of 2, 1 and 1"
    assert call(*words, "part=2/3") == 0
    every = cells(tmp_path)
    assert len(every) == len(set(every)) == K * PROMPTS
    assert made(tmp_path) == ["policy", "prompts", "responses"], "the share that ends last makes the artifact"
    assert Store(tmp_path / "store").leftovers() == [] and len(list((tmp_path / "runs").iterdir())) == 1
    capsys.readouterr()
    assert call(*words, "part=2/3") == 0
    assert "only: " in capsys.readouterr().out, "the artifact is there, so there is nothing to share"


def test_in_an_allocation_what_other_jobs_make_must_be_there(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setattr("src.launch.runner.SEEN_LATE_S", 0)
    allocation = ["launcher=allocation", "launcher.alone=true"]
    words = [*tiny(llama, tmp_path, "iter=1"), *allocation]
    assert call(*words, "only=[it1/ranking,it1/pairs]") == 2
    assert "error: launcher.alone: it1/responses is missing" in capsys.readouterr().err
    assert made(tmp_path) == []
    fill = Store.fill
    with monkeypatch.context() as patch:  # two shares end at once, and each misses the other's last cells
        patch.setattr(Store, "fill", lambda *args: fill(*args) and False)
        for part in ("1/2", "2/2"):
            assert call(*tiny(llama, tmp_path, "iter=1"), "only=it1/responses", f"part={part}") == 0
    assert "responses" not in made(tmp_path), "the next job gathers them"
    assert call(*words, "only=[it1/ranking,it1/pairs]") == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert (folder / "artifacts" / "it1" / "pairs").exists(), "the run folder shows it"
    assert not (folder / "report.md").exists()


def test_the_report_of_an_allocation_makes_nothing_and_waits_for_what_shows_late(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    (world.folder / "report.md").unlink()
    has, asked = Store.has, Counter[str]()

    def shows_late(store: Store, node: Node) -> bool:
        asked[node.name] += 1
        return has(store, node) and (node.name != "it1/evaluation" or asked[node.name] > 2)

    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setattr(Store, "has", shows_late)
    monkeypatch.setattr(Store, "make", lambda *_: pytest.fail("something is made"))
    assert world.run("iter=2", "launcher=allocation", "launcher.alone=true") == 0
    assert (world.folder / "report.md").exists() and asked["it1/evaluation"] > 2
