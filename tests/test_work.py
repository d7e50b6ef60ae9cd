"""A queue is worked off by one process or several, here or through srun; a dead worker is named and costs nothing.

Run: python -m pytest -q tests/test_work.py
"""

from __future__ import annotations

import os
import stat
import sys
from array import array
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.cells import CELLS, Cells
from src.config import UserError
from src.ranking.processes import workers_of
from src.ranking.work import Item, Queue, Scorer, Texts, Work, batches, work_off


class Sums(NamedTuple):
    """Scores an item by the sum of its tokens, and dies at the one that has token `dies_at`."""

    dies_at: int = -1

    def __call__(self, work: Work) -> Scorer:
        return self.score

    def score(self, items: list[Texts]) -> list[float]:
        if any(self.dies_at in text for item in items for text in item):
            os._exit(7)
        return [float(sum(sum(text) for text in item)) for item in items]


def queue(count: int) -> Queue:
    """Item n is text n, which is n tokens of 1 and one of n."""
    texts = [array("i", [1] * n + [n]) for n in range(count)]
    return Queue(texts, [Item(f"key {n}", (n,)) for n in range(count)])


def work(**changes: object) -> Work:
    plain = {
        "device": "cpu",
        "attention": "segments",
        "batch_tokens": 8,
        "workers": 1,
        "nodes": 1,
        "save_seconds": 0.01,
    }
    return Work(**(plain | changes))  # pyright: ignore[reportArgumentType]


@pytest.fixture(autouse=True)
def workers_find_this_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


EXPECTED = {f"key {n}": float(2 * n) for n in range(12)}


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 60))
def test_batches_hold_every_item_once_within_the_budget(lengths: list[int], tokens: int) -> None:
    some = Queue([array("i", [0] * n) for n in lengths], [Item(str(i), (i,)) for i in range(len(lengths))])
    made = batches(some, tokens)
    assert sorted(item for batch in made for item in batch) == sorted(some.items)
    assert all(len(batch) == 1 or sum(map(some.tokens, batch)) <= tokens for batch in made)
    longest = [max(map(some.tokens, batch)) for batch in made]
    assert longest == sorted(longest, reverse=True)


def test_every_item_gets_its_score(tmp_path: Path) -> None:
    assert work_off(Sums(), queue(12), work(), tmp_path, "item") == EXPECTED


def test_what_is_in_the_cells_is_not_computed_again(tmp_path: Path) -> None:
    """A wrong value that is there already stays: nothing was computed for it."""
    Cells(tmp_path / CELLS).add({"key 3": 99.0})
    assert work_off(Sums(), queue(12), work(), tmp_path, "item") == EXPECTED | {"key 3": 99.0}
    assert work_off(Sums(dies_at=1), queue(12), work(), tmp_path, "item")["key 3"] == 99.0


def test_not_a_number_is_refused_and_not_kept(tmp_path: Path) -> None:
    class Nan(Sums):
        def score(self, items: list[Texts]) -> list[float]:
            return [float("nan")] * len(items)

    with pytest.raises(UserError, match="NaN or infinity; try ranker.precision=float32"):
        work_off(Nan(), queue(2), work(), tmp_path, "item")
    assert not Cells(tmp_path / CELLS).values


@pytest.mark.slow
def test_several_processes_give_the_same_scores(tmp_path: Path) -> None:
    assert work_off(Sums(), queue(12), work(workers=3), tmp_path, "item") == EXPECTED


@pytest.mark.slow
def test_a_dead_worker_is_named_and_the_next_start_does_the_rest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"worker \d \(process \d+\) ended with exit code 7.*finished scores are kept"):
        work_off(Sums(dies_at=9), queue(12), work(workers=2), tmp_path, "item")
    kept = Cells(tmp_path / CELLS).values
    assert "key 9" not in kept
    assert work_off(Sums(), queue(12), work(workers=2), tmp_path, "item") == EXPECTED


SRUN = """#!{python}
# What srun does for this purpose: as many tasks as asked for, each with its number.
import os, subprocess, sys
words = sys.argv[1:]
tasks, each = (int(words[words.index(flag) + 1]) for flag in ("--ntasks", "--ntasks-per-node"))
command = words[words.index("--ntasks-per-node") + 2 :]
started = [
    subprocess.Popen(command, env=os.environ | {{"SLURM_PROCID": str(n), "SLURM_LOCALID": str(n % each)}})
    for n in range(tasks)
]
sys.exit(max(process.wait() for process in started))
"""


@pytest.mark.slow
def test_on_several_nodes_the_tasks_of_srun_share_the_queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    srun = tmp_path / "srun"
    srun.write_text(SRUN.format(python=sys.executable))
    srun.chmod(srun.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert work_off(Sums(), queue(12), work(workers=4, nodes=2), tmp_path, "item") == EXPECTED


def test_several_nodes_are_one_srun_with_as_many_tasks(tmp_path: Path) -> None:
    (worker,) = workers_of(work(workers=16, nodes=2), tmp_path / "job.pickle")
    assert " ".join(worker.command).startswith("srun --kill-on-bad-exit=1 --nodes 2 --ntasks 16 --ntasks-per-node 8 ")


def test_without_srun_several_nodes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="srun is not on PATH"):
        work_off(Sums(), queue(2), work(workers=2, nodes=2), tmp_path, "item")


def test_workers_that_do_not_fit_the_nodes_are_refused() -> None:
    with pytest.raises(ValueError, match="3 cannot be spread evenly over nodes=2"):
        work(workers=3, nodes=2)
