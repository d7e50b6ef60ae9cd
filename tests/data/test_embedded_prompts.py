"""The committed embedded prompts: their form, what is held out, and that no rule of length wins."""

import json
import re
from collections import Counter
from statistics import mean
from typing import Any

import pytest

from src.data.checks import HELD_OUT_KINDS, TRAINED_KINDS
from tools.embedded_prompts import make
from tools.embedded_prompts.check_kinds import compatible, wordings
from tools.embedded_prompts.topics import HELD_OUT, TRAINING

PARTS = ("part1", "part2", "part3")
ROOM = {"words": 70, "sentences": 5, "characters": 420}
"""What fits into 96 tokens."""
DATA: dict[str, list[dict[str, Any]]] = {
    name: [json.loads(line) for line in (make.FOLDER / f"{name}.jsonl").read_text("utf-8").splitlines()]
    for name in (*PARTS, "held_out")
}
TRAINING_ROWS = [row for name in PARTS for row in DATA[name]]
ALL_ROWS = [row for rows in DATA.values() for row in rows]


def prompt(row: dict[str, Any]) -> str:
    return row["messages"][0]["content"]


def kinds(rows: list[dict[str, Any]]) -> set[str]:
    return {check["kind"] for row in rows for check in row["checks"]}


def test_topics_of_the_files_are_disjoint_and_kinds_of_checks_are_held_out() -> None:
    """Every prompt names a topic of its own file (compare: two) and none of another file."""
    owners = {topic.phrase: f"part{n + 1}" for n in range(3) for topic in TRAINING[n::3]}
    owners |= {topic.phrase: "held_out" for topic in HELD_OUT}
    phrases = re.compile(rf"\b({'|'.join(owners)})\b")
    for name, rows in DATA.items():
        for row in rows:
            assert {owners[phrase] for phrase in phrases.findall(prompt(row))} == {name}
    assert max(Counter(map(prompt, ALL_ROWS)).values()) == 1, "none occurs twice"
    assert not {topic.family for topic in TRAINING} & {topic.family for topic in HELD_OUT}
    assert kinds(TRAINING_ROWS) == TRAINED_KINDS and kinds(DATA["held_out"]) >= HELD_OUT_KINDS
    carrying = [kinds([row]) & HELD_OUT_KINDS for row in DATA["held_out"] if row["checks"]]
    assert mean(map(bool, carrying)) == pytest.approx(0.5, abs=0.02), "half are of kinds that nobody trains on"


def test_neither_short_nor_long_answers_win() -> None:
    """As many lower as upper bounds, and the middle of what they permit is half the room."""
    for rows in (TRAINING_ROWS, DATA["held_out"]):
        middles: dict[str, list[float]] = {"most": [], "least": []}
        for check in (check for row in rows for check in row["checks"]):
            unit, _, bound = check["kind"].partition("_at_")
            if unit in ROOM and bound in middles:
                lowest, highest = (0, check["n"]) if bound == "most" else (check["n"], ROOM[unit])
                middles[bound].append((lowest + highest) / 2 / ROOM[unit])
        assert len(middles["most"]) >= 20
        assert len(middles["most"]) == pytest.approx(len(middles["least"]), rel=0.1)
        assert mean(middles["most"] + middles["least"]) == pytest.approx(0.5, abs=0.05)


def test_the_checks_of_a_row_go_together_and_each_is_worded_in_its_prompt() -> None:
    for row in ALL_ROWS:
        assert compatible([check["kind"] for check in row["checks"]])
        text = prompt(row).lower()
        for check in row["checks"]:
            assert any(clause.lower().rstrip('."') in text for clause in wordings(check)), (check, text)


def test_the_committed_files_are_what_the_generator_writes() -> None:
    assert make.stale() == []
