"""Limits on prompt and answer, in tokens, with the truncation of the published code."""

from __future__ import annotations

from pydantic import PositiveInt

from src.config import UserError, config


@config
class Lengths:
    max_prompt: PositiveInt
    """A longer prompt keeps its last tokens."""
    max_total: PositiveInt
    """Prompt and answer together; a longer answer keeps its first tokens."""

    def __post_init__(self) -> None:
        if self.max_prompt >= self.max_total:
            raise ValueError(f"max_prompt {self.max_prompt} leaves no room for an answer in max_total {self.max_total}")

    def fit(self, prompt: list[int], answer: list[int]) -> tuple[list[int], list[int]]:
        """Prompt and answer within the limits. Raises UserError for an empty answer."""
        prompt = prompt[-self.max_prompt :]
        answer = answer[: self.max_total - len(prompt)]
        if not answer:
            raise UserError("pairs: a pair has an empty answer; drop it before training")
        return prompt, answer
