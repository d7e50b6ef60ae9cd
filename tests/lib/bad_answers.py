"""Mistakes in files of answers from elsewhere."""

from __future__ import annotations

import json
from typing import Any

from bad_files import GOOD, HI, HO, file, lines
from bad_inputs import Bad, Given, Setting


def answers(*rows: Any) -> Given:
    """Answers from elsewhere; the tiny run asks `part 0 0: …`, so `good prompt 0` is to be asked too."""

    def given(setting: Setting) -> list[str]:
        file(lines(GOOD[3]))(setting)
        (setting.at / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return [f"data.answers.mine.path={setting.at / 'answers.jsonl'}"]

    return given


ANSWER = {"prompt": "good prompt 0", "answer": "yes"}


def outside(what: str, given: Given | None, told: str, made: tuple[str, ...] = ("prompts",), more: str = "") -> Bad:
    words = f"iter=1 only=it1/outside_mine +answers@data.answers.mine=file{more}"
    return Bad(what, words, told, 2, given, made, "run")


OUTSIDE = [
    outside("answers that are not there", None, "data.answers.mine.path: no file answers.jsonl", ()),
    outside(
        "answers to other prompts",
        answers({"prompt": "who?", "answer": "me"}),
        "data.answers.mine: none of the 1 rows of …/answers.jsonl answers any of 4 prompts; do they give these to the letter?",
    ),
    outside(
        "answers in another column",
        answers(ANSWER, {"prompt": "good prompt 1", "reply": "yes"}),
        "…/answers.jsonl:2: no column 'answer'; name the right one below data.answers.mine",
    ),
    outside(
        "answers without their prompt",
        answers({"answer": "yes"}),
        "…/answers.jsonl:1: no column 'messages'; name the right one below data.answers.mine",
    ),
    outside(
        "an answer that is a number",
        answers(ANSWER | {"answer": 3}),
        "…/answers.jsonl:1: answer: int, neither text nor a list of turns; delete the row",
    ),
    outside(
        "an answer whose last turn is the user's",
        answers(ANSWER | {"answer": [HO, HI]}),
        "…/answers.jsonl:1: answer: the last turn is not the assistant's; a column of turns ends in it",
    ),
    outside(
        "an id of a prompt that is none",
        answers({"id": 7, "answer": "yes"}),
        "…/answers.jsonl:1: id: 7 is no prompt_id of this store (16 hex digits); name the prompt itself in data.answers.mine.prompt",
        more=" data.answers.mine.prompt_id=id",
    ),
]
