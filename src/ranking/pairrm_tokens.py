"""What PairRM reads of a prompt and its answers: token ids, cut by limits that depend on this prompt alone.

llm-blender takes the room that answers may have from the longest source of a batch.
"""

from __future__ import annotations

import re
from array import array
from pathlib import Path
from typing import NamedTuple

from src.ranking.blender import load_collator

PREFIX = 1
"""Where the prefix token of a text stands: after its [CLS]."""
_MARKS = re.compile(r"<\|(?:source|candidate|candidate1|candidate2)\|>|\[(?:CLS|SEP|PAD|MASK|UNK)\]")


class Cut(NamedTuple):
    """What was read only in part."""

    prompt: bool
    answers: list[bool]


class PairRMTokens:
    """Each text once: the source up to 1224 tokens, answers up to 412 and half of what the source leaves free."""

    def __init__(self, checkpoint: Path, base: Path | None) -> None:
        self.collator = load_collator(checkpoint, base)

    def __call__(self, source: str, answers: list[str]) -> tuple[list[array[int]], Cut]:
        """[CLS] prefix text [SEP] of the source and of each answer; the answers have the neutral candidate prefix."""
        marks = self.collator
        texts = [marks.source_prefix + without_marks(source)]
        texts += [marks.candidate_prefix + without_marks(answer) for answer in answers]
        whole, *candidates = marks.tokenizer(texts, verbose=False)["input_ids"]
        read = _cut(whole, marks.source_maxlength)
        room = marks.candidate_maxlength + (marks.source_maxlength - len(read)) // 2
        cut = Cut(len(whole) > len(read), [len(ids) > room for ids in candidates])
        return [array("i", ids) for ids in (read, *(_cut(ids, room) for ids in candidates))], cut


def without_marks(text: str) -> str:
    """A text that cannot end its part or begin another one; llm-blender does so for [SEP] only."""
    return _MARKS.sub(" ", text)


def _cut(ids: list[int], limit: int) -> list[int]:
    return ids if len(ids) <= limit else [*ids[: limit - 1], ids[-1]]
