"""Cards of runs whose artifacts were written by hand, and what a reader finds in them."""

from __future__ import annotations

import dataclasses
import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from made_up_run import MadeUp
from markdown_it import MarkdownIt
from markdown_it.token import Token

from src.experiment.graph import nodes_of
from src.experiment.run import Run
from src.kernel.record import CARD, RECORD
from src.kernel.store import Store
from src.reporting.card import card, write_cards

COMMAND = "python -m src.main iter=2"


def cards(story: MadeUp, t: int) -> Path:
    node = next(node for node in story.nodes if node.name == f"it{t}/policy")
    return story.store.path(node) / CARD


def written(story: MadeUp, command: str = COMMAND, **changes: Any) -> str:
    """The card of iteration 1, by a run with `changes`."""
    assert write_cards(dataclasses.replace(story.run, **changes), story.nodes, story.store, command) == []
    return cards(story, 1).read_text()


def card_of(run: Run, place: Path, command: str = COMMAND, **changes: Any) -> str:
    """The card of the first policy of a run that has nothing else; its nodes are those of `run` without the changes."""
    nodes, store = {node.name: node for node in nodes_of(run)}, Store(place / uuid.uuid4().hex)
    folder = store.path(nodes["it1/policy"])
    folder.mkdir(parents=True)
    (folder / RECORD).write_text(json.dumps({"files": {}, "commit": "c0ffee", "versions": {"torch": "9.9"}}))
    return card(dataclasses.replace(run, **changes), 1, nodes, store, command)


def body(card: str) -> list[Token]:
    """As GitHub reads it: CommonMark with HTML, tables and strikethrough."""
    source = ModelCard(card).text
    return MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(source)


def flat(tokens: list[Token]) -> Iterator[Token]:
    for token in tokens:
        yield token
        yield from flat(token.children or [])


def blocks(card: str) -> list[tuple[str, int]]:
    return [(token.type, token.level) for token in body(card)]


def shown(token: Token) -> str:
    """What a reader sees of one inline token."""
    return "".join(child.content for child in token.children or [])


def links(card: str) -> list[str]:
    return [str(token.attrs["href"]) for token in flat(body(card)) if token.type == "link_open"]
