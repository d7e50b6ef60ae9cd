"""Scripts of job arrays: what they ask SLURM for, and words that arrive in the command exactly as they were given.

A config's words stay words: a script runs none of them but the site's own `setup`. The scripts are carried out by bash
in a folder whose slurm/task.sh only says what it was given.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
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
from src.experiment.tasks import Task
from src.kernel.config import UserError
from src.kernel.processes import srun
from src.launch.slurm.arrays import Array, Planner
from src.launch.slurm.ledger import Submission, keys_word
from src.launch.slurm.script import Jobs, overrides, plain, ranges, script

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
WORD = TEXT.filter(bool)
TOKEN, NAME = "abcd1234", "it1-training"
TAIL = ["launcher=allocation", "launcher.alone=true"]
LAW = settings(max_examples=inputs(12, 100), suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def run() -> Run:
    return typed("launcher=slurm")


@pytest.fixture(scope="module")
def gpu_run() -> Run:
    return typed("launcher=slurm", "hardware=8xa100_80gb")


def jobs_of(at_once: int | None = None, launcher: Any = None, **site: Any) -> Jobs:
    """As the launcher has them, with another site."""
    launcher = launcher or typed_point("launcher=slurm").launcher
    environment = {"PATH": "/bin", "HF_TOKEN": "hf_secret", "OTHER": "other secret"}
    return Jobs(dataclasses.replace(launcher.site, **site), launcher.jobs, at_once, 300, environment)


def points_of(run: Run, *words: Sequence[str]) -> list[Point]:
    return [made_point(run, list(own), tuple(own)) for own in words]


def arrays_of(*tasks: Task) -> list[Array]:
    planner = Planner({}, 1001, 1001)
    planner.add(tasks)
    return planner.arrays


def text_of(array: Array, points: list[Point], jobs: Jobs, after: str = "", folder: str = "/runs/x/slurm") -> str:
    submission = Submission(TOKEN, array.name, folder, dict.fromkeys(array.elements, list[str]()))
    return script(array, submission, after, points, jobs)


def script_of(task: Task, run: Run, *words: str, **site: Any) -> str:
    """Of a job for one task of one point."""
    (array,) = arrays_of(task)
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
    "job-name": NAME, "comment": TOKEN, "chdir": str(ROOT), "output": "/runs/x/slurm/logs/it1-training-%A_%a.out",
    "open-mode": "append", "export": "PATH,HF_TOKEN", "kill-on-invalid-dep": "yes", "dependency": "afterok:70",
    "time": "720", "nodes": "1", "ntasks-per-node": "1", "cpus-per-task": "64", "gres": "gpu:8", "partition": "gpu",
    "account": "me", "array": "0-2%2", "requeue": "", "signal": "B:USR1@300",
}  # fmt: skip


def test_the_options_of_an_array_are_these_and_no_others(gpu_run: Run) -> None:
    (array,) = arrays_of(*(toy_task(NAME, point) for point in range(3)))
    jobs = jobs_of(at_once=2, partition="gpu", account="me")
    text = text_of(array, points_of(gpu_run, *[["a=1"]] * 3), jobs, after="afterok:70")
    assert options(text) == OPTIONS and text.startswith("#!/usr/bin/env bash\n")
    assert "\ntrap 'export WARNED=1' USR1" in text, "before task.sh hears of it"


def test_resources_go_before_the_site_and_both_before_nothing(run: Run) -> None:
    launcher: Any = typed_point("launcher=slurm").launcher
    more = {"partition": "mine", "constraint": "a100", "memory_gb": 7, "minutes": 9, "gpus": 2}
    own = dataclasses.replace(launcher.jobs["training"], **more)
    changed = dataclasses.replace(launcher, jobs=launcher.jobs | {"training": own})
    site = {"partition": "theirs", "qos": "long", "constraint": "v100", "gpu": "gpu:v100"}
    found = options(script_of(toy_task(NAME, 0), run, "a=1", launcher=changed, **site))
    wanted = {"partition": "mine", "qos": "long", "constraint": "a100", "mem": "7G", "time": "9", "gres": "gpu:v100:2"}
    assert {key: found.get(key) for key in wanted} == wanted and "account" not in found
    assert "array" not in found and "dependency" not in found and found["output"].endswith("/it1-training-%j_0.out")
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


@given(st.sets(st.integers(0, 40)))
def test_ranges_say_every_index_once(indices: set[int]) -> None:
    words = [one.partition("-") for one in ranges(sorted(indices, reverse=True)).split(",") if one]
    assert [i for first, _, last in words for i in range(int(first), int(last or first) + 1)] == sorted(indices)
    assert len(words) == len({i for i in indices if i - 1 not in indices})


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
    for array in arrays_of(*trained, *sampled, toy_task("start-setup", 0), toy_task("it2-generation", 0, parts=5)):
        text = text_of(array, points, jobs)
        assert "account" not in options(text) and "qos" not in options(text)
        for index, (task, part) in array.elements.items():
            found = said(text, tmp_path, index if len(array.elements) > 1 else None)
            made[task.name, task.point, part] = found
            in_parts = [f"part={part + 1}/{task.parts}", f"launcher.mark=done-{TOKEN}-{index}"]
            own = [*words[task.point], f"only=[{task.nodes[0].name}]", f"launcher.keys={keys_word(task.nodes)}"]
            own += in_parts if task.parts > 1 else []
            assert found == ["/python", "-m", "src.main", *own, *TAIL]
    assert len(made) == count + 3 * count + 1 + 5


def test_a_share_of_a_machine_with_gpus_is_one_worker(gpu_run: Run, tmp_path: Path) -> None:
    (array,) = arrays_of(toy_task("it1-generation", 0, parts=4))
    text = text_of(array, points_of(gpu_run, ["a=1"]), jobs_of())
    assert options(text)["array"] == "0-3"
    assert said(text, tmp_path, 2)[4:6] == [
        "only=[it1/x0]",
        f"launcher.keys={keys_word(array.elements[0].task.nodes)}",
    ]


def test_an_index_that_is_none_of_the_array_ends_with_an_error(run: Run, tmp_path: Path) -> None:
    (array,) = arrays_of(toy_task(NAME, 0), toy_task(NAME, 2))
    text = text_of(array, points_of(run, ["a"], ["b"], ["c"]), jobs_of())
    assert options(text)["array"] == "0,2"
    with pytest.raises(subprocess.CalledProcessError) as error:
        said(text, tmp_path, 1)
    assert (error.value.returncode, error.value.stderr) == (2, b"no element 1\n")


@LAW
@given(words=st.lists(TEXT, min_size=1, max_size=4))
@example(words=NASTY)
def test_words_go_through_srun_as_they_are(words: list[str], tmp_path: Path) -> None:
    """srun starts `bash -c <line>` as each task; here bash does."""
    (stub := tmp_path / "says").write_text(f"#!/usr/bin/env bash\n{SAYS}")
    stub.chmod(0o755)
    *_, bash, dash_c, line = srun(2, shlex.join([str(stub), *words]))
    assert (bash, dash_c) == ("bash", "-c")
    done = subprocess.run([bash, dash_c, line], cwd=tmp_path, capture_output=True, check=True, env=dict(os.environ))
    assert done.stdout.decode().split("\0")[:-1] == words and done.stderr == b""
    assert [path.name for path in tmp_path.iterdir()] == ["says"]


def test_words_of_the_launcher_are_left_out_and_others_kept_in_order() -> None:
    kept = ["b=launcher=slurm", "a=1", "launch=1", "a=2", "+name=launcher.", "~launcher_x", "slurm=1"]
    left = ["launcher=slurm", "launcher.parts=3", "+launcher.x=1", "~launcher.y", "slurm@launcher.site=mine"]
    left += ["++launcher.jobs.training.minutes=9", "+slurm@launcher.site=mine"]
    assert overrides([word for pair in zip(kept, left, strict=True) for word in pair]) == kept


def test_lines_of_the_site_come_first_and_its_prefix_before_the_command(run: Run, tmp_path: Path) -> None:
    site: dict[str, Any] = {"setup": ['export GREETING="hel  lo"'], "prefix": ["env", "-u", "A B"], "python": "/my py"}
    text = script_of(toy_task(NAME, 0), run, "a=1", **site, scratch="/scratch/$USER x", modules=["cuda/12.4"])
    assert 0 < text.index("\ntrap ") < text.index("\nmodule load cuda/12.4\n") < text.index("\nexport GREETING")
    text = text.replace("module load cuda/12.4", ":").replace("exec bash", 'echo -n "$GREETING$TMPDIR" && exec bash')
    first, *others = said(text, tmp_path)
    assert first == "hel  lo/scratch/$USER xenv" and others[:4] == ["-u", "A B", "/my py", "-m"]


# What may not stand in a script ------------------------------------------------------------------------------------


@LAW
@given(prefix=st.lists(WORD, max_size=3), python=WORD, scratch=TEXT.filter(lambda text: text.strip("\0")))
@example(prefix=[word for word in NASTY if word], python="$(touch x)", scratch="`touch x`\n#SBATCH --qos=mine")
def test_prefix_python_and_scratch_are_words(
    prefix: list[str], python: str, scratch: str, run: Run, tmp_path: Path
) -> None:
    task = toy_task(NAME, 0)
    text = script_of(task, run, "a=1", prefix=prefix, python=python, scratch=scratch)
    assert said(text, tmp_path)[: len(prefix) + 3] == [*prefix, python, "-m", "src.main"]
    assert options(text) == options(script_of(task, run, "a=1", python="x"))


def test_an_option_is_a_word_or_refused(run: Run) -> None:
    """A line's end would begin another `#SBATCH`, or the script."""
    marks = [*BREAKS, " ", "'", '"', "`", "$(x)", ";", "\\", "#", "%j", "<", ">", "!", "{a,b}"]
    texts = [text for mark in marks for text in (f"a{mark}touch x", f"a{mark}", f"{mark}a")]
    for key in ("partition", "account", "qos", "constraint", "gpu", "modules"):
        for text in texts:
            with pytest.raises(ValidationError, match=f"{key}[\\s\\S]*should match pattern"):
                jobs_of(**{key: [text] if key == "modules" else text})
                pytest.fail(f"{key}={text!r} was taken")


def test_values_of_the_environment_are_in_no_script(run: Run) -> None:
    (array,) = arrays_of(toy_task(NAME, 0))
    jobs, points = jobs_of(), points_of(run, ["a=1"])
    text = text_of(array, points, jobs)
    assert options(text)["export"] == "PATH,HF_TOKEN" and "secret" not in text
    cases = {"NONE": {}, "PATH,SLURM_CONF": {"SLURM_CONF": "/etc/slurm.conf", "PATH": "/bin"}}
    for wanted, environment in cases.items():
        text = text_of(array, points, dataclasses.replace(jobs, environment=environment))
        assert options(text)["export"] == wanted


def test_a_report_is_told_the_keys_of_the_whole_run(run: Run, tmp_path: Path) -> None:
    (array,) = arrays_of(Task("report", "report", 0, (), (), (), ("key",)))
    text = text_of(array, points_of(run, ["a=1"]), jobs_of())
    assert said(text, tmp_path)[3:] == ["a=1", f"launcher.keys={keys_word(nodes_of(run))}", *TAIL]


def test_a_folder_that_slurm_cannot_be_told_of_is_refused(run: Run) -> None:
    (array,) = arrays_of(toy_task(NAME, 0))
    for folder in ("/a b", "/a'b", '/a"b', "/100%", "/a\nb", "/a\tb", "/$HOME", "/a\\b", "/a;b", "/`a`"):
        with pytest.raises(UserError, match="^[^\n]*use a folder without[^\n]*$"):
            plain(Path(folder))
    with pytest.raises(UserError, match="use a folder without"):
        text_of(array, points_of(run, ["a=1"]), jobs_of(), folder="/a b")
