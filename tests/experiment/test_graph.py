"""The graph of a sweep: equal keys are one node, and what one job makes of them is one task after what it needs.

The slow obvious twin: everything that a node needs by its inputs, collected one step at a time.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from tiny_run import typed, typed_point
from toy_graph import needed_nodes, needed_tasks, random_missing, random_sweep

from src.experiment.graph import nodes_of
from src.experiment.sweep import REPORT, Sweep, report_of, tasks_of
from src.kernel.artifact import Node
from src.kernel.config import UserError


def check(points: Sequence[Sequence[Node]], missing: set[str], parts: int = 1) -> None:
    """Assert all that must hold of the tasks of points, and of their reports."""
    tasks = tasks_of(points, lambda node: node.key in missing, parts)
    made = [node.key for task in tasks for node in task.nodes]
    assert Counter(made) == Counter(missing & {node.key for nodes in points for node in nodes}), "each once"
    place = {task: number for number, task in enumerate(tasks)}
    assert all(place[need] < place[task] for task in tasks for need in task.needs)
    for task in tasks:
        keys = [node.key for node in task.nodes]
        inputs = {parent.key for node in task.nodes for parent in node.inputs}
        for number, node in enumerate(task.nodes):
            assert not {parent.key for parent in node.inputs} & set(keys[number:]), "inputs before what reads them"
        assert set(task.reads) == inputs - set(keys) and len(set(task.reads)) == len(task.reads)
        assert len({(node.job, task.scope) for node in task.nodes}) == 1
        one, *more = task.nodes
        in_parts = not more and one.job == "generation" and hasattr(one.stage, "fill")
        assert task.parts == (min(parts, one.rows) if in_parts else 1)
        having = [number for number, nodes in enumerate(points) if set(keys) <= {node.key for node in nodes}]
        assert having[0] == task.point

    # Tasks need each other exactly where their nodes do. A task's nodes wait for each other too.
    owner = {node.key: task for task in tasks for node in task.nodes}
    nodes, needs = needed_nodes(points, missing), needed_tasks(tasks)
    twin = {task: {owner[key] for node in task.nodes for key in nodes[node.key]} - {task} for task in tasks}
    for _ in tasks:
        twin = {task: before.union(*(twin[need] for need in before)) for task, before in twin.items()}
    assert needs == twin
    for task in tasks:
        assert all(need not in needs[other] for need in task.needs for other in task.needs), "no need is said twice"

    for number, point in enumerate(points):
        making = {owner[node.key] for node in point if node.key in owner}
        report = report_of(number, point, tasks, Path("run"))
        assert (report.name, report.job, report.point, report.nodes, report.parts) == (REPORT, REPORT, number, (), 1)
        assert set(report.needs) <= making <= set(report.needs).union(*(needs[need] for need in report.needs))
        assert not any(one in other.needs for one in report.needs for other in making)
        assert set(report.reads) == {"run", *(node.key for node in point)}


@settings(deadline=None, phases=[Phase.generate])
@given(seed=st.integers(0, 2**32))
def test_tasks_of_random_graphs_follow_their_nodes(seed: int) -> None:
    rng = random.Random(seed)
    points = random_sweep(rng)
    check(points, random_missing(rng, points), rng.choice([1, 3, 64]))


def test_tasks_of_a_real_sweep_follow_their_nodes() -> None:
    rng = random.Random(0)
    points = [
        nodes_of(typed(f"iter={t}", f"method={m}", f"sampling.K={k}"))
        for t, m, k in product((1, 2), ("sppo", "dpo"), (4, 5))
    ]
    keys = sorted({node.key for nodes in points for node in nodes})
    check(points, set(keys), parts=1000)
    check(points, {key for key in keys if rng.random() < 0.5}, parts=4)
    assert tasks_of(points, lambda node: False) == []


def test_the_tasks_of_a_run_of_one_iteration() -> None:
    nodes = nodes_of(typed("iter=1", "~ranker@held_out.second"))
    evaluated = [f"it1/{name}" for name in ("answers", "answers_ranking", "evaluation", "divergence")]
    assert {
        task.name: ([node.name for node in task.nodes], [need.name for need in task.needs], task.parts)
        for task in tasks_of([nodes], lambda node: True, parts=8)
    } == {
        "start-setup": (["held_out/prompts", "base/policy", "it1/prompts"], [], 1),
        "it1-generation": (["it1/responses"], ["start-setup"], 8),
        "it1-ranking": (["it1/ranking"], ["it1-generation"], 1),
        "it1-reference": (["it1/pairs", "it1/reference"], ["it1-ranking"], 1),
        "it1-training": (["it1/policy"], ["it1-reference"], 1),
        "base-evaluation": (["base/answers", "base/answers_ranking"], ["start-setup"], 1),
        "null-evaluation": (["null/answers", "null/answers_ranking"], ["start-setup"], 1),
        "it1-evaluation": (evaluated, ["it1-training", "base-evaluation", "null-evaluation"], 1),
    }


def test_a_judge_is_asked_by_jobs_of_its_own_behind_all_answers() -> None:
    nodes = nodes_of(typed("iter=1", "benchmark=[alpaca_eval,mt_bench,win_matrix]"))
    judging = {task.name: task for task in tasks_of([nodes], lambda _: True)}["it1-judging"]
    asked = ("alpaca_eval/annotations", "alpaca_eval/scores", "mt_bench/judgments", "mt_bench/scores")
    assert {node.name for node in judging.nodes} == {f"it1/{name}" for name in asked}
    assert [need.name for need in judging.needs] == ["it1-evaluation"]


# A sweep on a store: what is there, and what is under way -----------------------------------------------------------


def sweep(place: Path, *points: str) -> Sweep:
    """Return the sweep of points of one iteration, each with a word of its own."""
    words = ("iter=1", f"store={place}/store", f"runs={place}/runs")
    return Sweep([typed_point(*words, *point.split()) for point in points or ("",)])


def left(place: Path, *points: str) -> list[str]:
    """Return the names of the tasks that are left to do."""
    return [task.name for task in sweep(place, *points).tasks(1)]


def pretend_made(sweep: Sweep, *nodes: Node) -> None:
    sweep.store.mark()
    for node in nodes:
        sweep.store.path(node).mkdir(parents=True)
        (sweep.store.path(node) / "record.json").touch()


def pretend_reported(sweep: Sweep) -> None:
    (point,) = sweep.points
    point.folder.mkdir(parents=True, exist_ok=True)
    (point.folder / "config.yaml").write_text(point.settings)
    for name in ("command.txt", "report.md", "summary.txt"):
        (point.folder / name).touch()


def test_what_the_store_has_is_left_out_and_a_report_is_written_again_when_the_run_asks_for_more(
    tmp_path: Path,
) -> None:
    more = "benchmark=win_matrix"
    everything = left(tmp_path)
    assert len(everything) == 9 and everything[-1] == "report"
    nodes = sweep(tmp_path, more).nodes[0]
    pretend_made(sweep(tmp_path), *(node for node in nodes if node.job == "setup"))
    assert sorted(left(tmp_path)) == sorted(name for name in everything if name != "start-setup")
    pretend_made(sweep(tmp_path), *(node for node in nodes if node.job != "setup"))
    assert left(tmp_path) == left(tmp_path, more) == ["report"], "another run has made the benchmark's artifacts"
    pretend_reported(sweep(tmp_path))
    assert left(tmp_path) == [] and left(tmp_path, more) == ["report"]
    pretend_reported(sweep(tmp_path, more))
    assert left(tmp_path, more) == left(tmp_path) == [], "a report of more than is asked for stays"


def test_what_is_under_way_is_left_out_but_read(tmp_path: Path) -> None:
    two = sweep(tmp_path, "seed=0", "seed=1")
    under_way = frozenset(node.key for node in two.nodes[0] if node.name == "it1/policy")
    tasks = two.tasks(1, under_way)
    assert [task.point for task in tasks if task.job == "training"] == [1]
    (evaluation,) = [task for task in tasks if task.name == "it1-evaluation" and task.point == 0]
    assert under_way < set(evaluation.reads)
    reports = two.tasks(1, frozenset(two.reports[:1]))[-2:]
    assert [(task.name, task.point) for task in reports if task.job == "report"] == [("report", 1)]


def test_points_of_several_stores_are_no_sweep(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="store: points of a sweep share one"):
        sweep(tmp_path, "seed=1", f"store={tmp_path}/other")
