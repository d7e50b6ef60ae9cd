"""The committed embedded prompts"""

import json
import re
import sys
from collections import Counter
from itertools import combinations
from pathlib import Path
from random import Random
from statistics import mean
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.check_kinds import KINDS, WORDING, compatible, draw, wordings
from src.checks import HELD_OUT_KINDS, TRAINED_KINDS, mentions, passes, verdicts, words
from src.data.embedded import make
from src.data.embedded.templates import FRAMES, TASKS
from src.data.embedded.topics import HELD_OUT, TRAINING, Topic

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


def test_rows_have_the_agreed_form() -> None:
    families = {topic.family for topic in TRAINING + HELD_OUT}
    for row in ALL_ROWS:
        assert set(row) == {"messages", "source", "checks"}
        assert [set(turn) for turn in row["messages"]] == [{"role", "content"}]
        assert row["messages"][0]["role"] == "user"
        embedded, family, task = row["source"].split("/")
        assert embedded == "embedded" and family in families and task in TASKS
        assert make.MIN_WORDS <= len(prompt(row).split()) <= make.MAX_WORDS
        assert "{" not in prompt(row) and "  " not in prompt(row) and prompt(row)[0].isupper()


def test_sizes_and_shares_by_number_of_checks() -> None:
    assert all(len(DATA[part]) >= 1024 for part in PARTS) and len(DATA["held_out"]) >= 384
    for rows in DATA.values():
        shares = Counter(len(row["checks"]) for row in rows)
        assert [round(shares[n] / len(rows), 2) for n in range(4)] == [0.2, 0.45, 0.25, 0.1]


def test_no_prompt_occurs_twice() -> None:
    assert [text for text, n in Counter(map(prompt, ALL_ROWS)).items() if n > 1] == []


def test_topics_of_the_files_are_disjoint() -> None:
    """Every prompt names a topic of its own file (compare: two) and none of another file."""
    owners = {t.phrase: f"part{n + 1}" for n in range(3) for t in TRAINING[n::3]}
    owners |= {t.phrase: "held_out" for t in HELD_OUT}
    assert len(owners) == len(TRAINING) + len(HELD_OUT)
    phrases = re.compile(rf"\b({'|'.join(owners)})\b")
    for name, rows in DATA.items():
        for row in rows:
            assert {owners[phrase] for phrase in phrases.findall(prompt(row))} == {name}


def test_held_out_topics_share_no_keyword_with_training() -> None:
    assert nouns(TRAINING) & said(HELD_OUT) == set()
    assert nouns(HELD_OUT) & said(TRAINING) == set()
    assert {t.family for t in TRAINING} & {t.family for t in HELD_OUT} == set()


def test_no_keyword_stands_in_its_own_phrase_nor_among_the_words_of_rules() -> None:
    rules = set(words(" ".join((WORDING, *FRAMES)).lower()))
    for topic in TRAINING + HELD_OUT:
        assert len(set(topic.keywords)) >= 3
        assert [word for word in topic.keywords if word in topic.phrase.lower() or word in rules] == []


def test_a_keyword_is_said_once_by_its_rule_and_not_by_the_question() -> None:
    for row in ALL_ROWS:
        for check in row["checks"]:
            for name in {"word", "first", "second"} & set(check):
                if "noun" in KINDS[check["kind"]].claims.split():
                    assert mentions(check[name], prompt(row)) == 1


def test_kinds_of_the_files() -> None:
    trained, held_out = kinds(TRAINING_ROWS), kinds(DATA["held_out"])
    assert set(trained) == TRAINED_KINDS and len(trained) >= 20
    assert min(trained.values()) >= 40
    assert set(held_out) >= HELD_OUT_KINDS
    assert min(held_out[kind] for kind in HELD_OUT_KINDS) >= 15


def test_half_of_the_held_out_rows_with_checks_are_of_held_out_kinds() -> None:
    carrying = [{check["kind"] for check in row["checks"]} for row in DATA["held_out"] if row["checks"]]
    assert mean(bool(found & HELD_OUT_KINDS) for found in carrying) == pytest.approx(0.5, abs=0.02)
    assert mean(bool(found & HELD_OUT_KINDS and found & TRAINED_KINDS) for found in carrying) < 0.05


@pytest.mark.parametrize(("name", "first"), [(part, 64) for part in PARTS] + [("held_out", 128), ("held_out", 160)])
def test_the_first_rows_are_a_fair_sample(name: str, first: int) -> None:
    rows = DATA[name]
    for n in range(4):
        share = mean(len(row["checks"]) == n for row in rows)
        assert mean(len(row["checks"]) == n for row in rows[:first]) == pytest.approx(share, abs=0.04)
    head, whole = kinds(rows[:first]), kinds(rows)
    for kind in whole:  # at most 3 checks away from its share, whatever the kind
        assert head[kind] == pytest.approx(whole[kind] * first / len(rows), abs=3)


def test_held_out_kinds_are_even_in_the_first_160_rows() -> None:
    found = kinds(DATA["held_out"][:160])
    counts = [found[kind] for kind in HELD_OUT_KINDS]
    assert min(counts) >= 5 and max(counts) - min(counts) <= 5


@pytest.mark.parametrize("rows", [TRAINING_ROWS, DATA["held_out"]], ids=["training", "held_out"])
def test_length_bounds_are_balanced(rows: list[Row]) -> None:
    """As many lower as upper bounds, and the middle of what they permit is half the room."""
    room = {"words": ROOM, "sentences": 5, "characters": 420}
    middles: dict[str, list[float]] = {"most": [], "least": []}
    for check in (check for row in rows for check in row["checks"]):
        unit, _, bound = check["kind"].replace("_at_", "__").partition("__")
        if unit in room and bound in middles:
            lowest, highest = (0, check["n"]) if bound == "most" else (check["n"], room[unit])
            middles[bound].append((lowest + highest) / 2 / room[unit])
    assert len(middles["most"]) >= 20
    assert len(middles["most"]) == pytest.approx(len(middles["least"]), rel=0.1)
    assert mean(middles["most"] + middles["least"]) == pytest.approx(0.5, abs=0.05)


PROSE = """It helps to begin slowly and to look around before anything else. Most people find that a little
patience goes a long way. Small steps are easier to keep up than large ones. Ask a friend who has done it
before, write down what you learn, and try again the next day. After some weeks it will feel natural."""


@pytest.mark.parametrize("rows", [TRAINING_ROWS, DATA["held_out"]], ids=["training", "held_out"])
def test_cutting_an_answer_short_wins_nothing(rows: list[Row]) -> None:
    """Plain prose of 5 or 12 words passes no more of the checks than prose of 30 to 45 words."""
    checks = [check for row in rows for check in row["checks"]]
    cut = {n: " ".join(PROSE.split()[:n]).rstrip(",.") + "." for n in (5, 12, 30, 45)}
    share = {n: mean(passes(check, text) for check in checks) for n, text in cut.items()}
    assert max(share[5], share[12]) < min(share[30], share[45])


# A witness is an answer built to pass all checks of a row at once: where there is one, they can be met.
INSIDE = {
    "keyword_first_sentence": lambda c: [c["word"]],
    "keyword_in": lambda c: [c["word"]],
    "keywords_both": lambda c: [c["first"], c["second"]],
    "keyword_times": lambda c: [c["word"]] * c["n"],
    "capitals_at_least": lambda c: ["NOW"] * c["n"],
    "bold_at_least": lambda c: ["**it**"] * c["n"],
    "placeholders_at_least": lambda c: ["[it]"] * c["n"],
    "parentheses": lambda c: ["(it)"],
    "has_digit": lambda c: ["7"],
}
LAYOUTS = {
    "bullets_exactly": lambda c, units: "".join(f"\n- {unit}" for unit in units),
    "numbered_list": lambda c, units: "".join(f"\n{i}. {unit}" for i, unit in enumerate(units, 1)),
    "paragraphs_exactly": lambda c, units: "\n\n".join(units),
    "lines_exactly": lambda c, units: "\n".join(units),
    "separator_line": lambda c, units: f"{units[0]}\n{c['mark']}\n{units[0]}",
}
STARTS = {
    "starts_with": lambda c: c["phrase"],
    "first_word": lambda c: c["word"],
    "first_letter": lambda c: c["letter"],
    "title": lambda c: "<<it>>",
    "heading": lambda c: "# it\n",
}
ENDS = {
    "ends_with": lambda c: c["phrase"],
    "ends_with_question": lambda c: "so?",
    "ends_with_exclamation": lambda c: "so!",
    "ends_with_full_stop": lambda c: "so.",
    "postscript": lambda c: "P.S. so",
}
WRAPS = {
    "all_lowercase": lambda c, text: text.lower(),
    "all_uppercase": lambda c, text: text.upper(),
    "in_double_quotes": lambda c, text: f'"{text.strip()}"',
    "json_keys": lambda c, text: json.dumps(dict.fromkeys(c["keys"], text)),
}


def built(checks: list[Check], filler: int) -> str:
    """The answer with `filler` times four further words."""
    by_kind = {check["kind"]: check for check in checks}
    shape = next((c for c in checks if "shape" in KINDS[c["kind"]].claims.split() and "n" in c), {"n": 1})
    pause = ". " if "sentence_words_at_most" in by_kind else " "
    tokens = sum((inside(by_kind[kind]) for kind, inside in INSIDE.items() if kind in by_kind), [])
    units = [["it"] for _ in range(shape["n"])]
    units[0] = [" ".join([*tokens[:1], "it"]), *tokens[1:]]
    for i in range(filler):
        units[i % len(units)].append("gentle things carry on")
    texts = [pause.join(unit) for unit in units]
    text = next((lay(by_kind[k], texts) for k, lay in LAYOUTS.items() if k in by_kind), ". ".join(texts))
    text = " ".join([*(s(by_kind[k]) for k, s in STARTS.items() if k in by_kind), text])
    text = " ".join([text, *(e(by_kind[k]) for k, e in ENDS.items() if k in by_kind)])
    for kind in WRAPS.keys() & by_kind.keys():
        text = WRAPS[kind](by_kind[kind], text)
    return text


def witness(checks: list[Check]) -> str | None:
    """The shortest such answer that passes every check, of at most ROOM words; None if there is none."""
    answers = (built(checks, filler) for filler in range(24))
    return next((a for a in answers if all(verdicts(checks, a)) and len(words(a)) <= ROOM), None)


def test_every_row_has_an_answer_that_passes_all_its_checks() -> None:
    for row in ALL_ROWS:
        assert compatible([check["kind"] for check in row["checks"]])
        assert not row["checks"] or witness(row["checks"]) is not None, row


def test_every_compatible_pair_of_kinds_has_an_answer_that_passes_both() -> None:
    for pair in combinations(KINDS, 2):
        if compatible(pair):
            for seed in range(2):
                rng = Random(f"{pair} {seed}")
                checks = [draw(name, rng, ("oven", "flour", "crust")) for name in pair]
                assert witness(checks) is not None, checks


def test_contradictory_checks_have_no_witness() -> None:
    """The builder is no oracle that says yes to everything."""
    assert witness([{"kind": "words_at_least", "n": 30}, {"kind": "words_at_most", "n": 20}]) is None
    assert witness([{"kind": "all_lowercase"}, {"kind": "all_uppercase"}]) is None


def test_every_check_is_worded_in_its_prompt() -> None:
    for row in ALL_ROWS:
        text = prompt(row).lower()
        for check in row["checks"]:
            assert any(clause.lower().rstrip('."') in text for clause in wordings(check)), (check, text)


CHECKS = list({json.dumps(check): check for row in ALL_ROWS for check in row["checks"]}.values())


@given(text=st.text(max_size=80))
def test_no_check_of_the_data_raises_on_any_text(text: str) -> None:
    for check in CHECKS[:: max(1, len(CHECKS) // 100)]:
        assert passes(check, text) in (True, False)


@pytest.mark.parametrize("text", ["1. -", "[[[", '{"a":', "P.S.", "```json\n```", "<<>> ** **", "a\x00b\u2028c"])
def test_no_check_of_the_data_raises_on_awkward_text(text: str) -> None:
    assert {passes(check, text) for check in CHECKS} <= {True, False}


def test_the_committed_files_are_what_the_generator_writes() -> None:
    assert make.stale() == []


@pytest.mark.full
def test_check_names_the_stale_file_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in make.files().items():
        (tmp_path / name).write_text(text.replace("a", "b") if name == "part2.jsonl" else text, encoding="utf-8")
    assert make.stale(tmp_path) == ["part2.jsonl"]
    monkeypatch.setattr(make, "FOLDER", tmp_path)
    monkeypatch.setattr(sys, "argv", ["make", "--check"])
    with pytest.raises(SystemExit, match="^not as generated: part2.jsonl$"):
        make.main()
    monkeypatch.setattr(sys, "argv", ["make"])
    make.main()
    assert make.stale(tmp_path) == []
