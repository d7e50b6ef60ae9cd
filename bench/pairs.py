"""Read pairs for the benchmarks from a file, or draw random tokens with the lengths of real pairs."""

from __future__ import annotations

import json
import random
from itertools import cycle, islice
from pathlib import Path
from typing import Any, NamedTuple

LENGTHS = Path(__file__).with_name("ultrafeedback_lengths.json")
"""Lengths [prompt, chosen, rejected] in SmolLM2's tokens of 256 rows of a sample of UltraFeedback (binarised)."""


class Pair(NamedTuple):
    """Token ids; the prompt is at most half of the longest row, so that every trainer cuts it alike: not at all."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


def load(count: int, max_length: int, data: Path | None, tokenizer: Any, vocabulary: int) -> list[Pair]:
    """Return the first `count` pairs whose prompt takes at most half of `max_length` tokens; answers are cut."""
    found = _real(data, tokenizer) if data else _random(vocabulary, count, max_length // 2)
    fitting = [pair for pair in found if len(pair.prompt) <= max_length // 2][:count]
    if len(fitting) < count:
        raise ValueError(f"bench: {count} pairs of up to {max_length} tokens are needed, the file has {len(fitting)}")
    return [Pair(p, c[: max_length - len(p)], r[: max_length - len(p)]) for p, c, r in fitting]


def _real(data: Path, tokenizer: Any) -> list[Pair]:
    """Read rows {prompt, chosen, rejected} of a JSON-lines file, rendered with the model's chat template."""
    found = []
    for row in map(json.loads, data.read_text().splitlines()):
        ask = [{"role": "user", "content": row["prompt"]}]
        prompt = _ids(tokenizer, ask, add_generation_prompt=True)
        told = [_ids(tokenizer, [*ask, {"role": "assistant", "content": row[side]}]) for side in ("chosen", "rejected")]
        if all(ids[: len(prompt)] == prompt and len(ids) > len(prompt) for ids in told):
            found.append(Pair(prompt, told[0][len(prompt) :], told[1][len(prompt) :]))
    return found


def _ids(tokenizer: Any, messages: list[dict[str, str]], **options: Any) -> list[int]:
    text = tokenizer.apply_chat_template(messages, tokenize=False, **options)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _random(vocabulary: int, count: int, longest_prompt: int) -> list[Pair]:
    """Draw new tokens for every pair; after the last row of lengths comes the first again."""
    chance = random.Random(0)
    fitting = [row for row in json.loads(LENGTHS.read_text()) if row[0] <= longest_prompt]
    rows = islice(cycle(fitting), count)
    return [Pair(*([chance.randrange(3, vocabulary) for _ in range(n)] for n in row)) for row in rows]
