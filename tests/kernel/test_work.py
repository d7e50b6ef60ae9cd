"""A queue is worked off by one process or several, here or through srun; a dead worker is named and costs nothing."""

from __future__ import annotations

import errno
import os
import signal
from array import array
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from places import PYTHONPATH

from src.kernel.cells import CELLS, Cells
from src.kernel.config import Fault, UserError
from src.kernel.faults import SAID
from src.kernel.processes import Crew, Job, devices_of, last_words, run_in_processes, workers_of
from src.launch.verbs import guarded
from src.ranking.batching import Item, Queue, Scorer, Texts, Work, batches, work_off


class Sums(NamedTuple):
    """Scores an item by the sum of its tokens; dies at the one that has token `dies_at`."""

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
    plain = {"device": "cpu", "attention": "segments", "batch_tokens": 8, "workers": 1, "nodes": 1}
    return Work(**(plain | {"save_seconds": 1e-9} | changes))  # pyright: ignore[reportArgumentType]


@pytest.fixture(autouse=True)
def workers_find_this_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", PYTHONPATH)


def fails(error: Exception, number: int, count: int) -> None:
    if number == 1:
        raise error


def is_killed(number: int, count: int) -> None:
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)


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


FAILURES: list[tuple[Job, int, str]] = [
    (partial(fails, OSError(errno.ENOSPC, "x", "/store/cells")), 3, f"exit code 3: /store/cells: {SAID[errno.ENOSPC]}"),
    (partial(fails, Fault("the server is gone")), 3, "exit code 3: the server is gone"),
    (partial(fails, UserError("data.parts: no")), 2, "exit code 2: data.parts: no"),
    (partial(fails, ValueError("x")), 3, "exit code 1: ValueError: x"),
    (is_killed, 3, "was killed by SIGKILL; was memory short?: it said nothing"),
]


@pytest.mark.full
def test_the_command_ends_as_its_worker_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """2 for a mistake of the user, 3 for whatever else it died of."""
    for job, code, said in FAILURES:

        def act(job: Job = job) -> int:
            run_in_processes(job, Crew("rank", "hardware.ranking", 2, 1, "cpu"), tmp_path, lambda: None)
            return 0

        assert guarded(act) == code
        told = capsys.readouterr().err
        assert told.startswith("error: rank: worker 1 (process ") and told.count("\n") == 1 and said in told


@pytest.fixture
def with_srun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In an allocation of two nodes, a stand-in for srun that does nothing yet."""
    srun = tmp_path / "bin" / "srun"
    srun.parent.mkdir()
    srun.touch(0o755)
    monkeypatch.setenv("PATH", f"{srun.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "2")
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "96")
    return srun


@pytest.mark.parametrize(("task", "kind"), [(2, UserError), (3, Fault), (137, Fault)])
def test_of_tasks_the_first_that_failed_decides(
    task: int, kind: type[UserError], tmp_path: Path, with_srun: Path
) -> None:
    """srun ends with the largest code, of those that it has killed too."""
    lines = f"srun: error: node1: task 1: Exited with exit code {task}\n1: ranker: no\n"
    with_srun.write_text(f"#!/bin/sh\nprintf '{lines}' >&2\nexit 143\n")
    with pytest.raises(UserError, match=r"Exited with exit code \d+; 1: ranker: no \(") as error:
        run_in_processes(is_killed, Crew("rank", "hardware.ranking", 2, 2, "cpu"), tmp_path, lambda: None)
    assert type(error.value) is kind


def test_several_nodes_are_one_srun_with_as_many_tasks_or_refused(
    tmp_path: Path, with_srun: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (worker,) = workers_of(Crew("rank", "hardware.ranking", 16, 2, "cpu"), tmp_path / "job.pickle")
    *words, line = worker.command
    expected = "srun --label --export=ALL --kill-on-bad-exit=1 --nodes 2 --ntasks 16 --ntasks-per-node 8 "
    expected += "--cpus-per-task 12 bash -c"
    assert " ".join(words) == expected and line.startswith("trap '' USR1; exec ") and line.endswith("job.pickle")
    with_srun.unlink()
    monkeypatch.setenv("PATH", str(with_srun.parent))
    for nodes, said in (("2", "srun"), ("1", "--nodes=2")):
        monkeypatch.setenv("SLURM_JOB_NUM_NODES", nodes)
        with pytest.raises(UserError, match=f"hardware.ranking.nodes: .*{said}"):
            work_off(Sums(), queue(2), work(workers=2, nodes=2), tmp_path, "item")


def test_each_worker_of_a_node_has_its_devices() -> None:
    """SLURM's --gpus-per-task shows each task its own alone, whatever its number."""
    for number, nodes, each, visible, devices in (
        (5, 2, 1, "3", "3"),
        (1, 1, 1, "0 1", "1"),
        (1, 1, 1, "GPU-a GPU-b", "GPU-b"),
        (1, 2, 2, "0 1 2 3", "2 3"),
        (3, 2, 2, "4 5", "4 5"),
    ):
        crew = Crew("rank", "hardware.ranking", 8, nodes, "cuda", each)
        assert devices_of(number, crew, visible.split()) == devices.split()
    with pytest.raises(UserError, match="hardware.ranking.workers: worker 2 of a node that shows 2 CUDA devices"):
        devices_of(2, Crew("rank", "hardware.ranking", 8, 1, "cuda"), ["0", "1"])


def test_thelast_words_are_those_of_the_task_that_died() -> None:
    died = "2: a warning\n5: no room\n2: more\nsrun: error: node3: task 5: Out Of Memory\n2: late"
    assert last_words("a warning\nthe reason\n\n") == (None, "the reason")
    assert last_words(died) == (None, "srun: error: node3: task 5: Out Of Memory; 5: no room")
    assert last_words("") == (None, "it said nothing")


def test_workers_that_do_not_fit_the_nodes_are_refused() -> None:
    with pytest.raises(ValueError, match="3 cannot be spread evenly over nodes=2"):
        work(workers=3, nodes=2)
