"""WinMatrixScores: who beats whom, how surely, and how long the answers are that win.

In: merged responses, an answer of each policy a prompt, and their joint ranking. Out: a row a prompt, `metrics.json`
and the heat map `matrix.png`.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import pyarrow as pa
from pydantic import PositiveInt

from src.kernel.config import Confidence, UserError, config
from src.kernel.rows import RANKING, RESPONSES, Row, read_rows, write_metrics, write_rows
from src.pairing.win_probability import Estimator

PICTURE = "matrix.png"
AT_ONCE = 1_000_000
"""Values of resamples in memory."""


class Answers(NamedTuple):
    """Of each prompt and policy, (prompt, policy)."""

    tokens: np.ndarray
    characters: np.ndarray
    truncated: np.ndarray
    """The ranker did not see the whole answer."""
    texts: list[list[str]]


class Matrix(NamedTuple):
    """Of m policies, (m, m): P(row's answer beats column's)."""

    win: np.ndarray
    """win + win.T is exactly 1."""
    low: np.ndarray
    high: np.ndarray
    """low + high.T is 1, too."""
    same: np.ndarray
    """Share of prompts to which both gave the same text, and half a win each is theirs by that alone."""


@config
class WinMatrixScores:
    kind: ClassVar[str] = "win_matrix"
    version: ClassVar[int] = 1
    resumable: ClassVar[bool] = False

    names: tuple[str, ...]
    """Of the policies, in the order of a prompt's answers."""
    last: str
    """Whose scores these are: against the first, or where it is the first, against the second."""
    judge: str
    """Name of the ranker."""
    estimator: Estimator
    """Of P(answer > answer)."""
    confidence: Confidence
    """Of the intervals, such as 0.95."""
    resamples: PositiveInt
    """Of the prompts, for the bootstrap."""
    seed: int
    """Of the bootstrap."""

    def __call__(self, *inputs: Path, out: Path) -> None:
        from src.evaluation.win_matrix.picture import draw

        rows, ranking = read_rows(inputs[0], RESPONSES), read_rows(inputs[1], RANKING)
        if [row["prompt_id"] for row in rows] != [ranked["prompt_id"] for ranked in ranking]:
            raise UserError(f"{inputs[1]}: ranks other prompts than {inputs[0]} has")
        wins = np.stack([exact(self.estimator.matrix(ranked)) for ranked in ranking])
        answers, matrix = _answers(rows, ranking), self._matrix(wins, rows)
        self._write_rows(out, [row["prompt_id"] for row in rows], wins, answers)
        metrics = self._metrics(wins, matrix, answers)
        write_metrics(out, metrics)
        draw(self, matrix, answers, metrics["longer_wins"], out / PICTURE)

    @property
    def main(self) -> tuple[int, int]:
        """Places of `last` and of the one it is held against."""
        place = self.names.index(self.last)
        return place, 0 if place else 1

    def _matrix(self, wins: np.ndarray, rows: list[Row]) -> Matrix:
        """`wins`: (prompt, m, m)."""
        low, high = np.full_like(wins[0], 0.5), np.full_like(wins[0], 0.5)
        for i, j in zip(*np.tril_indices(len(self.names), -1), strict=True):
            low[i, j], high[i, j] = self._interval(wins[:, i, j])
            low[j, i], high[j, i] = 1 - high[i, j], 1 - low[i, j]
        texts = np.array([[answer["text"] for answer in row["responses"]] for row in rows], dtype=object)
        same = (texts[:, :, None] == texts[:, None, :]).mean(0)
        return Matrix(exact(wins.mean(0)), low, high, same)

    def _interval(self, values: np.ndarray) -> tuple[float, float]:
        """Percentile bootstrap of the mean over the prompts, the same resamples for all pairs."""
        from scipy.stats import bootstrap

        if len(values) < 2:
            return 0.0, 1.0
        if np.ptp(values) == 0:
            return float(values[0]), float(values[0])
        found = bootstrap(
            (values,),
            np.mean,
            n_resamples=self.resamples,
            batch=max(1, AT_ONCE // len(values)),
            confidence_level=self.confidence,
            method="percentile",
            rng=np.random.default_rng(self.seed),
        ).confidence_interval
        return float(found.low), float(found.high)

    def _metrics(self, wins: np.ndarray, matrix: Matrix, answers: Answers) -> dict[str, float | None]:
        """`<a>_over_<b>` with its interval, of every policy over every other, and what the answers are like.

        distinct: different texts among its answers. same_as: the share of Matrix.same. truncated: the share that the
        ranker saw in part.
        """
        found: dict[str, float | None] = {"items": len(wins)}
        found |= _told("win", matrix, *self.main) | {"longer_wins": longer_wins(wins, answers.characters)}
        for i, name in enumerate(self.names):
            found |= {
                f"{name}_tokens": float(answers.tokens[:, i].mean()),
                f"{name}_characters": float(answers.characters[:, i].mean()),
                f"{name}_truncated": float(answers.truncated[:, i].mean()),
                f"{name}_distinct": len({texts[i] for texts in answers.texts}),
            }
            for j, other in enumerate(self.names):
                found |= _told(f"{name}_over_{other}", matrix, i, j) if i != j else {}
                found |= {f"{name}_same_as_{other}": float(matrix.same[i, j])} if i > j else {}
        return found

    def _write_rows(self, out: Path, prompts: list[str], wins: np.ndarray, answers: Answers) -> None:
        """`score`: P(last beats the one it is held against); then every later policy over every earlier one."""
        last, other = self.main
        pairs = list(zip(*np.tril_indices(len(self.names), -1), strict=True))
        columns = {"item_id": prompts, "score": wins[:, last, other].tolist()}
        columns |= {f"{self.names[i]}_over_{self.names[j]}": wins[:, i, j].tolist() for i, j in pairs}
        for i, name in enumerate(self.names):
            columns |= {f"{name}_tokens": answers.tokens[:, i].tolist()}
            columns |= {f"{name}_characters": answers.characters[:, i].tolist()}
        kinds = {"item_id": pa.string()} | dict.fromkeys(list(columns)[1:], pa.float64())
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        write_rows(out, rows, pa.schema(kinds))


def exact(matrix: np.ndarray) -> np.ndarray:
    """What the lower triangle says, so that matrix + matrix.T is exactly 1: rounding would leave some digits."""
    lower = np.tril(matrix, -1)
    return lower + np.triu(1 - lower.T, 1) + np.diag(np.full(len(matrix), 0.5))


def longer_wins(wins: np.ndarray, characters: np.ndarray) -> float | None:
    """Mean P(the longer of two answers wins), over all prompts and pairs; None where all are equally long.

    `wins` (prompt, m, m), `characters` (prompt, m). Far over 1/2, a ranker may go by length.
    """
    longer = characters[:, :, None] > characters[:, None, :]
    return float(wins[longer].mean()) if longer.any() else None


def _told(key: str, matrix: Matrix, i: int, j: int) -> dict[str, float | None]:
    three = {key: matrix.win, f"{key}_low": matrix.low, f"{key}_high": matrix.high}
    return {name: float(values[i, j]) for name, values in three.items()}


def _answers(rows: list[Row], ranking: list[Row]) -> Answers:
    texts = [[answer["text"] for answer in row["responses"]] for row in rows]
    return Answers(
        tokens=np.array([[len(answer["token_ids"]) for answer in row["responses"]] for row in rows], dtype=float),
        characters=np.array([[len(text) for text in of_prompt] for of_prompt in texts], dtype=float),
        truncated=np.array([ranked["truncated"] for ranked in ranking], dtype=float),
        texts=texts,
    )
