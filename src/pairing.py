"""Pair: one chosen and one rejected answer a prompt, with their win probabilities.

In: responses, ranking. Out: PAIRS rows and `metrics.json`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np

from src import records
from src.artifact import Stage
from src.config import UserError, config
from src.win_probability import Estimator, intransitive_triads, win_matrix, win_rates


@runtime_checkable
class Pairing(Stage, Protocol):
    """How the answers to a prompt become pairs."""

    @property
    def estimator(self) -> Estimator:
        """Of the win probabilities."""
        ...


@config
class BestWorst:
    """Chosen = best win rate among the K answers, rejected = worst (arXiv:2405.00675 §5)."""

    kind: ClassVar[str] = "pairs"
    version: ClassVar[int] = 1
    resumable: ClassVar[bool] = False

    estimator: Estimator
    drop_identical: bool
    """Leave out prompts whose chosen and rejected answers are the same tokens."""

    def __call__(self, *inputs: Path, out: Path) -> None:
        responses = records.read_rows(inputs[0], records.RESPONSES)
        rankings = {row["prompt_id"]: row for row in records.read_rows(inputs[1], records.RANKING)}
        matrices = {row["prompt_id"]: win_matrix(rankings[row["prompt_id"]], self.estimator) for row in responses}
        pairs = [_pair(row, matrices[row["prompt_id"]]) for row in responses]
        kept = [p for p in pairs if not self.drop_identical or p["chosen_token_ids"] != p["rejected_token_ids"]]
        if not kept:
            raise UserError("pairs: all answers to every prompt are identical; raise sampling.temperature")
        if len(kept) < len(pairs):
            print(f"pair: {len(pairs) - len(kept)} of {len(pairs)} prompts have identical answers; left out")
        records.write_rows(out, kept, records.PAIRS)
        (out / "metrics.json").write_text(json.dumps(_diagnose(pairs, kept, list(matrices.values())), indent=1) + "\n")


def _pair(row: records.Row, matrix: np.ndarray) -> records.Row:
    """Ties go to the lower index, so a prompt of equal answers still gives two different indices."""
    wins = win_rates(matrix)
    answers = row["responses"]
    chosen = int(np.argmax(wins))
    rejected = min((i for i in range(len(wins)) if i != chosen), key=lambda i: (wins[i], i))
    sides = {"chosen": chosen, "rejected": rejected}
    return (
        {"prompt_id": row["prompt_id"], "prompt_token_ids": row["prompt_token_ids"]}
        | {f"{side}_token_ids": answers[i]["token_ids"] for side, i in sides.items()}
        | {f"{side}_source": answers[i]["source"] for side, i in sides.items()}
        | {f"{side}_win": float(wins[i]) for side, i in sides.items()}
        | {f"{side}_index": i for side, i in sides.items()}
        | {"chosen_beats_rejected": float(matrix[chosen, rejected])}
    )


def _diagnose(pairs: list[records.Row], kept: list[records.Row], matrices: list[np.ndarray]) -> dict[str, float]:
    cyclic, triads = np.sum([intransitive_triads(m) for m in matrices], axis=0)
    return {
        "prompts": len(pairs),
        "pairs": len(kept),
        "identical_left_out": len(pairs) - len(kept),
        "chosen_win": float(np.mean([p["chosen_win"] for p in kept])),
        "rejected_win": float(np.mean([p["rejected_win"] for p in kept])),
        "chosen_beats_rejected": float(np.mean([p["chosen_beats_rejected"] for p in kept])),
        "chosen_tokens": float(np.mean([len(p["chosen_token_ids"]) for p in kept])),
        "rejected_tokens": float(np.mean([len(p["rejected_token_ids"]) for p in kept])),
        "intransitive_triads": float(cyclic / triads) if triads else 0.0,
    }
