"""The Open LLM Leaderboard: numbers from result files, and lm-eval as a child."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from canaries import plant, singing
from places import SHARED
from tiny_run import tiny, typed

from src.evaluation.open_llm.benchmark import ITEMS, LmEval, OpenLLM
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
    return Column(**({"key": "toy", "title": "Toy", "task": "toy", "shots": 2, "metric": "acc,none"} | other))


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
        (RESULTS, {"chat_template": "{{ x }}"}, r"r\.json: was run with chat_template"),
        (RESULTS, {"config": {"gen_kwargs": {"temperature": 1}}}, r"r\.json: was run with gen_kwargs"),
        (RESULTS, {"n-samples": {"toy": {"original": 9, "effective": 2}}}, r"r\.json: was run on a part of the items"),
        (RESULTS, PART, r"r\.json: was run on a part of the items"),
        (RESULTS, {"n-shot": None}, r"r\.json: n-shot: "),
        (RESULTS, {"n-shot": {}}, "toy has None shots, the leaderboard 2"),
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
    results: dict[str, dict[str, Any]] = {name: {"acc,none": 0.9} for name in ("toy", "inner")}
    for name, value, error in (("a", 0.2, 0.03), ("b", 0.4, 0.04), ("c", 0.9, 0.0)):
        results[name] = {"acc,none": value, "acc_stderr,none": error}
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


def test_shots_of_5000_digits_and_groups_3000_deep_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text(json.dumps({"config_general": {}, "results": {f"harness|toy|{'9' * 5000}": {"acc": 0.5}}}))
    with pytest.raises(UserError, match="toy has None shots"):
        scored(path, column())
    groups = {"toy": ["g0"]} | {f"g{i}": [f"g{i + 1}"] for i in range(3000)}
    with pytest.raises(UserError, match="no results of g"):
        scored(results_file(path, {}, group_subtasks=groups), column(subtasks=1))


def test_files_of_the_archive_and_of_lm_eval_0_3_are_read(tmp_path: Path) -> None:
    """In the archive all tasks are in one file, with their shots; 0.3 wrote a file for each number of shots."""
    ours = {"arc:challenge": (25, "acc_norm", 0.5), "hellaswag": (10, "acc_norm", 0.6)}
    ours |= {"truthfulqa:mc": (0, "mc2", 0.4), "winogrande": (5, "acc", 0.7), "gsm8k": (5, "acc", 0.3)}
    ours |= {f"hendrycksTest-{n}": (5, "acc", n / 56) for n in range(57)}
    wanted = {"arc": 50, "hellaswag": 60, "truthfulqa": 40, "winogrande": 70, "gsm8k": 30, "mmlu": 50, "average": 50}
    archived = {f"harness|{name}|{shots}": {metric: value, f"{metric}_stderr": 0.01, "acc_norm_stderr": 0.02}
                for name, (shots, metric, value) in ours.items()}  # fmt: skip
    path = tmp_path / "archived.json"
    path.write_text(json.dumps({"config_general": {"model_name": "me/mine"}, "results": {"all": {}} | archived}))
    columns, files = board("open_llm_v1").columns, []
    read = read_results([path], False)
    assert read.model == "me/mine"
    numbers = score_columns(read, columns, 0.95)
    assert {key: numbers[key] for key in wanted} == pytest.approx(wanted)
    assert numbers["gsm8k_high"] - 30 == pytest.approx(numbers["truthfulqa_high"] - 40) == pytest.approx(1.959964)
    for shots in {shots for shots, *_ in ours.values()}:
        some = {name.replace(":", "_"): {metric: value} for name, (n, metric, value) in ours.items() if n == shots}
        files.append(tmp_path / f"{shots}.json")
        files[-1].write_text(json.dumps({"results": some, "config": {"num_fewshot": shots, "model_args": "x"}}))
    for some_order in (files, files[::-1]):
        numbers = score_columns(read_results(some_order, False), columns, 0.95)
        assert {key: numbers[key] for key in wanted} == pytest.approx(wanted)


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
    stage, (arc, *_) = stage_with("easy"), board("open_llm_v1").columns
    plain, chat = (replace(stage, chat_template=one).settings(arc, Path("/a, b=c"), tmp_path) for one in (False, True))
    assert plain["model_args"] == {"pretrained": "/a, b=c", "dtype": "float32"} and "limit" not in plain
    assert (plain["tasks"], plain["num_fewshot"]) == (["arc_challenge"], 25)
    assert chat == plain | {"apply_chat_template": True, "fewshot_as_multiturn": True}


PYTHON = """#!{python}
# Stands in for a Python with lm-eval: notes each start, and fails once at the task "hard".
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


def stage_with(*tasks: str) -> LmEval:
    """Return a stage of these columns."""
    settings = {"chat_template": False, "dtype": "float32", "first": None, "confidence": 0.95, "lm_eval": "0.4.13"}
    where = {"own_tasks": "", "include_path": None, "device": "cpu", "batch_size": 1}
    columns = tuple(column(key=task, title=task.upper(), task=task) for task in tasks)
    return LmEval(columns=columns, **settings, **where)


def test_a_run_that_ended_goes_on_with_what_it_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python"
    python.write_text(PYTHON.format(python=sys.executable, notes=tmp_path / "notes"))
    python.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(python))
    stage, out = stage_with("easy_one", "hard"), tmp_path / "out"
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
    more = [f"columns=[{toy}metric:'acc,none'}}]", f"include_path={tasks}", "title=Toy", "dtype=float32"]
    words = ["iter=0", "benchmark=open_llm_v1", *(f"benchmark.open_llm_v1.{word}" for word in (*more, "batch_size=2"))]
    (stage,) = [node.stage for node in nodes_of(typed(*tiny(llama, tmp_path, *words))) if "open_llm" in node.name]
    (scores := tmp_path / "scores").mkdir()
    stage(llama, out=scores)
    assert "toy_words" in next(scores.rglob("log")).read_text() and list(scores.rglob("samples_*.jsonl"))
    assert not singing(tmp_path, *capfd.readouterr(), least=10)
    numbers, items = json.loads((scores / "metrics.json").read_text()), read_rows(scores, ITEMS)
    assert sorted(one["item_id"] for one in items) == [f"toy_words/{n}" for n in range(7)]
    right = sum(one["score"] for one in items) / 7
    assert numbers["toy"] == numbers["average"] == pytest.approx(100 * right)
