"""Which pairs are not worth a gradient."""

from __future__ import annotations

from typing import Literal

from pydantic import NonNegativeInt

from src.kernel.config import Share, config
from src.kernel.rows import Row

Reason = Literal["identical", "margin", "length"]

ADVICE: dict[Reason, str] = {
    "identical": "identical; raise sampling.temperature",
    "margin": "nearer than pairing.filters.min_margin; lower it",
    "length": "of lengths further apart than pairing.filters.max_length_gap; raise it",
}
"""What the pairs a filter leaves out are, and what brings them back."""


@config
class Filters:
    drop_identical: bool
    """Leave out pairs of the same text."""
    min_margin: Share | None
    """Least chosen_win - rejected_win; None: any."""
    max_length_gap: NonNegativeInt | None
    """Most tokens by which one answer is longer than the other; None: any."""

    def refuse(self, pair: Row, same_text: bool) -> Reason | None:
        """Why the pair is left out: the first reason in the order of the fields; None: it is kept."""
        chosen, rejected = pair["chosen_token_ids"], pair["rejected_token_ids"]
        if self.drop_identical and same_text:
            return "identical"
        if self.min_margin is not None and pair["chosen_win"] - pair["rejected_win"] < self.min_margin:
            return "margin"
        if self.max_length_gap is not None and abs(len(chosen) - len(rejected)) > self.max_length_gap:
            return "length"
        return None
