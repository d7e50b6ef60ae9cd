"""What a user adds stays outside the package: tests/adding has one of each, and --config-dir finds its YAML."""

from __future__ import annotations

import json
import math
import shlex
from pathlib import Path

import pytest
from tiny_run import ROOT, call, folders, tiny

from src.kernel.rows import PAIRS, PROMPTS, RANKING, RESPONSES, read_metrics, read_rows

ADDING = ROOT / "tests" / "adding"
CONFIG = ["--config-dir", str(ADDING / "conf")]


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ADDING)


def test_an_added_data_set_model_and_machine_are_planned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"question": f"What is {n} and {n}?"} for n in range(200)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["data=mine", f"data.path={tmp_path / 'prompts.jsonl'}", "model=smollm2_1b7_instruct"]
    assert call("plan", *CONFIG, *words, "hardware=4xa100_80gb") == 0
    assert "it3/policy" in capsys.readouterr().out


def test_the_command_of_the_page_can_be_typed_in_a_fresh_clone(tmp_path: Path) -> None:
    lines = (ROOT / "docs" / "adding.md").read_text().splitlines()
    path, *command = shlex.split(next(line for line in lines if line.startswith("PYTHONPATH=")))
    assert ROOT / path.partition("=")[2] == ADDING and call(*command[3:], *folders(tmp_path)) == 0


def test_an_added_method_ranker_rule_engine_and_benchmark_run(tmp_path: Path, llama: Path) -> None:
    """Where policy and reference agree, the added loss is log 2; the others' rows are what their files say."""
    added = ["method=soft_dpo", "ranker=about_so_long", "pairing=neighbours", "benchmark=[brevity]"]
    added += ["engine@hardware.engine=parrot", "benchmark.brevity.most_words=3"]
    assert call(*CONFIG, *tiny(llama, tmp_path, "iter=1", *added, ranker=[])) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [row["train/loss"] for row in metrics if row.get("train/step") == 1]
    assert losses == [pytest.approx(math.log(2), abs=1e-4)]

    made = folder / "artifacts"
    prompts = {row["prompt_id"]: row["messages"] for row in read_rows(made / "it1/prompts", PROMPTS)}
    responses = read_rows(made / "it1/responses", RESPONSES)
    ranking = {row["prompt_id"]: row for row in read_rows(made / "it1/ranking", RANKING)}
    for row in responses:
        counts = [max(1, len(answer["text"].split())) for answer in row["responses"]]
        assert ranking[row["prompt_id"]]["scores"] == pytest.approx([-4 * abs(math.log(n / 60)) for n in counts])
        assert any(answer["text"].strip() in prompts[row["prompt_id"]][0]["content"] for answer in row["responses"])
    pairs = read_rows(made / "it1/pairs", PAIRS)
    assert 0 < len(pairs) <= 2 * len(responses) and all(row["chosen_win"] >= row["rejected_win"] for row in pairs)

    texts = [row["responses"][0]["text"] for row in read_rows(made / "it1/answers", RESPONSES)]
    brief = 100 * sum(len(text.split()) <= 3 for text in texts) / len(texts)
    assert read_metrics(made / "it1/brevity/scores")["brief"] == pytest.approx(brief)
