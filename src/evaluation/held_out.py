"""HeldOut: does the new policy beat the base and the previous policy on prompts it never saw, and at what price?

In: responses of [current, previous, base, base with other seeds (the null)], one answer a prompt, then their rankings:
four, or one joint ranking of all four answers for rankers that give no comparable scores.
Out: one row a prompt, and `metrics.json`.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa

from src.evaluation.quality import Quality, quality_columns, summarise
from src.kernel.config import Confidence, config
from src.kernel.rows import RANKING, RESPONSES, Row, read_rows, write_metrics, write_rows
from src.pairing.win_probability import Estimator

CURRENT, PREVIOUS, BASE, NULL = range(4)

EVALUATION = pa.schema(
    [
        pa.field("prompt_id", pa.string()),
        *(pa.field(name, pa.float64()) for name in ("win_over_base", "win_over_previous", "null_win")),
        *(pa.field(name, pa.float64()) for name in Quality),
    ]
)


@config
class HeldOutEvaluation:
    kind: ClassVar[str] = "evaluation"
    version: ClassVar[int] = 2
    resumable: ClassVar[bool] = False

    confidence: Confidence
    """Of the intervals, such as 0.95."""
    estimator: Estimator
    """Of P(answer > answer)."""

    def __call__(self, *inputs: Path, out: Path) -> None:
        responses = [read_rows(path, RESPONSES) for path in inputs[:4]]
        rankings = [read_rows(path, RANKING) for path in inputs[4:]]
        rows = [
            {"prompt_id": current["prompt_id"]}
            | self._wins([ranking[i] for ranking in rankings])
            | self._quality(CURRENT, current, [ranking[i] for ranking in rankings])
            for i, current in enumerate(responses[CURRENT])
        ]
        write_rows(out, rows, EVALUATION)
        before = [
            self._quality(BASE, row, [ranking[i] for ranking in rankings]) for i, row in enumerate(responses[BASE])
        ]
        metrics = {"prompts": len(rows)} | self._win_rates(rows) | summarise(rows)
        metrics |= {f"base_{name}": value for name, value in summarise(before).items()}
        known = {name: None if value != value else value for name, value in metrics.items()}  # NaN is no JSON
        write_metrics(out, known)

    def _quality(self, who: int, row: Row, rankings: list[Row]) -> dict[str, float]:
        """Ranked apart, an answer is the first of its own ranking; ranked together, number `who` of the only one."""
        return quality_columns(row, rankings[0], who) if len(rankings) == 1 else quality_columns(row, rankings[who], 0)

    def _win_rates(self, rows: list[Row]) -> dict[str, float]:
        metrics = {}
        for name in ("win_over_base", "win_over_previous", "null_win"):
            values = np.array([row[name] for row in rows])
            low, high = mean_interval(values, self.confidence)
            metrics |= {name: float(values.mean()), f"{name}_low": low, f"{name}_high": high}
        return metrics

    def _wins(self, rankings: list[Row]) -> dict[str, float]:
        """P(current > base), P(current > previous), P(null > base) for one prompt."""
        apart = len(rankings) > 1
        joint = {"scores": [ranking["scores"][0] for ranking in rankings]} if apart else rankings[0]
        matrix = self.estimator.matrix(joint)
        return {
            "win_over_base": float(matrix[CURRENT, BASE]),
            "win_over_previous": float(matrix[CURRENT, PREVIOUS]),
            "null_win": float(matrix[NULL, BASE]),
        }


def mean_interval(values: np.ndarray, confidence: float) -> tuple[float, float]:
    """Student-t interval of the mean of independent values in [0, 1]: all of it for one, a point for equal ones."""
    from scipy import stats

    if len(values) < 2:
        return 0.0, 1.0
    if np.ptp(values) == 0:
        return float(values.mean()), float(values.mean())
    interval = stats.ttest_1samp(values, 0.5).confidence_interval(confidence)
    return float(interval.low), float(interval.high)
