"""Checkable instructions in the style of IFEval: the strict verdict on an answer.

A check is a plain dict `{"kind": name, **params}` as it stands in the data. Its parameters:
`n`, `low`, `high` are counts (inclusive bounds), `word`, `first`, `second` single words (case does not
matter), `phrase` and `mark` exact text, `letter` one letter, `keys` a list of JSON keys.
How a check is drawn and worded is `check_kinds.py`; a ranker needs only this file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

Params = Mapping[str, Any]
Test = Callable[[Params, str], bool]

_WORD = re.compile(r"\w+(?:['’-]\w+)*")
_LIST_MARK = re.compile(r"(?m)^[ \t]*(?:\d+[.)]|[-*#]+)[ \t]+")
_BULLET = re.compile(r"(?m)^[ \t]*[-*][ \t]+\S")
_NUMBERED = re.compile(r"(?m)^[ \t]*(\d+)[.)][ \t]+\S")
_ABBREVIATION = re.compile(r"\b(P\.S|e\.g|i\.e|Mr|Mrs|Dr)\.")
_SENTENCE_END = re.compile(r"(?<=[.!?…])[\"'”’)\]*]*\s+|\n+")
_FENCE = re.compile(r"\A```(?:json)?\s*(.*?)\s*```\Z", re.DOTALL)


def words(text: str) -> list[str]:
    """Returns the words in order: runs of letters and digits, joined over inner apostrophes and hyphens."""
    return _WORD.findall(text)


def sentences(text: str) -> list[str]:
    """Returns the pieces with at least one word; one ends at . ! ? … before white space, and at every line end.

    List marks ("1.", "-") and a few abbreviations ("P.S.", "e.g.") end none.
    """
    bare = _ABBREVIATION.sub(r"\1", _LIST_MARK.sub("", text))
    return [piece for piece in _SENTENCE_END.split(bare) if words(piece)]


def first_sentence(text: str) -> str:
    """Returns the first sentence; "" where a list mark is all there is."""
    return next(iter(sentences(text)), "")


def paragraphs(text: str) -> list[str]:
    """Returns the blocks separated by blank lines."""
    return [block for block in re.split(r"\n[ \t]*\n", text) if block.strip()]


def lines(text: str) -> list[str]:
    """Returns the lines that are not blank."""
    return [line for line in text.splitlines() if line.strip()]


def mentions(word: str, text: str) -> int:
    """Counts how often `word` stands in `text` as a whole word, in any case."""
    return len(re.findall(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE))


def numbered_items(text: str) -> list[str]:
    """Returns the numbers at the starts of lines ("1." or "1)"), as written."""
    return _NUMBERED.findall(text)


def counts_up_to(n: int, text: str) -> bool:
    """Tells whether the numbered items are exactly 1, 2, … n."""
    found = numbered_items(text)
    return len(found) == n and found == [str(i) for i in range(1, n + 1)]  # no list of a billion numbers


def first_word(text: str) -> str:
    """Returns the first word, in lower case; "" where there is none."""
    found = _WORD.search(text)
    return found.group().lower() if found else ""


def is_json_with(keys: list[str], text: str) -> bool:
    """Tells whether the whole text (a code fence is allowed) is one object with exactly `keys`, none left empty."""
    fenced = _FENCE.match(text)
    try:
        found = json.loads(fenced.group(1) if fenced else text)
    except (ValueError, RecursionError):  # a text of a thousand "[" exhausts the parser's stack
        return False
    if not isinstance(found, dict) or set(found) != set(keys):
        return False
    return all(value is not None and bool(words(str(value))) for value in found.values())


def in_double_quotes(text: str) -> bool:
    """Tells whether the first and the last character are one pair of double quotation marks."""
    return len(text) > 2 and (text[0], text[-1]) in {('"', '"'), ("“", "”")}


def marked(left: str, right: str, text: str) -> int:
    """Counts the stretches within one line that stand between `left` and `right` and hold a word."""
    inner = f"([^{re.escape(left[0] + right[0])}\n]*)"
    return sum(bool(words(part)) for part in re.findall(re.escape(left) + inner + re.escape(right), text))


def capitals(text: str) -> int:
    """Counts words of two or more characters in capitals."""
    return sum(len(word) > 1 and word.isupper() for word in words(text))


def separated(mark: str, text: str) -> bool:
    """Tells whether a line that is just `mark` stands between two texts with words in them."""
    rows = [line.strip() for line in text.splitlines()]
    places = [i for i, row in enumerate(rows) if row == mark]
    return any(words(" ".join(rows[:i])) and words(" ".join(rows[i + 1 :])) for i in places)


# Each test sees an answer that is stripped and has at least one word.
TRAINED: dict[str, Test] = {
    "words_at_most": lambda check, text: len(words(text)) <= check["n"],
    "words_at_least": lambda check, text: len(words(text)) >= check["n"],
    "words_between": lambda check, text: check["low"] <= len(words(text)) <= check["high"],
    "sentences_at_most": lambda check, text: len(sentences(text)) <= check["n"],
    "sentences_at_least": lambda check, text: len(sentences(text)) >= check["n"],
    "sentences_exactly": lambda check, text: len(sentences(text)) == check["n"],
    "bullets_exactly": lambda check, text: len(_BULLET.findall(text)) == check["n"],
    "numbered_list": lambda check, text: counts_up_to(check["n"], text),
    "paragraphs_exactly": lambda check, text: len(paragraphs(text)) == check["n"],
    "lines_exactly": lambda check, text: len(lines(text)) == check["n"],
    "all_lowercase": lambda check, text: text.islower(),
    "all_uppercase": lambda check, text: text.isupper(),
    "capitals_at_least": lambda check, text: capitals(text) >= check["n"],
    "keyword_in": lambda check, text: mentions(check["word"], text) > 0,
    "keywords_both": lambda check, text: all(mentions(check[key], text) for key in ("first", "second")),
    "keyword_out": lambda check, text: mentions(check["word"], text) == 0,
    "keyword_times": lambda check, text: mentions(check["word"], text) >= check["n"],
    "starts_with": lambda check, text: text.startswith(check["phrase"]),
    "first_word": lambda check, text: first_word(text) == check["word"].lower(),
    "ends_with": lambda check, text: text.endswith(check["phrase"]),
    "ends_with_question": lambda check, text: text.endswith("?"),
    "json_keys": lambda check, text: is_json_with(check["keys"], text),
    "title": lambda check, text: marked("<<", ">>", text) > 0,
    "heading": lambda check, text: re.search(r"(?m)^#{1,6} +\w", text) is not None,
    "in_double_quotes": lambda check, text: in_double_quotes(text),
    "no_commas": lambda check, text: "," not in text,
    "postscript": lambda check, text: re.search(r"P\.S\.\W*\w", text) is not None,
    "placeholders_at_least": lambda check, text: marked("[", "]", text) >= check["n"],
    "bold_at_least": lambda check, text: marked("**", "**", text) >= check["n"],
}

HELD_OUT: dict[str, Test] = {
    "characters_at_most": lambda check, text: len(text) <= check["n"],
    "characters_at_least": lambda check, text: len(text) >= check["n"],
    "sentence_words_at_most": lambda check, text: all(len(words(s)) <= check["n"] for s in sentences(text)),
    "keyword_first_sentence": lambda check, text: mentions(check["word"], first_sentence(text)) > 0,
    "first_letter": lambda check, text: first_word(text)[:1] == check["letter"].lower(),
    "ends_with_full_stop": lambda check, text: text.endswith("."),
    "ends_with_exclamation": lambda check, text: text.endswith("!"),
    "no_exclamations": lambda check, text: "!" not in text,
    "has_digit": lambda check, text: re.search(r"\d", text) is not None,
    "no_digits": lambda check, text: re.search(r"\d", text) is None,
    "separator_line": lambda check, text: separated(check["mark"], text),
    "parentheses": lambda check, text: marked("(", ")", text) > 0,
}

TRAINED_KINDS: frozenset[str] = frozenset(TRAINED)
HELD_OUT_KINDS: frozenset[str] = frozenset(HELD_OUT)  # never occur in a training prompt

_TESTS = TRAINED | HELD_OUT


_N, _WORD_ONLY, _PHRASE = {"n": int}, {"word": str}, {"phrase": str}
PARAMETERS: dict[str, dict[str, type]] = dict.fromkeys(_TESTS, {}) | {
    **{kind: _N for kind in _TESTS if kind.endswith(("_at_most", "_at_least", "_exactly"))},
    **dict.fromkeys(("keyword_in", "keyword_out", "first_word", "keyword_first_sentence"), _WORD_ONLY),
    **dict.fromkeys(("starts_with", "ends_with"), _PHRASE),
    "words_between": {"low": int, "high": int},
    "numbered_list": _N,
    "keywords_both": {"first": str, "second": str},
    "keyword_times": {"word": str, "n": int},
    "json_keys": {"keys": list},
    "first_letter": {"letter": str},
    "separator_line": {"mark": str},
}


def validate(check: Params) -> None:
    """Raises ValueError for an unknown kind, and for parameters its test does not understand."""
    kind = check.get("kind")
    needed = PARAMETERS.get(kind) if isinstance(kind, str) else None
    if needed is None:
        raise ValueError(f"unknown kind of check {kind!r}; known are {', '.join(sorted(_TESTS))}")
    given = {name: type(value) for name, value in check.items() if name != "kind"}
    if given != needed or not all(isinstance(key, str) for key in check.get("keys", ())):
        wanted = ", ".join(f"{name} ({kind.__name__})" for name, kind in needed.items()) or "no parameters"
        raise ValueError(f"a check of kind {kind} takes {wanted}, not {check}")


def passes(check: Params, answer: str) -> bool:
    """Judges a valid check strictly. An answer without a word fails every check, also those that forbid something."""
    text = answer.strip()
    return bool(words(text)) and _TESTS[check["kind"]](check, text)


def verdicts(checks: list[dict[str, Any]], answer: str) -> list[bool]:
    """Returns one verdict per check, in order."""
    return [passes(check, answer) for check in checks]
