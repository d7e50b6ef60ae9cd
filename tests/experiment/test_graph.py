"""The graph of a sweep: equal keys are one node, and what one job makes of them is one task after what it needs.

The slow obvious twin: everything that a node needs by its inputs, found one step at a time.
"""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from tiny_run import ROOT, made_point, typed, typed_point
from toy_graph import needed_nodes, needed_tasks, random_missing, random_sweep

from src.experiment.graph import nodes_of
from src.experiment.run import Run
from src.experiment.sweep import REPORT, Sweep, Task, report_of, tasks_by_point, tasks_of
from src.kernel.artifact import Node
from src.kernel.config import UserError
from src.kernel.record import mark_store

many = settings(deadline=None, phases=[Phase.generate])
seeds = given(seed=st.integers(0, 2**32))


@pytest.fixture(scope="module", autouse=True)
def at_root() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        yield


def points_of(*grid: dict[str, list[Any]], iterations: int = 2) -> list[list[Node]]:
    """Nodes of the points of a grid: key -> values."""
    words = [[f"{key}={value}" for key, value in zip(one, values, strict=True)] for one in grid for values in over(one)]
    return [nodes_of(typed(f"iter={iterations}", *given)) for given in words]


def over(grid: dict[str, list[Any]]) -> Iterator[tuple[Any, ...]]:
    return product(*grid.values())


SWEEPS: dict[str, Callable[[], list[list[Node]]]] = {
    "eta x lr x K": lambda: points_of({"method.eta": [1, 10], "train.lr": [1e-6, 1e-5], "sampling.K": [4, 5]}),
    "iter": lambda: [nodes_of(typed("iter=1")), nodes_of(typed("iter=3", "method.eta=2")), nodes_of(typed("iter=2"))],
    "methods, twice one": lambda: points_of({"method": ["sppo", "dpo", "sppo", "ipo"]}),
    "rankers and models": lambda: points_of(
        {"ranker": ["embedded", "pairrm"], "model": ["smollm2_135m_instruct", "mistral_7b_instruct_v02"]}
    ),
}


def distinct(points: Sequence[Sequence[Node]]) -> dict[str, Node]:
    return {node.key: node for nodes in points for node in nodes}


def check(points: Sequence[Sequence[Node]], missing: set[str], parts: int = 1) -> list[Task]:
    """All that must hold of the tasks."""
    tasks = tasks_of(points, lambda node: node.key in missing, parts)
    made = [node.key for task in tasks for node in task.nodes]
    assert Counter(made) == Counter(missing & distinct(points).keys()), "each missing node once, and nothing else"
    place = {task: number for number, task in enumerate(tasks)}
    assert all(place[need] < place[task] for task in tasks for need in task.needs)
    for task in tasks:
        own = [node.key for node in task.nodes]
        inputs = {parent.key for node in task.nodes for parent in node.inputs}
        for number, node in enumerate(task.nodes):
            assert not {parent.key for parent in node.inputs} & set(own[number:]), "inputs before what reads them"
        assert set(task.reads) == inputs - set(own) and len(set(task.reads)) == len(task.reads)
        assert len({(node.job, task.scope) for node in task.nodes}) == 1
        one, *more = task.nodes
        in_parts = not more and one.job == "generation" and hasattr(one.stage, "fill")
        assert task.parts == (min(parts, one.rows) if in_parts else 1)
        having = [number for number, nodes in enumerate(points) if set(own) <= {node.key for node in nodes}]
        assert having and having[0] == task.point
    check_order(points, missing, tasks)
    return tasks


def check_order(points: Sequence[Sequence[Node]], missing: set[str], tasks: list[Task]) -> None:
    """Tasks need each other exactly where their nodes do; and no need is said twice."""
    owner = {node.key: task for task in tasks for node in task.nodes}
    nodes, found = needed_nodes(points, missing), needed_tasks(tasks)
    for task in tasks:
        needed = {owner[key] for node in task.nodes for key in nodes[node.key]} - {task}
        assert needed <= found[task]
    # A task's nodes wait for each other too: what one needs, all need, and so whoever needs one of them.
    assert found == _by_task(nodes, tasks, owner)
    for task in tasks:
        assert all(need not in found[other] for need in task.needs for other in task.needs), "implied by another"


def _by_task(nodes: dict[str, set[str]], tasks: list[Task], owner: dict[str, Task]) -> dict[Task, set[Task]]:
    found = {task: {owner[key] for node in task.nodes for key in nodes[node.key]} - {task} for task in tasks}
    for _ in tasks:
        found = {task: needs.union(*(found[need] for need in needs)) for task, needs in found.items()}
    return found


@many
@seeds
def test_tasks_of_random_graphs_follow_their_nodes(seed: int) -> None:
    lot = random.Random(seed)
    points = random_sweep(lot)
    check(points, random_missing(lot, points), lot.choice([1, 3, 64]))


def test_tasks_of_real_sweeps_follow_their_nodes() -> None:
    for name, made in SWEEPS.items():
        points, lot = made(), random.Random(name)
        keys = set(distinct(points))
        check(points, keys, parts=4)
        for _ in range(2):
            check(points, {key for key in sorted(keys) if lot.random() < 0.5}, parts=4)
        assert tasks_of(points, lambda node: False) == []


def test_the_tasks_of_a_run_of_one_iteration() -> None:
    (nodes,) = points_of({"seed": [0]}, iterations=1)
    tasks = tasks_of([nodes], lambda node: True, parts=8)
    shown = {
        task.name: ([node.name for node in task.nodes], [need.name for need in task.needs], task.parts)
        for task in tasks
    }
    evaluation = ["answers", "answers_ranking", "evaluation", "divergence"]
    assert shown == {
        "start-setup": (["held_out/prompts", "base/policy", "it1/prompts"], [], 1),
        "it1-generation": (["it1/responses"], ["start-setup"], 8),
        "it1-ranking": (["it1/ranking"], ["it1-generation"], 1),
        "it1-reference": (["it1/pairs", "it1/reference"], ["it1-ranking"], 1),
        "it1-training": (["it1/policy"], ["it1-reference"], 1),
        "base-evaluation": (["base/answers", "base/answers_ranking"], ["start-setup"], 1),
        "null-evaluation": (["null/answers", "null/answers_ranking"], ["start-setup"], 1),
        "it1-evaluation": (
            [f"it1/{name}" for name in evaluation],
            ["it1-training", "base-evaluation", "null-evaluation"],
            1,
        ),
    }


def test_a_judge_is_asked_by_jobs_of_its_own_behind_all_answers() -> None:
    nodes = nodes_of(typed("iter=1", "benchmark=[alpaca_eval,mt_bench,ifeval,win_matrix]"))
    tasks = {task.name: task for task in tasks_of([nodes], lambda _: True)}
    judging = tasks["it1-judging"]
    assert {node.name for node in judging.nodes} == {
        *("it1/alpaca_eval/annotations", "it1/alpaca_eval/scores", "it1/mt_bench/judgments", "it1/mt_bench/scores")
    }
    assert [need.name for need in judging.needs] == ["it1-evaluation"]
    assert {"it1/mt_bench/answers", "it1/ifeval/scores", "it1/win_matrix/scores"} <= {
        node.name for node in tasks["it1-evaluation"].nodes
    }


def test_only_answers_of_an_iteration_are_made_in_parts_and_at_most_one_a_prompt() -> None:
    (nodes,) = points_of({"seed": [0]})
    for parts, expected in ((1, 1), (8, 8), (1000, 64)):
        found = {task.name: task.parts for task in tasks_of([nodes], lambda node: True, parts)}
        assert found == {name: expected if name.endswith("-generation") else 1 for name in found}


@many
@seeds
def test_a_report_waits_for_all_that_its_point_is_made_of_and_for_nothing_else(seed: int) -> None:
    lot = random.Random(seed)
    points = random_sweep(lot)
    missing = random_missing(lot, points)
    tasks = tasks_of(points, lambda node: node.key in missing)
    by_point, needs = tasks_by_point(points, tasks), needed_tasks(tasks)
    for number, nodes in enumerate(points):
        own = [task for task in tasks if {node.key for node in task.nodes} & {node.key for node in nodes}]
        assert sorted(map(id, by_point[number])) == sorted(map(id, own))
        report = report_of(number, nodes, by_point[number], Path("run"))
        assert (report.name, report.job, report.point, report.nodes, report.parts) == (REPORT, REPORT, number, (), 1)
        assert set(report.needs).union(*(needs[need] for need in report.needs)) >= set(own)
        assert set(report.needs) <= set(own)
        assert not any(one in other.needs for one in report.needs for other in own)
        assert set(report.reads) == {"run", *(node.key for node in nodes)}


# Sweep: what is there, and what is under way -----------------------------------------------------------------------


def sweep(place: Path, *changes: dict[str, Any]) -> Sweep:
    """Points of one iteration that differ in fields of the run."""
    run = typed("iter=1", f"store={place}/store", f"runs={place}/runs")
    runs: list[Run] = [dataclasses.replace(run, **change) for change in changes or ({},)]
    return Sweep([made_point(one) for one in runs])


def finish(found: Sweep, *nodes: Node) -> None:
    """Pretend they were made."""
    mark_store(found.store.root)
    for node in nodes:
        found.store.path(node).mkdir(parents=True)
        (found.store.path(node) / "record.json").touch()
        mark_store(found.store.root)


def names(tasks: list[Task]) -> list[str]:
    return [task.name for task in tasks]


def test_what_the_store_has_is_left_out(tmp_path: Path) -> None:
    everything = names(sweep(tmp_path).tasks(1))
    assert len(everything) == 9 and everything[-1] == "report"
    finish(found := sweep(tmp_path), *(node for node in found.nodes[0] if node.job == "setup"))
    left = sweep(tmp_path).tasks(1)
    assert sorted(names(left)) == sorted(name for name in everything if name != "start-setup")
    first = {"it1-generation", "base-evaluation", "null-evaluation"}
    assert {task.name for task in left if not task.needs} == first
    finish(found, *(node for node in found.nodes[0] if node.job != "setup"))
    assert names(sweep(tmp_path).tasks(1)) == ["report"]


def test_a_report_is_written_again_when_the_run_asks_for_more(tmp_path: Path) -> None:
    """Of a benchmark whose artifacts another run has made, nothing is missing but the report."""
    words = ("iter=1", f"store={tmp_path}/store", f"runs={tmp_path}/runs")

    def asked(*more: str) -> Sweep:
        return Sweep([typed_point(*words, *more)])

    def left(*more: str) -> list[str]:
        return names(asked(*more).tasks(1))

    finish(found := asked("benchmark=win_matrix"), *found.nodes[0])
    assert left() == left("benchmark=win_matrix") == ["report"]
    report(asked())
    assert left() == [] and left("benchmark=win_matrix") == ["report"]
    report(asked("benchmark=win_matrix"))
    assert left("benchmark=win_matrix") == left() == [], "a report of more than is asked for stays"


def report(found: Sweep) -> None:
    """Pretend that the job for it has ended."""
    (point,) = found.points
    point.folder.mkdir(parents=True, exist_ok=True)
    (point.folder / "config.yaml").write_text(point.settings)
    (point.folder / "command.txt").touch()
    (point.folder / "report.md").touch()
    (point.folder / "summary.txt").touch()


def test_what_is_under_way_is_left_out_but_read(tmp_path: Path) -> None:
    found = sweep(tmp_path, {}, {"seed": 1})
    (first, second) = found.nodes
    under_way = frozenset(node.key for node in first if node.name == "it1/policy")
    tasks = found.tasks(1, under_way)
    assert [task.point for task in tasks if task.job == "training"] == [1]
    (evaluation,) = [task for task in tasks if task.name == "it1-evaluation" and task.point == 0]
    assert under_way < set(evaluation.reads)
    reports = found.tasks(1, frozenset(found.reports[:1]))[-1:]
    assert [(task.name, task.point) for task in reports] == [("report", 1)] and second


def test_points_of_several_stores_and_parts_of_runs_are_no_sweep(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="store: points of a sweep share one"):
        sweep(tmp_path, {}, {"store": tmp_path / "other"})
    with pytest.raises(UserError, match="only: "):
        sweep(tmp_path, {"only": "base/policy"})
