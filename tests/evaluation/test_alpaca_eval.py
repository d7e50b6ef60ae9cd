"""AlpacaEval's files, win rates, length control and plan. What judging asks for is in test_alpaca_eval_judging."""

from __future__ import annotations

import csv
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from alpaca_eval_made_up import INSTRUCTIONS, annotation, baseline, gamed, outputs, written
from places import SHARED
from tiny_run import typed

from src.evaluation.alpaca_eval import files, scores
from src.evaluation.alpaca_eval.files import Gamed, HubFile, instruction_id, read_gamed, read_joined, write_json
from src.evaluation.alpaca_eval.scores import CS, Scores, choose_C, fit_glm, length_controlled, standardised
from src.experiment.graph import nodes_of
from src.kernel.config import UserError

OFFICIAL = SHARED / "alpaca_eval2"


def annotated(path: Path, preferences: list[float | None], **columns: Any) -> Path:
    rows = [annotation(one, p) | columns for one, p in zip(INSTRUCTIONS, preferences, strict=True)]
    return written(path, rows)


def score(path: Path, table: Path | None = None, base: Path | None = None, confidence: float = 0.95) -> Scores:
    return scores.scores(path, read_joined(path, base), read_gamed(table) if table else None, confidence)


@pytest.fixture
def six(monkeypatch: pytest.MonkeyPatch) -> None:
    """The made-up instructions are the official ones."""
    ids = tuple(instruction_id(one) for one in INSTRUCTIONS)
    monkeypatch.setattr(files, "official_ids", lambda: ids)


# Files -------------------------------------------------------------------------------------------------------------


def test_annotations_are_written_as_they_are_read_and_joined_on_the_instruction(tmp_path: Path) -> None:
    """0 is a tie of old files; NaN, null and the library's -1 are failures. The order of a file does not matter."""
    path = annotated(tmp_path / "a.json", [0, 1.5, math.nan, None, -1, 1.25])
    rows = files.read_annotations(path)
    assert [row.preference for row in rows] == [1.5, 1.5, None, None, None, 1.25]
    write_json(tmp_path / "b.json", rows)
    assert files.read_annotations(tmp_path / "b.json") == rows
    assert "NaN" not in (tmp_path / "b.json").read_text()
    ids = [instruction_id(one) for one in INSTRUCTIONS]
    assert files.joined(path, random.Random(0).sample(rows, 6), ids) == rows


MISTAKES: list[tuple[Callable[[list[Any]], Any], str]] = [
    (lambda rows: rows[:2] + rows[4:], "2 of 6 instructions missing, the first is number 2"),
    (lambda rows: [*rows, rows[1]], "2 rows have the instruction 'Made up 1"),
    (lambda rows: [rows[0] | {"instruction": rows[0]["instruction"] + " "}, *rows[1:]], "1 rows are no instruction"),
    (lambda rows: [rows[0] | {"preference": 2.5}, *rows[1:]], r"0.preference.*less than or equal to 2 \(got 2.5\)"),
    (lambda rows: [{"instruction": "x"}], "0.output_1: Field required"),
    (lambda rows: [rows[0] | {"output_1": "\ud83d"}, *rows[1:]], "Invalid JSON: .*hex escape"),
    (lambda rows: [rows[0] | {"annotator": "b"}, *rows[1:]], "annotator: b, weighted"),
    (lambda rows: [row | {"output_1": "c"} for row in rows], "6 rows is not the output of baseline"),
]


@pytest.mark.parametrize(("change", "line"), MISTAKES, ids=[line for _, line in MISTAKES])
def test_a_file_that_does_not_fit_is_named(change: Callable[[list[Any]], Any], line: str, tmp_path: Path) -> None:
    base = outputs(tmp_path / "base.json", ["a"] * 6)
    path = written(tmp_path / "made.json", change([annotation(one, 1.5) for one in INSTRUCTIONS]))
    with pytest.raises(UserError, match=rf"^{path}: .*{line}[^\n]*$"):
        read_joined(path, base)


@pytest.mark.usefixtures("six")
@pytest.mark.parametrize("lines", ["0,x,1,1", "0,,1,0", "0,1.5,1,0", "", "9,1,1,0"])
def test_a_table_of_gamed_baselines_that_cannot_be_used_is_named(lines: str, tmp_path: Path) -> None:
    head = "index,preference,std_delta_len,instruction_difficulty\n"
    rows = "".join(f"{i},0.5,1,0\n" for i in range(6 if lines else 5))
    (path := tmp_path / "gamed.csv").write_text(f"{head}{rows}{lines}\n")
    with pytest.raises(UserError, match=f"^{path}: "):
        read_gamed(path)


def test_a_file_of_the_hub_is_asked_for_by_name_and_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    file = HubFile(repo="tatsu-lab/alpaca_eval", name="df_gamed.csv", revision="abc", key="k.repo")
    download = Mock(side_effect=["/cache/x", LocalEntryNotFoundError("no network\nat all")])
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert file.fetch() == Path("/cache/x")
    download.assert_called_once_with("tatsu-lab/alpaca_eval", "df_gamed.csv", repo_type="dataset", revision="abc")
    with pytest.raises(UserError, match=r"^k.repo: df_gamed.csv of tatsu-lab/.* \(no network at all\); give"):
        file.fetch()


# Win rates ---------------------------------------------------------------------------------------------------------


def test_what_is_scored_without_length_control(tmp_path: Path) -> None:
    """Nothing but the annotations is needed; by hand: shares 1, 0.5, 0.25, 0, 0.25, and one failure."""
    path = annotated(tmp_path / "a.json", [2, 0, 1.25, 1, 1.25, None], output_1="é" * 3)
    base = outputs(tmp_path / "base.json", ["é" * 3] * 6)
    found, won = score(path, base=base), np.array([1, 0.5, 0.25, 0, 0.25])
    numbers, error = found.metrics, 100 * np.std(won, ddof=1) / math.sqrt(5)
    assert numbers["win_rate"] == pytest.approx(40) and numbers["standard_error"] == pytest.approx(error)
    assert numbers["win_rate_low"] == pytest.approx(40 - 1.959964 * error)
    assert numbers["win_rate_high"] == pytest.approx(40 + 1.959964 * error)
    counts = {"n_wins": 1, "n_wins_base": 3, "n_draws": 1, "n_total": 5, "items": 6, "failed": 1}
    counts |= {"avg_length": 2, "avg_length_baseline": 3, "discrete_win_rate": pytest.approx(30)}
    assert {name: numbers[name] for name in counts} == counts
    assert not [name for name in numbers if "length_controlled" in name or name.startswith("lc_")]
    assert [row["score"] for row in found.rows] == won.tolist() and found.fit is None
    assert [row["item_id"] for row in found.rows] == [instruction_id(one) for one in INSTRUCTIONS[:5]]
    with pytest.raises(UserError, match="failed on every row"):
        score(annotated(path, [None] * 6, output_1="é" * 3), base=base)


@pytest.mark.usefixtures("six")
def test_difficulty_follows_the_instruction_and_not_the_row(tmp_path: Path) -> None:
    """Rows in another order, and one that failed: the same predictions, and a mean over all six."""
    rows = [
        annotation(one, p, two="b" * n)
        for one, p, n in zip(INSTRUCTIONS, (2, 1, 1.75, None, 1.5, 1.1), (1, 5, 2, 9, 4, 7), strict=True)
    ]
    table = gamed(tmp_path / "gamed.csv", 6)
    found = score(written(tmp_path / "a.json", rows), table)
    assert score(written(tmp_path / "b.json", rows[::-1]), table) == found
    known, fitted = read_gamed(table).by_id, found.fit
    assert fitted is not None
    chances = {
        one: 1 / (1 + math.exp(-(fitted["difficulty"] * known[one] + fitted["model"])))
        for one in map(instruction_id, INSTRUCTIONS)
    }
    assert found.metrics["length_controlled_winrate"] == pytest.approx(100 * np.mean([*chances.values()]))
    shown = {row["item_id"]: row["glm_preference"] for row in found.rows}
    assert len(shown) == 5 and shown == pytest.approx({one: chances[one] for one in shown})


@pytest.mark.usefixtures("six")
def test_numbers_are_finite_whatever_was_judged(tmp_path: Path) -> None:
    """All won, all of one length, only one known."""
    table = gamed(tmp_path / "gamed.csv", 6)
    odd = (([2.0] * 6, "bb"), ([2, 1, 1.5, 2, 1, 1.25], "a"), ([1.5, *[None] * 5], "bb"))
    for preferences, output in odd:
        found = score(annotated(tmp_path / "a.json", list(preferences), output_2=output), table)
        assert all(map(math.isfinite, [*found.metrics.values(), *(found.fit or {}).values()]))
        assert "length_controlled_winrate_low" in found.metrics
    assert standardised(np.array([5.0, 7.0]), np.array([3.0, 5.0])).tolist() == [0, 0]


# Length control against slow twins ---------------------------------------------------------------------------------


def made_up(seed: int, count: int = 60) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, Gamed]:
    lots = np.random.default_rng(seed)
    difficulty, own = lots.normal(size=count), 1 + lots.beta(0.4, 0.6, count)
    own[lots.random(count) < 0.1] = np.nan
    both = Gamed(lots.random(2 * count), lots.normal(size=2 * count), np.tile(difficulty, 2), {})
    return own, lots.integers(1, 3000, count) * 1.0, lots.integers(1, 3000, count) * 1.0, difficulty, both


def rows_of(
    own: np.ndarray, len_1: np.ndarray, len_2: np.ndarray, difficulty: np.ndarray, both: Gamed
) -> list[np.ndarray]:
    """Features, targets and weights, one row at a time: the gamed ones first, those that failed left out."""
    z = (len_1 - len_2) / (len_1 - len_2).std(ddof=1)
    rows = [([np.tanh(g), d, 0], y, 0.1) for y, g, d in zip(*both[:3], strict=True)]
    rows += [([np.tanh(a), d, 1], y - 1, 1.0) for a, d, y in zip(z, difficulty, own, strict=True) if y == y]
    return [np.array(column) for column in zip(*rows, strict=True)]


@pytest.mark.parametrize(("seed", "C"), [(0, 0.05), (1, 1.0), (2, 21.5)])
def test_a_fit_is_the_minimum_of_its_objective(seed: int, C: float) -> None:
    """C Σ w log loss + |b|₁, minimised over b = p - n with p, n ≥ 0; at small C some coefficients are 0."""
    from scipy.optimize import minimize

    columns = made_up(seed)
    (x, y, w), (found, _) = rows_of(*columns), length_controlled(*columns, C)

    def objective(halves: np.ndarray) -> float:
        s = x @ (halves[:3] - halves[3:])
        return C * float(np.sum(w * (y * np.logaddexp(0, -s) + (1 - y) * np.logaddexp(0, s)))) + halves.sum()

    least = minimize(objective, np.full(6, 0.1), bounds=[(0, None)] * 6, method="L-BFGS-B", options={"ftol": 1e-15})
    assert found == pytest.approx(least.x[:3] - least.x[3:], abs=2e-3)


def test_the_penalty_is_the_best_on_rows_left_out() -> None:
    """By plain loops over folds and rows."""
    from sklearn.model_selection import GroupKFold

    columns = made_up(7, count=30)
    x, y, w = rows_of(*columns)
    losses = []
    for C in CS:
        means = []
        for kept, out in GroupKFold(5).split(x, groups=np.arange(len(y))):
            b, each = fit_glm(x[kept], y[kept], w[kept], C), []
            for i in out:
                p = 1 / (1 + np.exp(-float(x[i] @ b)))
                each.append(-w[i] * (y[i] * np.log(p) + (1 - y[i]) * np.log(1 - p)))
            means.append(np.mean(each))
        losses.append(np.mean(means))
    assert CS[int(np.argmin(losses))] == choose_C(x, y, w) == length_controlled(*columns)[1]


# The plan ----------------------------------------------------------------------------------------------------------

BENCHMARK = ["iter=0", "benchmark=alpaca_eval", "benchmark.alpaca_eval.length_control=false"]


def asking(place: Path, *more: str) -> list[str]:
    """Overrides of an evaluation on six made-up prompts, with answers of 8 tokens."""
    baseline(place / "repo" / "alpaca_eval_gpt4_baseline.json")
    words = [f"repo={place / 'repo'}", "decodings.default.max_new_tokens=8", *more]
    return [*BENCHMARK, *(f"benchmark.alpaca_eval.{word}" for word in words)]


def test_where_files_lie_moves_no_key_and_what_they_say_does(tmp_path: Path) -> None:
    def keys(*more: str, place: str = "a") -> dict[str, str]:
        return {node.name: node.key for node in nodes_of(typed(*asking(tmp_path / place, *more)))}

    usual = keys()
    assert {"alpaca_eval/questions", "base/alpaca_eval/annotations", "base/alpaca_eval/scores"} <= usual.keys()
    assert keys("judge.failed_share_limit=1.0", "of=[base]", place="b") == usual
    outputs(tmp_path / "other" / "alpaca_eval_gpt4_baseline.json", ["x"] * 6)
    for changed in (keys(f"repo={tmp_path / 'other'}"), keys("first=3")):
        assert {name for name in usual if changed[name] != usual[name]} == {name for name in usual if "alpaca" in name}


def test_a_mirror_is_a_folder_with_the_files(tmp_path: Path) -> None:
    """Nothing is fetched to plan: 805 are expected."""

    def rows(*words: str) -> int:
        return {node.name: node.rows for node in nodes_of(typed(*words))}["base/alpaca_eval/scores"]

    mirrored = [*BENCHMARK, f"mirror={tmp_path}/mirror/"]
    assert rows("iter=0", "benchmark=alpaca_eval") == 805
    baseline(tmp_path / "mirror/tatsu-lab/alpaca_eval/alpaca_eval_gpt4_baseline.json")
    assert rows(*mirrored) == 6


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("of=[it1]", ".of: this run has no policy it1; there are base"),
        ("repo=tests", ".repo: no file tests/alpaca_eval_gpt4_baseline.json"),
        ("decodings.default.K=2", ": decodings.default.K: must be 1"),
    ],
)
def test_a_mistake_is_a_line_before_any_work(word: str, line: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"^benchmark.alpaca_eval{line}"):
        nodes_of(typed(*asking(tmp_path), f"benchmark.alpaca_eval.{word}"))


# Official data -----------------------------------------------------------------------------------------------------


@pytest.mark.full
@pytest.mark.skipif(not OFFICIAL.is_dir(), reason="no ../shared/data/alpaca_eval2 beside this checkout")
@pytest.mark.parametrize("file", ["FuseChat-Gemma-2-9B-Instruct", "vicuna-7b-v1.5__with_glm_preference"])
def test_an_official_file_is_scored_offline(file: str, tmp_path: Path) -> None:
    """To what the leaderboard says; and the same when its rows are shuffled."""
    with (OFFICIAL / "leaderboard/weighted_alpaca_eval_gpt4_turbo_leaderboard.csv").open() as board:
        (said,) = [row for row in csv.DictReader(board) if row[""] == file.partition("__")[0]]
    table = OFFICIAL / "glm/df_gamed_surrogate_SYNTHETIC.csv"
    path = OFFICIAL / f"annotations/{file}.json"
    found = score(path, table, OFFICIAL / "model_outputs/gpt4_1106_preview.json").metrics
    for name, tolerance in (("win_rate", 1e-9), ("standard_error", 1e-9), ("length_controlled_winrate", 0.01)):
        assert found[name] == pytest.approx(float(said[name]), abs=tolerance), name
    assert found["items"] == found["n_total"] == 805
    rows = json.loads(path.read_text())
    random.Random(0).shuffle(rows)
    assert score(written(tmp_path / "shuffled.json", rows), table).metrics == found
