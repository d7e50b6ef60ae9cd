"""The stage that pairs a chosen and a rejected answer to each prompt, with their win probabilities.

In: responses, ranking. Out: PAIRS rows, any number for a prompt, in the order of the responses, and `metrics.json`.
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
from src.pairing.win_probability import Estimator, fault_of, intransitive_triads, saturation_warnings

NEAR_TIE = 0.025
"""|P - 1/2| of a near tie."""


@config
class Pairing:
    """The rule and the filters that make pairs of the answers to a prompt."""

    rule: Rule
    filters: Filters


@config
class Pair:
    """Makes pairs of the answers to each prompt."""

    kind: ClassVar[str] = "pairs"
    version: ClassVar[int] = 4
    resumable: ClassVar[bool] = False

    rule: Rule
    filters: Filters
    estimator: Estimator
    seed: int
    """The seed of what a rule leaves to chance."""

    def __call__(self, *inputs: Path, out: Path) -> None:
        responses = read_rows(inputs[0], RESPONSES)
        by_prompt = {row["prompt_id"]: row for row in read_rows(inputs[1], RANKING)}
        rankings = [by_prompt[row["prompt_id"]] for row in responses]
        with np.errstate(invalid="ignore"):  # a missing number is refused in the next lines
            estimator = self.estimator.measured(rankings)
            matrices = [estimator.matrix(ranking) for ranking in rankings]
        kept: list[Row] = []
        left_out = Counter[Reason]()
        for row, ranking, matrix in zip(responses, rankings, matrices, strict=True):
            if place := fault_of(matrix):
                which = f"answers {place[0] + 1} and {place[1] + 1} to prompt {row['prompt_id']}"
                remedy = "delete that folder, and the same command makes it again"
                raise Fault(f"{inputs[1] / ROWS}: {which} have no win probability; {remedy}")
            answers = candidates(row, ranking, matrix, self.seed)
            for chosen, rejected in self.rule.pairs(answers) if len(answers.wins) > 1 else ():
                pair: Row = {name: row[name] for name in ("prompt_id", "prompt_token_ids")}
                pair |= estimator.of_pair(matrix, chosen, rejected)
                for side, i in (("chosen", chosen), ("rejected", rejected)):
                    pair |= {f"{side}_{name}": row["responses"][i][name] for name in ("token_ids", "source")}
                    pair[f"{side}_index"] = i
                reason = self.filters.refuse(pair, answers.texts[chosen] == answers.texts[rejected])
                if reason:
                    left_out[reason] += 1
                else:
                    kept.append(pair)
        if not kept:
            why = "; ".join(f"{left_out[reason]} {ADVICE[reason]}" for reason in ADVICE if left_out[reason])
            why = why or f"no two answers to a prompt fit pairing.rule {self.rule}"
            raise UserError(f"pairs: no pair is left: {why}")
        metrics = self._metrics(responses, matrices, kept, left_out) | {"tau": float(estimator.tau)}
        if without := metrics["prompts_without_pair"]:
            reasons = ", ".join(f"{number} {reason}" for reason, number in left_out.items()) or "none"
            print(f"pair: prompts without a pair: {without} of {len(responses)}; pairs left out: {reasons}")
        for line in saturation_warnings(metrics):
            print(f"pair: warning: {line}", flush=True)
        write_rows(out, kept, PAIRS)
        write_metrics(out, metrics)

    def _metrics(
        self, responses: list[Row], matrices: list[np.ndarray], kept: list[Row], left_out: Counter[Reason]
    ) -> dict[str, Any]:
        """Sum up the pairs and the win probabilities.

        expected_loss_unit: SPPO's loss before the first step, in units of eta^2. intransitive_triads: share of all
        triads, by the win probabilities that are trained on; the estimator `score` has none. tau: the estimator's.
        near_ties: share of two different texts with P within 0.025 of 1/2. saturated: number of two answers with P of
        exactly 0 and 1.
        """
        wins = {side: np.array([pair[f"{side}_win"] for pair in kept]) for side in ("chosen", "rejected")}
        cyclic, triads = np.sum([intransitive_triads(matrix - 0.5) for matrix in matrices], axis=0)
        close = [
            abs(matrix[i, j] - 0.5) < NEAR_TIE
            for row, matrix in zip(responses, matrices, strict=True)
            for i, j in combinations(range(len(matrix)), 2)
            if row["responses"][i]["text"] != row["responses"][j]["text"]
        ]
        rates = np.concatenate([self.estimator.win_rates(matrix) for matrix in matrices])
        return {
            "prompts": len(responses),
            "pairs": len(kept),
            **{f"{reason}_left_out": left_out[reason] for reason in ADVICE},
            "prompts_without_pair": len(responses) - len({pair["prompt_id"] for pair in kept}),
            "chosen_win": float(wins["chosen"].mean()),
            "rejected_win": float(wins["rejected"].mean()),
            **{f"{side}_outside": sum(p[f"{side}_source"] != "policy" for p in kept) / len(kept) for side in wins},
            "win_margin": float((wins["chosen"] - wins["rejected"]).mean()),
            "expected_loss_unit": float(((wins["chosen"] - 0.5) ** 2 + (wins["rejected"] - 0.5) ** 2).mean() / 2),
            "chosen_beats_rejected": float(np.mean([pair["chosen_beats_rejected"] for pair in kept])),
            **{f"{side}_tokens": float(np.mean([len(p[f"{side}_token_ids"]) for p in kept])) for side in wins},
            **{f"{side}_win_p{q}": float(np.percentile(wins[side], q)) for side in wins for q in (10, 50, 90)},
            "intransitive_triads": float(cyclic / triads) if triads else 0.0,
            "near_ties": float(np.mean(close)) if close else None,
            "win_histogram": np.histogram(rates, bins=20, range=(0, 1))[0].tolist(),
            "saturated": sum(int((matrix == 1).sum()) for matrix in matrices),
        }
