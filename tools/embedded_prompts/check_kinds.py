"""Draw, word and combine the kinds of `checks.py` for the bundled prompts."""

from collections.abc import Callable, Iterable, Sequence
from random import Random
from typing import Any, NamedTuple

from src.data.checks import HELD_OUT_KINDS, TRAINED_KINDS, Params

Draw = Callable[[Random, Sequence[str]], dict[str, Any]]

OPENINGS = ("Here is my answer:", "In my view", "To put it simply", "Let me think", "As far as I know")
CLOSINGS = ("That is all.", "Hope this helps.", "Good luck.", "Thanks for asking.", "Enjoy.")
FIRST_WORDS = ("Well", "First", "Sure", "Many", "Imagine", "Perhaps", "When")
JSON_KEYS = (["answer"], ["text"], ["answer", "reason"], ["title", "text"])


class Kind(NamedTuple):
    """Says how one kind is drawn and what it goes with.

    draw: parameters from a generator and the topic's words (at least two).
    claims: what of the answer it settles. Two kinds with a claim in common never share a prompt.
    cards: its share of the deck from which checks are dealt, 1..4; kinds the small model never meets have 1.
    """

    draw: Draw
    claims: str
    cards: int


def nothing(rng: Random, nouns: Sequence[str]) -> dict[str, Any]:
    """Return no parameters."""
    return {}


def count(*values: int) -> Draw:
    """Draw `n`, one of `values`."""
    return one_of("n", *values)


def one_of(name: str, *values: Any) -> Draw:
    """Draw the parameter `name`, one of `values`."""
    return lambda rng, nouns: {name: rng.choice(values)}


def word_range(rng: Random, nouns: Sequence[str]) -> dict[str, Any]:
    """Draw `low`, 15..35 words, and `high`, 15..25 above it: the middle of the range is 35 on average."""
    low = rng.choice((15, 20, 25, 30, 35))
    return {"low": low, "high": low + rng.choice((15, 20, 25))}


def noun(rng: Random, nouns: Sequence[str]) -> dict[str, Any]:
    """Draw `word`, one of the topic's."""
    return {"word": rng.choice(nouns)}


def noun_times(rng: Random, nouns: Sequence[str]) -> dict[str, Any]:
    """Draw `word`, one of the topic's, and `n`, 2..3."""
    return {"word": rng.choice(nouns), "n": rng.choice((2, 2, 3))}


def two_nouns(rng: Random, nouns: Sequence[str]) -> dict[str, Any]:
    """Draw `first` and `second`, two of the topic's words."""
    return dict(zip(("first", "second"), rng.sample(nouns, 2), strict=True))


# Upper and lower bounds have as many cards, and values that mirror one another on the length a small model
# has room for (96 tokens: 70 words, 420 characters, 5 sentences), so that on average no length is asked.
KINDS: dict[str, Kind] = {
    "words_at_most": Kind(count(20, 25, 30, 35, 40, 45, 50, 55, 60), "length", 3),
    "words_at_least": Kind(count(15, 20, 25, 30, 35, 40, 45), "length", 3),
    "words_between": Kind(word_range, "length", 2),
    "sentences_at_most": Kind(count(1, 2, 3), "length shape sentences", 2),
    "sentences_at_least": Kind(count(2, 3, 4), "length shape sentences", 2),
    "sentences_exactly": Kind(count(1, 2, 3, 4), "length shape sentences", 2),
    "bullets_exactly": Kind(count(2, 3, 4), "shape", 2),
    "numbered_list": Kind(count(2, 3, 4), "shape digits", 3),
    "paragraphs_exactly": Kind(count(2, 3), "shape", 2),
    "lines_exactly": Kind(count(2, 3, 4), "shape", 1),
    # The exact phrases at the start and the end have capitals, hence the claims on both.
    "all_lowercase": Kind(nothing, "case start end", 1),
    "all_uppercase": Kind(nothing, "case start end", 1),
    "capitals_at_least": Kind(count(1, 1, 2), "case", 2),
    "keyword_in": Kind(noun, "noun", 4),
    "keywords_both": Kind(two_nouns, "noun", 2),
    "keyword_out": Kind(noun, "noun", 2),
    "keyword_times": Kind(noun_times, "noun", 2),
    "starts_with": Kind(one_of("phrase", *OPENINGS), "start", 3),
    "first_word": Kind(one_of("word", *FIRST_WORDS), "start", 2),
    "ends_with": Kind(one_of("phrase", *CLOSINGS), "end", 1),
    "ends_with_question": Kind(nothing, "end", 2),
    "json_keys": Kind(one_of("keys", *JSON_KEYS), "shape start end case commas prose", 1),
    "title": Kind(nothing, "start", 2),
    "heading": Kind(nothing, "start shape", 1),
    "in_double_quotes": Kind(nothing, "start end shape", 1),
    "no_commas": Kind(nothing, "commas", 2),
    "postscript": Kind(nothing, "end sentences", 2),
    "placeholders_at_least": Kind(count(1, 2), "placeholder", 2),
    "bold_at_least": Kind(count(1, 1, 2), "bold", 2),
    "characters_at_most": Kind(count(120, 150, 180, 210, 240, 270, 300), "length", 1),
    "characters_at_least": Kind(count(120, 150, 180, 210, 240, 270, 300), "length", 1),
    "sentence_words_at_most": Kind(count(12, 15, 18, 20, 25), "length", 1),
    "keyword_first_sentence": Kind(noun, "noun start", 1),
    "first_letter": Kind(one_of("letter", *"ABFHIMOSTW"), "start", 1),
    "ends_with_full_stop": Kind(nothing, "end", 1),
    "ends_with_exclamation": Kind(nothing, "end exclamation", 1),
    "no_exclamations": Kind(nothing, "exclamation", 1),
    "has_digit": Kind(nothing, "digits", 1),
    "no_digits": Kind(nothing, "digits", 1),
    "separator_line": Kind(one_of("mark", "---", "***", "====="), "shape", 1),
    "parentheses": Kind(nothing, "parentheses", 1),
}

# Clauses in the imperative, lower case, without a full stop, so that two can be joined by "and".
WORDING = """
words_at_most: use at most {n} words
words_at_most: keep your answer to {n} words or fewer
words_at_most: stay within {n} words
words_at_least: use at least {n} words
words_at_least: write {n} words or more
words_at_least: make your answer at least {n} words long
words_between: write between {low} and {high} words
words_between: use no fewer than {low} and no more than {high} words
sentences_at_most: use at most {n} sentence{s}
sentences_at_most: write no more than {n} sentence{s}
sentences_at_least: use at least {n} sentence{s}
sentences_at_least: write {n} or more sentence{s}
sentences_exactly: write exactly {n} sentence{s}
sentences_exactly: use exactly {n} sentence{s}
bullets_exactly: include exactly {n} bullet points on lines that start with "- "
bullets_exactly: give exactly {n} bullet points that start with "- "
numbered_list: write a numbered list with exactly {n} items
numbered_list: make a list numbered from 1 to {n}
numbered_list: give exactly {n} numbered points
paragraphs_exactly: write exactly {n} paragraphs with a blank line between them
paragraphs_exactly: split your answer into {n} paragraphs separated by a blank line
lines_exactly: write exactly {n} lines
lines_exactly: put your answer on exactly {n} lines
all_lowercase: write everything in lowercase letters
all_lowercase: use no capital letters, like this
all_uppercase: write everything in capital letters
all_uppercase: use only capital letters, LIKE THIS
capitals_at_least: write at least {n} word{s} in ALL CAPS
capitals_at_least: put at least {n} word{s} in capitals LIKE this
keyword_in: use the word "{word}"
keyword_in: mention the word "{word}"
keyword_in: include the word "{word}"
keywords_both: use both of the words "{first}" and "{second}"
keywords_both: include the words "{first}" and "{second}"
keyword_out: do not use the word "{word}"
keyword_out: avoid the word "{word}"
keyword_times: use the word "{word}" at least {n} times
keyword_times: mention the word "{word}" {n} times or more
starts_with: begin with the exact words "{phrase}"
starts_with: start your answer with "{phrase}"
first_word: make "{word}" your first word
first_word: begin with the word "{word}"
ends_with: finish with the exact words "{phrase}"
ends_with: end your answer with "{phrase}"
ends_with_question: end with a question to the reader
ends_with_question: let your last sentence be a question
json_keys: reply with nothing but a JSON object that has the key{s} {keys}
json_keys: give your whole answer as a JSON object with the key{s} {keys}
title: give it a title wrapped in double angle brackets like <<title>>
title: put a title in double angle brackets such as <<my title>> on top
heading: put a heading on top that starts with "# "
heading: begin with a Markdown heading that starts with "# "
in_double_quotes: wrap your whole answer in double quotation marks
in_double_quotes: put double quotes around the entire answer
no_commas: do not use any commas
no_commas: write without commas
postscript: add a postscript that starts with "P.S." at the end
postscript: finish with a postscript that starts with "P.S."
placeholders_at_least: include at least {n} placeholder{s} in square brackets such as [name]
placeholders_at_least: leave at least {n} blank{s} to fill in like [place]
bold_at_least: put at least {n} word{s} in **bold**
bold_at_least: highlight at least {n} part{s} of your answer with **double asterisks**
characters_at_most: use at most {n} characters
characters_at_most: keep your answer to {n} characters or fewer
characters_at_least: use at least {n} characters
characters_at_least: make your answer {n} characters or longer
sentence_words_at_most: let no sentence be longer than {n} words
sentence_words_at_most: keep every sentence to {n} words or fewer
keyword_first_sentence: use the word "{word}" in your first sentence
keyword_first_sentence: let the first sentence contain the word "{word}"
first_letter: make your first word start with the letter {letter}
first_letter: begin with a word that starts with {letter}
ends_with_full_stop: end with a full stop
ends_with_full_stop: make a full stop the last character of your answer
ends_with_exclamation: end with an exclamation mark
ends_with_exclamation: let your last sentence end with an exclamation mark
no_exclamations: do not use exclamation marks
no_exclamations: write without any exclamation mark
has_digit: include a number written in digits
has_digit: use at least one figure such as 7 or 25
no_digits: do not use any digits
no_digits: spell out every number instead of writing digits
separator_line: separate two parts of your answer with a line that says only {mark}
separator_line: put {mark} on a line of its own between two parts
parentheses: put something in parentheses
parentheses: include a remark in round brackets (like this)
"""


def read_wording(text: str) -> dict[str, tuple[str, ...]]:
    """Read the phrasings of each kind from `kind: clause` lines."""
    found: dict[str, tuple[str, ...]] = {}
    for line in text.strip().splitlines():
        name, _, clause = line.partition(": ")
        found[name] = (*found.get(name, ()), clause)
    return found


PHRASINGS = read_wording(WORDING)


def draw(name: str, rng: Random, nouns: Sequence[str]) -> dict[str, Any]:
    """Draw a check of kind `name`; `nouns` are the topic's words, at least two."""
    return {"kind": name, **KINDS[name].draw(rng, nouns)}


def wordings(check: Params) -> list[str]:
    """Return every way to ask for this check."""
    keys = check.get("keys", ())
    shown = {
        **check,
        "keys": " and ".join(f'"{key}"' for key in keys),
        "s": "" if check.get("n") == 1 or len(keys) == 1 else "s",
    }
    return [clause.format(**shown) for clause in PHRASINGS[check["kind"]]]


def compatible(names: Iterable[str], claimed: Iterable[str] = ()) -> bool:
    """Return whether the kinds can share a prompt: neither they nor the ask (`claimed`) make a claim twice."""
    claims = [*claimed, *(claim for name in names for claim in KINDS[name].claims.split())]
    return len(claims) == len(set(claims))


def deck(kinds: frozenset[str]) -> list[str]:
    """Return the kinds, each as often as it has cards, in the order of KINDS."""
    return [name for name in KINDS if name in kinds for _ in range(KINDS[name].cards)]


TRAINED_DECK = deck(TRAINED_KINDS)
HELD_OUT_DECK = deck(HELD_OUT_KINDS)
