"""What AlpacaEval's leaderboard says of a model, from annotations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pyarrow as pa

from src.evaluation.alpaca_eval import files, length_control, library
from src.evaluation.alpaca_eval.files import Annotation, Control, instruction_id
from src.evaluation.foreign_rows import shortened
from src.evaluation.statistics import normal_interval
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
    """In: annotations, and for the length-controlled win rate the gamed baselines.

    Out: a row a judged item, `metrics.json` in percent and characters, and `glm.json` with what was fitted.
    """

    kind: ClassVar[str] = "alpaca_eval_scores"
    version: ClassVar[int] = 1
    resumable: ClassVar[bool] = False

    confidence: Confidence
    """Level of the intervals, such as 0.95."""

    def source_version(self) -> str:
        return length_control.version()

    def __call__(self, *inputs: Path, out: Path) -> None:
        annotations, *gamed = inputs
        path = annotations / files.ANNOTATIONS
        control = files.read_gamed(gamed[0] / files.GAMED) if gamed else None
        found = scores(path, files.read_annotations(path), control, self.confidence)
        write_rows(out, found.rows, SCORES)
        write_metrics(out, found.metrics)
        if found.fit:
            (out / "glm.json").write_text(as_json(found.fit))


def score_file(
    annotations: Path, gamed: Path | None = None, baseline: Path | None = None, confidence: float = 0.95
) -> Scores:
    """Scores a file in the official format, without a policy, a key or the network.

    `gamed`: df_gamed.csv, without which there is no length-controlled win rate. `baseline`: outputs whose instructions
    are expected; the 805 of the leaderboard without it. Raises UserError for files that do not fit.
    """
    control = files.read_gamed(gamed) if gamed else None
    return scores(annotations, files.read_joined(annotations, baseline), control, confidence)


def scores(path: Path, rows: Sequence[Annotation], control: Control | None, confidence: float) -> Scores:
    """Scores the rows of `path`. Raises UserError where there is too little to go by."""
    preferences = np.array([math.nan if row.preference is None else row.preference for row in rows])
    if np.isnan(preferences).all():
        raise UserError(f"{path}: the annotator failed on every row; there is nothing to score")
    lengths = np.array([(len(row.output_1), len(row.output_2)) for row in rows], float)
    ids = [instruction_id(row.instruction) for row in rows]
    official = all(row.generator_1 == BASELINE_MODEL and row.annotator == library.ANNOTATOR for row in rows)
    won = preferences[~np.isnan(preferences)] - 1
    wins, losses = int((won > 0.5).sum()), int((won < 0.5).sum())
    draws = len(won) - wins - losses
    rate, error = 100 * float(won.mean()), 100 * length_control.standard_error(won)  # NaN for one item
    low, high = normal_interval(rate, error, confidence, most=100.0) if error == error else (error, error)
    numbers = {
        "win_rate": rate,
        "win_rate_low": low,
        "win_rate_high": high,
        "standard_error": error,
        "avg_length": float(lengths[:, 1].mean()),
        "avg_length_baseline": float(lengths[:, 0].mean()),
        "n_wins": wins,
        "n_wins_base": losses,
        "n_draws": draws,
        "n_total": len(won),
        "discrete_win_rate": 100 * (wins + draws / 2) / len(won),
        "items": len(rows),
        "failed": len(rows) - len(won),
        "official_items": len({*ids} & {*files.official_ids()}) if official else 0,
    }
    fit = None
    controlled, spread = _controlled(path, rows, ids, preferences, lengths, control) if control else (None, None)
    if controlled:
        numbers |= {LC: controlled.win_rate, "lc_standard_error": controlled.standard_error}
        fit = dict(zip(("length", "difficulty", "model"), map(float, controlled.coefficients), strict=True))
        fit |= {"C": None if math.isnan(controlled.C) else controlled.C}
    if spread is not None:  # resamples' fits are as uncertain as ours; the leaderboard's error leaves that out
        ends = np.quantile(spread, [(1 - confidence) / 2, (1 + confidence) / 2])
        numbers |= {f"{LC}_low": float(ends[0]), f"{LC}_high": float(ends[1])}
    items = [
        {
            "item_id": ids[i],
            "score": row.preference - 1,
            "glm_preference": float(controlled.predictions[i]) if controlled else None,
            "len_1": len(row.output_1),
            "len_2": len(row.output_2),
            "dataset": row.dataset,
            "instruction": row.instruction,
        }
        for i, row in enumerate(rows)
        if row.preference is not None
    ]
    return Scores({key: value for key, value in numbers.items() if not math.isnan(value)}, items, fit)


def _controlled(
    path: Path, rows: Sequence[Annotation], ids: list[str], preferences: np.ndarray, lengths: np.ndarray, known: Control
) -> tuple[length_control.LengthControlled, np.ndarray | None]:
    """Fits the length control, and computes the win rates of resamples; None where nothing is fitted."""
    if rows[0].generator_1 == rows[0].generator_2:
        return length_control.of_baseline(len(rows)), None
    foreign = [row.instruction for row, one in zip(rows, ids, strict=True) if one not in known.difficulty]
    if foreign:
        raise UserError(
            f"{path}: the difficulty of {len(foreign)} instructions is not known, the first {shortened(foreign[0])!r}; "
            "it is of the 805 of the leaderboard alone, so score others without length control"
        )
    difficulty = np.array([known.difficulty[one] for one in ids])
    columns = (preferences, lengths[:, 0], lengths[:, 1], difficulty, known.gamed)
    controlled = length_control.length_controlled(*columns)
    return controlled, length_control.resampled(*columns, controlled.C)
