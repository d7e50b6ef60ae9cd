"""The win-rate matrix: sums to one, blind to places, its bootstrap, the held-out evaluation's own numbers."""

from __future__ import annotations

import itertools
import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from made_up_rankings import NAN, sigma

from src import records
from src.config import UserError
from src.evaluation.held_out import HeldOutEvaluation
from src.evaluation.win_matrix.picture import MOST_REMARKS, _caption
from src.evaluation.win_matrix.scores import PICTURE, Matrix, WinMatrixScores, _answers, exact, longer_wins
from src.generation.merge import Merge
from src.records import Row
from src.win_probability import Estimator

PAIRWISE = Estimator(kind="pairwise", include_self=True, opponents="all", tau=1.0)
NAMES = ("base", "it1", "it2", "dpo")
STAGE = WinMatrixScores(
    names=NAMES, last="it2", judge="duel", estimator=PAIRWISE, confidence=0.95, resamples=500, seed=0
)


def answer(prompt: int, text: str) -> Row:
    said = {"text": text, "token_ids": [5] * (len(text) // 2 + 1), "finish_reason": "stop", "seed": 0, "source": "x"}
    chat = [{"role": "user", "content": f"question {prompt}"}]
    rest = {"source": "", "checks": "[]", "prompt_token_ids": [0], "responses": [said]}
    return {"prompt_id": f"p{prompt}", "messages": chat} | rest


def scored(prompt: int, scores: list[float], truncated: list[bool] | None = None) -> Row:
    return {"prompt_id": f"p{prompt}", "scores": scores, "truncated": truncated or [False] * len(scores)}


def compared(prompt: int, scores: list[float], first: float, chance: np.random.Generator | None = None) -> Row:
    """Directed logits; `first`: by how much what is shown first is liked more."""
    noise = chance.normal(size=(len(scores),) * 2) if chance else np.zeros((len(scores),) * 2)
    logits = [
        [NAN if i == j else a - b + first + noise[i, j] for j, b in enumerate(scores)] for i, a in enumerate(scores)
    ]
    return {"prompt_id": f"p{prompt}", "logits": logits, "scores": None, "truncated": [False] * len(scores)}


def written(folder: Path, rows: list[Row], schema: Any) -> Path:
    folder.mkdir(parents=True)
    records.write_rows(folder, rows, schema)
    return folder


class Made:
    """What the stage makes of a ranking, and of texts by prompt and policy."""

    def __init__(
        self, folder: Path, ranking: list[Row], texts: list[list[str]] | None = None, stage: WinMatrixScores = STAGE
    ) -> None:
        m = len(stage.names)
        texts = texts or [[f"{name} says {p}" for name in stage.names] for p in range(len(ranking))]
        self.parts = [
            written(folder / f"answers{i}", [answer(p, own[i]) for p, own in enumerate(texts)], records.RESPONSES)
            for i in range(m)
        ]
        for place in ("merged", "out"):
            (folder / place).mkdir()
        Merge()(*self.parts, out=folder / "merged")
        self.ranking, self.out = written(folder / "ranking", ranking, records.RANKING), folder / "out"
        stage(folder / "merged", self.ranking, out=self.out)
        self.metrics: dict[str, Any] = json.loads((self.out / "metrics.json").read_text())
        self.rows: list[Row] = pq.read_table(self.out / records.ROWS).to_pylist()


def random_ranking(prompts: int, m: int = 4, first: float = 0.0) -> list[Row]:
    chance = np.random.default_rng()
    return [compared(p, chance.normal(np.arange(m) / 3, 1.0).tolist(), first, chance) for p in range(prompts)]


def naive(ranking: list[Row], i: int, j: int) -> float:
    """Mean over the prompts of sigma of half the difference of both orders."""
    found = [sigma((row["logits"][i][j] - row["logits"][j][i]) / 2) for row in ranking]
    return sum(found) / len(found)


def test_it_sums_to_one_exactly_and_is_the_naive_mean(tmp_path: Path) -> None:
    made = Made(tmp_path, ranking := random_ranking(37))
    for i, j in itertools.permutations(range(4), 2):
        key, back = f"{NAMES[i]}_over_{NAMES[j]}", f"{NAMES[j]}_over_{NAMES[i]}"
        assert made.metrics[key] == pytest.approx(naive(ranking, i, j), abs=1e-12)
        assert made.metrics[key] + made.metrics[back] == 1
        assert made.metrics[f"{key}_low"] + made.metrics[f"{back}_high"] == 1
        assert made.metrics[f"{key}_low"] <= made.metrics[key] <= made.metrics[f"{key}_high"]
    assert made.metrics["items"] == 37 == len(made.rows)
    for key in ("win", "win_low", "win_high"):
        assert made.metrics[key] == made.metrics[key.replace("win", "it2_over_base")]
    for row, ranked in zip(made.rows, ranking, strict=True):
        assert row["item_id"] == ranked["prompt_id"] and row["score"] == row["it2_over_base"]
        assert row["dpo_over_it1"] == pytest.approx(naive([ranked], 3, 1), abs=1e-12)


def test_whatever_matrix_it_is_given_exactly_one_comes_out() -> None:
    """Where sigma(x) + sigma(-x) is a digit off, which it often is."""
    chance, off = np.random.default_rng(), 0
    for _ in range(200):
        matrix = PAIRWISE.matrix(compared(0, chance.normal(size=8).tolist(), 0.0))
        off += bool((matrix + matrix.T != 1).any())
        assert (exact(matrix) + exact(matrix).T == 1).all() and (np.diag(exact(matrix)) == 0.5).all()
        np.testing.assert_array_equal(np.tril(exact(matrix), -1), np.tril(matrix, -1))
    assert off, "else there is nothing to mend"


def test_a_ranker_that_only_likes_what_it_sees_first_says_a_half(tmp_path: Path) -> None:
    made = Made(tmp_path, [compared(p, [0.0] * 4, first=8.0) for p in range(9)])
    pairs = [f"{a}_over_{b}" for a, b in itertools.permutations(NAMES, 2)]
    assert [made.metrics[key] for key in pairs] == [0.5] * 12
    assert [made.metrics[f"{key}_low"] for key in pairs] == [0.5] * 12


def test_a_liking_for_the_first_place_changes_nothing(tmp_path: Path) -> None:
    plain = random_ranking(11)
    liked = [{**row, "logits": (np.array(row["logits"]) + 5.0).tolist()} for row in plain]
    one, other = (Made(tmp_path / name, rows) for name, rows in (("plain", plain), ("liked", liked)))
    assert one.metrics == pytest.approx(other.metrics)


def exhaustive(values: list[float], confidence: float) -> tuple[float, float]:
    """The bootstrap itself: every one of the n^n resamples once."""
    means = [sum(resample) / len(values) for resample in itertools.product(values, repeat=len(values))]
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


@pytest.mark.parametrize("confidence", [0.5, 0.95])
def test_its_bootstrap_is_that_of_all_resamples(confidence: float) -> None:
    """6^6 = 46,656 means of fresh values; 20,000 drawn ones have their quantiles within a few percent."""
    values = np.random.default_rng().random(6)
    stage = replace(STAGE, confidence=confidence, resamples=20_000)
    found, expected = stage._interval(values), exhaustive(values.tolist(), confidence)
    assert found == pytest.approx(expected, abs=0.04 * float(np.ptp(values)))
    assert found == stage._interval(values)


def test_another_seed_draws_other_resamples() -> None:
    values = np.random.default_rng(3).random(40)
    assert STAGE._interval(values) != replace(STAGE, seed=STAGE.seed + 1)._interval(values)


def test_the_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    """200 experiments of 100 prompts at 90 %: between 82 % and 97 % hold it (4 standard deviations)."""
    chance, stage = np.random.default_rng(0), replace(STAGE, confidence=0.9, resamples=400)
    intervals = [stage._interval(chance.beta(2, 3, 100)) for _ in range(200)]
    assert 0.82 < np.mean([low <= 0.4 <= high for low, high in intervals]) < 0.97


def test_one_prompt_says_nothing_and_equal_ones_are_a_point(tmp_path: Path) -> None:
    assert STAGE._interval(np.array([0.7])) == (0.0, 1.0)
    assert STAGE._interval(np.full(7, 0.3)) == (0.3, 0.3)
    assert Made(tmp_path, random_ranking(1)).metrics["win_high"] == 1


@pytest.mark.parametrize("judged", ["scores", "logits"])
def test_it_says_what_the_held_out_evaluation_says(judged: str, tmp_path: Path) -> None:
    """Of the same answers, ranker and estimator: win_over_base and win_over_previous, prompt by prompt."""
    chance = np.random.default_rng()
    stage = replace(STAGE, names=("it2", "it1", "base", "null"), estimator=replace(PAIRWISE, tau=0.3))
    scores = chance.normal(size=(8, 4)).tolist()
    rank = scored if judged == "scores" else lambda p, own: compared(p, own, 2.0)
    made = Made(tmp_path / "matrix", [rank(p, own) for p, own in enumerate(scores)], stage=stage)
    if judged == "logits":
        rankings = [made.ranking]
    else:
        apart = [[scored(p, [own[i]]) for p, own in enumerate(scores)] for i in range(4)]
        rankings = [written(tmp_path / f"apart{i}", rows, records.RANKING) for i, rows in enumerate(apart)]
    (tmp_path / "held_out").mkdir()
    HeldOutEvaluation(confidence=0.95, estimator=stage.estimator)(*made.parts, *rankings, out=tmp_path / "held_out")
    told = json.loads((tmp_path / "held_out/metrics.json").read_text())
    for key, ours in (("win_over_base", "it2_over_base"), ("win_over_previous", "it2_over_it1")):
        assert made.metrics[ours] == pytest.approx(told[key], abs=1e-12)
    theirs = pq.read_table(tmp_path / "held_out" / records.ROWS).column("win_over_base").to_pylist()
    assert [1 - row["base_over_it2"] for row in made.rows] == pytest.approx(theirs, abs=1e-12)


def test_lengths_truncation_and_who_goes_by_length_are_told(tmp_path: Path) -> None:
    """Scores are lengths in tens, so the longer always wins; the first prompt's answers are equal of base and it1."""
    texts = [["a" * 10, "a" * 10, "b" * 30, "c" * 20], ["d" * 20, "e" * 10, "f" * 50, "c" * 20]]
    rows = [
        scored(p, [len(text) / 10 for text in own], [len(text) > 25 for text in own]) for p, own in enumerate(texts)
    ]
    metrics = Made(tmp_path, rows, texts).metrics
    assert [metrics[f"{name}_characters"] for name in NAMES] == [15, 10, 40, 20]
    assert [metrics[f"{name}_tokens"] for name in NAMES] == [8.5, 6, 21, 11]
    assert [metrics[f"{name}_truncated"] for name in NAMES] == [0, 0, 1, 0]
    assert [metrics[f"{name}_distinct"] for name in NAMES] == [2, 2, 2, 1]
    assert metrics["it1_same_as_base"] == 0.5 and metrics["dpo_same_as_it2"] == 0
    gaps = [abs(a - b) / 10 for own in texts for a, b in itertools.combinations(map(len, own), 2) if a != b]
    assert metrics["longer_wins"] == pytest.approx(sum(map(sigma, gaps)) / len(gaps)) and metrics["longer_wins"] > 0.8


def test_where_all_are_equally_long_nothing_is_said_of_length() -> None:
    assert longer_wins(np.full((3, 2, 2), 0.7), np.full((3, 2), 9.0)) is None


def test_the_scores_of_a_policy_that_comes_first_are_against_the_second(tmp_path: Path) -> None:
    """The start policy alone beside other checkpoints."""
    made = Made(tmp_path, random_ranking(5), stage=replace(STAGE, last="base"))
    assert made.metrics["win"] == made.metrics["base_over_it1"]
    assert [row["score"] for row in made.rows] == [1 - row["it1_over_base"] for row in made.rows]


def test_a_ranking_of_other_prompts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="ranks other prompts than"):
        Made(tmp_path, random_ranking(3)[::-1])


@pytest.mark.full
@pytest.mark.parametrize("m", [2, 10])
def test_the_picture_is_the_same_bytes_and_grows_with_the_policies(m: int, tmp_path: Path) -> None:
    import matplotlib

    stage = replace(STAGE, names=tuple(f"policy_number_{i}" for i in range(m)), last="policy_number_1")
    ranking = random_ranking(12, m)
    one = Made(tmp_path / "one", ranking, stage=stage)
    with matplotlib.rc_context({"font.size": 30, "savefig.dpi": 11, "image.cmap": "gray"}):
        other = Made(tmp_path / "other", ranking, stage=stage)
    assert (one.out / PICTURE).read_bytes() == (other.out / PICTURE).read_bytes()
    width, height = struct.unpack(">II", (one.out / PICTURE).read_bytes()[16:24])
    assert width > 150 * m and height > 120 * m


def caption(texts: list[list[str]]) -> list[str]:
    """The lines under the picture."""
    stage, m = replace(STAGE, names=NAMES[: len(texts[0])], last="it1"), len(texts[0])
    rows = [{"responses": [{"text": text, "token_ids": [1]} for text in own]} for own in texts]
    answers = _answers(rows, [scored(p, [0.0] * m) for p in range(len(texts))])
    columns = np.array(texts, dtype=object)
    same = (columns[:, :, None] == columns[:, None, :]).mean(0)
    return _caption(stage, Matrix(same, same, same, same), answers, 0.75)


def test_few_different_answers_are_remarked_on_below_the_picture() -> None:
    different = [[f"{p} of base", f"{p} of it1"] for p in range(20)]
    plain = [
        "20 held-out prompts; 95% intervals: bootstrap over the prompts",
        "The longer of two answers (in characters) wins with 0.750",
    ]
    assert caption(different) == plain
    alike = [["same", "same"] if p < 5 else own for p, own in enumerate(different)]
    assert caption(alike) == [
        *plain,
        "base: only 16 different answers to 20 prompts",
        "it1: only 16 different answers to 20 prompts",
        "it1 and base: the same answer to 25% of the prompts, a half each",
    ]
    collapsed = caption([["no"] * 4] * 20)
    assert len(collapsed) == 2 + MOST_REMARKS + 1 and collapsed[-1] == "… and 6 more such remarks"
