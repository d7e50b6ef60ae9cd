"""Cards of runs whose artifacts were written by hand, and what a reader finds in Markdown."""

from __future__ import annotations

import dataclasses
import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from made_up_run import RECORDED, MadeUp
from markdown_it import MarkdownIt
from markdown_it.token import Token

from src.experiment.graph import nodes_of
from src.experiment.run import Run
from src.kernel.record import CARD, RECORD
from src.kernel.store import Store
from src.reporting.card import card, write_cards

COMMAND = "python -m src.main iter=2"


def written(story: MadeUp, command: str = COMMAND) -> str:
    """The card of iteration 1."""
    assert write_cards(story.run, story.nodes, story.store, command) == []
    return (story.path("it1/policy") / CARD).read_text()


def card_of(run: Run, place: Path, command: str = COMMAND, **changes: Any) -> str:
    """The card of the first policy of a run that has nothing else; its nodes are those of `run` without the changes."""
    nodes, store = {node.name: node for node in nodes_of(run)}, Store(place / uuid.uuid4().hex)
    folder = store.path(nodes["it1/policy"])
    folder.mkdir(parents=True)
    (folder / RECORD).write_text(json.dumps(RECORDED))
    return card(dataclasses.replace(run, **changes), 1, nodes, store, command)


def body(markdown: str) -> list[Token]:
    """The text as GitHub reads it: CommonMark with HTML, tables and strikethrough, without the head of a card."""
    source = ModelCard(markdown).text
    return MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(source)


def tokens(markdown: str) -> Iterator[Token]:
    """Every token, those inside a line too."""
    for token in body(markdown):
        yield from (token, *(token.children or []))


def text_of(token: Token) -> str:
    """The text that a reader sees of one inline token."""
    return "".join(child.content for child in token.children or [])


def links(markdown: str) -> list[str]:
    return [str(token.attrs["href"]) for token in tokens(markdown) if token.type == "link_open"]
