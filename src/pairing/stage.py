"""Pair: chosen and rejected answers of each prompt, with their win probabilities.

In: responses, ranking. Out: PAIRS rows, any number a prompt, in the order of the responses, and `metrics.json`.
"""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from src.kernel.config import Fault, UserError, config
from src.kernel.rows import PAIRS, RANKING, RESPONSES, ROWS, Row, read_rows, write_metrics, write_rows
from src.pairing.rules import ADVICE, Filters, Reason, Rule, candidates
from src.pairing.win_probability import Estimator, PairWins, fault_of, intransitive_triads, said_saturated, saturated

NEAR_TIE = 0.025
"""|P - 1/2| of a near tie."""


@config
class Pairing:
    """How the answers to a prompt become pairs."""

    rule: Rule
    filters: Filters


@config
class Pair:
    kind: ClassVar[str] = "pairs"
    version: ClassVar[int] = 3
    resumable: ClassVar[bool] = False

    rule: Rule
    filters: Filters
    estimator: Estimator
    """Of the win probabilities."""
    seed: int
    """Of what a rule leaves to chance."""

    def __call__(self, *inputs: Path, out: Path) -> None:
        responses = read_rows(inputs[0], RESPONSES)
        by_prompt = {row["prompt_id"]: row for row in read_rows(inputs[1], RANKING)}
        rankings = [by_prompt[row["prompt_id"]] for row in responses]
        with np.errstate(invalid="ignore"):  # of a missing number; told in the next line
            matrices = [self.estimator.matrix(ranking) for ranking in rankings]
        _refuse_unsound(inputs[1] / ROWS, responses, matrices)
        found = [pair for each in zip(responses, rankings, matrices, strict=True) for pair in self._pairs(*each)]
        left_out: Counter[Reason] = Counter(reason for _, reason in found if reason)
        kept = [pair for pair, reason in found if not reason]
        if not kept:
            raise UserError(self._nothing_left(len(responses), left_out))
        counts = _counts(len(responses), kept, left_out)
        metrics: dict[str, Any] = counts | _means(kept) | _quantiles(kept) | _cycles(matrices)
        metrics |= {"near_ties": _near_ties(responses, matrices), "win_histogram": self._histogram(matrices)}
        metrics["saturated"] = sum(map(saturated, matrices))
        _say(counts, left_out)
        for line in said_saturated(metrics):
            print(f"pair: warning: {line}", flush=True)
        write_rows(out, kept, PAIRS)
        write_metrics(out, metrics)

    def _pairs(self, row: Row, ranking: Row, matrix: np.ndarray) -> list[tuple[Row, Reason | None]]:
        """Pairs the answers to one prompt; returns each pair, and why it is left out."""
        answers = candidates(row, ranking, matrix, self.seed)
        found = []
        for best, worst in self.rule.pairs(answers) if len(answers.wins) > 1 else ():
            pair = _row(row, best, worst, self.estimator.of_pair(matrix, best, worst))
            found.append((pair, self.filters.refuse(pair, answers.texts[best] == answers.texts[worst])))
        return found

    def _histogram(self, matrices: list[np.ndarray]) -> list[int]:
        """Of the win probabilities of all answers, in 20 bins over [0, 1]."""
        wins = np.concatenate([self.estimator.win_rates(matrix) for matrix in matrices])
        return np.histogram(wins, bins=20, range=(0, 1))[0].tolist()

    def _nothing_left(self, prompts: int, left_out: Counter[Reason]) -> str:
        if left_out:
            return f"pairs: none is left: {'; '.join(f'{left_out[r]} {ADVICE[r]}' for r in ADVICE if left_out[r])}"
        asked = ", ".join(f"pairing.rule.{name} {value}" for name, value in vars(self.rule).items())
        return f"pairs: no answers to any of {prompts} prompts make a pair ({asked}); fit these to the ranker's scores"


def _refuse_unsound(ranking: Path, rows: list[Row], matrices: list[np.ndarray]) -> None:
    """Before anything is trained on them."""
    found = [(row["prompt_id"], place) for row, m in zip(rows, matrices, strict=True) if (place := fault_of(m))]
    if found:
        prompt, (i, j) = found[0]
        raise Fault(
            f"{ranking}: what it says of answers {i + 1} and {j + 1} to prompt {prompt} makes no win probability "
            f"({len(found)} of {len(rows)} prompts have such); delete that folder, and the same command makes it again"
        )


def _row(row: Row, chosen: int, rejected: int, wins: PairWins) -> Row:
    answers = row["responses"]
    sides = {"chosen": chosen, "rejected": rejected}
    return (
        {"prompt_id": row["prompt_id"], "prompt_token_ids": row["prompt_token_ids"]}
        | {f"{side}_token_ids": answers[i]["token_ids"] for side, i in sides.items()}
        | {f"{side}_source": answers[i]["source"] for side, i in sides.items()}
        | {f"{side}_index": i for side, i in sides.items()}
        | {"chosen_win": wins.chosen, "rejected_win": wins.rejected}
        | {"chosen_beats_rejected": wins.chosen_beats_rejected}
    )


def _counts(prompts: int, kept: list[Row], left_out: Counter[Reason]) -> dict[str, float]:
    reasons = {f"{reason}_left_out": left_out[reason] for reason in ADVICE}
    without = prompts - len({pair["prompt_id"] for pair in kept})
    return {"prompts": prompts, "pairs": len(kept), **reasons, "prompts_without_pair": without}


def _say(metrics: dict[str, float], left_out: Counter[Reason]) -> None:
    """One line where a prompt or a pair is left out."""
    without = metrics["prompts_without_pair"]
    if left_out or without:
        pairs = ", ".join(f"{number} {reason}" for reason, number in left_out.items()) or "none"
        print(f"pair: pairs left out: {pairs}; {without} of {metrics['prompts']} prompts have no pair")


def _outside(kept: list[Row], side: str) -> float:
    """Share of the pairs in which this answer is not the policy's."""
    return sum(pair[f"{side}_source"] != "policy" for pair in kept) / len(kept)


def _means(kept: list[Row]) -> dict[str, float]:
    """Averages over the kept pairs. expected_loss_unit is SPPO's loss before the first step, in units of eta^2."""
    chosen, rejected = (np.array([pair[f"{side}_win"] for pair in kept]) for side in ("chosen", "rejected"))
    return {
        "chosen_win": float(chosen.mean()),
        "rejected_win": float(rejected.mean()),
        **{f"{side}_outside": _outside(kept, side) for side in ("chosen", "rejected")},
        "win_margin": float((chosen - rejected).mean()),
        "expected_loss_unit": float(((chosen - 0.5) ** 2 + (rejected - 0.5) ** 2).mean() / 2),
        "chosen_beats_rejected": float(np.mean([pair["chosen_beats_rejected"] for pair in kept])),
        "chosen_tokens": float(np.mean([len(pair["chosen_token_ids"]) for pair in kept])),
        "rejected_tokens": float(np.mean([len(pair["rejected_token_ids"]) for pair in kept])),
    }


def _quantiles(kept: list[Row]) -> dict[str, float]:
    """Below which 10, 50 and 90 percent of the win probabilities lie."""
    wins = {side: [pair[f"{side}_win"] for pair in kept] for side in ("chosen", "rejected")}
    return {f"{side}_win_p{q}": float(np.percentile(wins[side], q)) for side in wins for q in (10, 50, 90)}


def _near_ties(responses: list[Row], matrices: list[np.ndarray]) -> float | None:
    """Returns the share of pairs of different texts with P within 0.025 of 1/2."""
    close = [
        abs(matrix[i, j] - 0.5) < NEAR_TIE
        for row, matrix in zip(responses, matrices, strict=True)
        for i, j in combinations(range(len(matrix)), 2)
        if row["responses"][i]["text"] != row["responses"][j]["text"]
    ]
    return float(np.mean(close)) if close else None


def _cycles(matrices: list[np.ndarray]) -> dict[str, float]:
    """Share of all triads, of the win probabilities that are trained on: the estimator `score` has none."""
    cyclic, triads = np.sum([intransitive_triads(matrix - 0.5) for matrix in matrices], axis=0)
    return {"intransitive_triads": float(cyclic / triads) if triads else 0.0}
