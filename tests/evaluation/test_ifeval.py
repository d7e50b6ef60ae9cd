"""IFEval: its questions, lm-eval's checker without the network, and its numbers."""

from __future__ import annotations

import json
import random
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from answer_rows import answered
from answer_rows import written as answers_of
from langdetect import DetectorFactory
from places import SHARED
from tiny_run import typed

from src.data.source import Source
from src.evaluation.ifeval import ITEMS, IFEvalQuestions, IFEvalScores, Question, judge, metrics, read_questions
from src.kernel.config import UserError
from src.kernel.rows import PROMPTS, RESPONSES, Row, read_rows

OFFICIAL = SHARED / "ifeval/input_data.jsonl"


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let whatever is fetched fail the test."""
    monkeypatch.setattr(socket.socket, "connect", lambda *args: pytest.fail(f"connects to {args[1:]}"))


def row(number: int, **other: Any) -> dict[str, Any]:
    """As on the hub: values that an instruction does not have are null."""
    nulls = {"num_words": None, "relation": None, "language": None}
    return {
        "key": number,
        "prompt": f"Say {number} without commas.",
        "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
        "kwargs": [nulls, nulls | {"num_words": 2, "relation": "at least"}],
    } | other


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return path


def questions_of(path: Path, out: Path, first: int | None = None) -> Path:
    source = Source(path=str(path))
    out.mkdir()
    IFEvalQuestions(source=source, content=source.content(), first=first)(out=out)
    return out


# Questions ---------------------------------------------------------------------------------------------------------


def test_questions_keep_their_order_and_lose_their_nulls(tmp_path: Path) -> None:
    out = questions_of(written(tmp_path / "q.jsonl", [row(7), row(3), row(5)]), tmp_path / "out", first=2)
    prompts, questions = read_rows(out, PROMPTS), read_questions(out)
    assert [one["messages"][0]["content"] for one in prompts] == [f"Say {n} without commas." for n in (7, 3)]
    assert [name for name, _ in questions] == [one["prompt_id"] for one in prompts]
    assert [one["key"] for _, one in questions] == ["7", "3"]
    assert questions[0][1]["kwargs"] == [{}, {"num_words": 2, "relation": "at least"}]


@pytest.mark.parametrize(
    ("other", "line"),
    [
        ({"prompt": ""}, r"q\.jsonl:1: prompt: "),
        ({"instruction_id_list": ["a:b", "c:d"]}, r"jsonl:1: cannot be checked .*KeyError\('a:b'\)"),
    ],
)
def test_a_wrong_row_is_named(other: dict[str, Any], line: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=line):
        questions_of(written(tmp_path / "q.jsonl", [row(1, **other)]), tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


# The checker -------------------------------------------------------------------------------------------------------


def question(instruction: str, **kwargs: Any) -> Question:
    return {"key": "1", "prompt": "Do it.", "instruction_id_list": [instruction], "kwargs": [kwargs]}


def test_answers_are_judged_strictly_and_loosely() -> None:
    """The loose reading leaves out asterisks, the first line and the last."""
    five, end = {"relation": "at least", "num_sentences": 5}, {"end_phrase": "The end."}
    table: list[tuple[str, dict[str, Any], str, bool, bool]] = [
        ("punctuation:no_comma", {}, "one, two", False, False),
        ("length_constraints:number_sentences", five, "One. Dr. Smith came. Is it so? Yes!", False, False),
        ("language:response_language", {"language": "de"}, "Niemand wird an diesem Satz zweifeln.", True, True),
        ("startend:end_checker", end, "Sure!\nIt is so. **The end.**\nAnything else?", False, True),
    ]
    for name, kwargs, text, strict, loose in table:
        assert judge(question(name, **kwargs), text) == ([strict], [loose]), (name, text)


def test_what_is_drawn_is_the_same_every_time() -> None:
    """The language is guessed by lot; where a letter is drawn, strict and loose ask for the same.

    The draws of the rest of the process go on as if nothing had been drawn.
    """
    before = random.getstate(), DetectorFactory.seed
    asked, vague = question("language:response_language", language="en"), "no ok la no si radio"
    assert len({judge(asked, vague)[0][0] for _ in range(10)}) == 1
    asked = question("keywords:letter_frequency", letter="#", let_frequency=1, let_relation="at least")
    verdicts = [judge(asked, letter) for letter in "abcdefghijklmnopqrstuvwxyz"]
    assert all(strict == loose for strict, loose in verdicts) and sum(strict[0] for strict, _ in verdicts) == 1
    assert (random.getstate(), DetectorFactory.seed) == before


# Numbers -----------------------------------------------------------------------------------------------------------


def verdict(followed: list[bool]) -> Row:
    loose = {"followed_loose": [True] * len(followed), "loose": 1.0}
    return {"instructions": ["g:i"] * len(followed), "followed": followed, "score": float(all(followed))} | loose


def test_numbers_of_a_few_verdicts() -> None:
    """4 prompts, 2 of them whole; 8 instructions, 5 followed."""
    rows = [verdict([True]), verdict([True, False, False]), verdict([False, True]), verdict([True, True])]
    numbers = metrics(rows, 0.95)
    expected = {"items": 4, "instructions": 8, "prompt_level_strict": 50, "instruction_level_strict": 62.5}
    expected |= {"leaderboard_ifeval": 56.25, "prompt_level_loose": 100, "instruction_level_loose": 100}
    assert {name: numbers[name] for name in expected} == expected
    # Wilson's interval of 2 of 4: (2 + z²/2 ± z √(1 + z²/4)) / (4 + z²)
    z = 1.959964
    for end, sign in (("low", -1), ("high", 1)):
        expected = 100 * (2 + z**2 / 2 + sign * z * (1 + z**2 / 4) ** 0.5) / (4 + z**2)
        assert numbers[f"prompt_level_strict_{end}"] == pytest.approx(expected, abs=1e-4)


def test_instructions_of_a_prompt_are_drawn_together() -> None:
    """The slow twin: every prompt with all its instructions, drawn again and again."""
    rng = np.random.default_rng(0)
    rows = [
        verdict([bool(one)] * int(size)) for one, size in zip(rng.random(60) < 0.4, rng.integers(1, 6, 60), strict=True)
    ]
    drawn = []
    for _ in range(4000):
        picked = [rows[number] for number in rng.integers(60, size=60)]
        drawn.append(100 * sum(sum(one["followed"]) for one in picked) / sum(len(one["followed"]) for one in picked))
    numbers, spread = metrics(rows, 0.9), float(np.std(drawn))
    assert numbers["instruction_level_strict_low"] == pytest.approx(np.quantile(drawn, 0.05), abs=0.25 * spread)
    assert numbers["instruction_level_strict_high"] == pytest.approx(np.quantile(drawn, 0.95), abs=0.25 * spread)


def test_each_answer_is_checked_against_its_own_question(tmp_path: Path) -> None:
    questions = questions_of(written(tmp_path / "q.jsonl", [row(7), row(3)]), tmp_path / "questions")
    prompts = read_rows(questions, PROMPTS)
    answers = [answered(0, text) | one for one, text in zip(prompts, ["one", "two, three"], strict=True)]
    stage, out = IFEvalScores(confidence=0.95, key="benchmark.mine"), tmp_path / "out"
    out.mkdir()
    stage(questions, answers_of(tmp_path / "answers", answers[::-1], RESPONSES), out=out)
    assert [one["followed"] for one in read_rows(out, ITEMS)] == [[True, False], [False, True]]
    numbers = json.loads((out / "metrics.json").read_text())
    assert (numbers["items"], numbers["instruction_level_strict"], numbers["prompt_level_loose"]) == (2, 50, 0)
    assert numbers["finished"] == np.mean([one["responses"][0]["finish_reason"] == "stop" for one in answers])
    replies = [{"prompt": row(n)["prompt"], "response": text} for n, text in ((3, "two, three"), (7, "one"), (5, "x"))]
    benchmark = typed("iter=0", "benchmark=ifeval", f"benchmark.ifeval.path={tmp_path / 'q.jsonl'}").benchmark["ifeval"]
    (scored,) = benchmark.score_files("ifeval", [written(tmp_path / "replies.jsonl", replies)], 0.95)
    assert scored.numbers == {name: value for name, value in numbers.items() if name not in ("finished", "tokens")}
    with pytest.raises(UserError, match=r"replies\.jsonl: no response to 1 of 2 prompts, the first 'Say 3"):
        benchmark.score_files("ifeval", [written(tmp_path / "replies.jsonl", replies[1:])], 0.95)
    near = [*replies[1:], replies[0] | {"prompt": replies[0]["prompt"] + " "}]
    for others, line in ((near, "its own has other white space"), (replies * 2, "6 responses to 3 prompts")):
        with pytest.raises(UserError, match=line):
            benchmark.score_files("ifeval", [written(tmp_path / "replies.jsonl", others)], 0.95)
    with pytest.raises(UserError, match="^benchmark.mine.max_prompt_tokens: 1 of 2 prompts have more"):
        stage(questions, answers_of(tmp_path / "fewer", answers[:1], RESPONSES), out=out)


@pytest.mark.full
@pytest.mark.skipif(not OFFICIAL.exists(), reason="no ../shared/data/ifeval beside the checkout")
def test_all_published_instructions_can_be_checked(tmp_path: Path) -> None:
    out = questions_of(OFFICIAL, tmp_path / "out")
    assert json.loads((out / "metrics.json").read_text()) == {"rows": 541, "instructions": 834}
    rows = [json.loads(line) for line in OFFICIAL.read_text(encoding="utf-8").splitlines()]
    assert [one for _, one in read_questions(out)] == [one | {"key": str(one["key"])} for one in rows]
