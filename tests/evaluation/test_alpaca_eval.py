"""AlpacaEval's files, win rates, length control and plan. Judging is in test_alpaca_eval_judging."""

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
from alpaca_eval_made_up import INSTRUCTIONS, outputs
from places import SHARED
from tiny_run import typed

from src.evaluation.alpaca_eval import files, scores
from src.evaluation.alpaca_eval.files import Annotation, Gamed, HubFile, instruction_id, read_gamed, read_official
from src.evaluation.alpaca_eval.scores import CS, choose_C, fit_glm, length_controlled
from src.experiment.graph import nodes_of
from src.kernel.config import UserError

OFFICIAL = SHARED / "alpaca_eval2"
IDS = tuple(map(instruction_id, INSTRUCTIONS))


def annotated(path: Path, preferences: list[float | None], lengths: tuple[int, ...] = (2,) * 6) -> list[dict[str, Any]]:
    """Rows of a file of annotations, which is written to `path`; the baseline's outputs have one letter."""
    rows = [
        Annotation(one, "a", "baseline", "made_up", "b" * n, "model", "judge", p).__dict__
        for one, p, n in zip(INSTRUCTIONS, preferences, lengths, strict=True)
    ]
    path.write_text(json.dumps(rows))
    return rows


def score(path: Path, table: Path | None = None, ids: tuple[str, ...] = IDS) -> Any:
    """Metrics, rows and the fit of a file of annotations."""
    rows = files.joined(path, read_official(path, Annotation), ids)
    return scores.scores(path, rows, read_gamed(table) if table else None, 0.95)


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file like df_gamed.csv of two gamed baselines, with random numbers; its instructions are the made-up ones."""
    monkeypatch.setattr(files, "official_ids", lambda: IDS)
    lots = np.random.default_rng(0)
    difficulty = lots.normal(size=6)
    rows = [f"{i},{lots.random()},{lots.normal()},{difficulty[i]}" for _ in range(2) for i in range(6)]
    path = tmp_path / "df_gamed.csv"
    path.write_text("\n".join(["index,preference,std_delta_len,instruction_difficulty", *rows]))
    return path


# Files -------------------------------------------------------------------------------------------------------------


def test_annotations_are_written_as_they_are_read_and_joined_on_the_instruction(tmp_path: Path) -> None:
    """0 is a tie of old files; NaN, null and the library's -1 are failures. The order of a file does not matter."""
    path = tmp_path / "a.json"
    annotated(path, [0, 1.5, math.nan, None, -1, 1.25])
    rows = read_official(path, Annotation)
    assert [row.preference for row in rows] == [1.5, 1.5, None, None, None, 1.25]
    files.write_json(path, rows)
    assert read_official(path, Annotation) == rows and "NaN" not in path.read_text()
    assert files.joined(path, random.Random(0).sample(rows, 6), IDS) == rows


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda rows: rows[:2] + rows[4:], "2 of 6 instructions missing, the first is number 2"),
        (lambda rows: [*rows, rows[1]], "2 rows have the instruction 'Made up 1"),
        (lambda rows: [rows[0] | {"instruction": "other"}, *rows[1:]], "1 rows are no instruction"),
        (lambda rows: [rows[0] | {"preference": 2.5}, *rows[1:]], r"0.preference.*less than or equal to 2 \(got 2.5\)"),
        (lambda rows: [{"instruction": "x"}], "0.output_1: Field required"),
        (lambda rows: [rows[0] | {"output_1": "\ud83d"}, *rows[1:]], "Invalid JSON: .*hex escape"),
    ],
)
def test_a_file_that_does_not_fit_is_named(change: Callable[[list[Any]], Any], line: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(change(annotated(path, [1.5] * 6))))
    with pytest.raises(UserError, match=rf"^{path}: .*{line}[^\n]*$"):
        score(path)


@pytest.mark.parametrize("line", ["0,x,1,1", "0,,1,0", "0,1.5,1,0", "9,1,1,0"])
def test_a_table_of_gamed_baselines_that_cannot_be_used_is_named(line: str, table: Path) -> None:
    table.write_text(f"{table.read_text()}\n{line}\n")
    with pytest.raises(UserError, match=f"^{table}: "):
        read_gamed(table)


def test_a_file_of_the_hub_is_asked_for_by_name_and_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    file = HubFile(repo="tatsu-lab/alpaca_eval", name="df_gamed.csv", revision="abc", key="k.repo")
    download = Mock(side_effect=["/cache/x", LocalEntryNotFoundError("no network\nat all")])
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert file.fetch() == Path("/cache/x")
    download.assert_called_once_with("tatsu-lab/alpaca_eval", "df_gamed.csv", repo_type="dataset", revision="abc")
    with pytest.raises(UserError, match=r"^k.repo: df_gamed.csv of tatsu-lab/.* \(no network at all\)"):
        file.fetch()


# Win rates ---------------------------------------------------------------------------------------------------------


def test_win_rates_without_length_control(tmp_path: Path) -> None:
    """By hand: shares 1, 0.5, 0.25, 0, 0.25, and one failure."""
    path = tmp_path / "a.json"
    annotated(path, [2, 0, 1.25, 1, 1.25, None])
    numbers, rows, fit = score(path)
    won = np.array([1, 0.5, 0.25, 0, 0.25])
    error = 100 * np.std(won, ddof=1) / math.sqrt(5)
    assert numbers == pytest.approx(
        {"win_rate": 40, "win_rate_low": 40 - 1.959964 * error, "win_rate_high": 40 + 1.959964 * error}
        | {"standard_error": error, "discrete_win_rate": 30, "avg_length": 2, "avg_length_baseline": 1}
        | {"n_wins": 1, "n_wins_base": 3, "n_draws": 1, "n_total": 5, "items": 6, "failed": 1}
    )
    assert [row["score"] for row in rows] == won.tolist() and not fit
    assert [row["item_id"] for row in rows] == list(IDS[:5])
    annotated(path, [None] * 6)
    with pytest.raises(UserError, match="failed on every row"):
        score(path)


def test_difficulty_follows_the_instruction_and_not_the_row(table: Path, tmp_path: Path) -> None:
    """Rows in another order, and one that failed: the same predictions, and a mean over all six."""
    path = tmp_path / "a.json"
    rows = annotated(path, [2, 1, 1.75, None, 1.5, 1.1], (1, 5, 2, 9, 4, 7))
    numbers, items, fit = score(path, table)
    path.write_text(json.dumps(rows[::-1]))
    assert score(path, table) == (numbers, items, fit)
    known = read_gamed(table).by_id
    chances = {one: 1 / (1 + math.exp(-(fit["difficulty"] * known[one] + fit["model"]))) for one in IDS}
    assert numbers["length_controlled_winrate"] == pytest.approx(100 * np.mean([*chances.values()]))
    predictions = {row["item_id"]: row["glm_preference"] for row in items}
    assert len(predictions) == 5 and predictions == pytest.approx({one: chances[one] for one in predictions})
    with pytest.raises(UserError, match="the difficulty of 6 instructions is not known"):
        scores.scores(path, read_official(path, Annotation), read_gamed(table)._replace(by_id={}), 0.95)


@pytest.mark.parametrize(
    ("preferences", "length"), [([2.0] * 6, 2), ([2, 1, 1.5, 2, 1, 1.25], 1), ([1.5, *[None] * 5], 2)]
)
def test_numbers_are_finite_whatever_was_judged(
    preferences: list[float | None], length: int, table: Path, tmp_path: Path
) -> None:
    """All won, all of one length, only one known."""
    annotated(tmp_path / "a.json", preferences, (length,) * 6)
    numbers, _, fit = score(tmp_path / "a.json", table)
    assert all(map(math.isfinite, [*numbers.values(), *fit.values()]))
    assert "length_controlled_winrate_low" in numbers


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


def planned(place: Path, *words: str, texts: str = "so it is") -> dict[str, Any]:
    """The nodes of an evaluation of the start policy on the six made-up prompts."""
    outputs(place / "alpaca_eval_gpt4_baseline.json", [texts] * 6)
    words = tuple(f"benchmark.alpaca_eval.{word}" for word in (f"repo={place}", "length_control=false", *words))
    return {node.name: node for node in nodes_of(typed("iter=0", "benchmark=alpaca_eval", *words))}


def test_where_files_lie_moves_no_key_and_what_they_say_does(tmp_path: Path) -> None:
    usual = {name: node.key for name, node in planned(tmp_path / "a").items()}
    free = planned(tmp_path / "b", "judge.failed_share_limit=1.0", "of=[base]")
    assert {name: node.key for name, node in free.items()} == usual
    assert free["base/alpaca_eval/scores"].rows == 6
    for changed in (planned(tmp_path / "c", texts="other"), planned(tmp_path / "a", "first=3")):
        moved = {name for name in usual if changed[name].key != usual[name]}
        assert moved == {name for name in usual if "alpaca" in name} and len(moved) == 5


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("repo=tests", ".repo: no file tests/alpaca_eval_gpt4_baseline.json"),
        ("decodings.default.K=2", ": decodings.default.K: must be 1"),
    ],
)
def test_a_mistake_is_a_line_before_any_work(word: str, line: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"^benchmark.alpaca_eval{line}"):
        planned(tmp_path, word)


# Official data -----------------------------------------------------------------------------------------------------


@pytest.mark.full
@pytest.mark.skipif(not OFFICIAL.is_dir(), reason="no ../shared/data/alpaca_eval2 beside this checkout")
@pytest.mark.parametrize("file", ["FuseChat-Gemma-2-9B-Instruct", "vicuna-7b-v1.5__with_glm_preference"])
def test_an_official_file_is_scored_offline(file: str, tmp_path: Path) -> None:
    """To the leaderboard's numbers; and the same when its rows are shuffled."""
    with (OFFICIAL / "leaderboard/weighted_alpaca_eval_gpt4_turbo_leaderboard.csv").open() as board:
        (expected,) = [row for row in csv.DictReader(board) if row[""] == file.partition("__")[0]]
    table, path = OFFICIAL / "glm/df_gamed_surrogate_SYNTHETIC.csv", OFFICIAL / f"annotations/{file}.json"
    numbers, *_ = score(path, table, files.official_ids())
    for name, tolerance in (("win_rate", 1e-9), ("standard_error", 1e-9), ("length_controlled_winrate", 0.01)):
        assert numbers[name] == pytest.approx(float(expected[name]), abs=tolerance), name
    assert numbers["items"] == numbers["n_total"] == 805
    rows = json.loads(path.read_text())
    random.Random(0).shuffle(rows)
    (shuffled := tmp_path / "shuffled.json").write_text(json.dumps(rows))
    assert score(shuffled, table, files.official_ids())[0] == numbers
