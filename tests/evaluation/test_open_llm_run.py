"""lm-eval as a child: what it is told, how it is started, what it leaves, going on after a kill, and a whole run."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_open_llm import V1, V2, board, column, written
from tiny_run import call, tiny

from src import records
from src.config import Device, UserError
from src.evaluation.open_llm.running import check_environment, installed, launch_command, settings
from src.evaluation.open_llm.scores import SCORES, LmEval

HERE = Path(sys.executable)


def test_what_lm_eval_is_told(tmp_path: Path) -> None:
    rest = {"device": "cuda", "batch_size": "auto", "limit": None, "include_path": None}
    found = settings(V2.columns[1], Path("/policy, with=signs"), tmp_path, "bfloat16", True, rest)
    assert found["model_args"] == {"pretrained": "/policy, with=signs", "dtype": "bfloat16"}
    assert (found["tasks"], found["num_fewshot"]) == (["leaderboard_bbh"], 3)
    assert found["apply_chat_template"] and found["fewshot_as_multiturn"] and found["log_samples"]
    assert found["use_cache"].startswith(str(tmp_path))
    assert "limit" not in found
    assert "apply_chat_template" not in settings(V1.columns[0], Path("p"), tmp_path, "bfloat16", False, rest)
    from lm_eval.config.evaluate_config import EvaluatorConfig

    file = written(tmp_path / "config.yaml", found)
    assert EvaluatorConfig.from_config(file).num_fewshot == 3  # lm-eval knows every key


def test_one_device_and_several(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    python = Path("/env/bin/python")
    alone = [str(python), "-m", "lm_eval", "run", "--config", str(config)]
    assert launch_command(python, "cuda", 1, config) == alone
    assert launch_command(python, "cpu", 4, config) == alone
    command = launch_command(python, "cuda", 8, config)
    assert command[:3] == [str(python), "-m", "accelerate.commands.launch"]
    assert command[-5:] == ["--module", *alone[2:]]
    assert command[command.index("--num_processes") + 1] == "8"
    from accelerate.commands.launch import launch_command_parser

    found = launch_command_parser().parse_args(command[3:])
    assert (found.num_processes, found.multi_gpu, found.module) == (8, True, True)
    assert (found.training_script, found.training_script_args) == ("lm_eval", alone[3:])
    assert json.loads(Path(found.config_file).read_text())["distributed_type"] == "MULTI_GPU"


def test_an_environment_that_cannot_run_a_column_is_refused_before_any_work(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = tiny(llama, tmp_path / "run", "iter=0", "benchmark=open_llm_v2")
    assert call(*words) == 2
    said = capsys.readouterr().err
    assert "error: benchmark.open_llm_v2.python: MATH lvl 5 needs antlr4-python3-runtime 4.11, and " in said
    assert "pip install 'lm-eval[hf,math,ifeval]" in said
    assert not (tmp_path / "run/store").exists()
    with pytest.raises(UserError, match="/no/such/python: no Python that can be run"):
        check_environment("k", Path("/no/such/python"), V1.columns)
    assert installed(HERE, ("lm-eval", "no-such-package")) == {"lm-eval": "0.4.13", "no-such-package": None}
    assert check_environment("k", HERE, V1.columns) == "0.4.13"
    with pytest.raises(UserError, match="k: Toy needs no-such-package, and .* has none"):
        check_environment("k", HERE, (column(needs={"no-such-package": ""}),))


PYTHON = """#!{python}
# Stands in for another environment's Python with lm-eval: notes each start, and fails once where it is told to.
import json, sys
from pathlib import Path
told = json.loads(Path(sys.argv[sys.argv.index("--config") + 1]).read_text())
(task,) = told["tasks"]
with open("{notes}", "a") as notes:
    notes.write(task + "\\n")
cache = Path(told["use_cache"] + "_rank0.db")
answered = cache.exists()
cache.write_text("answers")
print("lm-eval is at", task)
if task == "{fails}" and not answered:
    sys.exit("out of memory")
if task == "silent":
    sys.exit(0)
out = Path(told["output_path"]) / "model"
out.mkdir(parents=True)
results = {{task: {{"acc,none": 0.5, "acc_stderr,none": 0.1}}}}
shots = {{task: told["num_fewshot"]}}
(out / "results_2024-01-01T00-00-00.000001.json").write_text(json.dumps({{"results": results, "n-shot": shots}}))
one = {{"metrics": ["acc"]}}
samples = [one | {{"doc_id": n, "filter": kind, "acc": float(n % 2)}} for n in range(4) for kind in ("none", "x")]
lines = "".join(json.dumps(one) + "\\n" for one in samples)
(out / f"samples_{{task}}_2024-01-01T00-00-00.000001.jsonl").write_text(lines)
"""


def stage_with(tmp_path: Path, *tasks: str, fails: str = "") -> LmEval:
    python = tmp_path / "python"
    python.write_text(PYTHON.format(python=sys.executable, notes=tmp_path / "notes", fails=fails))
    python.chmod(0o755)
    return LmEval(
        columns=tuple(column(key=task, title=task.upper(), task=task) for task in tasks),
        chat_template=False,
        dtype="float32",
        first=None,
        confidence=0.95,
        lm_eval="0.4.13",
        own_tasks="",
        include_path=None,
        python=python,
        device="cpu",
        devices=1,
        batch_size=1,
    )


def test_a_run_that_ended_goes_on_with_what_it_answered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stage, out = stage_with(tmp_path, "easy_one", "hard", fails="hard"), tmp_path / "out"
    out.mkdir()
    with pytest.raises(UserError, match=r"HARD: lm-eval ended with exit code 1: out of memory \(.*log\); what was"):
        stage(tmp_path, out=out)
    assert "lm-eval is at easy_one" in capsys.readouterr().err
    assert not (out / "metrics.json").exists()
    stage(tmp_path, out=out)
    assert (tmp_path / "notes").read_text().split() == ["easy_one", "hard", "hard"]
    rows = records.read_rows(out, SCORES)
    assert [one["item_id"] for one in rows] == [f"{task}/{n}" for task in ("easy_one", "hard") for n in range(4)]
    assert [one["score"] for one in rows[:4]] == [0, 1, 0, 1]
    assert {one["column"] for one in rows} == {"easy_one", "hard"}
    found = json.loads((out / "metrics.json").read_text())
    assert (found["easy_one"], found["average"], found["items"]) == (50, 50, 8)
    assert (out / "hard.json").is_file()


def test_results_that_it_could_not_write_are_missed(tmp_path: Path) -> None:
    """lm-eval only warns then, and ends with 0."""
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(UserError, match="silent: lm-eval left no results; .*log says why"):
        stage_with(tmp_path, "silent")(tmp_path, out=out)


def test_a_metric_that_items_lack_is_named(tmp_path: Path) -> None:
    from src.evaluation.open_llm.scores import _rows

    file = tmp_path / "samples_toy_2024-01-01T00-00-00.000001.jsonl"
    file.write_text(json.dumps({"doc_id": 3, "filter": "none", "metrics": ["f1"], "f1": 1.0}) + "\n")
    with pytest.raises(UserError, match="item 3 has no acc; it has doc_id, filter, metrics, f1"):
        list(_rows(column(), file))


def test_columns_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="'acc' is no metric and filter"):
        column(metrics=("acc",))
    with pytest.raises(ValueError, match="subtasks: choices says already"):
        column(subtasks=2, choices={"a": 2})
    with pytest.raises(UserError, match="two have the key 'toy'"):
        toy = "{_target_:src.evaluation.open_llm.columns.Column,key:toy,title:T,task:t,shots:0,metrics:['acc,none']}"
        board("open_llm_v1", f"benchmark.open_llm_v1.columns=[{toy},{toy}]")


def test_devices_and_batches_are_outside_the_key_and_tasks_within(tmp_path: Path) -> None:
    from src.artifact import Node

    stage = stage_with(tmp_path, "easy")
    key = Node("n", stage).key

    def other(**fields: Any) -> str:
        return Node("n", LmEval(**(vars(stage) | fields))).key

    assert other(devices=8, device="cuda", batch_size="auto", python=None, include_path=tmp_path) == key
    keys = {other(own_tasks="x"), other(first=3), other(dtype="bfloat16"), other(lm_eval="0.4.14"), key}
    assert len(keys) == 5


TASK = """
task: toy_words
dataset_path: json
dataset_kwargs: {{data_files: {{test: {test}, train: {test}}}}}
test_split: test
fewshot_split: train
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{label}}}}"
metric_list: [{{metric: acc}}]
"""


@pytest.fixture
def toy(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """A local task of 7 items, run by the real command; returns the folder of its scores."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    rows = [{"question": f"Which of {n}?", "choices": ["the", "of a", "word"], "label": n % 3} for n in range(7)]
    (tasks / "test.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    (tasks / "toy.yaml").write_text(TASK.format(test=tasks / "test.jsonl"))
    toy = "{_target_:src.evaluation.open_llm.columns.Column,key:toy,title:Toy,task:toy_words,shots:1,"
    words = [
        "iter=0",
        "benchmark=open_llm_v1",
        f"benchmark.open_llm_v1.columns=[{toy}metrics:['acc,none'],choices:3}}]",
        f"benchmark.open_llm_v1.include_path={tasks}",
        "benchmark.open_llm_v1.title=Toy",
        "benchmark.open_llm_v1.batch_size=2",
        "benchmark.open_llm_v1.dtype=float32",
        "only=base/open_llm_v1/scores",
    ]

    def run(name: str) -> Path:
        assert call(*tiny(llama, tmp_path / name, *words)) == 0
        (scores,) = (tmp_path / name / "store/lm_eval_scores").iterdir()
        return scores

    return run


@pytest.mark.full
def test_a_local_task_end_to_end(toy: Callable[[str], Path]) -> None:
    scores = toy("run")
    found, items = json.loads((scores / "metrics.json").read_text()), records.read_rows(scores, SCORES)
    assert sorted(one["item_id"] for one in items) == [f"toy_words/{n}" for n in range(7)]
    right = sum(one["score"] for one in items) / 7
    assert found["toy"] == pytest.approx(100 * max(0, (right - 1 / 3) / (2 / 3)))
    assert found["average"] == found["toy"]
    assert found["items"] == 7
    assert json.loads((scores / "toy.json").read_text())["n-shot"] == {"toy_words": 1}
    assert not (scores / "work").exists()


@pytest.mark.full
def test_two_processes_share_the_items_and_find_what_one_finds(
    toy: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command for several GPUs, but for the two words that say that they are GPUs."""
    alone, started = toy("alone"), []

    def on_cpus(python: Path, device: Device, count: int, config: Path) -> list[str]:
        started.append(launch_command(python, "cuda", 2, config))
        own = config.with_name("accelerate.json")
        own.write_text(own.read_text().replace("MULTI_GPU", "MULTI_CPU"))
        return ["--cpu" if word == "--multi_gpu" else word for word in started[-1]]

    monkeypatch.setattr("src.evaluation.open_llm.scores.launch_command", on_cpus)
    shared = toy("shared")
    assert len(started) == 1

    def items(folder: Path) -> list[records.Row]:
        return sorted(records.read_rows(folder, SCORES), key=lambda row: row["item_id"])

    assert items(shared) == items(alone)
    assert (shared / "metrics.json").read_text() == (alone / "metrics.json").read_text()
