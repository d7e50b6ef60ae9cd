"""A second judge of the same answers: its verdict is shown everywhere, and nothing else moves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_run import World, call, typed

from src.kernel.record import CARD
from src.kernel.rows import RANKING, read_rows
from src.reporting.metrics_file import METRICS
from src.reporting.wandb_tables import summary_of

MODEL = "held_out.second.language_model"
NAME = "second"


def test_a_judge_asked_of_the_model_that_judged_the_training_says_so() -> None:
    words = ("hardware=1xa100_80gb", "ranker=llm_judge_pairwise", "ranker@held_out.ranker=llm_judge_points")
    assert typed("iter=1", *words).verdict_of().endswith(", whose model also judged what it was trained on")


def test_a_second_judge_is_shown_everywhere_and_makes_nothing_else_anew(
    world: World, llama: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def made() -> set[str]:
        kinds, store = ("policy", "responses", "evaluation"), world.place / "store"
        return {path.name for kind in kinds for path in (store / kind).iterdir()}

    before = made()
    words = [word for word in world.words if word != "~ranker@held_out.second"]
    words += [f"{MODEL}._target_=src.modeling.checkpoints.Checkpoint", f"{MODEL}.name=tiny", f"+{MODEL}.repo={llama}"]
    words += [f"+{MODEL}.revision=main", *(f"~{MODEL}.{key}" for key in ("package", "file", "rest"))]
    world = world._replace(words=words)
    assert world.run("iter=2", f"name={NAME}") == 0
    folder, printed = world.place / "runs" / NAME, capfd.readouterr().out
    second = [folder / "artifacts" / f"it{t}" / "second_evaluation" for t in (1, 2)]
    assert made() - before == {path.resolve().name for path in second}

    ranked = [read_rows(folder / "artifacts" / name / "second_answers_ranking", RANKING) for name in ("base", "it2")]
    base, last = (np.array([row["scores"][0] for row in rows]) for rows in ranked)
    win = float(np.mean(1 / (1 + np.exp(base - last))))
    numbers = json.loads((second[1] / "metrics.json").read_text())
    assert numbers["win_over_base"] == pytest.approx(win, abs=1e-12)
    assert numbers["likelihood"] is not None and numbers["pmi"] is None

    shown = f"{win:.3f} [{numbers['win_over_base_low']:.3f}, {numbers['win_over_base_high']:.3f}]"
    headline = f"By independent, on which it was not trained: {shown}."
    report = (folder / "report.md").read_text()
    assert headline in report and headline in printed and "Second judge" in printed
    table = report.partition("## By another judge")[2].partition("The verdict of")[0]
    row = next(line for line in table.splitlines() if "iteration 2" in line)
    assert shown in row and f"{numbers['likelihood']:.3f}" in row and f"{numbers['relevance']:.3f}" in row
    row = next(line for line in table.splitlines() if "| base" in line)
    assert f"{numbers['null_win']:.3f} [" in row and f"{numbers['base_likelihood']:.3f}" in row
    card = (folder / "artifacts" / "it2" / "policy" / CARD).read_text()
    assert f"by the second judge | {shown}" in card and "that by the second judge of independent" in card
    rows = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    assert summary_of(rows)["second_win_rate"] == pytest.approx(win, abs=1e-12)
    assert call("compare", f"runs={folder}", f"out={world.place / 'page'}") == 0
    printed = capfd.readouterr().out
    assert "by the second judge" in printed and f"By independent, the second judge: {shown}." in printed
    assert f"{win:.3f} ± " in (world.place / "page" / "compare.md").read_text()
