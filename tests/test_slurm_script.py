"""Scripts of job arrays: their options, and words that arrive in the command exactly as they were given.

Run: python -m pytest -q tests/test_slurm_script.py
The scripts are carried out by bash in a folder whose slurm/task.sh only says what it was given.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tiny_run import ROOT, call, folders, typed
from toy_graph import toy_task

from src.config import UserError
from src.graph import Task, tasks_of
from src.launcher import Point
from src.pipeline import Run
from src.slurm.arrays import Array, Planner
from src.slurm.ledger import Submission
from src.slurm.script import Jobs, overrides, plain, ranges, rest_script, script

SAYS = """\
printf '%s\\0' "$@"
"""
NASTY = [
    "'", '"', "it's", "$(touch x)", "`touch x`", "a\nb", "a\n#SBATCH --comment=mine\nb", ";touch x", "&& touch x",
    "> x", "ü✓ 漢字", "-n", "--help", "%j_%a", "\\", "\\'", "a\\\nb", "", " ", "\t", "*", "~", "{a,b}", "!!", "#",
    "${HOME}", "a\rb", "0) words=() ;;", "EOF", "'\"'\"'", "$'\\n'", "[a,b]", "${oc.env:HOME}", "\x1b[31m",
    "\ufeff", "words=(", "esac",
]  # fmt: skip
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
TOKEN, NAME = "abcd1234", "it1-training"


def with_fields(value: Any, **changes: Any) -> Any:
    return dataclasses.replace(value, **changes)


@pytest.fixture(scope="module")
def run() -> Run:
    return typed("launcher=slurm")


@pytest.fixture(scope="module")
def gpu_run() -> Run:
    return typed("launcher=slurm", "hardware=8xa100_80gb")


def jobs_of(run: Run, at_once: int | None = None, **site: Any) -> Jobs:
    """As the launcher has them, with another site."""
    launcher: Any = run.launcher
    environment = {"PATH": "/bin", "HF_TOKEN": "hf_secret", "OTHER": "other secret"}
    return Jobs(with_fields(launcher.site, **site), launcher.jobs, at_once, 300, environment)


def points_of(run: Run, *words: Sequence[str]) -> list[Point]:
    return [Point(run, list(own), lambda: pytest.fail("composed"), tuple(own)) for own in words]


def arrays_of(*tasks: Task, largest: int = 1001) -> list[Array]:
    planner = Planner({}, largest, largest)
    planner.add(tasks)
    return planner.arrays


def told_of(array: Array, folder: str = "/runs/x/slurm", after: str = "") -> Submission:
    return Submission(TOKEN, array.name, folder, {index: [] for index in array.elements}, after, "77")


def said(text: str, place: Path, index: int | None) -> list[str]:
    """What task.sh gets when bash carries the script out as this element."""
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


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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


# Options -----------------------------------------------------------------------------------------------------------


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


@pytest.mark.slow
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


@pytest.mark.slow
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
