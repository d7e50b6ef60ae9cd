"""Dealing the pairs of one optimiser step to processes and packed rows."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence

from src.modeling.model import AttentionKind

Deal = list[list[list[int]]]
"""Process -> its rows -> the pairs in each, by their index."""


def deal(tokens: Sequence[int], processes: int, row_tokens: int) -> Deal:
    """Give pair i, `tokens[i]` long, to one row of one process; rows hold up to `row_tokens`.

    Every process gets the same number of rows, as few as will do, of lengths as equal as the largest-first rule makes
    them. A pair longer than `row_tokens` has a row of its own; where pairs are few, rows stay empty.
    """
    most = math.ceil(len(tokens) / processes)
    count = min(most, math.ceil(sum(min(n, row_tokens) for n in tokens) / (processes * row_tokens)))
    while True:
        rows = _spread(tokens, processes * count)
        if all(len(row) < 2 or sum(tokens[i] for i in row) <= row_tokens for row in rows):
            return [rows[process::processes] for process in range(processes)]
        count += 1


def row_multiple(kind: AttentionKind, row_tokens: int) -> int:
    """What a row's length is rounded up to: a compiled kernel meets at most 8 lengths up to `row_tokens`."""
    return 1 if kind == "segments" else 128 * math.ceil(row_tokens / 1024)


def _spread(tokens: Sequence[int], count: int) -> list[list[int]]:
    """`count` rows: the longest pair first, each into the row that is shortest so far."""
    rows: list[list[int]] = [[] for _ in range(count)]
    shortest = [(0, number) for number in range(count)]
    for i in sorted(range(len(tokens)), key=lambda i: (-tokens[i], i)):
        filled, number = heapq.heappop(shortest)
        rows[number].append(i)
        heapq.heappush(shortest, (filled + tokens[i], number))
    return rows
