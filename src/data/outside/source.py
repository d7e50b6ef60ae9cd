"""Answers that the policy did not give: what a source of them is, and the rows its stage writes.

OUTSIDE rows answer some of the prompts of a prompts artifact, each once.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import pyarrow as pa

from src.kernel.artifact import Stage

OUTSIDE = pa.schema(
    {
        "prompt_id": pa.string(),
        "text": pa.string(),  # may be empty: it is counted when it is not added
        "finish_reason": pa.string(),  # "stop", or "length" (cut off)
        "seed": pa.uint64(),  # null where none is known
        "source": pa.string(),  # who gave it
    }
)


@runtime_checkable
class AnswerSource(Protocol):
    """Where answers come from that the policy did not give."""

    max_answer_tokens: int
    """Of the policy; a longer answer is not added, and counted."""

    def stage(self, key: str) -> Stage:
        """Reads prompts, writes OUTSIDE rows. `key` is where the source stands in the config, for messages.

        Raises UserError when what it reads is not there.
        """
        ...
