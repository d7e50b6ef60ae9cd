"""Tasks as job arrays: SLURM, which hears what each array waits for, starts each task exactly when it may.

The slow obvious twin is a SLURM that hears the words of --dependency alone. tests/whole/test_slurm_cluster.py asks the
real one.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from conftest import inputs
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from toy_graph import needed_tasks, random_missing, random_sweep

from src.experiment.sweep import Task, report_of, tasks_of
from src.launch.slurm.arrays import Array, arrange
from src.launch.slurm.jobs import dependency


class Job(NamedTuple):
    """An element as SLURM knows it."""

    number: int
    index: int | None
    """None for a job that is no array."""


class Slurm:
    """Holds what was submitted, and who waits for whom by the words of --dependency."""

    def __init__(self, arrays: Sequence[Array]) -> None:
        self.jobs: dict[Job, tuple[Task, int]] = {}
        self.after: dict[Job, set[Job]] = {}
        self.outside: dict[Job, set[str]] = {}
        """Jobs of earlier submissions."""
        submitted: dict[Array, str] = {}
        for number, array in enumerate(arrays, 1000):
            words = dependency(array, submitted)
            submitted[array] = str(number)
            for index, element in array.elements.items():
                job = Job(number, index if len(array.elements) > 1 else None)
                self.after[job], self.outside[job] = self._waits(job, words)
                self.jobs[job] = (element.task, element.part)

    def _waits(self, job: Job, words: str) -> tuple[set[Job], set[str]]:
        """Return the jobs that a job waits for, and those of earlier submissions."""
        ours, others = set[Job](), set[str]()
        for kind, *names in (clause.split(":") for clause in words.split(",") if clause):
            assert kind == "afterok" or job.index is not None
            for name in names:
                number, _, index = name.partition("_")
                if name.startswith("old"):
                    others.add(f"{name}_{job.index}" if kind == "aftercorr" else name)
                    continue
                assert int(number) < job.number, "it waits for what is not submitted"
                whole = {other for other in self.jobs if other.number == int(number)}
                same = Job(int(number), job.index)
                if kind == "aftercorr" and same in whole:
                    ours.add(same)
                else:  # an index that does not exist guards nothing
                    ours |= whole & {Job(int(number), int(index))} if index else whole
        return ours, others


@settings(max_examples=inputs(300), phases=[Phase.generate])
@given(seed=st.integers(0, 2**32))
def test_every_element_waits_for_exactly_what_its_task_needs(seed: int) -> None:
    """So it is also cancelled exactly when that fails."""
    rng = random.Random(seed)
    points = random_sweep(rng, most_points=9)
    missing = random_missing(rng, points)
    running = {
        key: rng.sample(["old1", "old2_0", "old2_1", "old3_4"], 2) for key in sorted(missing) if rng.random() < 0.1
    }
    left = missing - running.keys()
    tasks = tasks_of(points, lambda node: node.key in left, parts=rng.choice([1, 1, 2, 5]))
    tasks += [report_of(number, nodes, tasks, Path(f"run{number}")) for number, nodes in enumerate(points)]
    arrays = arrange(tasks, running)
    groups = [list(group) for _, group in itertools.groupby(arrays, key=lambda array: array.task)]
    of = [{element.task for array in group for element in array.elements.values()} for group in groups]
    assert sum(map(len, of)) == len(tasks), "all parts of a task stand together"
    slurm = Slurm(arrays)
    wanted = sorted((tasks.index(task), part) for task in tasks for part in range(task.parts))
    assert sorted((tasks.index(task), part) for task, part in slurm.jobs.values()) == wanted, "each once, none missing"
    needs = needed_tasks(tasks)
    before: dict[Job, set[Job]] = {}
    for job, (task, _) in slurm.jobs.items():
        before[job] = slurm.after[job].union(*(before[other] for other in slurm.after[job]))
        exactly = {other for other, (made, _) in slurm.jobs.items() if made in needs[task]}
        assert before[job] >= exactly, f"{task.name} of point {task.point} starts too early"
        assert before[job] <= exactly, f"{task.name} of point {task.point} waits for what it does not need"
        assert slurm.outside[job] == {old for key in task.reads for old in running.get(key, ())}


def test_elements_that_wait_for_those_of_an_array_under_way_stay_an_array() -> None:
    """What a full queue did not take, submitted while the first jobs run, is as many scripts as it would have been."""
    readers = [Task("evaluation", "it1", point, (), (), (f"key {point}", "all"), ()) for point in range(3)]
    running = {f"key {point}": [f"77_{point}"] for point in range(3)} | {"all": ["78_1"]}
    (array,) = arrange(readers[::2], running)
    assert list(array.elements) == [0, 2] and dependency(array, {}) == "afterok:78_1,aftercorr:77"
    (alone,) = arrange(readers[2:], running)
    assert dependency(alone, {}) == "afterok:77_2:78_1"
