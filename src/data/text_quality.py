"""Repetition and copying, counted in word trigrams."""

from __future__ import annotations


def trigrams(text: str) -> list[tuple[str, ...]]:
    words = text.lower().split()
    return list(zip(words, words[1:], words[2:], strict=False))


def repetition(text: str) -> float:
    """Share of word trigrams that occurred earlier in the text, in [0, 1)."""
    grams = trigrams(text)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def echo(prompt: str, text: str) -> float:
    """Share of the answer's word trigrams that stand in the prompt, in [0, 1]."""
    asked, grams = set(trigrams(prompt)), trigrams(text)
    return sum(gram in asked for gram in grams) / len(grams) if grams else 0.0
