"""The committed embedded prompts: their form, their shares of checks, and that no rule of shape or length wins."""

import json
import re
import sys
from collections import Counter
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from src.data.checks import HELD_OUT_KINDS, TRAINED_KINDS, mentions, words
from tools.embedded_prompts import make
from tools.embedded_prompts.check_kinds import KINDS, WORDING, compatible, wordings
from tools.embedded_prompts.templates import FRAMES, TASKS
from tools.embedded_prompts.topics import HELD_OUT, TRAINING, Topic

Check = dict[str, Any]
Row = dict[str, Any]

PARTS = ("part1", "part2", "part3")
ROOM = 70  # words that fit into 96 tokens
DATA: dict[str, list[Row]] = {
    name: [json.loads(line) for line in (make.FOLDER / f"{name}.jsonl").read_text("utf-8").splitlines()]
    for name in (*PARTS, "held_out")
}
TRAINING_ROWS = [row for name in PARTS for row in DATA[name]]
ALL_ROWS = [row for rows in DATA.values() for row in rows]


def prompt(row: Row) -> str:
    return row["messages"][0]["content"]


def kinds(rows: list[Row]) -> Counter[str]:
    return Counter(check["kind"] for row in rows for check in row["checks"])


def nouns(topics: tuple[Topic, ...]) -> set[str]:
    return {word for topic in topics for word in topic.keywords}


def said(topics: tuple[Topic, ...]) -> set[str]:
    """Keywords and words of the phrases."""
    return nouns(topics) | {word for topic in topics for word in re.findall(r"[a-z]+", topic.phrase.lower())}


def test_rows_have_the_agreed_form_and_none_occurs_twice() -> None:
    families = {topic.family for topic in TRAINING + HELD_OUT}
    for row in ALL_ROWS:
        assert set(row) == {"messages", "source", "checks"}
        assert [set(turn) for turn in row["messages"]] == [{"role", "content"}]
        assert row["messages"][0]["role"] == "user"
        embedded, family, task = row["source"].split("/")
        assert embedded == "embedded" and family in families and task in TASKS
        assert make.MIN_WORDS <= len(prompt(row).split()) <= make.MAX_WORDS
        assert "{" not in prompt(row) and "  " not in prompt(row) and prompt(row)[0].isupper()
    assert [text for text, n in Counter(map(prompt, ALL_ROWS)).items() if n > 1] == []


def test_sizes_and_shares_by_number_of_checks_also_in_the_first_rows() -> None:
    """Who asks for fewer prompts gets a fair sample: at most 3 checks away from the share, whatever the kind."""
    assert all(len(DATA[part]) >= 1024 for part in PARTS) and len(DATA["held_out"]) >= 384
    for rows in DATA.values():
        shares = Counter(len(row["checks"]) for row in rows)
        assert [round(shares[n] / len(rows), 2) for n in range(4)] == [0.2, 0.45, 0.25, 0.1]
    for name, first in [*((part, 64) for part in PARTS), ("held_out", 128), ("held_out", 160)]:
        rows, head, whole = DATA[name], kinds(DATA[name][:first]), kinds(DATA[name])
        for n in range(4):
            share, its = (mean(len(row["checks"]) == n for row in some) for some in (rows, rows[:first]))
            assert its == pytest.approx(share, abs=0.04), (name, first, n)
        far = [kind for kind in whole if abs(head[kind] - whole[kind] * first / len(rows)) > 3]
        assert far == [], (name, first)


def test_topics_and_keywords_of_the_files_are_disjoint() -> None:
    """Every prompt names a topic of its own file (compare: two) and none of another file."""
    owners = {t.phrase: f"part{n + 1}" for n in range(3) for t in TRAINING[n::3]}
    owners |= {t.phrase: "held_out" for t in HELD_OUT}
    assert len(owners) == len(TRAINING) + len(HELD_OUT)
    phrases = re.compile(rf"\b({'|'.join(owners)})\b")
    for name, rows in DATA.items():
        for row in rows:
            assert {owners[phrase] for phrase in phrases.findall(prompt(row))} == {name}
    assert nouns(TRAINING) & said(HELD_OUT) == nouns(HELD_OUT) & said(TRAINING) == set()
    assert {t.family for t in TRAINING} & {t.family for t in HELD_OUT} == set()


def test_a_keyword_is_said_once_by_its_rule_and_not_by_the_question() -> None:
    rules = set(words(" ".join((WORDING, *FRAMES)).lower()))
    for topic in TRAINING + HELD_OUT:
        assert len(set(topic.keywords)) >= 3
        assert [word for word in topic.keywords if word in topic.phrase.lower() or word in rules] == []
    for row in ALL_ROWS:
        for check in row["checks"]:
            for name in {"word", "first", "second"} & set(check):
                if "noun" in KINDS[check["kind"]].claims.split():
                    assert mentions(check[name], prompt(row)) == 1


def test_kinds_of_the_files() -> None:
    """Half of the held-out rows with checks are of kinds that nobody trains on, evenly in the first 160 rows too."""
    trained, held_out, first = kinds(TRAINING_ROWS), kinds(DATA["held_out"]), kinds(DATA["held_out"][:160])
    assert set(trained) == TRAINED_KINDS and len(trained) >= 20 and min(trained.values()) >= 40
    assert set(held_out) >= HELD_OUT_KINDS and min(held_out[kind] for kind in HELD_OUT_KINDS) >= 15
    carrying = [{check["kind"] for check in row["checks"]} for row in DATA["held_out"] if row["checks"]]
    assert mean(bool(found & HELD_OUT_KINDS) for found in carrying) == pytest.approx(0.5, abs=0.02)
    assert mean(bool(found & HELD_OUT_KINDS and found & TRAINED_KINDS) for found in carrying) < 0.05
    counts = [first[kind] for kind in HELD_OUT_KINDS]
    assert min(counts) >= 5 and max(counts) - min(counts) <= 5


def test_neither_short_nor_long_answers_win() -> None:
    """As many lower as upper bounds, and the middle of what they permit is half the room."""
    room = {"words": ROOM, "sentences": 5, "characters": 420}
    for rows in (TRAINING_ROWS, DATA["held_out"]):
        middles: dict[str, list[float]] = {"most": [], "least": []}
        checks = [check for row in rows for check in row["checks"]]
        for check in checks:
            unit, _, bound = check["kind"].replace("_at_", "__").partition("__")
            if unit in room and bound in middles:
                lowest, highest = (0, check["n"]) if bound == "most" else (check["n"], room[unit])
                middles[bound].append((lowest + highest) / 2 / room[unit])
        assert len(middles["most"]) >= 20
        assert len(middles["most"]) == pytest.approx(len(middles["least"]), rel=0.1)
        assert mean(middles["most"] + middles["least"]) == pytest.approx(0.5, abs=0.05)


def test_the_checks_of_a_row_go_together_and_each_is_worded_in_its_prompt() -> None:
    for row in ALL_ROWS:
        assert compatible([check["kind"] for check in row["checks"]])
        text = prompt(row).lower()
        for check in row["checks"]:
            assert any(clause.lower().rstrip('."') in text for clause in wordings(check)), (check, text)


def test_the_committed_files_are_what_the_generator_writes_and_a_stale_one_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert make.stale() == []
    for name in make.files():
        text = (make.FOLDER / name).read_text("utf-8")
        (tmp_path / name).write_text(text.replace("a", "b") if name == "part2.jsonl" else text, encoding="utf-8")
    monkeypatch.setattr(make, "FOLDER", tmp_path)
    monkeypatch.setattr(sys, "argv", ["make", "--check"])
    with pytest.raises(SystemExit, match="part2.jsonl"):
        make.main()
