"""The numbers of AlpacaEval's leaderboard from annotations: win rates, in percent, plain and length-controlled.

The length-controlled one (arXiv:2404.04475) is the win rate that a logistic model predicts without a difference in
length:

    P(m beats the baseline on i) = σ(a tanh(z_i) + b d_i + c),   LC = 100 mean_i σ(b d_i + c)

z_i: characters of the baseline's answer less those of the model's, over their standard deviation; d_i: the difficulty
of the instruction. It is fitted to the model's rows and, with weight 0.1, to those of two baselines that were told to
be short and long, for which the indicator of c is 0; L1 penalty through liblinear, C by 5-fold cross-validation.
alpaca-eval fits it; the rows are joined here, because it joins them by position and fetches its files at every call.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from jaxtyping import Float

from src.evaluation.alpaca_eval import files
from src.evaluation.alpaca_eval.files import Annotation, Gamed, Items, instruction_id
from src.evaluation.benchmark import version_of
from src.evaluation.statistics import normal_interval
from src.kernel.artifact import Stage
from src.kernel.config import Confidence, UserError, config
from src.kernel.rows import Row, as_json, schema, write_metrics, write_rows
from src.pairing.win_probability import expit

LC = "length_controlled_winrate"
SCORES = schema(
    item_id=pa.string(),  # the prompt_id
    score=pa.float64(),  # from 0 (the baseline's output is better) to 1
    glm_preference=pa.float64(),  # the same if both were as long, by the fit; null without it
    len_1=pa.int64(),  # characters of the baseline's output
    len_2=pa.int64(),
    dataset=pa.string(),
    instruction=pa.string(),
)
GAMED_WEIGHT = 0.1
"""0.2 shared by two baselines."""
SEED = 123
"""Seed of resamples."""
RESAMPLES = 200
Coefficients = Float[np.ndarray, "3"]
"""a, b, c: the weights of length, difficulty and model."""


@config
class AlpacaEvalScores(Stage):
    """Scores the annotations of one policy.

    In: annotations, and for the length-controlled win rate the gamed baselines. Out: a row a judged item,
    `metrics.json` in percent and characters, and `glm.json` with what was fitted.
    """

    kind: ClassVar[str] = "alpaca_eval_scores"
    version: ClassVar[int] = 2

    confidence: Confidence
    """Level of the intervals, such as 0.95."""

    def source_version(self) -> str:
        return f"{version_of('alpaca-eval')}, {version_of('scikit-learn')}"

    def __call__(self, *inputs: Path, out: Path) -> None:
        annotations, *control = inputs
        path = annotations / files.ANNOTATIONS
        gamed = files.read_gamed(control[0] / files.GAMED) if control else None
        numbers, rows, fit = scores(path, files.read_official(path, Annotation), gamed, self.confidence)
        write_rows(out, rows, SCORES)
        write_metrics(out, numbers)
        if fit:
            (out / "glm.json").write_text(as_json(fit))


def scores(
    path: Path, rows: Sequence[Annotation], gamed: Gamed | None, confidence: float
) -> tuple[dict[str, float], list[Row], dict[str, float]]:
    """Score the rows of `path`. `gamed`: None: there is no length-controlled win rate.

    Returns metrics, SCORES rows without those on which the annotator failed, and what was fitted: the coefficients of
    length, difficulty and model, and C; nothing without length control. Raises UserError where too little is known.
    """
    preferences = np.array([math.nan if row.preference is None else row.preference for row in rows])
    if np.isnan(preferences).all():
        raise UserError(f"{path}: the annotator failed on every row; there is nothing to score")
    lengths = np.array([(len(row.output_1), len(row.output_2)) for row in rows], float)
    ids = [instruction_id(row.instruction) for row in rows]
    won = preferences[~np.isnan(preferences)] - 1
    numbers: dict[str, float] = {"win_rate": 100 * float(won.mean())}
    if len(won) > 1:
        error = 100 * standard_error(won)
        low, high = normal_interval(numbers["win_rate"], error, confidence, most=100.0)
        numbers |= {"win_rate_low": low, "win_rate_high": high, "standard_error": error}
    numbers |= {"avg_length": float(lengths[:, 1].mean()), "avg_length_baseline": float(lengths[:, 0].mean())}
    numbers |= {"n_total": len(won), "items": len(rows), "failed": len(rows) - len(won)}
    fit: dict[str, float] = {}
    predictions: Items | None = None
    if gamed:
        if foreign := [row.instruction for row, one in zip(rows, ids, strict=True) if one not in gamed.by_id]:
            unknown = f"the difficulty of {len(foreign)} instructions is not known, the first {foreign[0]!r:.80}"
            remedy = "only the leaderboard's 805 have one: set length_control to false, the annotations are kept"
            raise UserError(f"{path}: {unknown}; {remedy}")
        difficulty = np.array([gamed.by_id[one] for one in ids])
        columns = (preferences, lengths[:, 0], lengths[:, 1], difficulty, gamed)
        coefficients, C = length_controlled(*columns)
        predictions = expit(coefficients[1] * difficulty + coefficients[2])
        numbers |= {LC: 100 * float(predictions.mean()), "lc_standard_error": 100 * standard_error(predictions)}
        # Resamples' fits are as uncertain as ours; the leaderboard's error leaves that out.
        ends = np.quantile(resampled(*columns, C), [(1 - confidence) / 2, (1 + confidence) / 2])
        numbers |= {f"{LC}_low": float(ends[0]), f"{LC}_high": float(ends[1])}
        a, b, c = map(float, coefficients)
        fit = {"length": a, "difficulty": b, "model": c, "C": C}
    items: list[Row] = []
    for i, row in enumerate(rows):
        if row.preference is not None:
            fitted = None if predictions is None else float(predictions[i])
            item: Row = {"item_id": ids[i], "score": row.preference - 1, "glm_preference": fitted}
            item |= {"len_1": len(row.output_1), "len_2": len(row.output_2)}
            items.append(item | {"dataset": row.dataset, "instruction": row.instruction})
    return numbers, items, fit


# Length control -----------------------------------------------------------------------------------------------------


def length_controlled(
    preferences: Items, len_1: Items, len_2: Items, difficulty: Items, gamed: Gamed, C: float | None = None
) -> tuple[Coefficients, float]:
    """Fit to preferences in [1, 2], of which one at least is known: a row with NaN, a failure, is not fitted to.

    Returns the coefficients and C, which is chosen by cross-validation where it is None.
    """
    known, gaps = ~np.isnan(preferences), len_1 - len_2
    z = gaps / (np.std(gaps, ddof=min(1, len(gaps) - 1)) or 1.0)
    # The gamed rows go first, as in the library: which rows share a fold follows from their places.
    blocks = [(gamed.length, gamed.difficulty, 0.0), (z[known], difficulty[known], 1.0)]
    x = np.vstack([np.column_stack([np.tanh(z), d, np.full(len(z), ours)]) for z, d, ours in blocks])
    y = np.concatenate([gamed.preference, preferences[known] - 1])
    w = np.repeat([GAMED_WEIGHT, 1.0], [len(gamed.preference), int(known.sum())])
    return fit_glm(x, y, w, C)


def resampled(
    preferences: Items, len_1: Items, len_2: Items, difficulty: Items, gamed: Gamed, C: float, count: int = RESAMPLES
) -> Items:
    """Return LC win rates of `count` bootstrap samples of the instructions, each fitted anew at `C`."""
    chance, n = np.random.default_rng(SEED), len(preferences)
    rates: list[float] = []
    while len(rates) < count:
        drawn = chance.integers(n, size=n)
        if np.isnan(preferences[drawn]).all():
            continue
        columns = (preferences[drawn], len_1[drawn], len_2[drawn], difficulty[drawn])
        (_, b, c), _ = length_controlled(*columns, gamed, C)
        rates.append(100 * float(expit(b * difficulty[drawn] + c).mean()))
    return np.array(rates)


def fit_glm(x: Float[np.ndarray, "row 3"], y: Items, w: Items, C: float | None = None) -> tuple[Coefficients, float]:
    """Minimise C Σ w · log loss(σ(x · coefficients), y) + |coefficients|₁, for targets y in [0, 1], by alpaca-eval.

    Returns the coefficients and C, which is chosen by 5-fold cross-validation where it is None.
    """
    import pandas as pd
    import sklearn
    from alpaca_eval.metrics.glm_winrate import fit_LogisticRegressionCV

    table = pd.DataFrame({"length": x[:, 0], "difficulty": x[:, 1], "model": x[:, 2], "preference": y})
    how: dict[str, Any] = {"n_splits": 5} if C is None else {"n_splits": 0, "C": C}
    with sklearn.config_context(), warnings.catch_warnings():  # it switches routing on, with arguments on their way out
        warnings.simplefilter("ignore")
        model: Any = fit_LogisticRegressionCV(table, "preference", sample_weight=w, **how)
    return model.coef_[0], float(model.C_[0]) if C is None else C


def standard_error(values: Items) -> float:
    """Return that of the mean of at least two values: the spread over instructions, not the uncertainty of a fit."""
    return float(values.std(ddof=1)) / math.sqrt(len(values))
