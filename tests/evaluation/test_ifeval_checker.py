"""lm-eval's checker of IFEval: every instruction, without the network and without lots."""

from __future__ import annotations

import random
import socket
from pathlib import Path
from typing import Any

import nltk
import pytest

from src.config import UserError
from src.evaluation import sentence_boundaries
from src.evaluation.ifeval import checker
from src.evaluation.ifeval.checker import Question, judge


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever would be fetched fails."""

    def refuse(*args: Any) -> None:
        raise AssertionError(f"connects to {args[1:]}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(nltk, "download", lambda *args: pytest.fail("downloads"))


def question(instruction: str, prompt: str = "Do it.", **kwargs: Any) -> Question:
    return {"key": "1", "prompt": prompt, "instruction_id_list": [instruction], "kwargs": [kwargs]}


FIVE = "One. Dr. Smith came. Is it so? Yes! Good."
GERMAN = "Das ist ein ganz gewöhnlicher Satz in deutscher Sprache, und niemand wird daran zweifeln."
CASES: list[
    tuple[str, dict[str, Any], str, str]
] = [  # instruction, its values, an answer that follows, one that does not
    ("punctuation:no_comma", {}, "no comma here", "one, two"),
    ("length_constraints:number_words", {"relation": "at least", "num_words": 3}, "one two three", "one two"),
    ("length_constraints:number_sentences", {"relation": "at least", "num_sentences": 5}, FIVE, FIVE[:-6]),
    ("length_constraints:number_sentences", {"relation": "less than", "num_sentences": 5}, FIVE[:-6], FIVE),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "a\n***\nb", "a\n\nb"),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "then"},
        "First.\n\nThen this.",
        "First.\n\nNow this.",
    ),
    ("keywords:existence", {"keywords": ["cat", "dog"]}, "a Dog and a cat", "a dog"),
    ("keywords:forbidden_words", {"forbidden_words": ["cat"]}, "concatenate", "the cat"),
    ("keywords:frequency", {"keyword": "cat", "frequency": 2, "relation": "at least"}, "cat cat", "cat"),
    ("keywords:letter_frequency", {"letter": "q", "let_frequency": 2, "let_relation": "at least"}, "qQ", "q"),
    ("language:response_language", {"language": "de"}, GERMAN, "This is plain English, and nobody doubts it."),
    ("change_case:english_lowercase", {}, "this is all in lower case and in english", "This is not in lower case"),
    ("change_case:english_capital", {}, "THIS IS ALL IN CAPITALS AND IN ENGLISH", "THIS is not in capitals"),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "at least"},
        "A BIG word",
        "A word",
    ),
    ("detectable_format:json_format", {}, '```json\n{"a": 1}\n```', "{a: 1}"),
    ("detectable_format:title", {}, "<<Title>>\ntext", "<<>>\ntext"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n* b", "* a"),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 1}, "*here*", "here"),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Part", "num_sections": 2},
        "Part 1\na\nPart 2\nb",
        "Part 1",
    ),
    ("detectable_format:constrained_response", {}, "My answer is no.", "No."),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[a] [b]", "[a]"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "text\nP.S. more", "text"),
    ("startend:end_checker", {"end_phrase": "The end."}, "so it is. The end.", "The end. Not."),
    ("startend:quotation", {}, '"quoted"', "quoted"),
    ("combination:two_responses", {}, "one******two", "one***two"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say it."}, "Say it. It.", "It."),
]


@pytest.mark.parametrize(("instruction", "kwargs", "right", "wrong"), CASES)
def test_an_answer_is_judged(instruction: str, kwargs: dict[str, Any], right: str, wrong: str) -> None:
    asked = question(instruction, **kwargs)
    assert judge(asked, right).strict == [True]
    assert judge(asked, wrong).strict == [False]


def test_every_instruction_of_the_checker_is_among_the_cases() -> None:
    from lm_eval.tasks.ifeval.instructions_registry import INSTRUCTION_DICT

    assert {case[0] for case in CASES} == set(INSTRUCTION_DICT)


def test_the_loose_reading_leaves_out_lines_and_asterisks() -> None:
    asked = question("startend:end_checker", end_phrase="The end.")
    assert judge(asked, "Sure!\nIt is so. **The end.**\nAnything else?") == ([False], [True])
    assert judge(asked, "  ") == ([False], [False])


def test_the_language_is_guessed_alike_every_time_and_the_lots_of_others_go_on() -> None:
    from langdetect import DetectorFactory

    asked, vague = question("language:response_language", language="en"), "no ok la no si radio"
    random.seed(3)
    expected = [random.random() for _ in range(2)]
    random.seed(3)
    found = [random.random()]
    verdicts = {judge(asked, vague).strict[0] for _ in range(20)}
    found.append(random.random())
    assert len(verdicts) == 1
    assert found == expected
    assert DetectorFactory.seed is None


def test_strict_and_loose_ask_for_the_same_where_the_checker_draws() -> None:
    asked = question("keywords:letter_frequency", letter="#", let_frequency=1, let_relation="at least")
    for letter in "abcdefghijklmnopqrstuvwxyz":
        verdict = judge(asked, letter)
        assert verdict.strict == verdict.loose


def test_the_boundaries_come_from_the_package_or_are_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = sentence_boundaries.carried()
    assert folder is not None and (folder / "collocations.tab").is_file()
    before = list(nltk.data.path)
    with sentence_boundaries.found_by_nltk():
        assert nltk.PunktTokenizer("english").tokenize("Mr. A. came. He went.") == ["Mr. A. came.", "He went."]
    assert nltk.data.path == before
    monkeypatch.setattr(sentence_boundaries, "CARRIER", "no-such-package")
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    with pytest.raises(UserError, match="benchmark=ifeval needs nltk's punkt_tab: `make install`"):
        checker.check_installed()


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checker.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'iterpref\[eval\]'"):
        checker.check_installed()
