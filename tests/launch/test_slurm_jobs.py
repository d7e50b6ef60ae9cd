"""Scripts of job arrays: what they ask SLURM for, and words that arrive in the command exactly as they were given.

A config's words stay words: a script runs none of them but the site's own `setup`. The scripts are carried out by bash
in a folder whose slurm/task.sh only says what it was given.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import subprocess
from collections.abc import Sequence
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
from src.launch.slurm.jobs import overrides, script
from src.launch.slurm.ledger import Submission, keys_word

SAYS = """\
printf '%s\\0' "$@"
"""
BREAKS = ["\n", "\r", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029"]
"""What Python, or a terminal, takes for the end of a line."""
NASTY = [
    "'", '"', "it's", "$(touch x)", "`touch x`", "a\nb", "a\n#SBATCH --comment=mine\nb", ";touch x", "&& touch x",
    "> x", "ü✓ 漢字", "-n", "--help", "%j_%a", "\\", "\\'", "a\\\nb", "", " ", "\t", "*", "~", "{a,b}", "!!", "#",
    "${HOME}", "a\rb", "0) words=() ;;", "EOF", "'\"'\"'", "$'\\n'", "[a,b]", "${oc.env:HOME}", "\x1b[31m",
    "\ufeff", "words=(", "esac", *(f"{mark}#SBATCH --account=other{mark}touch x" for mark in BREAKS),
]  # fmt: skip
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
TOKEN, NAME = "abcd1234", "it1-training"
TAIL = ["launcher=allocation", "launcher.alone=true"]
ONE_PROCESS = ["hardware.generation.workers=1", "hardware.ranking.workers=1"]
LAW = settings(max_examples=inputs(12, 100), suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.delenv("SLURM_CONF", raising=False)


@pytest.fixture(scope="module")
def run() -> Run:
    return typed("launcher=slurm")


@pytest.fixture(scope="module")
def gpu_run() -> Run:
    return typed("launcher=slurm", "hardware=8xa100_80gb")


@functools.cache
def shipped() -> Any:
    return typed_point("launcher=slurm").launcher


def jobs_of(launcher: Any = None, **site: Any) -> Any:
    """The launcher, on another site."""
    launcher = launcher or shipped()
    exported = {"export": ["HOME", "HF_TOKEN", "NOT_SET"]} | site
    return dataclasses.replace(launcher, site=dataclasses.replace(launcher.site, **exported))


def points_of(run: Run, *words: Sequence[str]) -> list[Point]:
    return [made_point(run, list(own), tuple(own)) for own in words]


def text_of(array: Array, points: list[Point], jobs: Any, after: str = "", folder: str = "/runs/x/slurm") -> str:
    return script(array, Submission(TOKEN, array.name, folder, {}, {}), after, points, jobs)


def script_of(task: Task, run: Run, *words: str, **site: Any) -> str:
    """Of a job for one task of one point."""
    (array,) = arrange([task], {})
    return text_of(array, points_of(run, words), jobs_of(**site))


def said(text: str, place: Path, index: int | None = None) -> list[str]:
    """What task.sh gets when bash carries the script out as this element. Nothing is written, nothing complains."""
    (place / "slurm").mkdir(exist_ok=True)
    (place / "slurm" / "task.sh").write_text(SAYS)
    (place / "job.sbatch").write_bytes(text.encode())
    env = {"PATH": os.environ["PATH"]} | ({} if index is None else {"SLURM_ARRAY_TASK_ID": str(index)})
    done = subprocess.run(["bash", "job.sbatch"], cwd=place, env=env, capture_output=True, check=True)
    assert done.stderr == b"" and sorted(p.name for p in place.iterdir()) == ["job.sbatch", "slurm"]
    return done.stdout.decode().split("\0")[:-1]


def options(text: str) -> dict[str, str]:
    """What sbatch reads: the lines before the first that is no comment."""
    head = [line for line in text.partition("\nset -eu\n")[0].splitlines() if line.startswith("#SBATCH ")]
    return {key: value for key, _, value in (line.removeprefix("#SBATCH --").partition("=") for line in head)}


# Options -----------------------------------------------------------------------------------------------------------

OPTIONS = {
    "job-name": NAME, "comment": TOKEN, "chdir": str(ROOT), "output": f"/runs/x/slurm/logs/it1-training-{TOKEN}_%a.out",
    "open-mode": "append", "export": "HOME,HF_TOKEN", "kill-on-invalid-dep": "yes", "dependency": "afterok:70",
    "time": "720", "nodes": "1", "ntasks-per-node": "1", "cpus-per-task": "64", "gres": "gpu:8", "partition": "gpu",
    "account": "me", "array": "0,1,2%2", "requeue": "", "signal": "B:USR1@300",
}  # fmt: skip


def test_the_options_of_an_array_are_these_and_no_others_and_no_value_of_the_environment_is_there(gpu_run: Run) -> None:
    (array,) = arrange([toy_task(NAME, point) for point in range(3)], {})
    jobs = dataclasses.replace(jobs_of(partition="gpu", account="me"), at_once=2)
    text = text_of(array, points_of(gpu_run, *[["a=1"]] * 3), jobs, after="afterok:70")
    assert options(text) == OPTIONS and text.startswith("#!/usr/bin/env bash\n") and "hf_secret" not in text
    assert "\ntrap 'export WARNED=1' USR1" in text, "before task.sh hears of it"


def test_resources_go_before_the_site_and_both_before_nothing(run: Run) -> None:
    launcher = shipped()
    more = {"partition": "mine", "constraint": "a100", "memory_gb": 7, "minutes": 9, "gpus": 2}
    own = dataclasses.replace(launcher.jobs["training"], **more)
    changed = dataclasses.replace(launcher, jobs=launcher.jobs | {"training": own})
    site = {"partition": "theirs", "qos": "long", "constraint": "v100", "gpu": "gpu:v100"}
    found = options(script_of(toy_task(NAME, 0), run, "a=1", launcher=changed, **site))
    wanted = {"partition": "mine", "qos": "long", "constraint": "a100", "mem": "7G", "time": "9", "gres": "gpu:v100:2"}
    assert {key: found.get(key) for key in wanted} == wanted and "account" not in found
    assert not {"array", "dependency"} & found.keys() and found["output"].endswith(f"/it1-training-{TOKEN}_0.out")
    theirs = options(script_of(toy_task("it1-ranking", 0), run, "a=1", launcher=changed, **site))
    assert (theirs["partition"], theirs["constraint"]) == ("theirs", "v100")


def test_a_job_gets_the_nodes_gpus_and_cores_of_its_stage(run: Run, gpu_run: Run) -> None:
    cases = [
        (run, "it1-generation", (1, 0, 8)),
        (gpu_run, "it1-training", (1, 8, 64)),
        (gpu_run, "it1-judging", (1, 0, 2)),
    ]
    cases += [(gpu_run, f"it1-{job}", (1, 1, 8)) for job in ("generation", "ranking", "reference", "evaluation")]
    two = typed("launcher=slurm", "hardware=2x8xh100_80gb")
    cases += [(two, "it1-training", (2, 8, 64)), (two, "start-setup", (1, 0, 4))]
    for own, name, wanted in cases:
        found = options(script_of(toy_task(name, 0), own))
        gpus = int(found.get("gres", "gpu:0").removeprefix("gpu:"))
        assert (int(found["nodes"]), gpus, int(found["cpus-per-task"])) == wanted, name


# Words -------------------------------------------------------------------------------------------------------------


@LAW
@given(words=st.lists(st.lists(TEXT.map("key={}".format), max_size=3), min_size=1, max_size=3))
@example(words=[NASTY, [f"key={word}" for word in NASTY], []])
def test_any_words_arrive_as_they_were_given(words: list[list[str]], run: Run, tmp_path: Path) -> None:
    """Of points that give these words: as a job for each, as an array, in parts, and as an array in parts."""
    jobs, points, count = jobs_of(python="/python"), points_of(run, *words), len(words)
    trained = [toy_task(NAME, point) for point in range(count)]
    sampled = [toy_task("it1-generation", point, parts=3) for point in range(count)]
    made: dict[tuple[str, int, int], list[str]] = {}
    for array in arrange([*trained, *sampled, toy_task("start-setup", 0), toy_task("it2-generation", 0, parts=5)], {}):
        text = text_of(array, points, jobs)
        assert "account" not in options(text) and "qos" not in options(text)
        for index, (task, part) in array.elements.items():
            found = said(text, tmp_path, index if len(array.elements) > 1 else None)
            made[task.name, task.point, part] = found
            own = [*words[task.point], f"only=[{task.nodes[0].name}]", f"launcher.keys={keys_word(task.nodes)}"]
            own += [f"part={part + 1}/{task.parts}"] if task.parts > 1 else []
            assert found == ["/python", "-m", "src.main", *own, *TAIL]
    assert len(made) == count + 3 * count + 1 + 5


def test_a_job_is_told_the_keys_of_what_it_makes_and_a_report_those_of_the_whole_run(
    run: Run, gpu_run: Run, tmp_path: Path
) -> None:
    task = toy_task("it1-generation", 0, parts=4)
    words = [f"launcher.keys={keys_word(task.nodes)}", "part=3/4"]
    assert said(script_of(task, gpu_run, "a=1"), tmp_path, 2)[4:] == ["only=[it1/x0]", *words, *TAIL, *ONE_PROCESS]
    text = script_of(Task("report", "report", 0, (), (), (), ("key",)), run, "a=1")
    assert said(text, tmp_path)[3:] == ["a=1", f"launcher.keys={keys_word(nodes_of(run))}", *TAIL]


def test_an_index_that_is_none_of_the_array_ends_with_an_error(run: Run, tmp_path: Path) -> None:
    (array,) = arrange([toy_task(NAME, 0), toy_task(NAME, 2)], {})
    text = text_of(array, points_of(run, ["a"], ["b"], ["c"]), jobs_of())
    assert options(text)["array"] == "0,2"
    with pytest.raises(subprocess.CalledProcessError) as error:
        said(text, tmp_path, 1)
    assert (error.value.returncode, error.value.stderr) == (2, b"no element 1\n")


def test_words_of_the_launcher_are_left_out_and_others_kept_in_order() -> None:
    kept = ["b=launcher=slurm", "a=1", "launch=1", "a=2", "+name=launcher.", "~launcher_x"]
    left = ["launcher=slurm", "+launcher.x=1", "~launcher.y", "slurm@launcher.site=mine", "+slurm@launcher.site=mine"]
    assert overrides([word for pair in zip(kept, [*left, "++launcher.x=2"], strict=True) for word in pair]) == kept


# What may not stand in a script ------------------------------------------------------------------------------------


@LAW
@given(prefix=st.lists(TEXT.filter(bool), max_size=3), python=TEXT.filter(bool))
@example(prefix=[word for word in NASTY if word], python="$(touch x)")
def test_prefix_and_python_are_words_and_lines_of_the_site_come_first(
    prefix: list[str], python: str, run: Run, tmp_path: Path
) -> None:
    task = toy_task(NAME, 0)
    text = script_of(
        task, run, "a=1", prefix=prefix, python=python, setup=["touch() { exit 1; }", "GREETING='hel  lo'"]
    )
    found = said(text.replace("exec bash slurm/task.sh", 'exec bash slurm/task.sh "$GREETING"'), tmp_path)
    assert found[: len(prefix) + 4] == ["hel  lo", *prefix, python, "-m", "src.main"]
    assert options(text) == options(script_of(task, run, "a=1", python="x"))


def test_an_option_is_a_word_or_refused(run: Run) -> None:
    """A line's end would begin another `#SBATCH`, or the script."""
    marks = [*BREAKS, " ", "'", '"', "`", "$(x)", ";", "\\", "#", "%j", "<", ">", "!", "{a,b}"]
    for text in (text for mark in marks for text in (f"a{mark}touch x", f"a{mark}", f"{mark}a")):
        for key in ("partition", "account", "qos", "constraint", "gpu"):
            with pytest.raises(ValidationError, match=f"{key}[\\s\\S]*should match pattern"):
                jobs_of(**{key: text})
                pytest.fail(f"{key}={text!r} was taken")
    (array,) = arrange([toy_task(NAME, 0)], {})
    for folder in ("/a b", "/a'b", '/a"b', "/100%", "/a\nb", "/a\tb", "/$HOME", "/a\\b", "/a;b", "/`a`"):
        with pytest.raises(UserError, match="^[^\n]*use a folder without[^\n]*$"):
            text_of(array, points_of(run, ["a=1"]), jobs_of(), folder=folder)
