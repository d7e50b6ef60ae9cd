"""The K answers to a prompt as a pairing rule sees them: by what they are, never by their place."""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import NamedTuple

import numpy as np

from src.kernel.rows import Row
from src.pairing.win_probability import exact_means


class Candidates(NamedTuple):
    """Every field has one value an answer."""

    wins: list[float]
    """P(y > pi_t) over all K answers, in [0, 1]: equal win rates are equal numbers."""
    scores: list[float] | None
    """The ranker's own; None where it only compares."""
    judged: list[bool]
    """False: the score is only filled in, because the judge's verdict could not be read."""
    texts: list[str]
    tokens: list[int]
    """Lengths."""
    ties: list[int]
    """Random; the lower one comes first among equals."""
    lots: list[int]
    """Random and independent of `ties`; the lowest one is drawn where an answer is drawn."""

    def best_first(self) -> list[int]:
        """Indices by win rate."""
        return sorted(range(len(self.wins)), key=lambda i: (-self.wins[i], self.ties[i]))

    def draw(self, among: list[int]) -> int:
        """One of these indices, each equally likely."""
        return min(among, key=lambda i: self.lots[i])


def candidates(row: Row, ranking: Row, matrix: np.ndarray, seed: int) -> Candidates:
    """Of a RESPONSES row, its RANKING row and P(y_i > y_j)."""
    ties, lots = _draws(row, seed)
    return Candidates(
        wins=exact_means(matrix).tolist(),
        scores=ranking["scores"],
        judged=_judged(ranking, len(row["responses"])),
        texts=[answer["text"] for answer in row["responses"]],
        tokens=[len(answer["token_ids"]) for answer in row["responses"]],
        ties=ties,
        lots=lots,
    )


def _judged(ranking: Row, answers: int) -> list[bool]:
    malformed = [term["values"] for term in ranking["terms"] or [] if term["name"] == "malformed"]
    return [not any(values[i] for values in malformed) for i in range(answers)]


def _draws(row: Row, seed: int) -> tuple[list[int], list[int]]:
    """Two random numbers an answer, of seed, prompt and content: they move with the answer to another place.

    The second of two identical answers has its own, so that each answer is drawn as often as any other.
    """
    seen: Counter[bytes] = Counter()
    digests = []
    for answer in row["responses"]:
        content = f"{answer['source']}/".encode() + np.asarray(answer["token_ids"], dtype="<i4").tobytes()
        digests.append(hashlib.sha256(f"{seed}/{row['prompt_id']}/{seen[content]}/".encode() + content).digest())
        seen[content] += 1
    ties, lots = ([int.from_bytes(digest[half]) for digest in digests] for half in (slice(16), slice(16, 32)))
    return ties, lots
