"""Text of others in model cards: it marks nothing up, and opens no doors."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from made_up_cards import body, facts, flat, links, written
from made_up_run import made_up
from markdown_it import MarkdownIt
from tiny_run import typed

from src.card.markdown import fenced, literal, scrubbed
from src.card.write import text

pytestmark = pytest.mark.full

EVIL = [
    "---\nlicense: mit\n---",
    "<script>alert(1)</script>",
    "[link](http://evil.example) ![picture](http://evil.example/x.png)",
    "| a | b |\n|---|---|\n| c | d |",
    "```\n# a heading\n````\n",
    "~~~\n* item\n\n# heading",
    "**bold** `code` ~~out~~ &lt;b&gt; $x$",
    "one\rtwo\u2028three\x85four\udcff",
    "quote\" and ' and: {colon: [x}",
]


@pytest.mark.parametrize("evil", EVIL)
def test_text_of_others_marks_nothing_up_and_stays_out_of_the_head(evil: str, tmp_path: Path) -> None:
    def shown(word: str) -> str:
        run = typed("iter=1")
        model = dataclasses.replace(run.model, id=word, license=word)  # pyright: ignore
        sampled = dataclasses.replace(run.data, card_datasets=[word], parts=(Path(word),))  # pyright: ignore
        return text(facts(run, tmp_path, f"python -m src.main {word}", model=model, data=sampled))

    plain, found = shown("w !"), shown(evil)
    assert [(t.type, t.level) for t in body(plain)] == [(t.type, t.level) for t in body(found)], "the same blocks"
    assert links(plain) == links(found)
    kinds = {t.type for t in flat(body(found))} - {t.type for t in flat(body(plain))}
    assert kinds <= {"text_special", "softbreak"}
    assert ModelCard(found).data.to_dict() == ModelCard(plain).data.to_dict()
    cells = ["".join(c.content for c in t.children or []) for t in body(found) if t.type == "inline"]
    listed = json.dumps([str(Path(evil))], ensure_ascii=False)
    assert cells[cells.index("data.parts") + 1] == " ⏎ ".join(listed.splitlines()), "all of it, in its own cell"
    (block,) = [t.content for t in body(found) if t.type == "fence" and "src.main" in t.content]
    assert block.splitlines() == f"python -m src.main {evil}".strip().splitlines()


def test_what_can_be_said_as_text_can_be_read_again() -> None:
    for word in EVIL[:-2]:
        (inline,) = [token for token in MarkdownIt("commonmark").parse(f"x {literal(word)}") if token.type == "inline"]
        assert "".join(t.content for t in inline.children or []) == "x " + " ⏎ ".join(word.strip().splitlines())
    assert fenced("a ```` b").startswith("`````text\n")


def test_words_that_open_doors_are_taken_out_of_the_command(tmp_path: Path) -> None:
    story = made_up(tmp_path)
    typed_in = "python -m src.main ranker.endpoint.base_url=https://me:word@host:1/v1?a=b x=hf_abcdefgh1234"
    shown = written(story, typed_in)
    assert "base_url=https://…@host:1/v1?a=b x=hf_…" in shown and "word@" not in shown
    assert scrubbed("mail me@host about x=hf_x") == "mail me@host about x=hf_x"


def test_a_card_of_odd_bytes_can_be_written(tmp_path: Path) -> None:
    """What a shell hands over that is no UTF-8."""
    assert "a=?" in written(made_up(tmp_path), "python -m src.main a=\udcff")
