"""The Open LLM Leaderboards: numbers from result files, the settings of the two, and lm-eval as a child."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from canaries import plant, singing
from places import SHARED
from tiny_run import tiny, typed

from src.evaluation.open_llm.benchmark import ITEMS, LmEval, OpenLLM, check_environment
from src.evaluation.open_llm.columns import Column, read_results, score_columns
from src.experiment.graph import nodes_of
from src.kernel.config import UserError
from src.kernel.rows import read_rows

REAL = SHARED / "open_llm_v1/Meta-Llama-3-8B-Instruct"


def board(name: str) -> OpenLLM:
    (benchmark,) = typed("iter=0", f"benchmark={name}").benchmark.values()
    assert isinstance(benchmark, OpenLLM)
    return benchmark


def column(**other: Any) -> Column:
    return Column(**({"key": "toy", "title": "Toy", "task": "toy", "shots": 2, "metrics": ("acc,none",)} | other))


def results_file(path: Path, results: dict[str, dict[str, Any]], shots: int = 2, **other: Any) -> Path:
    path.write_text(json.dumps({"results": results, "n-shot": dict.fromkeys(results, shots)} | other))
    return path


def scored(path: Path, *columns: Column, **other: Any) -> dict[str, float]:
    return score_columns(read_results([path], chat_template=False, **other), columns, confidence=0.95)


# Result files ------------------------------------------------------------------------------------------------------


RESULTS = {"toy": {"acc,none": 0.5, "acc_stderr,none": 0.1}}
PART = {"config": {"limit": 10}}


@pytest.mark.parametrize(
    ("results", "other", "line"),
    [
        (RESULTS, {"shots": 5}, "toy has 5 shots, the leaderboard 2"),
        (RESULTS, {"chat_template": "{{ x }}"}, r"r\.json: was run under a chat template"),
        (RESULTS, PART, r"r\.json: was run on a part of the items"),
        (RESULTS, {"n-shot": None}, r"r\.json: n-shot: "),
        ({"toy": {"acc,none": 50.0}}, {}, "toy has no number from 0 to 1 for acc,none"),
        ({"other": {"acc,none": 0.5}}, {}, "no results of toy"),
    ],
)
def test_a_result_that_is_not_the_leaderboards_is_refused(
    results: Any, other: dict[str, Any], line: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=line):
        scored(results_file(tmp_path / "r.json", results, **other), column())


def test_files_of_two_models_or_with_the_same_task_are_refused(tmp_path: Path) -> None:
    one = results_file(tmp_path / "r.json", RESULTS, model_name="me")
    for name, results, line in (("me", RESULTS, "toy is in another"), ("you", {}, "is of you, others of me")):
        with pytest.raises(UserError, match=rf"again\.json: {line}"):
            read_results([one, results_file(tmp_path / "again.json", results, model_name=name)], False)


def test_a_group_of_unequal_subtasks_counts_each_for_one(tmp_path: Path) -> None:
    """Groups in groups, as MMLU has them; lm-eval's own number of the group weighs by size."""
    results = {
        "toy": {"acc,none": 0.9},
        "inner": {"acc,none": 0.9},
        "a": {"acc,none": 0.2, "acc_stderr,none": 0.03},
        "b": {"acc,none": 0.4, "acc_stderr,none": 0.04},
        "c": {"acc,none": 0.9, "acc_stderr,none": 0.0},
    }
    groups = {"toy": ["inner", "c"], "inner": ["a", "b"], "a": []}
    path = results_file(tmp_path / "r.json", results, group_subtasks=groups, **PART)
    numbers = scored(path, column(subtasks=3), limited=True)
    assert numbers["toy"] == pytest.approx(50)
    assert numbers["toy_high"] - numbers["toy"] == pytest.approx(100 * 1.959964 * 0.05 / 3, abs=1e-4)
    with pytest.raises(UserError, match="toy has 3 subtasks, and Toy is of 57"):
        scored(path, column(subtasks=57), limited=True)
    with pytest.raises(UserError, match="no results of other"):
        scored(path, column(task="other", subtasks=57), limited=True)
    whole = scored(path, column(), limited=True)
    assert whole["toy"] == 90 and "toy_low" not in whole


def test_the_columns_of_the_second_leaderboard(tmp_path: Path) -> None:
    """Guessing gets nothing. Each subtask at 0.5, but for MuSR as in the leaderboard's example: .7, .4, .6 is 35."""
    v2 = board("open_llm_v2")
    results: dict[str, dict[str, Any]] = {}
    shots: dict[str, int] = {}
    for one in v2.columns:
        for name in [one.task, *(one.choices if isinstance(one.choices, dict) else [])]:
            errors = {metric.replace(",", "_stderr,"): 0.01 for metric in one.metrics}
            results[name], shots[name] = dict.fromkeys(one.metrics, 0.5) | errors, one.shots
    ifeval = {"prompt_level_strict_acc,none": 0.3, "inst_level_strict_acc,none": 0.4}
    results["leaderboard_ifeval"] |= ifeval | {"prompt_level_strict_acc_stderr,none": 0.02}
    for name, raw in (("murder_mysteries", 0.7), ("object_placements", 0.4), ("team_allocation", 0.6)):
        results[f"leaderboard_musr_{name}"]["acc_norm,none"] = raw
    path = results_file(tmp_path / "r.json", results, chat_template="{{ x }}", **{"n-shot": shots})
    numbers = score_columns(read_results([path], v2.chat_template), v2.columns, 0.95)
    bbh = [max(0.0, (0.5 - 1 / n) / (1 - 1 / n)) for n in v2.columns[1].choices.values()]  # pyright: ignore
    expected = {"ifeval": 35, "bbh": 100 * sum(bbh) / 24, "math_lvl_5": 50, "gpqa": 100 / 3, "musr": 35}
    expected |= {"mmlu_pro": 400 / 9}
    expected["average"] = sum(expected.values()) / 6
    assert {key: numbers[key] for key in expected} == pytest.approx(expected, abs=0.005)
    spread = math.hypot(*(0.01 / (1 - 1 / n) for n in (2, 5, 3))) / 3
    for key, error in (("ifeval", 0.02), ("gpqa", 0.01 * 4 / 3), ("musr", spread)):
        assert numbers[f"{key}_high"] - numbers[key] == pytest.approx(100 * 1.959964 * error, abs=1e-4)


@pytest.mark.full
@pytest.mark.skipif(not REAL.exists(), reason="no ../shared/data/open_llm_v1 beside this checkout")
def test_real_result_files_give_their_columns_and_average() -> None:
    """There are five of the six tasks, of Meta-Llama-3-8B-Instruct."""
    mc2 = json.loads((REAL / "truthfulqa.json").read_text())["results"]["truthfulqa_mc2"]["acc,none"]
    expected = {"arc": 62.2014, "truthfulqa": 100 * mc2, "winogrande": 75.4538, "gsm8k": 75.5876, "hellaswag": 78.8389}
    columns = [one for one in board("open_llm_v1").columns if one.key != "mmlu"]
    numbers = score_columns(read_results(REAL.glob("*.json"), False), columns, 0.95)
    assert {key: numbers[key] for key in expected} == pytest.approx(expected, abs=1e-4)
    assert numbers["average"] == pytest.approx(sum(expected.values()) / 5, abs=1e-4)


# lm-eval as a child ------------------------------------------------------------------------------------------------


def test_the_settings_of_lm_eval(tmp_path: Path) -> None:
    stage, (_, bbh, *_) = stage_with(tmp_path, "easy"), board("open_llm_v2").columns
    plain, chat = (replace(stage, chat_template=one).settings(bbh, Path("/a, b=c"), tmp_path) for one in (False, True))
    assert plain["model_args"] == {"pretrained": "/a, b=c", "dtype": "float32"} and "limit" not in plain
    assert (plain["tasks"], plain["num_fewshot"]) == (["leaderboard_bbh"], 3)
    assert chat == plain | {"apply_chat_template": True, "fewshot_as_multiturn": True}


def test_an_environment_that_cannot_run_a_column_is_refused() -> None:
    with pytest.raises(UserError, match="/no/such/python: no Python that says which packages it has"):
        check_environment("k", Path("/no/such/python"), ())
    assert check_environment("k", Path(sys.executable), (column(),)) == "0.4.13"
    with pytest.raises(UserError, match="k: needs no-such-package, and .* has None"):
        check_environment("k", Path(sys.executable), (column(needs={"no-such-package": ""}),))


PYTHON = """#!{python}
# Stands in for another environment's Python with lm-eval: notes each start, and fails once at the task "hard".
import json, sys
from pathlib import Path
settings = json.loads(Path(sys.argv[sys.argv.index("--config") + 1]).read_text())
(task,) = settings["tasks"]
with open("{notes}", "a") as notes:
    notes.write(task + "\\n")
cache = Path(settings["use_cache"] + "_rank0.db")
answered = cache.exists()
cache.write_text("answers")
print("lm-eval is at", task)
if task == "hard" and not answered:
    sys.exit("out of memory")
out = Path(settings["output_path"]) / "model"
out.mkdir(parents=True)
results = {{task: {{"acc,none": 0.5, "acc_stderr,none": 0.1}}}}
shots = {{task: settings["num_fewshot"]}}
(out / "results_2024-01-01T00-00-00.000001.json").write_text(json.dumps({{"results": results, "n-shot": shots}}))
samples = [{{"doc_id": n, "filter": kind, "acc": float(n % 2)}} for n in range(4) for kind in ("none", "x")]
lines = "".join(json.dumps(one) + "\\n" for one in samples)
(out / f"samples_{{task}}_2024-01-01T00-00-00.000001.jsonl").write_text(lines)
"""


def stage_with(place: Path, *tasks: str) -> LmEval:
    """Return a stage of these columns; the stand-in runs it, and notes its starts in `place`/notes."""
    python = place / "python"
    python.write_text(PYTHON.format(python=sys.executable, notes=place / "notes"))
    python.chmod(0o755)
    settings = {"chat_template": False, "dtype": "float32", "first": None, "confidence": 0.95, "lm_eval": "0.4.13"}
    where = {"own_tasks": "", "include_path": None, "device": "cpu", "batch_size": 1}
    columns = tuple(column(key=task, title=task.upper(), task=task) for task in tasks)
    return LmEval(columns=columns, python=python, **settings, **where)


def test_a_run_that_ended_goes_on_with_what_it_answered(tmp_path: Path) -> None:
    stage, out = stage_with(tmp_path, "easy_one", "hard"), tmp_path / "out"
    out.mkdir()
    with pytest.raises(UserError, match=r"HARD: lm-eval left no results, exit code 1: out of memory \(.*log\)"):
        stage(tmp_path, out=out)
    assert (out / "work/easy_one/log").read_text() == "lm-eval is at easy_one\n"
    assert not (out / "metrics.json").exists()
    stage(tmp_path, out=out)
    assert (tmp_path / "notes").read_text().split() == ["easy_one", "hard", "hard"]
    rows = read_rows(out, ITEMS)
    assert [one["item_id"] for one in rows] == [f"{task}/{n}" for task in ("easy_one", "hard") for n in range(4)]
    assert [one["score"] for one in rows[:4]] == [0, 1, 0, 1]
    numbers = json.loads((out / "metrics.json").read_text())
    assert (numbers["easy_one"], numbers["average"], numbers["items"]) == (50, 50, 8)


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


@pytest.mark.full
def test_a_local_task_by_the_real_lm_eval_and_no_key_is_in_what_it_leaves(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its settings, log, samples and cache of requests are all in the working folder that a stopped run keeps."""
    plant(monkeypatch)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tasks := tmp_path / "tasks").mkdir()
    rows = [{"question": f"Which of {n}?", "choices": ["the", "of a", "word"], "label": n % 3} for n in range(7)]
    (tasks / "test.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    (tasks / "toy.yaml").write_text(TASK.format(test=tasks / "test.jsonl"))
    toy = "{_target_:src.evaluation.open_llm.columns.Column,key:toy,title:Toy,task:toy_words,shots:1,"
    more = [f"columns=[{toy}metrics:['acc,none'],choices:3}}]", f"include_path={tasks}", "title=Toy", "dtype=float32"]
    words = ["iter=0", "benchmark=open_llm_v1", *(f"benchmark.open_llm_v1.{word}" for word in (*more, "batch_size=2"))]
    (stage,) = [node.stage for node in nodes_of(typed(*tiny(llama, tmp_path, *words))) if "open_llm" in node.name]
    (scores := tmp_path / "scores").mkdir()
    stage(llama, out=scores)
    assert "toy_words" in next(scores.rglob("log")).read_text() and list(scores.rglob("samples_*.jsonl"))
    assert not singing(tmp_path, *capfd.readouterr(), least=10)
    numbers, items = json.loads((scores / "metrics.json").read_text()), read_rows(scores, ITEMS)
    assert sorted(one["item_id"] for one in items) == [f"toy_words/{n}" for n in range(7)]
    right = sum(one["score"] for one in items) / 7
    assert numbers["toy"] == numbers["average"] == pytest.approx(100 * max(0, (right - 1 / 3) / (2 / 3)))
