"""Win rates, with length control and without: the official leaderboard again, the library, and plain minimisation."""

from __future__ import annotations

import csv
import gzip
import json
from collections import defaultdict
from collections.abc import Callable
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from alpaca_eval_made_up import GAMED, SHARED, quiet_library, real

from src.config import fingerprint
from src.evaluation.alpaca_eval import length_control
from src.evaluation.alpaca_eval.annotations import official_ids
from src.evaluation.alpaca_eval.gamed import read_gamed
from src.evaluation.alpaca_eval.length_control import (
    CS,
    Gamed,
    LengthControlled,
    length_controlled,
    predict,
    win_rate,
)
from src.evaluation.alpaca_eval.score import AlpacaEvalScores

BASELINE = "gpt4_1106_preview"


def test_a_new_scikit_learn_fits_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is part of the scores' key, found without importing it; where it is not there, numbers without it are."""
    told = []
    for found in ("1.9.0", "1.10.0", None):
        monkeypatch.setattr(length_control.metadata, "version", _installed(found))
        length_control.version.cache_clear()
        told.append(fingerprint(AlpacaEvalScores(confidence=0.95)))
    length_control.version.cache_clear()
    assert [one.pop("source_version") for one in told] == [
        *("scikit-learn 1.9.0", "scikit-learn 1.10.0", "no scikit-learn")
    ]
    assert told[0] == told[1] == told[2]


def _installed(version: str | None) -> Callable[[str], str]:
    def find(name: str) -> str:
        if version is None:
            raise metadata.PackageNotFoundError(name)
        return version

    return find


COUNTS = {"alpaca-7b_concise": 804, "alpaca-7b_verbose": 802, "gpt35_turbo_instruct": 804, "phi-2": 803}
"""Instructions of official files in which some are missing; the leaderboard's length control of these is shifted."""
ROUNDED = {"NullModel": 2e-10}
"""The copy of its preferences is rounded to ten digits."""
OTHER_COEFFICIENTS = {"dbrx-instruct": 0.2, "NullModel": 0.14, "zephyr-7b-alpha-ExPO": 4e-8}
"""Saved at another time than the leaderboard's number, which they miss by less than this."""
WITHOUT_ROWS = {
    "alpaca-7b_concise",
    "alpaca-7b_verbose",
    "gpt35_turbo_instruct",
    "llama-2-70b-chat-hf",
    "minotaur-13b",
    "phi-2",
    "platolm-7b",
    "text_davinci_001",
}
"""Their length control is shifted: by the library's join each row has the difficulty of the place where it stands."""
STRONG, WEAKER, WEAKEST = "2.78", "21.5", "at least 167"
"""Penalties that cross-validation chose for the leaderboard, as the numbers tell; they are not published."""
PENALTIES = {
    STRONG: (
        "FuseChat-Gemma-2-9B-Instruct FuseChat-Qwen-2.5-7B-Instruct claude claude-2.1 falcon-7b-instruct gemma-7b-it "
        "gpt-3.5-turbo-0301 gpt-3.5-turbo-1106 gpt35_turbo_instruct humpback-llama2-70b oasst-rlhf-llama-33b phi-2 "
        "pythia-12b-mix-sft"
    ),
    WEAKER: (
        "NullModel alpaca-7b baize-v2-13b falcon-40b-instruct jina-chat oasst-sft-llama-33b openbuddy-llama-30b-v7.1 "
        "phi-2-sft vicuna-7b-v1.5"
    ),
    WEAKEST: (
        "alpaca-7b_concise alpaca-7b_verbose gemma-2b-it gpt4_gamed minichat-3b oasst-sft-pythia-12b ultralm-13b "
        "wizardlm-13b"
    ),
}
C_OF = {STRONG: CS[5], WEAKER: CS[6], WEAKEST: CS[8]}


def _table(path: Path) -> list[dict[str, str]]:
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        return list(csv.DictReader(file))


@cache
def leaderboard() -> dict[str, dict[str, float]]:
    rows = _table(SHARED / "leaderboard/weighted_alpaca_eval_gpt4_turbo_leaderboard.csv")
    numbers = {row[""]: {k: v for k, v in row.items() if k not in ("", "mode")} for row in rows}
    return {name: {k: float(v) for k, v in row.items() if v} for name, row in numbers.items()}


class Judged:
    """Annotations of one model, in the order of the official file."""

    def __init__(self, rows: list[dict[str, str]]) -> None:
        rows = sorted(rows, key=lambda row: int(row["row"]))
        column = lambda name: np.array([float(row[name]) for row in rows])  # noqa: E731
        self.preference, self.len_1, self.len_2 = column("preference"), column("len_1"), column("len_2")
        self.index = column("prompt_index").astype(int)

    def controlled(self, C: float | None = None, by_position: bool = False) -> LengthControlled:
        gamed, difficulty = control()
        at = np.arange(len(self.index)) if by_position else self.index
        return length_controlled(self.preference, self.len_1, self.len_2, difficulty[at], gamed, C)


@cache
def judged() -> dict[str, Judged]:
    models = defaultdict(list)
    for row in _table(SHARED / "annotations_slim.csv.gz"):
        models[row["model"]].append(row)
    return {name: Judged(rows) for name, rows in models.items() if name in leaderboard()}


@cache
def control() -> tuple[Gamed, np.ndarray]:
    found = read_gamed(GAMED)
    return found.gamed, np.array([found.difficulty[one] for one in official_ids()])


@real
def test_win_rates_of_the_leaderboard() -> None:
    """Rows that official files lack are not counted as anything."""
    assert len(judged()) == 31
    for name, own in judged().items():
        found, official = win_rate(own.preference), leaderboard()[name]
        assert len(own.preference) == COUNTS.get(name, 805)
        for key in found._fields:
            assert getattr(found, key) == pytest.approx(official[key], abs=ROUNDED.get(name, 1e-10), rel=0), (name, key)
        if name not in COUNTS:  # the leaderboard takes the length of all outputs, and cuts off what is behind the point
            assert int(own.len_2.mean()) == official["avg_length"]


@real
def test_length_controlled_win_rates_from_saved_coefficients() -> None:
    """188 of 199 to 1e-8; the eleven others are known, and eight of them are what the library's join makes of them."""
    _, difficulty = control()
    exact = set()
    for row in _table(SHARED / "glm/length_controlled_v1_baseline_gpt4_1106_preview.csv"):
        official = leaderboard().get(name := row.pop(""), {})
        if "length_controlled_winrate" not in official:
            continue
        saved = np.array([float(value) for value in row.values()])
        found = length_control._of(predict(saved, difficulty), saved, 0.0)
        miss = abs(found.win_rate - official["length_controlled_winrate"])
        if name in WITHOUT_ROWS:
            shifted = length_control._of(predict(saved, difficulty[: int(official["n_total"])]), saved, 0.0)
            assert shifted.win_rate == pytest.approx(official["length_controlled_winrate"], abs=1e-8, rel=0)
        elif name in OTHER_COEFFICIENTS:
            assert 1e-8 < miss < OTHER_COEFFICIENTS[name]
        else:
            assert miss < 1e-8, name
            error = official.get("lc_standard_error", found.standard_error)
            assert found.standard_error == pytest.approx(error, abs=1e-8, rel=0)
            exact.add(name)
    assert len(exact) == 188 and {"SPPO-Gemma-2-9B-It-PairRM", "SPPO-Mistral7B-PairRM", "gemma-2-9b-it-WPO-HB"} <= exact


@real
@pytest.mark.full
def test_the_fit_at_a_fixed_penalty_is_the_leaderboards() -> None:
    """Within 0.002; with the rows that files lack put where the library has them."""
    models = {name: penalty for penalty, names in PENALTIES.items() for name in names.split()}
    assert models.keys() == judged().keys() - {BASELINE}
    for name, penalty in models.items():
        own = judged()[name].controlled(C_OF[penalty], by_position=name in COUNTS)
        assert own.win_rate == pytest.approx(leaderboard()[name]["length_controlled_winrate"], abs=2e-3, rel=0), name


@real
def test_difficulty_by_position_would_shift_a_model_without_a_row() -> None:
    """Row 409 is missing: every later one would get the difficulty of the instruction before it."""
    model, official = judged()["gpt35_turbo_instruct"], leaderboard()["gpt35_turbo_instruct"]
    assert set(range(805)) - set(model.index) == {409}
    aligned, shifted = (model.controlled(C_OF[STRONG], by_position).win_rate for by_position in (False, True))
    assert shifted == pytest.approx(official["length_controlled_winrate"], abs=2e-3)
    assert aligned == pytest.approx(14.96, abs=0.01)


@real
@pytest.mark.full
def test_the_cross_validated_fit_is_within_what_versions_of_scikit_learn_differ() -> None:
    """With a stand-in for the rows of the gamed baselines: another C may win than did on the official ones."""
    whole = judged().keys() - COUNTS.keys() - {BASELINE}
    assert len(whole) == 26
    for name in whole:
        own = judged()[name].controlled()
        assert own.win_rate == pytest.approx(leaderboard()[name]["length_controlled_winrate"], abs=0.16, rel=0), name
        assert own.C in (CS[5], CS[6]), name


@real
@pytest.mark.full
@pytest.mark.parametrize("file", ["FuseChat-Gemma-2-9B-Instruct", "vicuna-7b-v1.5__with_glm_preference"])
def test_the_library_says_the_same(file: str) -> None:
    """Given the same stand-in, of files that lack no row and are in the canonical order."""
    found, predicted = _of_library(SHARED / f"annotations/{file}.json")
    own = judged()[file.partition("__")[0]]
    controlled = own.controlled()
    assert controlled.win_rate == pytest.approx(found["length_controlled_winrate"], abs=1e-8)
    assert controlled.standard_error == pytest.approx(found["lc_standard_error"], abs=1e-8)
    assert controlled.predictions == pytest.approx(predicted, abs=1e-10)


@real
def test_predictions_of_the_official_annotations() -> None:
    """The file of vicuna-7b-v1.5 carries those of the leaderboard's fit."""
    file = SHARED / "annotations/vicuna-7b-v1.5__with_glm_preference.json"
    official = np.array([row["glm_preference"] for row in json.loads(file.read_text())])
    assert judged()["vicuna-7b-v1.5"].controlled(C_OF[WEAKER]).predictions == pytest.approx(official, abs=1e-4)


def _of_library(annotations: Path) -> tuple[dict[str, float], np.ndarray]:
    """Its numbers, and its prediction of each row."""
    with quiet_library(), pytest.MonkeyPatch.context() as patch:
        import pandas as pd
        import sklearn
        from alpaca_eval.metrics import glm_winrate

        patch.setattr(glm_winrate, "hf_hub_download", lambda **_: str(GAMED))
        rows: Any = pd.read_json(annotations)
        with sklearn.config_context():
            return glm_winrate.get_length_controlled_winrate(rows, save_weights_dir=None), rows["glm_preference"].values
