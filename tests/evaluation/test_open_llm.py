"""The Open LLM Leaderboards: numbers from result files, and the settings of the two."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_run import typed

from src.config import UserError
from src.evaluation.open_llm.benchmark import OpenLLM
from src.evaluation.open_llm.columns import Column
from src.evaluation.open_llm.results import score_files
from src.packages import package_folder

REAL = Path(__file__).parents[3] / "shared/data/open_llm_v1/Meta-Llama-3-8B-Instruct"
with_real = pytest.mark.skipif(not REAL.exists(), reason="the real result files are not beside the checkout")


def board(name: str, *more: str) -> OpenLLM:
    (found,) = typed("iter=0", f"benchmark={name}", *more).benchmark.values()
    assert isinstance(found, OpenLLM)
    return found


V1, V2 = board("open_llm_v1"), board("open_llm_v2")


def column(**other: Any) -> Column:
    return Column(**({"key": "toy", "title": "Toy", "task": "toy", "shots": 2, "metrics": ("acc,none",)} | other))


def told(results: dict[str, dict[str, Any]], shots: int = 2, **other: Any) -> dict[str, Any]:
    return {"results": results, "n-shot": dict.fromkeys(results, shots)} | other


def written(path: Path, content: dict[str, Any]) -> Path:
    path.write_text(json.dumps(content))
    return path


def scored(path: Path, *columns: Column) -> dict[str, float]:
    return score_files([path], columns, chat_template=False, confidence=0.95)


@with_real
def test_real_result_files_give_their_columns_and_average() -> None:
    """Of Meta-Llama-3-8B-Instruct there are five of the six tasks."""
    columns = [one for one in V1.columns if one.key != "mmlu"]
    found = score_files(REAL.glob("*.json"), columns, V1.chat_template, 0.95)
    expected = {"arc": 62.2014, "truthfulqa": 51.6528, "winogrande": 75.4538, "gsm8k": 75.5876, "hellaswag": 78.8389}
    mc2 = json.loads((REAL / "truthfulqa.json").read_text())["results"]["truthfulqa_mc2"]["acc,none"]
    expected["truthfulqa"] = 100 * mc2
    assert {key: found[key] for key in expected} == pytest.approx(expected, abs=1e-4)
    assert found["average"] == pytest.approx(sum(expected.values()) / 5, abs=1e-4)
    # ARC: standard error 0.014169664520303094
    assert found["arc_high"] - found["arc"] == pytest.approx(100 * 1.959964 * 0.014169664520303094, abs=1e-4)


@with_real
def test_a_task_that_is_missing_or_doubled_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no file has results of mmlu; run that task too"):
        score_files(REAL.glob("*.json"), V1.columns, V1.chat_template, 0.95)
    twice = tmp_path / "again.json"
    twice.write_bytes((REAL / "gsm8k.json").read_bytes())
    with pytest.raises(UserError, match=r"again\.json: gsm8k is in .*gsm8k\.json too"):
        score_files([*REAL.glob("*.json"), twice], [V1.columns[3]], V1.chat_template, 0.95)


@with_real
def test_files_are_scored_without_a_run(tmp_path: Path) -> None:
    given = json.loads((REAL / "arc.json").read_text())
    group = {"mmlu": [f"mmlu_{n}" for n in range(57)]}
    subjects = {f"mmlu_{n}": {"acc,none": n / 56} for n in range(57)}
    mmlu = written(tmp_path / "mmlu.json", given | told({"mmlu": {}} | subjects, 5, group_subtasks=group))
    files = [*sorted(REAL.glob("*.json")), mmlu]
    (found,) = V1.score_files("open_llm_v1", files, 0.95).values()
    assert found["mmlu"] == pytest.approx(50)
    five = [found[one.key] for one in V1.columns if one.key != "mmlu"]
    assert found["average"] == pytest.approx((sum(five) + 50) / 6)  # pyright: ignore
    assert list(V1.score_files("open_llm_v1", files, 0.95)) == ["meta-llama/Meta-Llama-3-8B-Instruct"]
    written(mmlu, json.loads(mmlu.read_text()) | {"config": {"model_args": {"pretrained": "other"}}})
    with pytest.raises(UserError, match="the files are of meta-llama/Meta-Llama-3-8B-Instruct and of other"):
        V1.score_files("open_llm_v1", files, 0.95)


def test_other_shots_a_chat_template_and_a_part_of_the_items_are_refused(tmp_path: Path) -> None:
    results = {"toy": {"acc,none": 0.5, "acc_stderr,none": 0.1}}
    path = tmp_path / "r.json"
    with pytest.raises(UserError, match=r"r\.json: toy has 5 shots, the leaderboard has 2"):
        scored(written(path, told(results, shots=5)), column())
    with pytest.raises(UserError, match="toy was run under a chat template"):
        scored(written(path, told(results, chat_template="{{ x }}")), column())
    for part in ({"config": {"limit": 10}}, {"n-samples": {"toy": {"original": 20, "effective": 10}}}):
        with pytest.raises(UserError, match="toy was run on a part of its items"):
            scored(written(path, told(results) | part), column())
    limited = score_files([path], [column()], chat_template=False, confidence=0.95, limited=True)
    assert limited["toy"] == 50
    whole = {"config": {"limit": None}, "n-samples": {"toy": {"original": 20, "effective": 20}}}
    assert scored(written(path, told(results) | whole), column())["toy"] == 50


def test_what_is_no_result_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text("[1")
    with pytest.raises(UserError, match=r"r\.json: cannot be read as JSON"):
        scored(path, column())
    with pytest.raises(UserError, match=r"r\.json: no results of lm-eval 0\.4"):
        scored(written(path, {"results": {"toy": {"acc": 0.5}}}), column())
    with pytest.raises(UserError, match="toy has no number for acc,none"):
        scored(written(path, told({"toy": {"acc_norm,none": 0.5}})), column())


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
    path = written(tmp_path / "r.json", told(results, group_subtasks=groups))
    found = scored(path, column(subtasks=3))
    assert found["toy"] == pytest.approx(50)
    assert found["toy_high"] - found["toy"] == pytest.approx(100 * 1.959964 * 0.05 / 3, abs=1e-4)
    with pytest.raises(UserError, match="toy has 3 subtasks, and Toy is of 57"):
        scored(path, column(subtasks=57))
    assert scored(path, column())["toy"] == 90
    assert "toy_low" not in scored(path, column())
    wrong = told(results, group_subtasks=groups) | {"n-shot": dict.fromkeys(results, 2) | {"b": 0}}
    with pytest.raises(UserError, match="b has 0 shots"):
        scored(written(path, wrong), column(subtasks=3))


def test_guessing_gets_nothing() -> None:
    """The example of the leaderboard's documentation: GPQA .6 of 4 choices is 46.67, MuSR .7, .4, .6 is 35.00."""
    assert V2.columns[3].choices == 4
    from src.evaluation.open_llm.columns import without_guessing

    assert 100 * without_guessing(0.6, 4) == pytest.approx(46.67, abs=0.005)
    assert without_guessing(0.2, 4) == 0
    assert without_guessing(0.6, None) == 0.6
    parts = [without_guessing(value, choices) for value, choices in ((0.7, 2), (0.4, 5), (0.6, 3))]
    assert 100 * sum(parts) / 3 == pytest.approx(35.0, abs=0.005)


def made_up_v2(value: float = 0.5) -> dict[str, Any]:
    """A file of the whole group, each subtask at `value`, but for MuSR as in the leaderboard's example."""
    results: dict[str, dict[str, Any]] = {}
    shots: dict[str, int] = {}
    for one in V2.columns:
        names = [one.task, *(one.choices if isinstance(one.choices, dict) else [])]
        for name in names:
            errors = {metric.replace(",", "_stderr,"): 0.01 for metric in one.metrics if "inst" not in metric}
            results[name] = dict.fromkeys(one.metrics, value) | errors
            shots[name] = one.shots
    ifeval: dict[str, Any] = {"prompt_level_strict_acc,none": 0.3, "inst_level_strict_acc,none": 0.4}
    results["leaderboard_ifeval"] = ifeval | {
        "prompt_level_strict_acc_stderr,none": 0.02,
        "inst_level_strict_acc_stderr,none": "N/A",
    }
    for name, raw in (("murder_mysteries", 0.7), ("object_placements", 0.4), ("team_allocation", 0.6)):
        results[f"leaderboard_musr_{name}"] = {"acc_norm,none": raw, "acc_norm_stderr,none": 0.01}
    return {"results": results, "n-shot": shots, "chat_template": "{{ x }}"}


def test_the_columns_of_the_second_leaderboard(tmp_path: Path) -> None:
    path = written(tmp_path / "r.json", made_up_v2())
    found = score_files([path], V2.columns, V2.chat_template, 0.95)
    bbh = [max(0.0, (0.5 - 1 / n) / (1 - 1 / n)) for n in V2.columns[1].choices.values()]  # pyright: ignore
    expected = {
        "ifeval": 35,
        "bbh": 100 * sum(bbh) / 24,
        "math_lvl_5": 50,
        "gpqa": 100 / 3,
        "musr": 35,
        "mmlu_pro": 400 / 9,
    }
    assert {key: found[key] for key in expected} == pytest.approx(expected, abs=0.005)
    assert found["average"] == pytest.approx(sum(expected.values()) / 6, abs=0.005)
    assert found["ifeval_high"] - 35 == pytest.approx(100 * 1.959964 * 0.02, abs=1e-4)
    assert found["gpqa_high"] - found["gpqa"] == pytest.approx(100 * 1.959964 * 0.01 * 4 / 3, abs=1e-4)
    slopes = [0.01 / (1 - 1 / n) for n in (2, 5, 3)]
    spread = math.sqrt(sum(one**2 for one in slopes)) / 3
    assert found["musr"] - found["musr_low"] == pytest.approx(100 * 1.959964 * spread, abs=1e-4)


def tasks_folder() -> Path:
    return package_folder("lm_eval", "python") / "tasks"


def task_file(task: str) -> dict[str, Any]:
    """The YAML of a task of lm-eval, without the functions that it names."""

    class Plain(yaml.SafeLoader):
        pass

    Plain.add_constructor("!function", lambda loader, node: str(node.value))
    for file in (tasks_folder() / "leaderboard").rglob("*.yaml"):
        content = yaml.load(file.read_text(), Plain)
        if task in (content.get("task"), content.get("group")):
            include = content.get("include")
            return (yaml.load((file.parent / include).read_text(), Plain) if include else {}) | content
    raise AssertionError(task)


def test_the_second_leaderboard_is_lm_evals_group() -> None:
    """Its tasks, shots, metrics and choices are those of the YAML in lm-eval."""
    assert {one.task for one in V2.columns} == set(task_file("leaderboard")["task"])
    for one in V2.columns:
        group = task_file(one.task)
        leaves = group["task"] if isinstance(group["task"], list) else [one.task]
        for leaf in leaves:
            content = task_file(leaf)
            assert content.get("num_fewshot", 0) == one.shots, leaf
            known = {f"{metric['metric']},none" for metric in content["metric_list"]}
            assert set(one.metrics) <= known, leaf
            choices = content.get("doc_to_choice")
            if isinstance(one.choices, dict):
                assert set(one.choices) == set(leaves)
                if isinstance(choices, list):
                    assert one.choices[leaf] == len(choices), leaf


def test_the_settings_of_the_first_leaderboard() -> None:
    """https://huggingface.co/docs/leaderboards/open_llm_leaderboard/archive"""
    found = {one.title: (one.task, one.shots, *one.metrics) for one in V1.columns}
    assert found == {
        "ARC": ("arc_challenge", 25, "acc_norm,none"),
        "HellaSwag": ("hellaswag", 10, "acc_norm,none"),
        "MMLU": ("mmlu", 5, "acc,none"),
        "TruthfulQA": ("truthfulqa_mc2", 0, "acc,none"),
        "WinoGrande": ("winogrande", 5, "acc,none"),
        "GSM8K": ("gsm8k", 5, "exact_match,strict-match"),
    }
    assert not V1.chat_template and V2.chat_template
    assert [one.title for one in V1.measures] == ["average", *(one.title for one in V1.columns)]
