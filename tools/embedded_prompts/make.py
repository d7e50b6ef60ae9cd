"""Write the bundled prompts: `python -m tools.embedded_prompts.make`; `--check` compares without writing.

Rows are dealt, not drawn: number of checks, kinds, topics and tasks come from shuffled decks, so any first n
rows of a file have nearly the make-up of the whole. Every part has topics of its own.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any, Generic, NamedTuple, TypeVar

from src.data.checks import mentions
from tools.embedded_prompts.check_kinds import HELD_OUT_DECK, KINDS, TRAINED_DECK, compatible, draw, wordings
from tools.embedded_prompts.templates import FRAMES, JOINTS, LEADS, TASKS, Ask
from tools.embedded_prompts.topics import HELD_OUT, TRAINING, Topic

FOLDER = Path(__file__).parents[2] / "src" / "data" / "embedded"
TRAINING_ROWS = 1120  # per part
HELD_OUT_ROWS = 480
MIN_WORDS, MAX_WORDS = 15, 60  # of a prompt, split at white space

Row = dict[str, Any]
T = TypeVar("T")


class Deck(Generic[T]):
    """Cards in random order. A card that does not fit now keeps its place, so shares hold in the long run."""

    def __init__(self, cards: Sequence[T], rng: Random) -> None:
        self._cards, self._rng, self._left = list(cards), rng, []

    def deal(self, fits: Callable[[T], bool] = lambda card: True) -> T:
        """Return the next card that fits, from a fresh copy of the deck if none is left; some card must fit."""
        for place, card in enumerate(self._left):
            if fits(card):
                return self._left.pop(place)
        self._left += self._rng.sample(self._cards, len(self._cards))
        return self.deal(fits)


class Plan(NamedTuple):
    """The number of checks of a row, 0..3, and whether they are of held-out kinds."""

    checks: int
    held_out: bool


# 20% of the rows carry no check, 45% one, 25% two, 10% three.
COUNTS = [0] * 4 + [1] * 9 + [2] * 5 + [3] * 2
TRAINING_PLANS = [Plan(n, held_out=False) for n in COUNTS]
HELD_OUT_PLANS = [Plan(n, held_out) for n in COUNTS for held_out in (False, True)]


class Writer:
    """Deals the rows of one file."""

    def __init__(self, name: str, topics: Sequence[Topic], plans: Sequence[Plan]) -> None:
        self.rng = Random(f"embedded prompts, {name}")
        self.siblings = topics
        self.plans = Deck(plans, self.rng)
        self.topics = Deck(topics, self.rng)
        self.tasks = Deck(list(TASKS), self.rng)
        self.kinds = {False: Deck(TRAINED_DECK, self.rng), True: Deck(HELD_OUT_DECK, self.rng)}
        self.seen: set[str] = set()

    def row(self) -> Row:
        """Return the next row, its prompt new in this file."""
        plan, topic = self.plans.deal(), self.topics.deal()
        task = self.tasks.deal(lambda name: any(ask.sort in ("any", topic.sort) for ask in TASKS[name]))
        ask = self.rng.choice([ask for ask in TASKS[task] if ask.sort in ("any", topic.sort)])
        question = ask.text.format(topic=topic.phrase, other=self.sibling(topic).phrase)
        checks = self.checks(plan, ask, self.unsaid(topic, question))
        text = self.prompt(question, checks)
        return {
            "messages": [{"role": "user", "content": text}],
            "source": f"embedded/{topic.family}/{task}",
            "checks": checks,
        }

    def sibling(self, topic: Topic) -> Topic:
        """Return another topic of the same file and sort, of the same family if there is one."""
        others = [other for other in self.siblings if other.sort == topic.sort and other != topic]
        return self.rng.choice([other for other in others if other.family == topic.family] or others)

    def unsaid(self, topic: Topic, question: str) -> list[str]:
        """Return the topic's words that the question does not contain."""
        return [word for word in topic.keywords if not mentions(word, question)]

    def checks(self, plan: Plan, ask: Ask, nouns: Sequence[str]) -> list[dict[str, Any]]:
        """Draw as many checks as planned, each compatible with the ask and with one another."""
        names: list[str] = []
        for _ in range(plan.checks):
            taken = tuple(names)
            names.append(
                self.kinds[plan.held_out].deal(lambda name, taken=taken: compatible((*taken, name), ask.claims))
            )
        return [draw(name, self.rng, nouns) for name in names]

    def prompt(self, question: str, checks: Sequence[dict[str, Any]]) -> str:
        """Write a new prompt of MIN_WORDS to MAX_WORDS words; short questions get a sentence of background."""
        for _ in range(1000):  # far more than any row needs; an unlucky template must not hang the generator
            text = self.framed(question, checks)
            if len(text.split()) < MIN_WORDS or self.rng.random() < 0.2:
                text = f"{self.rng.choice(LEADS)} {text}"
            fits = MIN_WORDS <= len(text.split()) <= MAX_WORDS and says_each_noun_once(text, checks)
            if fits and text not in self.seen:
                self.seen.add(text)
                return text
        raise RuntimeError(f"no prompt fits: {question!r} with {checks}")

    def framed(self, question: str, checks: Sequence[dict[str, Any]]) -> str:
        """Write the question with its rules in one of the frames and joints."""
        if not checks:
            return question
        clauses = [self.rng.choice(wordings(check)) for check in checks]
        rules = self.rng.choice(JOINTS[len(clauses)]).format(*clauses)
        frame = self.rng.choice(FRAMES)
        text = frame.format(ask=question, rules=rules, Rules=rules[0].upper() + rules[1:])
        return text.replace('.".', '."')


def says_each_noun_once(text: str, checks: Sequence[dict[str, Any]]) -> bool:
    """Return whether each noun that a check asks for or forbids stands in its own rule only."""
    about_nouns = [check for check in checks if "noun" in KINDS[check["kind"]].claims.split()]
    nouns = [check[name] for check in about_nouns for name in ("word", "first", "second") if name in check]
    return all(mentions(noun, text) == 1 for noun in nouns)


def files() -> dict[str, str]:
    """Return every file's name and text; part n has each family's topics n-1, n+2, n+5, ..."""
    texts = {}
    for n in range(3):
        writer = Writer(f"part {n + 1}", TRAINING[n::3], TRAINING_PLANS)
        texts[f"part{n + 1}.jsonl"] = as_lines([writer.row() for _ in range(TRAINING_ROWS)])
    writer = Writer("held out", HELD_OUT, HELD_OUT_PLANS)
    texts["held_out.jsonl"] = as_lines([writer.row() for _ in range(HELD_OUT_ROWS)])
    return texts


def as_lines(rows: Sequence[Row]) -> str:
    """Write rows as JSON lines with sorted keys."""
    return "".join(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows)


def stale(folder: Path = FOLDER) -> list[str]:
    """Return the names of files that are missing or differ from what would be written."""
    return [
        name
        for name, text in files().items()
        if not (folder / name).is_file() or (folder / name).read_text(encoding="utf-8") != text
    ]


def main() -> None:
    """Write the files, or with --check compare them."""
    parser = argparse.ArgumentParser(description="Write the embedded prompts.")
    parser.add_argument("--check", action="store_true", help="exit 1 if the committed files differ")
    if parser.parse_args().check:
        changed = stale(FOLDER)
        sys.exit(f"not as generated: {', '.join(changed)}" if changed else 0)
    for name, text in files().items():
        (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
