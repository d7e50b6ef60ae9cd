"""A queue is worked off by one process or several, here or through srun; a dead worker is named and costs nothing."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from array import array
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from places import PYTHONPATH

from src.cells import CELLS, Cells
from src.config import UserError
from src.ranking.work import Item, Queue, Scorer, Texts, Work, batches, work_off
from src.worker import devices_of
from src.workers import Crew, _last_words, workers_of


class Sums(NamedTuple):
    """Scores an item by the sum of its tokens; dies at the one that has token `dies_at`, waits at `waits_at`."""

    dies_at: int = -1
    waits_at: int = -1

    def __call__(self, work: Work) -> Scorer:
        return self.score

    def score(self, items: list[Texts]) -> list[float]:
        if any(self.dies_at in text for item in items for text in item):
            os._exit(7)
        if any(self.waits_at in text for item in items for text in item):
            Path(os.environ["WAITING"]).touch()
            time.sleep(3600)  # longer than a test may take
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
        "save_seconds": 1e-9,
    }
    return Work(**(plain | changes))  # pyright: ignore[reportArgumentType]


@pytest.fixture(autouse=True)
def workers_find_this_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYTHONPATH", PYTHONPATH)
    monkeypatch.setenv("WAITING", str(tmp_path / "waiting"))


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


@pytest.mark.full
def test_several_processes_give_the_same_scores(tmp_path: Path) -> None:
    assert work_off(Sums(), queue(12), work(workers=3), tmp_path, "item") == EXPECTED


@pytest.mark.full
def test_a_dead_worker_is_named_and_the_next_start_does_the_rest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"worker \d \(process \d+\) ended with exit code 7.*what was finished is kept"):
        work_off(Sums(dies_at=9), queue(12), work(workers=2), tmp_path, "item")
    kept = Cells(tmp_path / CELLS).values
    assert kept and "key 9" not in kept
    assert work_off(Sums(), queue(12), work(workers=2), tmp_path, "item") == EXPECTED


@pytest.mark.full
def test_a_dead_worker_is_noticed_while_the_one_before_it_works_on(tmp_path: Path) -> None:
    """Batches, longest first: 11, 10, 9 ...: worker 0 takes 11 and waits, worker 1 takes 10 and dies."""
    with pytest.raises(UserError, match="worker 1 "):
        work_off(Sums(dies_at=10, waits_at=11), queue(12), work(workers=2, batch_tokens=1), tmp_path, "item")


STOPPED = """
import signal, sys
sys.path[:0] = {path!r}
from pathlib import Path
from src.main import _stop
from test_work import Sums, queue, work
from src.ranking.work import work_off
signal.signal(signal.SIGTERM, _stop)
some = work(workers={workers}, batch_tokens=1, save_seconds=1000.0)
work_off(Sums(waits_at=3), queue(12), some, Path({folder!r}), "item")
"""


@pytest.mark.full
@pytest.mark.parametrize("workers", [1, 2])
def test_sigterm_keeps_what_is_scored_and_leaves_no_process(workers: int, tmp_path: Path) -> None:
    """One item waits for a minute; what its process has scored by then was not due to be saved, and is."""
    paths = [str(Path(__file__).parents[2]), *PYTHONPATH.split(":")]
    code = STOPPED.format(path=paths, workers=workers, folder=str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) as process:
        until = time.monotonic() + 60
        while not (tmp_path / "waiting").exists() and time.monotonic() < until:
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    assert {"key 11", "key 5"} <= Cells(tmp_path / CELLS).values.keys()
    assert not subprocess.run(["pgrep", "-f", str(tmp_path / "job-")], stdout=subprocess.PIPE).stdout


SRUN = """#!{python}
# What srun does for this purpose: as many tasks as asked for, each with its number.
import os, subprocess, sys
words = sys.argv[1:]
tasks, each = (int(words[words.index(flag) + 1]) for flag in ("--ntasks", "--ntasks-per-node"))
command = words[words.index("bash") :]
started = [
    subprocess.Popen(command, env=os.environ | {{"SLURM_PROCID": str(n), "SLURM_LOCALID": str(n % each)}})
    for n in range(tasks)
]
sys.exit(max(process.wait() for process in started))
"""


@pytest.mark.full
def test_on_several_nodes_the_tasks_of_srun_share_the_queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    srun = tmp_path / "srun"
    srun.write_text(SRUN.format(python=sys.executable))
    srun.chmod(srun.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "2")
    assert work_off(Sums(), queue(12), work(workers=4, nodes=2), tmp_path, "item") == EXPECTED


def test_several_nodes_are_one_srun_with_as_many_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "2")
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "96")
    (tmp_path / "srun").write_text("")
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    crew = Crew("rank", "hardware.ranking", 16, 2, "cpu")
    (worker,) = workers_of(crew, tmp_path / "job.pickle")
    *words, line = worker.command
    expected = "srun --label --export=ALL --kill-on-bad-exit=1 --nodes 2 --ntasks 16 --ntasks-per-node 8 "
    expected += "--cpus-per-task 12 bash -c"
    assert " ".join(words) == expected and line.startswith("trap '' USR1; exec ") and line.endswith("job.pickle")


@pytest.mark.parametrize(
    ("nodes", "said"), [("1", "started on 1 SLURM nodes; use sbatch --nodes=2"), ("2", "srun, which")]
)
def test_several_nodes_outside_an_allocation_or_without_srun_are_refused(
    nodes: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", nodes)
    with pytest.raises(UserError, match=f"hardware.ranking.nodes: .*{said}"):
        work_off(Sums(), queue(2), work(workers=2, nodes=2), tmp_path, "item")


@pytest.mark.parametrize(
    ("number", "nodes", "each", "visible", "devices"),
    [
        (0, 1, 1, ["3"], ["3"]),
        (5, 2, 1, ["3"], ["3"]),
        (1, 1, 1, ["0", "1"], ["1"]),
        (1, 1, 1, ["GPU-a", "GPU-b"], ["GPU-b"]),
        (1, 2, 2, ["0", "1", "2", "3"], ["2", "3"]),
        (3, 2, 2, ["4", "5"], ["4", "5"]),
    ],
)
def test_each_worker_of_a_node_has_its_devices(
    number: int, nodes: int, each: int, visible: list[str], devices: list[str]
) -> None:
    """SLURM's --gpus-per-task shows each task its own alone, whatever its number."""
    assert devices_of(number, Crew("rank", "hardware.ranking", 8, nodes, "cuda", each), visible) == devices


@pytest.mark.parametrize(("number", "visible"), [(2, ["0", "1"]), (1, ["0"])])
def test_more_workers_than_devices_are_refused(number: int, visible: list[str]) -> None:
    said = f"hardware.ranking.workers: worker {number} of a node that shows {len(visible)} CUDA devices"
    with pytest.raises(UserError, match=said):
        devices_of(number, Crew("rank", "hardware.ranking", 8, 1, "cuda"), visible)


@pytest.mark.parametrize(
    ("log", "said"),
    [
        ("a warning\nthe reason\n", "the reason"),
        (
            "2: a warning\n5: no room\n2: more\nsrun: error: node3: task 5: Out Of Memory\n2: late\n",
            "task 5: Out Of Memory; 5: no room",
        ),
        ("srun: error: node3: task 5: Killed\n", "srun: error: node3: task 5: Killed"),
        ("", "it said nothing"),
    ],
)
def test_the_last_words_are_those_of_the_task_that_died(log: str, said: str) -> None:
    assert _last_words(log.splitlines()).endswith(said)


def test_workers_that_do_not_fit_the_nodes_are_refused() -> None:
    with pytest.raises(ValueError, match="3 cannot be spread evenly over nodes=2"):
        work(workers=3, nodes=2)
