"""Limits on prompt and answers of a pair, in tokens."""

from __future__ import annotations

from typing import Literal, NamedTuple

from pydantic import PositiveInt

from src.kernel.config import UserError, config
from src.kernel.rows import Row


class Fitted(NamedTuple):
    """Token ids of a pair within the limits."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


@config
class Lengths:
    max_prompt: PositiveInt
    """A longer prompt keeps its last tokens."""
    max_total: PositiveInt
    """Prompt and answer together; a longer answer keeps its first tokens."""
    truncation: Literal["separate", "joint"]
    """separate: prompts are cut to `max_prompt`, and each answer has the room that its prompt leaves.
    joint (the public code): nothing is cut of a pair whose prompt and longer answer fit; else the prompt is, and if
    that is not enough, both answers to `max_total - max_prompt`."""

    def __post_init__(self) -> None:
        if self.max_prompt >= self.max_total:
            raise ValueError(f"max_prompt {self.max_prompt} leaves no room for an answer in max_total {self.max_total}")

    def fit(self, prompt: list[int], chosen: list[int], rejected: list[int]) -> Fitted:
        """A pair within the limits. Raises UserError for an empty answer."""
        if not chosen or not rejected:
            raise UserError("pairs: a pair has an empty answer; drop it before training")
        longest = max(len(chosen), len(rejected))
        if self.truncation == "separate":
            prompt = prompt[-self.max_prompt :]
            room = self.max_total - len(prompt)
        else:
            if len(prompt) + longest > self.max_total:
                prompt = prompt[-self.max_prompt :]
            fits = len(prompt) + longest <= self.max_total
            room = longest if fits else self.max_total - self.max_prompt
        return Fitted(prompt, chosen[:room], rejected[:room])


def fitted(pair: Row, lengths: Lengths) -> Fitted:
    """A row of PAIRS within the limits. Raises UserError for an empty answer."""
    return lengths.fit(pair["prompt_token_ids"], pair["chosen_token_ids"], pair["rejected_token_ids"])
