"""Scripts of job arrays: words that arrive in the command exactly as they were given, and what may not stand in one.

The scripts are carried out by bash in a folder whose slurm/task.sh only says what it was given.
"""

from __future__ import annotations

import dataclasses
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import inputs
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from slurm_scripts import NAME, NASTY, SAYS, TEXT, TOKEN, arrays_of, jobs_of, options, points_of, run, said, told_of  # noqa: F401
from tiny_run import call, folders
from toy_graph import toy_task

from src.config import UserError
from src.graph import Task
from src.pipeline import Run
from src.slurm.arrays import Array
from src.slurm.ledger import Submission
from src.slurm.script import overrides, plain, rest_script, script

# ruff: noqa: F811

# Words -------------------------------------------------------------------------------------------------------------


def check_words(words: Sequence[Sequence[str]], run: Run, place: Path) -> None:
    """Of points that give these words: as a job for each, as an array, in parts, and as an array in parts."""
    jobs, points, count = jobs_of(run, python="/python"), points_of(run, *words), len(words)
    tail = ["launcher=allocation", "launcher.alone=true"]
    trained = [toy_task("it1-training", point) for point in range(count)]
    sampled = [toy_task("it1-generation", point, parts=3) for point in range(count)]
    made: dict[tuple[str, int, int], list[str]] = {}
    for array in arrays_of(*trained, *sampled, *(toy_task("start-setup", 0), toy_task("it2-generation", 0, parts=5))):
        text = script(array, told_of(array), points, jobs)
        for index, (task, part) in array.elements.items():
            found = said(text, place, index if len(array.elements) > 1 else None)
            made[task.name, task.point, part] = found
            in_parts = [f"part={part + 1}/{task.parts}"] if task.parts > 1 else []
            in_parts += [f"launcher.mark=done-{TOKEN}-{index}"] if task.parts > 1 else []
            own = [*words[task.point], f"only=[{task.nodes[0].name}]", *in_parts]
            assert found == ["/python", "-m", "src.main", *own, *tail]
    assert len(made) == count + 3 * count + 1 + 5


@settings(max_examples=inputs(12, 100), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=st.lists(st.lists(TEXT.map("key={}".format), max_size=3), min_size=1, max_size=3))
def test_any_words_arrive_as_they_were_given(words: list[list[str]], run: Run, tmp_path: Path) -> None:
    check_words(words, run, tmp_path)


def test_nasty_words_arrive_as_they_were_given(run: Run, tmp_path: Path) -> None:
    check_words([NASTY, [f"key={word}" for word in NASTY], []], run, tmp_path)


def test_an_index_that_is_none_of_the_array_ends_with_an_error(run: Run, tmp_path: Path) -> None:
    (array,) = arrays_of(toy_task(NAME, 0), toy_task(NAME, 2))
    text = script(array, told_of(array), points_of(run, ["a"], ["b"], ["c"]), jobs_of(run))
    assert options(text)["array"] == "0,2"
    with pytest.raises(subprocess.CalledProcessError) as error:
        said(text, tmp_path, 1)
    assert (error.value.returncode, error.value.stderr) == (2, b"no element 1\n")


def test_several_artifacts_of_a_task_are_named_together_and_a_report_names_none(run: Run, tmp_path: Path) -> None:
    one = toy_task(NAME, 0)
    both = dataclasses.replace(one, nodes=one.nodes + toy_task(NAME, 1).nodes)
    report = Task("report", "report", 0, (), (), (), ())
    found = [
        said(script(array, told_of(array), points_of(run, ["a=1"]), jobs_of(run)), tmp_path, None)[3:]
        for array in arrays_of(both, report)
    ]
    tail = ["launcher=allocation", "launcher.alone=true"]
    assert found == [["a=1", "only=[it1/x0,it1/x1]", *tail], ["a=1", *tail]]


@given(words=st.lists(TEXT, max_size=4))
@settings(max_examples=inputs(40, 200), suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(words=NASTY)
def test_the_rest_is_submitted_by_the_same_words(words: list[str], run: Run, tmp_path: Path) -> None:
    (stub := tmp_path / "python").write_text(f"#!/usr/bin/env bash\n{SAYS}")
    stub.chmod(0o755)
    (array,) = arrays_of(toy_task("start-setup", 0))
    text = rest_script(told_of(array), words, jobs_of(run, python=str(stub)), tmp_path / "it's over")
    (tmp_path / "job.sbatch").write_bytes(text.encode())
    done = subprocess.run(["bash", "job.sbatch"], cwd=tmp_path, capture_output=True, check=True).stdout
    assert done.decode().split("\0")[:-1] == ["-m", "src.main", *words, "launcher.again=false"]
    assert (tmp_path / "it's over").exists()


def test_words_of_the_launcher_are_left_out_and_others_kept_in_order() -> None:
    given = [
        "b=launcher=slurm",
        "launcher=slurm",
        "a=1",
        "launcher.parts=3",
        "+launcher.x=1",
        "~launcher.y",
        "launch=1",
    ]
    given += ["++launcher.jobs.training.minutes=9", "slurm@launcher.site=mine", "+slurm@launcher.site=mine", "a=2"]
    given += ["+name=launcher.", "~launcher_x", "slurm=1"]
    kept = ["b=launcher=slurm", "a=1", "launch=1", "a=2", "+name=launcher.", "~launcher_x", "slurm=1"]
    assert overrides(given) == kept


def test_lines_of_the_site_come_first_and_its_prefix_before_the_command(run: Run, tmp_path: Path) -> None:
    site: dict[str, Any] = {"setup": ['export GREETING="hel  lo"'], "prefix": ["env", "-u", "A B"], "python": "/my py"}
    (array,) = arrays_of(toy_task(NAME, 0))
    jobs = jobs_of(run, **site, scratch="/scratch/$USER x", modules=["cuda/12.4"])
    text = script(array, told_of(array), points_of(run, ["a=1"]), jobs)
    assert (
        "\nset -eu\ntrap 'export WARNED=1' USR1  # before task.sh hears of it\nmodule load cuda/12.4\nexport GREETING"
        in text
    )
    text = text.replace("module load cuda/12.4", ":").replace("exec bash", 'echo -n "$GREETING$TMPDIR" && exec bash')
    first, *others = said(text, tmp_path, None)
    assert first == "hel  lo/scratch/$USER xenv" and others[:4] == ["-u", "A B", "/my py", "-m"]


# What may not stand in a script ------------------------------------------------------------------------------------


def test_values_of_the_environment_are_in_no_script(run: Run) -> None:
    (array,) = arrays_of(toy_task(NAME, 0))
    jobs = jobs_of(run)
    texts = [
        script(array, told_of(array), points_of(run, ["a=1"]), jobs),
        rest_script(told_of(array), ["a=1"], jobs, Path("mark")),
    ]
    assert [options(text)["export"] for text in texts] == ["PATH,HF_TOKEN"] * 2
    assert not any("secret" in text for text in texts)
    nothing = dataclasses.replace(jobs, environment={})
    assert options(script(array, told_of(array), points_of(run, ["a=1"]), nothing))["export"] == "NONE"
    found = dataclasses.replace(jobs, environment={"SLURM_CONF": "/etc/slurm.conf", "PATH": "/bin"})
    assert options(rest_script(told_of(array), [], found, Path("mark")))["export"] == "PATH,SLURM_CONF"


@pytest.mark.parametrize(
    "folder", ["/a b", "/a'b", '/a"b', "/100%", "/a\nb", "/a\tb", "/$HOME", "/a\\b", "/a;b", "/`a`"]
)
def test_a_folder_that_slurm_cannot_be_told_of_is_refused_in_one_line(folder: str, run: Run) -> None:
    with pytest.raises(UserError, match="use a folder without blanks, quotes and %") as error:
        plain(Path(folder))
    assert "\n" not in str(error.value)
    (array,) = arrays_of(toy_task(NAME, 0))
    for write in _writers(array, run):
        with pytest.raises(UserError, match="use a folder without blanks"):
            write(told_of(array, folder))


def _writers(array: Array, run: Run) -> list[Callable[[Submission], str]]:
    points, jobs = points_of(run, ["a=1"]), jobs_of(run)
    return [lambda told: script(array, told, points, jobs), lambda told: rest_script(told, ["a=1"], jobs, Path("mark"))]


BAD_WORDS = [
    "'a b'",
    "'a\n#SBATCH --comment=x'",
    "'a\n'",
    '"a\'b"',
    "a%j",
    "''",
    "'a\"b'",
    "'a;b'",
    "'a$b'",
    "'#a'",
    "7",
]


@pytest.mark.full
@pytest.mark.parametrize("value", BAD_WORDS)
@pytest.mark.parametrize("key", ["site.partition", "jobs.training.qos"])
def test_what_is_no_word_of_an_option_is_refused_with_its_key(
    key: str, value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add = "+" * key.startswith("jobs")
    assert call("plan", *folders(tmp_path), "launcher=slurm", f"{add}launcher.{key}={value}") == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: launcher.{key}: ") and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.full
@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("launcher.site.export=['A=B']", "launcher.site.export.0"),
        ("launcher.site.export=['A\n']", "launcher.site.export.0"),
        ("launcher.site.modules=['a b']", "launcher.site.modules.0"),
        ("launcher.site.gpu=null", "launcher.site.gpu"),
        ("launcher.jobs.training.minutes=0", "launcher.jobs.training.minutes"),
        ("launcher.jobs.training.cpus=1.5", "launcher.jobs.training.cpus"),
        ("launcher.parts=0", "launcher.parts"),
        ("launcher.at_once=0", "launcher.at_once"),
        ("launcher.warn_seconds=0", "launcher.warn_seconds"),
        ("launcher.part=3", "launcher.part: unknown key"),
        ("+launcher.jobs.trainings=null", "launcher.jobs.trainings"),
    ],
)
def test_a_mistake_in_the_launcher_is_one_line_that_names_the_key(
    override: str, key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("plan", *folders(tmp_path), "launcher=slurm", override) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {key}") and error.count("\n") == 1
