"""Scripts of job arrays: what they ask SLURM for, and words that arrive in the command exactly as they were given.

A config's words stay words: a script runs none of them but the site's own `setup`. Bash carries the scripts out in a
folder whose slurm/task.sh only prints what it was given.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from conftest import inputs
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tiny_run import ROOT, made_point, typed, typed_point
from toy_graph import toy_task

from src.experiment.graph import nodes_of
from src.experiment.point import Point
from src.experiment.run import Run
from src.experiment.sweep import Task
from src.kernel.config import UserError
from src.launch.slurm.arrays import Array, arrange
from src.launch.slurm.jobs import script
from src.launch.slurm.ledger import Submission, keys_word

BREAKS = ["\n", "\r", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029"]
"""Marks that Python, or a terminal, takes for the end of a line."""
NASTY = [
    "'", '"', "$(touch x)", "`touch x`", "a\n#SBATCH --comment=mine\nb", ";touch x", "&& touch x", "> x", "ü✓ 漢字",
    "-n", "%j_%a", "\\'", "a\\\nb", "", " ", "*", "~", "{a,b}", "!!", "#", "${HOME}", "0) words=() ;;", "[a,b]",
    "esac", "\x1b[31m", *(f"{mark}#SBATCH --account=other{mark}touch x" for mark in BREAKS),
]  # fmt: skip
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
TOKEN, NAME = "abcd1234", "it1-training"
TAIL = ["launcher=allocation", "launcher.alone=true"]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.delenv("SLURM_CONF", raising=False)


@functools.cache
def run_on(hardware: str) -> Run:
    return typed("launcher=slurm", f"hardware={hardware}")


@functools.cache
def shipped() -> Any:
    return typed_point("launcher=slurm").launcher


def jobs_of(launcher: Any = None, **site: Any) -> Any:
    """Return the launcher on another site."""
    launcher = launcher or shipped()
    exported = {"export": ["HOME", "HF_TOKEN", "NOT_SET"]} | site
    return dataclasses.replace(launcher, site=dataclasses.replace(launcher.site, **exported))


def text_of(array: Array, points: list[Point], jobs: Any, after: str = "", folder: str = "/runs/x/slurm") -> str:
    return script(array, Submission(TOKEN, array.name, folder, {}, {}), after, points, jobs)


def script_of(task: Task, hardware: str = "cpu", **site: Any) -> str:
    """Return the script of a job for one task of one point."""
    (array,) = arrange([task], {})
    return text_of(array, [made_point(run_on(hardware), ["a=1"])], jobs_of(**site))


def arrived(text: str, place: Path, index: int | None = None) -> list[str]:
    """Return the words that task.sh gets, and GREETING, when bash carries the script out as this element."""
    (place / "slurm").mkdir(exist_ok=True)
    (place / "slurm" / "task.sh").write_text('printf \'%s\\0\' "$@" "$GREETING"\n')
    (place / "job.sbatch").write_bytes(text.encode())
    env = {"PATH": os.environ["PATH"], "GREETING": ""} | ({} if index is None else {"SLURM_ARRAY_TASK_ID": str(index)})
    done = subprocess.run(["bash", "job.sbatch"], cwd=place, env=env, capture_output=True, check=True)
    assert done.stderr == b"" and sorted(p.name for p in place.iterdir()) == ["job.sbatch", "slurm"]
    return done.stdout.decode().split("\0")[:-1]


def options(text: str) -> dict[str, str]:
    """Return the options that sbatch reads: those in comments before the first line that is none."""
    head = [line for line in text.partition("\nset -eu\n")[0].splitlines() if line.startswith("#SBATCH ")]
    return {key: value for key, _, value in (line.removeprefix("#SBATCH --").partition("=") for line in head)}


# Options -----------------------------------------------------------------------------------------------------------

OPTIONS = {
    "job-name": NAME, "comment": TOKEN, "chdir": str(ROOT), "output": f"/runs/x/slurm/logs/it1-training-{TOKEN}_%a.out",
    "open-mode": "append", "export": "HOME,HF_TOKEN", "kill-on-invalid-dep": "yes", "dependency": "afterok:70",
    "time": "720", "nodes": "1", "ntasks-per-node": "1", "cpus-per-task": "64", "gres": "gpu:8", "partition": "gpu",
    "account": "me", "array": "0,1,2%2", "requeue": "", "signal": "B:USR1@300",
}  # fmt: skip


def test_the_options_of_an_array_are_these_and_no_others_and_no_value_of_the_environment_is_there() -> None:
    (array,) = arrange([toy_task(NAME, point) for point in range(3)], {})
    jobs = dataclasses.replace(jobs_of(partition="gpu", account="me"), at_once=2)
    text = text_of(array, [made_point(run_on("8xa100_80gb"), ["a=1"])] * 3, jobs, after="afterok:70")
    assert options(text) == OPTIONS and text.startswith("#!/usr/bin/env bash\n") and "hf_secret" not in text


def test_resources_go_before_the_site_and_both_before_nothing() -> None:
    more = {"partition": "mine", "constraint": "a100", "memory_gb": 7, "minutes": 9, "gpus": 2}
    training = dataclasses.replace(shipped().jobs["training"], **more)
    jobs = dataclasses.replace(shipped(), jobs=shipped().jobs | {"training": training})
    asked = options(script_of(toy_task(NAME, 0), launcher=jobs, partition="theirs", qos="long", gpu="gpu:v100"))
    wanted = {"partition": "mine", "qos": "long", "constraint": "a100", "mem": "7G", "time": "9", "gres": "gpu:v100:2"}
    assert {key: asked.get(key) for key in wanted} == wanted
    assert not {"account", "array", "dependency"} & asked.keys()


MACHINES = {
    ("cpu", "it1-generation"): (1, 0, 8), ("8xa100_80gb", "it1-training"): (1, 8, 64),
    ("8xa100_80gb", "it1-judging"): (1, 0, 2), ("2x8xh100_80gb", "it1-training"): (2, 8, 64),
    **{("8xa100_80gb", f"it1-{job}"): (1, 1, 8) for job in ("generation", "ranking", "reference", "evaluation")},
    ("2x8xh100_80gb", "start-setup"): (1, 0, 4),
}  # fmt: skip


def test_a_job_gets_the_nodes_gpus_and_cores_of_its_stage() -> None:
    for (hardware, name), (nodes, gpus, cores) in MACHINES.items():
        asked = options(script_of(toy_task(name, 0), hardware))
        assert (asked["nodes"], asked["cpus-per-task"]) == (f"{nodes}", f"{cores}"), name
        assert asked.get("gres", "gpu:0") == f"gpu:{gpus}", name


# Words -------------------------------------------------------------------------------------------------------------


@settings(max_examples=inputs(12, 100), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=st.lists(st.lists(TEXT.map("key={}".format), max_size=3), min_size=1, max_size=3))
@example(words=[NASTY, [f"key={word}" for word in NASTY], []])
def test_any_words_arrive_as_they_were_given_but_for_those_of_the_launcher(
    words: list[list[str]], tmp_path: Path
) -> None:
    """Each point has its own job, is in an array, in parts, and in an array in parts. Only the site's lines run."""
    left_out = ["launcher=slurm", "+launcher.x=1", "~launcher.y", "slurm@launcher.site=x", "++slurm@launcher.site=x"]
    points = [made_point(run_on("cpu"), [*left_out, "launch=1", *some, "+name=launcher."]) for some in words]
    count, setup = len(words), ["touch() { exit 1; }", "export GREETING='hel  lo'"]
    start = [*filter(None, NASTY), "$(touch x)"]
    jobs = jobs_of(prefix=start[:-1], python=start[-1], setup=setup)
    trained = [toy_task(NAME, point) for point in range(count)]
    sampled = [toy_task("it1-generation", point, parts=3) for point in range(count)]
    elements = 0
    for array in arrange([*trained, *sampled, toy_task("start-setup", 0), toy_task("it2-generation", 0, parts=5)], {}):
        text = text_of(array, points, jobs)
        assert not {"account", "qos"} & options(text).keys()
        for index, (task, part) in array.elements.items():
            wanted = ["launch=1", *words[task.point], "+name=launcher.", f"only=[{task.nodes[0].name}]"]
            wanted += [f"launcher.keys={keys_word(task.nodes)}", *[f"part={part + 1}/{task.parts}"][: task.parts - 1]]
            output = arrived(text, tmp_path, index if len(array.elements) > 1 else None)
            assert output == [*start, "-m", "src.main", *wanted, *TAIL, "hel  lo"]
            elements += 1
    assert elements == count + 3 * count + 1 + 5


def test_a_report_is_told_the_keys_of_the_whole_run_and_a_job_on_a_gpu_has_one_process(tmp_path: Path) -> None:
    report = Task("report", "report", 0, (), (), (), ("key",))
    words = ["a=1", f"launcher.keys={keys_word(nodes_of(run_on('cpu')))}"]
    assert arrived(script_of(report), tmp_path)[3:-1] == [*words, *TAIL]
    more = ["hardware.generation.workers=1", "hardware.ranking.workers=1"]
    assert arrived(script_of(toy_task(NAME, 0), "8xa100_80gb"), tmp_path)[-5:-1] == [*TAIL, *more]


def test_an_option_is_a_word_or_refused() -> None:
    """A line's end would begin another `#SBATCH`, or the script."""
    marks = [*BREAKS, " ", "'", '"', "`", "$(x)", ";", "\\", "#", "%j", "<", ">", "!", "{a,b}"]
    for mark in marks:
        for key in ("partition", "account", "qos", "constraint", "gpu"):
            with pytest.raises(ValidationError, match=f"{key}[\\s\\S]*sbatch wants one word"):
                jobs_of(**{key: f"a{mark}"})
    (array,) = arrange([toy_task(NAME, 0)], {})
    for mark in marks:
        if mark not in "#{a,b}":
            with pytest.raises(UserError, match="use a folder without"):
                text_of(array, [made_point(run_on("cpu"))], jobs_of(), folder=f"/a{mark}b")


def test_a_job_that_saved_asks_again_for_its_place_in_the_queue_while_the_controller_is_away(tmp_path: Path) -> None:
    """A controller answers the third time; an element of an array asks by its own name. Nobody waits in this test."""
    scripts = {"scontrol": f'echo "$@" >> {tmp_path}/asked; [ $(wc -l < {tmp_path}/asked) = 3 ]', "sleep": "exit 0"}
    for name, line in scripts.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    job = {"SLURM_JOB_ID": "79", "SLURM_ARRAY_JOB_ID": "77", "SLURM_ARRAY_TASK_ID": "2"}
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    for code, asked in ((138, 3), (0, 0), (3, 0)):
        (tmp_path / "asked").write_text("")
        done = subprocess.run(["bash", ROOT / "slurm" / "task.sh", "bash", "-c", f"exit {code}"], env=job | path)
        assert done.returncode == code, "SLURM's record says how it ended"
        assert (tmp_path / "asked").read_text().splitlines() == ["requeue 77_2"] * asked
