"""Overrides of a run with outside answers."""

from __future__ import annotations

from answer_server import IMPATIENT


def outside(url: str) -> list[str]:
    own = ("max_answer_tokens=50", f"endpoint.base_url={url}", *IMPATIENT)
    return ["+answers@data.answers.gpt=endpoint", *(f"data.answers.gpt.{word}" for word in own)]
