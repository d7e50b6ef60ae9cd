"""AlpacaEvalScores: what the leaderboard says of a model, from annotations.

In: annotations, and for the length-controlled win rate the gamed baselines. Out: a row a judged item, `metrics.json` in
percent and characters, and `glm.json` with what was fitted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pyarrow as pa

from src.evaluation.alpaca_eval import library
from src.evaluation.alpaca_eval.annotations import (
    ANNOTATIONS,
    Annotation,
    instruction_id,
    official_ids,
    read_annotations,
    read_joined,
    shortened,
)
from src.evaluation.alpaca_eval.gamed import GAMED, Control, read_gamed
from src.evaluation.alpaca_eval.length_control import (
    LengthControlled,
    length_controlled,
    of_baseline,
    resampled,
    version,
    win_rate,
)
from src.kernel.config import Confidence, UserError, config
from src.kernel.rows import Row, as_json, write_metrics, write_rows

LC = "length_controlled_winrate"
BASELINE_MODEL = "gpt4_1106_preview"
SCORES = pa.schema(
    {
        "item_id": pa.string(),  # the prompt_id
        "score": pa.float64(),  # from 0 (the baseline's output is better) to 1
        "glm_preference": pa.float64(),  # the same if both were as long, by the fit; null without it
        "len_1": pa.int64(),  # characters of the baseline's output
        "len_2": pa.int64(),
        "dataset": pa.string(),
        "instruction": pa.string(),
    }
)


class Scores(NamedTuple):
    metrics: dict[str, float]
    rows: list[Row]
    """SCORES rows; those on which the annotator failed are left out."""
    fit: dict[str, Any] | None
    """Coefficients of length, difficulty and model, and C; None: no length control."""


@config
class AlpacaEvalScores:
    kind: ClassVar[str] = "alpaca_eval_scores"
    version: ClassVar[int] = 1
    resumable: ClassVar[bool] = False

    confidence: Confidence
    """Of the intervals, such as 0.95."""

    def source_version(self) -> str:
        return version()

    def __call__(self, *inputs: Path, out: Path) -> None:
        annotations, *gamed = inputs
        path = annotations / ANNOTATIONS
        control = read_gamed(gamed[0] / GAMED) if gamed else None
        found = scores(path, read_annotations(path), control, self.confidence)
        write_rows(out, found.rows, SCORES)
        write_metrics(out, found.metrics)
        if found.fit:
            (out / "glm.json").write_text(as_json(found.fit))


def score_file(
    annotations: Path, gamed: Path | None = None, baseline: Path | None = None, confidence: float = 0.95
) -> Scores:
    """Of a file in the official format, without a policy, a key or the network.

    `gamed`: df_gamed.csv, without which there is no length-controlled win rate. `baseline`: outputs whose instructions
    are expected; the 805 of the leaderboard without it. Raises UserError for files that do not fit.
    """
    control = read_gamed(gamed) if gamed else None
    return scores(annotations, read_joined(annotations, baseline, None), control, confidence)


def scores(path: Path, rows: Sequence[Annotation], control: Control | None, confidence: float) -> Scores:
    """`path`: for messages. Raises UserError where there is too little to go by."""
    preferences = np.array([math.nan if row.preference is None else row.preference for row in rows])
    known = ~np.isnan(preferences)
    if not known.any():
        raise UserError(f"{path}: the annotator failed on every row; there is nothing to score")
    lengths = np.array([(len(row.output_1), len(row.output_2)) for row in rows], float)
    controlled, spread = _controlled(path, rows, preferences, lengths, control) if control else (None, None)
    return Scores(
        _metrics(preferences, lengths, rows, controlled, confidence) | _percentiles(spread, confidence),
        [_row(row, controlled, i) for i, row in enumerate(rows) if known[i]],
        _fitted(controlled) if controlled else None,
    )


def _controlled(
    path: Path, rows: Sequence[Annotation], preferences: np.ndarray, lengths: np.ndarray, control: Control
) -> tuple[LengthControlled, np.ndarray | None]:
    """And the win rates of resamples; None where nothing is fitted."""
    if rows[0].generator_1 == rows[0].generator_2:
        return of_baseline(len(rows)), None
    ids = [instruction_id(row.instruction) for row in rows]
    unknown = [row.instruction for row, one in zip(rows, ids, strict=True) if one not in control.difficulty]
    if unknown:
        raise UserError(
            f"{path}: the difficulty of {len(unknown)} instructions is not known, the first {shortened(unknown[0])}; "
            "it is of the 805 of the leaderboard alone, so score others without length control"
        )
    difficulty = np.array([control.difficulty[one] for one in ids])
    columns = (preferences, lengths[:, 0], lengths[:, 1], difficulty, control.gamed)
    found = length_controlled(*columns)
    return found, resampled(*columns, found.C)


def _metrics(
    preferences: np.ndarray,
    lengths: np.ndarray,
    rows: Sequence[Annotation],
    controlled: LengthControlled | None,
    confidence: float,
) -> dict[str, float]:
    found = win_rate(preferences)
    ids = {instruction_id(row.instruction) for row in rows}
    official = all(row.generator_1 == BASELINE_MODEL and row.annotator == library.ANNOTATOR for row in rows)
    numbers = {
        "win_rate": found.win_rate,
        **_interval("win_rate", found.win_rate, found.standard_error, confidence),
        "standard_error": found.standard_error,
        "avg_length": float(lengths[:, 1].mean()),
        "avg_length_baseline": float(lengths[:, 0].mean()),
        "n_wins": found.n_wins,
        "n_wins_base": found.n_wins_base,
        "n_draws": found.n_draws,
        "n_total": found.n_total,
        "discrete_win_rate": found.discrete_win_rate,
        "items": len(rows),
        "failed": len(rows) - found.n_total,
        "official_items": len(ids & set(official_ids())) if official else 0,
    }
    if controlled:
        numbers[LC] = controlled.win_rate
        numbers["lc_standard_error"] = controlled.standard_error
    return {name: value for name, value in numbers.items() if not math.isnan(value)}  # one item has no spread


def _interval(key: str, value: float, error: float, confidence: float) -> dict[str, float]:
    """Normal, of a mean with that standard error, within what a percentage can be; none where that is not known."""
    from scipy.stats import norm

    if math.isnan(error):
        return {}
    reach = float(norm.ppf((1 + confidence) / 2)) * error
    return {f"{key}_low": max(0.0, value - reach), f"{key}_high": min(100.0, value + reach)}


def _percentiles(spread: np.ndarray | None, confidence: float) -> dict[str, float]:
    """Of resamples, whose fits are as uncertain as ours; the leaderboard's standard error leaves that out."""
    if spread is None:
        return {}
    low, high = np.quantile(spread, [(1 - confidence) / 2, (1 + confidence) / 2])
    return {f"{LC}_low": float(low), f"{LC}_high": float(high)}


def _row(row: Annotation, controlled: LengthControlled | None, i: int) -> Row:
    assert row.preference is not None
    return {
        "item_id": instruction_id(row.instruction),
        "score": row.preference - 1,
        "glm_preference": float(controlled.predictions[i]) if controlled else None,
        "len_1": len(row.output_1),
        "len_2": len(row.output_2),
        "dataset": row.dataset,
        "instruction": row.instruction,
    }


def _fitted(controlled: LengthControlled) -> dict[str, Any]:
    names = ("length", "difficulty", "model")
    chosen = None if math.isnan(controlled.C) else controlled.C
    return dict(zip(names, map(float, controlled.coefficients), strict=True)) | {"C": chosen}
