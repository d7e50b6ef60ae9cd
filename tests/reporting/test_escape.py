"""Text of models, prompts, runs and configs marks nothing up, wherever it is shown: HTML, Markdown, CSV, plots.

Any text, beside the known evils.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
from pathlib import Path

import pandas as pd
import pytest
from huggingface_hub import ModelCard
from hypothesis import example, given
from hypothesis import strategies as st
from made_up_cards import body, card_of, links, text_of, tokens, written
from made_up_run import made_up
from made_up_sweep import MadeUpRun, write
from markdown_it import MarkdownIt
from markdown_it.token import Token
from page_reader import Reader
from tiny_run import typed

from src.kernel.processes import legible
from src.kernel.secret_words import scrubbed
from src.reporting import report as report_module
from src.reporting.compare.command import compare
from src.reporting.compare.tables import as_markdown
from src.reporting.report import write_report
from src.reporting.tables import literal

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\" onload='x' javascript:alert(1) ]]> --> &lt;"
EVILS = [
    "---\nlicense: mit\n---\n| a | b |\n|---|---|\n| c | d |",
    "<script>alert(1)</script> <!-- the rest is gone",
    "[link](http://evil.example) ![picture](http://evil.example/x.png) <http://evil.example>",
    "[x]: http://evil.example 'title'",
    "```\n# a heading\n````\n\nsetext\n===\n\n---\n~~~\n> quote\n* item\n1. item\n\n# heading",
    "**bold** _em_ `code` ~~out~~ &lt;b&gt; $x$ \\*a backslash\\",
    "one\rtwo\u2028three\x0bfour\x85quote\" and ' and: {colon: [x}",
    "title \x1b]0;mine\x07 \x9b31m\x08 turned \u202egnp.exe\u2066",
]
SIGNS = ["<", ">", "&", '"', "'", "](", "javascript:", "</script>", "<!--", "```", "~~~", "\n", "|", "# "]
ANY = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), max_size=5)
TEXT = st.lists(st.sampled_from(SIGNS) | ANY, max_size=8).map("".join)
HARMLESS = {"text", "text_special", "softbreak"}


@given(TEXT)
@example(EVIL)
def test_a_cell_or_a_line_of_markdown_is_text_and_nothing_else(text: str) -> None:
    def parsed(word: str) -> list[Token]:
        table = as_markdown(pd.DataFrame([[word, "1"], ["b", word]], columns=[word, "b"]))
        return MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(f"x {literal(word)}\n\n{table}")

    assert [token.type for token in parsed(text)] == [token.type for token in parsed("plain")]
    assert {child.type for token in parsed(text) for child in token.children or []} <= HARMLESS


# Cards and reports ---------------------------------------------------------------------------------------------------


def lines_of(markdown: str) -> list[str]:
    return [text_of(token) for token in body(markdown) if token.type == "inline"]


def check_alike(evil: str, plain: str) -> None:
    """Two texts have the same blocks, links and pictures; within lines there is only what the plain one has."""
    assert [(t.type, t.level) for t in body(plain)] == [(t.type, t.level) for t in body(evil)]
    assert links(plain) == links(evil) and legible(evil) == evil
    sources = [[token.attrs["src"] for token in tokens(text) if token.type == "image"] for text in (plain, evil)]
    assert sources[0] == sources[1]
    assert {token.type for token in tokens(evil)} <= HARMLESS | {token.type for token in tokens(plain)}


def test_text_of_others_marks_nothing_up_in_a_card_and_stays_out_of_its_head(tmp_path: Path) -> None:
    run = typed("iter=1")

    def card(word: str) -> str:
        model = dataclasses.replace(run.model, id=word, license=word)  # pyright: ignore
        sampled = dataclasses.replace(run.data, card_datasets=[word], parts=(Path(word),))  # pyright: ignore
        return card_of(run, tmp_path, f"python -m src.main {word}", model=model, data=sampled)

    plain = card("w !")
    for evil in [*EVILS, "odd \udcff bytes"]:
        text = card(evil)
        check_alike(text, plain)
        assert ModelCard(text).data.to_dict() == ModelCard(plain).data.to_dict(), evil
        parts = json.dumps([str(Path(evil))], ensure_ascii=False)
        assert legible(" ⏎ ".join(parts.splitlines())) in lines_of(text), "all of it, in its own cell"


def test_text_of_prompts_and_answers_marks_nothing_up_in_a_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores 0, 1, 2 win (1/2 + s(-1) + s(-2)) / 3 = .30, .50 and .70."""
    monkeypatch.setattr(report_module, "draw_all", lambda *_: None)

    def report(place: str, *words: str) -> str:
        story = made_up(tmp_path / place, *words, iterations=1)
        write_report(story.run, story.nodes, story.store, story.folder)
        return (story.folder / "report.md").read_text()

    plain = report("plain")
    for number, evil in enumerate(EVILS):
        text = report(str(number), evil, evil)
        check_alike(text, plain)
        line, lines = legible(" ⏎ ".join(evil.strip().splitlines())), set(lines_of(text))
        answers = {f"{win} (answer {k}, stop) {line}" for k, win in enumerate(("0.30", "0.50", "0.70"), start=1)}
        assert {f"Training prompt, iteration 1: {line}", f"base: {line}", f"iteration 1: {line}", *answers} <= lines, (
            evil
        )
    assert "\n* base: (empty)\n* iteration 1: (empty)\n" in report("empty", "what", " \n\t ")


def test_words_that_open_doors_are_taken_out_of_the_command(tmp_path: Path) -> None:
    command = "python -m src.main ranker.endpoint.base_url=https://me:word@host:1/v1?a=b x=hf_abcdefgh1234"
    card = written(made_up(tmp_path), command)
    assert "base_url=https://…@host:1/v1?a=b x=hf_…" in card and "word@" not in card
    assert scrubbed("mail me@host about x=hf_transfer") == "mail me@host about x=hf_transfer"


# A comparison as a whole ---------------------------------------------------------------------------------------------


def test_names_that_are_evil_everywhere_add_nothing_to_a_comparison(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """To the page and its plots, to Markdown, to the table for a spreadsheet, to the terminal."""
    pages, names = [], [("plain", "a", "b"), (f"x\x01{EVIL}", "=1+1\x1b[31m", "a|b`*_")]
    for number, (model, *methods) in enumerate(names):
        place = tmp_path / str(number)
        write(place, [MadeUpRun(model=model, method=name, iterations=1) for name in methods], sweep="eta")
        assert compare([f"runs={place}/runs/eta", f"title={model}\udcff"]) == 0
        pages.append(Reader((place / "runs" / "compare-eta" / "index.html").read_text()))
    shapes = [[(tag, list(attributes)) for tag, attributes in page.elements] for page in pages]
    assert shapes[0] == shapes[1] and "script" in [tag for tag, _ in shapes[1]]
    images = [attributes["src"] or "" for tag, attributes in pages[1].elements if tag == "img"]
    assert images and all(image.startswith("data:image/svg+xml;base64,") for image in images)
    assert {"a|b`*_", "=1+1\\x1b[31m"} <= set(pages[1].cells)
    html, markdown, table = ((place / "runs/compare-eta" / name).read_text()
                             for name in ("index.html", "compare.md", "compare.csv"))  # fmt: skip
    assert "| a\\|b\\`\\*\\_ " in markdown
    assert "=1+1\\x1b[31m" in [cell for row in csv.reader(io.StringIO(table)) for cell in row]
    for text in (html, markdown, table, capsys.readouterr().out):
        assert not re.search(r"[\x00-\x08\x0b-\x1f\udc00-\udfff]", text)
