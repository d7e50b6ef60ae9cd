"""Repetition, copying, and collapsed generations: empty, looping, the same again and again, cut off.

Signs of a collapse are always counted, and reported from a limit on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

from src.kernel.rows import Row


def trigrams(text: str) -> list[tuple[str, ...]]:
    words = text.lower().split()
    return list(zip(words, words[1:], words[2:], strict=False))


def repetition(text: str) -> float:
    """Returns the share of word trigrams that occurred earlier in the text, in [0, 1)."""
    grams = trigrams(text)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def echo(prompt: str, text: str) -> float:
    """Returns the share of the answer's word trigrams that stand in the prompt, in [0, 1]."""
    asked, grams = set(trigrams(prompt)), trigrams(text)
    return sum(gram in asked for gram in grams) / len(grams) if grams else 0.0


GRAM = 4
"""Tokens of a sequence that is looked for again."""
LOOPS = 0.5
"""An answer goes in circles where more than this share of its sequences of GRAM tokens occurred earlier in it."""


class Sign(NamedTuple):
    """One thing that a collapse shows in."""

    limit: float
    """The share above which there is a warning."""
    of: str
    """The metric that it is a share of."""
    text: str


SIGNS = {
    "empty": Sign(0.05, "answers", "answers are empty"),
    "looping": Sign(0.2, "answers", f"answers go in circles (most {GRAM}-token sequences occurred before)"),
    "cut": Sign(0.9, "answers", "answers were cut at the most tokens they may have"),
    "alike": Sign(0.2, "prompts", "prompts have the same text as each of their answers"),
    "commonest": Sign(0.2, "prompts", "prompts have one and the same text among their answers"),
}
"""Name of the metric -> sign."""


def signs(rows: Sequence[Row]) -> dict[str, float]:
    """Counts the signs in RESPONSES rows: the shares of SIGNS but `cut`, which is what is not `finished`.

    alike: of the prompts with several answers, those whose answers are all one text. commonest: prompts that have the
    commonest text among their answers.
    """
    answers = [answer for row in rows for answer in row["responses"]]
    texts = [[answer["text"] for answer in row["responses"]] for row in rows]
    several = [one for one in texts if len(one) > 1]
    commonest = Counter(text for one in texts for text in set(one))
    return {
        "empty": sum(not answer["text"].strip() for answer in answers) / len(answers),
        "looping": sum(repeated(answer["token_ids"]) > LOOPS for answer in answers) / len(answers),
        "alike": sum(len(set(one)) == 1 for one in several) / len(rows),
        "commonest": max(commonest.values()) / len(rows),
    }


def outside_signs(texts: Sequence[str], prompts: int) -> dict[str, float]:
    """Counts the signs in answers from elsewhere, one each to some of `prompts` prompts.

    Their tokens are not known, so words stand for them.
    """
    counts: dict[str, float] = {"answers": len(texts), "prompts": prompts}
    if not texts:
        return counts
    return counts | {
        "empty": sum(not text.strip() for text in texts) / len(texts),
        "looping": sum(repeated(text.split()) > LOOPS for text in texts) / len(texts),
        "commonest": max(Counter(texts).values()) / prompts,
    }


def repeated(ids: Sequence[Hashable]) -> float:
    """Returns the share of GRAM-token sequences that occurred earlier, in [0, 1) (seq-rep-4 of arXiv:1908.04319)."""
    grams = list(zip(*(ids[start:] for start in range(GRAM)), strict=False))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def collapse_warnings(metrics: Mapping[str, Any]) -> list[str]:
    """Returns a line for each sign over its limit, with counts; none for metrics that older artifacts do not have."""
    known = dict(metrics) | ({"cut": 1 - metrics["finished"]} if "finished" in metrics else {})
    return [
        f"{count} of {known[sign.of]} {sign.text}"
        for name, sign in SIGNS.items()
        if known.get(name, 0) > sign.limit and (count := round(known[name] * known[sign.of])) > 1
    ]
