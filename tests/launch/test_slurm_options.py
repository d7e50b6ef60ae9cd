"""Scripts of job arrays: their options, and the nodes, devices and cores that a stage gets."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from slurm_scripts import NAME, arrays_of, jobs_of, options, points_of, run, told_of, with_fields  # noqa: F401
from tiny_run import ROOT, typed
from toy_graph import toy_task

from src.graph import tasks_of
from src.pipeline import Run
from src.slurm.script import ranges, script

# ruff: noqa: F811


@pytest.fixture(scope="module")
def gpu_run() -> Run:
    return typed("launcher=slurm", "hardware=8xa100_80gb")


def text_of(run: Run, name: str, count: int, after: str = "", at_once: int | None = None, **site: Any) -> str:
    (array,) = arrays_of(*(toy_task(name, point) for point in range(count)))
    return script(array, told_of(array, after=after), points_of(run, *[["a=1"]] * count), jobs_of(run, at_once, **site))


def test_the_script_of_an_array_is_the_golden_one(gpu_run: Run) -> None:
    text = text_of(gpu_run, NAME, 3, "afterok:70", at_once=2, partition="gpu", account="me", python="/python")
    assert (
        text
        == f"""\
#!/usr/bin/env bash
# `sbatch /runs/x/slurm/it1-training-abcd1234.sbatch` submits it again.
#SBATCH --job-name=it1-training
#SBATCH --comment=abcd1234
#SBATCH --chdir={ROOT}
#SBATCH --output=/runs/x/slurm/logs/it1-training-%A_%a.out
#SBATCH --open-mode=append
#SBATCH --export=PATH,HF_TOKEN
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --dependency=afterok:70
#SBATCH --time=720
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=64
#SBATCH --gres=gpu:8
#SBATCH --partition=gpu
#SBATCH --account=me
#SBATCH --array=0-2%2
#SBATCH --requeue
#SBATCH --signal=B:USR1@300
set -eu
trap 'export WARNED=1' USR1  # before task.sh hears of it
index=${{SLURM_ARRAY_TASK_ID:-0}}
case "$index" in
0) words=(a=1 'only=[it1/x0]') ;;
1) words=(a=1 'only=[it1/x1]') ;;
2) words=(a=1 'only=[it1/x2]') ;;
*) echo "no element $index" >&2; exit 2 ;;
esac
exec bash slurm/task.sh /python -m src.main "${{words[@]}}" launcher=allocation launcher.alone=true
"""
    )


def test_the_script_of_parts_says_the_words_once(gpu_run: Run) -> None:
    (array,) = arrays_of(toy_task("it1-generation", 0, parts=4))
    text = script(array, told_of(array), points_of(gpu_run, ["a=1"]), jobs_of(gpu_run, python="/python"))
    alone = "hardware.generation.workers=1 hardware.generation.nodes=1"
    assert (
        options(text)["array"] == "0-3"
        and text.partition("hears of it\n")[2]
        == f"""\
index=${{SLURM_ARRAY_TASK_ID:-0}}
case "$index" in
*) words=(a=1 'only=[it1/x0]' {alone}) ;;
esac
words+=("part=$((index + 1))/4" "launcher.mark=done-abcd1234-$index")
exec bash slurm/task.sh /python -m src.main "${{words[@]}}" launcher=allocation launcher.alone=true
"""
    )


def test_a_job_that_is_no_array_says_so(run: Run) -> None:
    found = options(text_of(run, NAME, 1, at_once=2))
    assert "array" not in found and "dependency" not in found and "gres" not in found
    assert found["output"].endswith("/it1-training-%j_0.out") and found["cpus-per-task"] == "8"


def test_resources_go_before_the_site_and_both_before_nothing(run: Run) -> None:
    launcher: Any = run.launcher
    own = with_fields(launcher.jobs["training"], partition="mine", constraint="a100", memory_gb=7, minutes=9, gpus=2)
    changed = with_fields(run, launcher=with_fields(launcher, jobs=launcher.jobs | {"training": own}))
    site = {"partition": "theirs", "qos": "long", "constraint": "v100", "gpu": "gpu:v100"}
    found = options(text_of(changed, NAME, 1, **site))
    wanted = {"partition": "mine", "qos": "long", "constraint": "a100", "mem": "7G", "time": "9", "gres": "gpu:v100:2"}
    assert {key: found.get(key) for key in wanted} == wanted and "account" not in found
    theirs = options(text_of(changed, "it1-ranking", 1, **site))
    assert (theirs["partition"], theirs["constraint"]) == ("theirs", "v100")


@pytest.mark.parametrize(
    ("hardware", "name", "wanted"),
    [
        ("cpu", "it1-generation", (1, 0, 8)),
        ("8xa100_80gb", "it1-generation", (1, 1, 8)),
        ("8xa100_80gb", "it1-ranking", (1, 1, 8)),
        ("8xa100_80gb", "it1-reference", (1, 1, 8)),
        ("8xa100_80gb", "it1-evaluation", (1, 1, 8)),
        ("8xa100_80gb", "it1-training", (1, 8, 64)),
        ("2x8xh100_80gb", "it1-training", (2, 8, 64)),
        ("2x8xh100_80gb", "start-setup", (1, 0, 4)),
    ],
)
def test_a_job_gets_the_nodes_gpus_and_cores_of_its_stage(hardware: str, name: str, wanted: tuple[int, ...]) -> None:
    found = options(text_of(typed("launcher=slurm", f"hardware={hardware}"), name, 1))
    gpus = int(found.get("gres", "gpu:0").removeprefix("gpu:"))
    assert (int(found["nodes"]), gpus, int(found["cpus-per-task"])) == wanted


def test_a_job_that_asks_a_judge_holds_no_gpu_and_gets_the_key_by_name() -> None:
    run = typed("launcher=slurm", "hardware=8xa100_80gb", "iter=1", "benchmark=mt_bench")
    (task,) = (one for one in tasks_of([run.nodes()], lambda _: True) if one.name == "it1-judging")
    (array,) = arrays_of(dataclasses.replace(task, needs=()))
    jobs = dataclasses.replace(jobs_of(run), environment={"OPENAI_API_KEY": "secret"})
    text = script(array, told_of(array), points_of(run, ["a=1"]), jobs)
    found = options(text)
    assert "gres" not in found and found["cpus-per-task"] == "2" and int(found["time"]) >= 12 * 60
    assert found["export"] == "OPENAI_API_KEY" and "secret" not in text
    assert "only=[it1/mt_bench/judgments,it1/mt_bench/scores]" in text


@given(st.sets(st.integers(0, 40)))
def test_ranges_say_every_index_once(indices: set[int]) -> None:
    text = ranges(sorted(indices, key=lambda index: -index))
    found = [
        index
        for one in filter(None, text.split(","))
        for index in range(int(one.partition("-")[0]), int(one.rpartition("-")[2]) + 1)
    ]
    assert found == sorted(indices)
    assert text.count(",") + bool(indices) == len({i for i in indices if i - 1 not in indices})


def test_ranges_are_short() -> None:
    assert [ranges(list(one)) for one in ((0, 1, 2, 3, 7), (5,), (), (1, 3))] == ["0-3,7", "5", "", "1,3"]
