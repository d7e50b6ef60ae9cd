"""Mistakes in rows of prompts, and what is none however odd it looks."""

from __future__ import annotations

import json
from typing import Any

from bad_answers import ANSWER, OUTSIDE, answers
from bad_files import FILES, GOOD, HI, HO, MEND, NO_COLUMN, READ, TOGETHER, file, lines
from bad_inputs import Bad, Fine, Table


def row(what: str, bad: Any, told: str) -> Bad:
    """A fourth row of JSON lines that is wrong."""
    return Bad(what, READ, f"…/part0.jsonl:4: {told}", 2, file(lines(bad)), verb="run")


NO_TEXT = "is no text; write text or delete the row"
NO_LIST = "is no list of turns; give it at least the user's"
ROWS = [
    row("a line of broken JSON", '{"prompt": "hi"', f"not JSON (Expecting ',' delimiter at column 16); {MEND}"),
    row("a line that is a list", '["hi"]', f"not a JSON object but a list; {MEND}"),
    row("a line that is a text", '"hi"', f"not a JSON object but a str; {MEND}"),
    row("an empty line between others", "\n" + json.dumps(GOOD[3]), "an empty line; delete it"),
    row(
        "a number of 5,000 digits",
        '{"prompt": ' + "1" * 5000 + "}",
        f"not JSON that can be read (Exceeds the limit (4300 digits) for integer string conversion: value has 5000 digits); {MEND}",
    ),
    row("brackets without end", "[" * 100_000, f"not JSON that can be read (…); {MEND}"),
    row("other columns", {"question": "hi"}, NO_COLUMN),
    row("a prompt that is null", {"prompt": None}, f"prompt: None {NO_TEXT}"),
    row("a prompt that is a number", {"prompt": 3}, f"prompt: 3 {NO_TEXT}"),
    row(
        "a prompt that is a list of turns",
        {"prompt": [HI]},
        "prompt: a list, not text; a column of turns is named by data.messages=prompt (data=local)",
    ),
    row("an empty prompt", {"prompt": ""}, "prompt: empty; write the prompt or delete the row"),
    row(
        "a prompt of white space",
        {"prompt": " \t\n\u2003"},
        "prompt: only white space; write the prompt or delete the row",
    ),
    row(
        "half of a character",
        '{"prompt": "\\ud800"}',
        "the prompt: '\\ud800' is half of a character (a lone surrogate); take it out",
    ),
    row(
        "messages that are a text",
        {"messages": "hi"},
        "messages: 'hi' is no JSON (Expecting value: line 1 column 1 (char 0)); mend it or delete the row",
    ),
    row("messages that are empty", {"messages": []}, f"messages: [] {NO_LIST}"),
    row("messages that are one turn", {"messages": HI}, f"messages: {HI} {NO_LIST}"),
    row(
        "a turn without content",
        {"messages": [{"role": "user"}]},
        "messages: turn 1: {'role': 'user'} is no object with role and content",
    ),
    row("a content that is null", {"messages": [HI, HO | {"content": None}, HI]}, f"messages: turn 2: None {NO_TEXT}"),
    row("a content that is a number", {"messages": [HI | {"content": 3}]}, f"messages: turn 1: 3 {NO_TEXT}"),
    row(
        "a content in parts",
        {"messages": [HI | {"content": [{"type": "image"}]}]},
        f"messages: turn 1: [{{'type': 'image'}}] {NO_TEXT}",
    ),
    row(
        "a turn of a tool",
        {"messages": [HI, {"role": "tool", "content": "3"}, HI]},
        "messages: turn 2: unknown role 'tool'; the roles are system, user, assistant",
    ),
    row(
        "a turn that calls a tool",
        {"messages": [HI, HO | {"tool_calls": [{"id": 1}]}, HI]},
        "messages: turn 2: 'tool_calls' would be lost, a turn is role and content; take it off",
    ),
    row(
        "messages that end in an answer",
        {"messages": [HI, HO]},
        "messages: the last turn is by 'assistant', must be the user's; take the answer off",
    ),
    row(
        "a source that is a number",
        {"prompt": "hi", "source": 3},
        "source: 3 is no text; write who wrote the prompt, or leave it out",
    ),
    row(
        "checks that are no list",
        {"prompt": "hi", "checks": {"kind": "no_digits"}},
        "checks: {'kind': 'no_digits'} is no list of checks; write a list of objects with kind, or leave it out",
    ),
    row(
        "a check of no known kind",
        {"prompt": "hi", "checks": [{"kind": "rhymes"}]},
        "checks: unknown kind of check 'rhymes'; known are all_lowercase, …",
    ),
    row(
        "a check without its number",
        {"prompt": "hi", "checks": [{"kind": "words_at_least"}]},
        "checks: a check of kind words_at_least takes n (int), not {'kind': 'words_at_least'}",
    ),
    row(
        "a check with a parameter of another",
        {"prompt": "hi", "checks": [{"kind": "no_digits", "n": 2}]},
        "checks: a check of kind no_digits takes no parameters, not {'kind': 'no_digits', 'n': 2}",
    ),
]


FINE = (
    Fine("text from right to left", "the text comes back as it was", "ما هي عاصمة مصر؟ \u200fשלום"),
    Fine(
        "emoji, also of several characters",
        "the text comes back as it was",
        "what is 👩‍👩‍👧‍👦 and 🇪🇺? \U0001f9d1\U0001f3fd\u200d\U0001f680",
    ),
    Fine("zero-width characters", "the text comes back as it was", "a\u200bb\u200cc\u200dd\ufeffe"),
    Fine("NUL and other control characters, escaped", "the text comes back as it was", "a\x00b\x07c\x1bd\x7f"),
    Fine("line ends of every kind", "a row ends at a line feed only", "a\u2028b\u2029c\x85d\r\ne\x0bf\x0cg"),
    Fine(
        "special tokens and nothing else",
        "they are read as text, so no turn is forged",
        "<|im_end|><|im_start|><|im_end|>",
    ),
    Fine("letters and their accents apart", "the text comes back as it was", "e\u0301 a\u030a ﬁ Å"),
    Fine("a private character that we use ourselves", "the text comes back as it was", "\ue000 1\ue001 <|im_end|>"),
    Fine(
        "a prompt of a million characters",
        "over `sampling.max_prompt_tokens`, so it is left out and counted",
        "word " * 200_000,
    ),
    Fine("Chinese, whose words have no spaces", "the text comes back as it was", "中国的首都是哪里？"),
    Fine(
        "the same prompt twice", "the second is left out and counted", words=READ, given=file(lines(GOOD[0], GOOD[1]))
    ),
    Fine(
        "a mark of UTF-8 in front",
        "it is no part of the first row",
        words=READ,
        given=file(b"\xef\xbb\xbf" + lines(GOOD[3])),
    ),
    Fine("Windows' line ends", "they are line ends", words=READ, given=file(lines(GOOD[3]).replace(b"\n", b"\r\n"))),
    Fine("empty lines at the end", "they are no rows", words=READ, given=file(lines(GOOD[3]) + b"\n\n")),
    Fine(
        "answers to other prompts beside those to ours, and a prompt answered twice",
        "the first answer to a prompt counts; the others are counted",
        words="iter=1 only=it1/outside_mine +answers@data.answers.mine=file",
        given=answers(ANSWER, ANSWER, ANSWER | {"prompt": "who?"}),
    ),
)
DATA = Table(
    "Prompts, and answers from elsewhere",
    "The tiny run; its prompts are three good rows and the bad one. All rows of all iterations are read before anything is sampled.",
    [*ROWS, *FILES, *TOGETHER, *OUTSIDE],
    FINE,
)
