"""What a ranking tells of its ranker, whatever is made of it later."""

from __future__ import annotations

from itertools import combinations

import numpy as np

from src.kernel.rows import Row
from src.pairing.win_probability import intransitive_triads, lead


def diagnose(rows: list[Row], rankings: list[Row]) -> dict[str, float | None]:
    """Counts and means over RESPONSES rows and their RANKING rows; null where nothing can be said.

    * position_bias: mean of (C_ij + C_ji) / 2, what being shown first is worth in logits (pairwise rankers only);
      position_bias_abs: mean of its absolute value
    * length_correlation: Pearson's r of an answer's mean lead over the others with its length, within prompts
    * malformed_verdicts, judge_input_tokens, judge_output_tokens: of LLM judges, whenever they were asked
    * first_place_flips: share of pairs of different texts whose winner depends on the order
    """
    found = [_of_prompt(row, ranking) for row, ranking in zip(rows, rankings, strict=True)]
    pairs = np.array([pair for one in found for pair in one["pairs"]], dtype=float).reshape(-1, 3)
    cyclic, triads = np.sum([one["triads"] for one in found] or [(0, 0)], axis=0)
    leads, lengths = (np.concatenate([one[name] for one in found] or [[]]) for name in ("leads", "lengths"))
    forth, back, differ = pairs[:, 0], pairs[:, 1], pairs[:, 2] > 0
    return {
        "prompts": len(rows),
        "answers": sum(len(row["responses"]) for row in rows),
        "truncated_answers": sum(sum(ranking["truncated"]) for ranking in rankings),
        "truncated_prompts": sum(bool(ranking["prompt_truncated"]) for ranking in rankings),
        "identical_answers": sum(one["identical"] for one in found),
        "intransitive_triads": float(cyclic / triads) if triads else None,
        "position_bias": _mean((forth + back) / 2),
        "position_bias_abs": _mean(np.abs(forth + back) / 2),
        "first_place_flips": _mean((forth * back > 0)[differ]),
        "length_correlation": _correlation(leads, lengths),
        "malformed_verdicts": _sum_of("malformed_verdicts", rankings),
        "judge_input_tokens": _sum_of("judge_input_tokens", rankings),
        "judge_output_tokens": _sum_of("judge_output_tokens", rankings),
    }


def _of_prompt(row: Row, ranking: Row) -> dict:
    answers = row["responses"]
    matrix = lead(ranking)
    logits = ranking["logits"]
    lengths = np.array([len(answer["token_ids"]) for answer in answers], dtype=float)
    leads = matrix.mean(1)
    return {
        "identical": len(answers) - len({answer["text"] for answer in answers}),
        "triads": intransitive_triads(matrix),
        "pairs": [
            (logits[i][j], logits[j][i], answers[i]["text"] != answers[j]["text"])
            for i, j in combinations(range(len(answers)), 2)
            if logits
        ],
        "leads": leads - leads.mean(),
        "lengths": lengths - lengths.mean(),
    }


def _sum_of(name: str, rankings: list[Row]) -> float | None:
    """Of a term over all answers."""
    terms = [term for ranking in rankings for term in ranking["terms"] or [] if term["name"] == name]
    return float(sum(sum(term["values"]) for term in terms)) if terms else None


def _mean(values: np.ndarray) -> float | None:
    return float(np.mean(values)) if len(values) else None


def _correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    norm = np.sqrt((a**2).sum() * (b**2).sum())
    return float((a * b).sum() / norm) if norm else None
