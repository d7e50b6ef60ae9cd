"""Checks of an answer that need no model: instructions in the style of IFEval, repetition, copying, collapse.

A check is a plain dict `{"kind": name, **parameters}`, as it stands in the data. A kind takes the parameters of its
test below: `n`, `low` and `high` are counts (inclusive bounds), `word`, `first` and `second` single words (case does
not matter), `phrase` and `mark` exact text, `letter` one letter, `keys` a list of JSON keys.
tools/embedded_prompts draws checks and words them.
"""

from __future__ import annotations

import inspect
import json
import re
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

from src.kernel.rows import Row

Params = Mapping[str, Any]

_WORD = re.compile(r"\w+(?:['’-]\w+)*")
_LIST_MARK = re.compile(r"(?m)^[ \t]*(?:\d+[.)]|[-*#]+)[ \t]+")
_BULLET = re.compile(r"(?m)^[ \t]*[-*][ \t]+\S")
_NUMBERED = re.compile(r"(?m)^[ \t]*(\d+)[.)][ \t]+\S")
_ABBREVIATION = re.compile(r"\b(P\.S|e\.g|i\.e|Mr|Mrs|Dr)\.")
_SENTENCE_END = re.compile(r"(?<=[.!?…])[\"'”’)\]*]*\s+|\n+")
_FENCE = re.compile(r"\A```(?:json)?\s*(.*?)\s*```\Z", re.DOTALL)


def words(text: str) -> list[str]:
    """Return the words in order: runs of letters and digits, joined over inner apostrophes and hyphens."""
    return _WORD.findall(text)


def sentences(text: str) -> list[str]:
    """Return the pieces with at least one word; one ends at . ! ? … before white space, and at every line end.

    List marks ("1.", "-") and a few abbreviations ("P.S.", "e.g.") end none.
    """
    bare = _ABBREVIATION.sub(r"\1", _LIST_MARK.sub("", text))
    return [piece for piece in _SENTENCE_END.split(bare) if words(piece)]


def mentions(word: str, text: str) -> int:
    """Count how often `word` stands in `text` as a whole word, in any case."""
    return len(re.findall(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE))


def _filled(pieces: Sequence[str]) -> int:
    return sum(bool(piece.strip()) for piece in pieces)


def _first_word(text: str) -> str:
    return next(iter(words(text)), "").lower()


def _is_json(text: str, keys: list[str]) -> bool:
    """Say whether the whole text (a code fence is allowed) is one object with exactly `keys`, none left empty."""
    fenced = _FENCE.match(text)
    try:
        value = json.loads(fenced.group(1) if fenced else text)
    except (ValueError, RecursionError):  # a text of a thousand "[" exhausts the parser's stack
        return False
    if not isinstance(value, dict) or set(value) != set(keys):
        return False
    return all(inner is not None and words(str(inner)) for inner in value.values())


def _marked(text: str, left: str, right: str) -> int:
    """Count the stretches within one line that stand between `left` and `right` and hold a word."""
    inner = f"([^{re.escape(left[0] + right[0])}\n]*)"
    return sum(bool(words(part)) for part in re.findall(re.escape(left) + inner + re.escape(right), text))


def _is_separated(text: str, mark: str) -> bool:
    """Say whether a line that is just `mark` stands between two texts with words in them."""
    rows = [line.strip() for line in text.splitlines()]
    places = [i for i, row in enumerate(rows) if row == mark]
    return any(words(" ".join(rows[:i])) and words(" ".join(rows[i + 1 :])) for i in places)


# Each test sees an answer that is stripped and has at least one word.
TRAINED: dict[str, Callable[..., Any]] = {
    "words_at_most": lambda text, n: len(words(text)) <= n,
    "words_at_least": lambda text, n: len(words(text)) >= n,
    "words_between": lambda text, low, high: low <= len(words(text)) <= high,
    "sentences_at_most": lambda text, n: len(sentences(text)) <= n,
    "sentences_at_least": lambda text, n: len(sentences(text)) >= n,
    "sentences_exactly": lambda text, n: len(sentences(text)) == n,
    "bullets_exactly": lambda text, n: len(_BULLET.findall(text)) == n,
    "numbered_list": lambda text, n: _NUMBERED.findall(text) == [str(i) for i in range(1, n + 1)],
    "paragraphs_exactly": lambda text, n: _filled(re.split(r"\n[ \t]*\n", text)) == n,
    "lines_exactly": lambda text, n: _filled(text.splitlines()) == n,
    "all_lowercase": lambda text: text.islower(),
    "all_uppercase": lambda text: text.isupper(),
    "capitals_at_least": lambda text, n: sum(len(word) > 1 and word.isupper() for word in words(text)) >= n,
    "keyword_in": lambda text, word: mentions(word, text) > 0,
    "keywords_both": lambda text, first, second: mentions(first, text) and mentions(second, text),
    "keyword_out": lambda text, word: mentions(word, text) == 0,
    "keyword_times": lambda text, word, n: mentions(word, text) >= n,
    "starts_with": lambda text, phrase: text.startswith(phrase),
    "first_word": lambda text, word: _first_word(text) == word.lower(),
    "ends_with": lambda text, phrase: text.endswith(phrase),
    "ends_with_question": lambda text: text.endswith("?"),
    "json_keys": _is_json,
    "title": lambda text: _marked(text, "<<", ">>"),
    "heading": lambda text: re.search(r"(?m)^#{1,6} +\w", text),
    "in_double_quotes": lambda text: len(text) > 2 and (text[0], text[-1]) in {('"', '"'), ("“", "”")},
    "no_commas": lambda text: "," not in text,
    "postscript": lambda text: re.search(r"P\.S\.\W*\w", text),
    "placeholders_at_least": lambda text, n: _marked(text, "[", "]") >= n,
    "bold_at_least": lambda text, n: _marked(text, "**", "**") >= n,
}

HELD_OUT: dict[str, Callable[..., Any]] = {
    "characters_at_most": lambda text, n: len(text) <= n,
    "characters_at_least": lambda text, n: len(text) >= n,
    "sentence_words_at_most": lambda text, n: all(len(words(sentence)) <= n for sentence in sentences(text)),
    "keyword_first_sentence": lambda text, word: mentions(word, next(iter(sentences(text)), "")) > 0,
    "first_letter": lambda text, letter: _first_word(text)[:1] == letter.lower(),
    "ends_with_full_stop": lambda text: text.endswith("."),
    "ends_with_exclamation": lambda text: text.endswith("!"),
    "no_exclamations": lambda text: "!" not in text,
    "has_digit": lambda text: re.search(r"\d", text),
    "no_digits": lambda text: not re.search(r"\d", text),
    "separator_line": _is_separated,
    "parentheses": lambda text: _marked(text, "(", ")"),
}

TRAINED_KINDS: frozenset[str] = frozenset(TRAINED)
HELD_OUT_KINDS: frozenset[str] = frozenset(HELD_OUT)  # never occur in a training prompt
_TESTS = TRAINED | HELD_OUT
_TYPES = {"n": int, "low": int, "high": int, "keys": list}
"""Types of the parameters that are not text."""


def validate(check: dict[str, Any]) -> dict[str, Any]:
    """Return the check. Raise ValueError for an unknown kind, and for parameters that its test does not take."""
    kind = check.get("kind")
    if not isinstance(kind, str) or kind not in _TESTS:
        raise ValueError(f"unknown kind of check {kind!r}; known are {', '.join(sorted(_TESTS))}")
    _, *names = inspect.signature(_TESTS[kind]).parameters
    types = {name: _TYPES.get(name, str) for name in names}
    fits = {name: type(value) for name, value in check.items() if name != "kind"} == types
    if not fits or not all(isinstance(key, str) for key in check.get("keys", ())):
        wanted = ", ".join(f"{name} ({type_.__name__})" for name, type_ in types.items()) or "no parameters"
        raise ValueError(f"a check of kind {kind} takes {wanted}, not {check}")
    return check


def passes(check: Params, answer: str) -> bool:
    """Judge a valid check strictly. An answer without a word fails every check, also those that forbid something."""
    text = answer.strip()
    parameters = {name: value for name, value in check.items() if name != "kind"}
    return bool(words(text) and _TESTS[check["kind"]](text, **parameters))


def verdicts(checks: list[dict[str, Any]], answer: str) -> list[bool]:
    """Return one verdict per check, in order."""
    return [passes(check, answer) for check in checks]


# Repetition and copying ----------------------------------------------------------------------------------------------


def _grams(tokens: Sequence[Hashable], size: int) -> list[tuple[Hashable, ...]]:
    return list(zip(*(tokens[start:] for start in range(size)), strict=False))


def repeated(tokens: Sequence[Hashable], size: int) -> float:
    """Return the share of runs of `size` tokens that occurred earlier, in [0, 1) (seq-rep-n of arXiv:1908.04319)."""
    grams = _grams(tokens, size)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def repetition(text: str) -> float:
    """Return the share of word trigrams that occurred earlier in the text, in [0, 1)."""
    return repeated(text.lower().split(), 3)


def echo(prompt: str, text: str) -> float:
    """Return the share of the answer's word trigrams that stand in the prompt, in [0, 1]."""
    asked, grams = set(_grams(prompt.lower().split(), 3)), _grams(text.lower().split(), 3)
    return sum(gram in asked for gram in grams) / len(grams) if grams else 0.0


# Collapse ------------------------------------------------------------------------------------------------------------

GRAM = 4
"""Tokens of a sequence that is looked for again."""
LOOPS = 0.5
"""An answer goes in circles where more than this share of its sequences of GRAM tokens occurred earlier in it."""


class Sign(NamedTuple):
    """A sign of collapse. It is always counted, and there is a warning above the limit."""

    limit: float
    """A share in [0, 1]."""
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
    """Return the shares of SIGNS in RESPONSES rows, without `cut`, which is 1 - `finished`.

    alike: prompts with several answers that are all one text. commonest: prompts that have the commonest text among
    their answers.
    """
    answers = [answer for row in rows for answer in row["responses"]]
    texts = [{answer["text"] for answer in row["responses"]} for row in rows]
    commonest = Counter(text for different in texts for text in different)
    alike = sum(len(row["responses"]) > 1 == len(different) for row, different in zip(rows, texts, strict=True))
    return {
        "empty": sum(not answer["text"].strip() for answer in answers) / len(answers),
        "looping": sum(repeated(answer["token_ids"], GRAM) > LOOPS for answer in answers) / len(answers),
        "alike": alike / len(rows),
        "commonest": max(commonest.values()) / len(rows),
    }


def collapse_warnings(metrics: Mapping[str, Any]) -> list[str]:
    """Return a line for each sign over its limit, with counts."""
    known = dict(metrics) | ({"cut": 1 - metrics["finished"]} if "finished" in metrics else {})
    return [
        f"{count} of {known[sign.of]} {sign.text}"
        for name, sign in SIGNS.items()
        if known.get(name, 0) > sign.limit and (count := round(known[name] * known[sign.of])) > 1
    ]


def summary(rows: list[Row]) -> dict[str, float]:
    """Sum up RESPONSES rows: counts, the mean and the most tokens of an answer, and shares.

    finished: answers that ended by themselves; distinct: different texts of a prompt, per answer; and signs of a
    collapse.
    """
    answers = [answer for row in rows for answer in row["responses"]]
    lengths = [len(answer["token_ids"]) for answer in answers]
    texts = sum(len({answer["text"] for answer in row["responses"]}) for row in rows)
    finished = sum(answer["finish_reason"] == "stop" for answer in answers)
    numbers = {"prompts": len(rows), "answers": len(answers), "tokens": sum(lengths) / len(answers)}
    numbers |= {"most_tokens": max(lengths), "finished": finished / len(answers), "distinct": texts / len(answers)}
    return numbers | signs(rows)


def prompts_with_marks(rows: Sequence[Row], marks: Sequence[str]) -> list[str]:
    """Return the ids of PROMPTS rows that have one of the `marks` in any of their turns."""
    return [row["prompt_id"] for row in rows if any(mark in m["content"] for mark in marks for m in row["messages"])]
