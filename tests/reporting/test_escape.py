"""Text of models, prompts, runs and configs marks nothing up, wherever it is shown: HTML, Markdown, CSV, plots.

Any text, beside the known evils. The page of `compare` in a browser: tests/whole/test_page.py.
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
from made_up_cards import blocks, body, card_of, flat, links, shown, written
from made_up_run import made_up
from made_up_sweep import Made, write
from markdown_it import MarkdownIt
from page_reader import Reader
from tiny_run import typed

from src.reporting import report as report_module
from src.reporting.compare.command import compare
from src.reporting.compare.tables import as_markdown
from src.reporting.report import write_report
from src.reporting.tables import literal, scrubbed

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\" onload='x' javascript:alert(1) ]]> --> &lt;"
EVILS = [
    "---\nlicense: mit\n---",
    "<script>alert(1)</script> <!-- the rest is gone",
    "[link](http://evil.example) ![picture](http://evil.example/x.png) <http://evil.example>",
    "[x]: http://evil.example 'title'",
    "| a | b |\n|---|---|\n| c | d |",
    "```\n# a heading\n````\n\nsetext\n===\n\n---\n",
    "~~~\n> quote\n* item\n1. item\n\n# heading",
    "**bold** _em_ `code` ~~out~~ &lt;b&gt; $x$ \\*a backslash\\",
    "one\rtwo\u2028three\x0bfour\x85five",
    "quote\" and ' and: {colon: [x}",
]
TEXT = st.lists(
    st.sampled_from(["<", ">", "&", '"', "'", "](", "javascript:", "</script>", "<!--", "```", "~~~", "\n", "|", "# "])
    | st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), max_size=5),
    max_size=8,
).map("".join)
HARMLESS = {"text", "text_special", "softbreak"}


@given(TEXT)
@example(EVIL)
def test_a_table_in_markdown_has_the_same_cells_whatever_it_says(text: str) -> None:
    found, plain = (MarkdownIt("commonmark").enable("table").parse(as_markdown(pd.DataFrame([[said, "1"], ["b", said]],
                    columns=[said, "b"]))) for said in (text, "plain"))  # fmt: skip
    assert [token.type for token in found] == [token.type for token in plain]
    kinds = {child.type for token in found for child in token.children or []}
    assert kinds <= HARMLESS


@given(text=TEXT)
@example(text=EVIL)
def test_a_line_of_markdown_is_text_and_nothing_else(text: str) -> None:
    found = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(f"x {literal(text)}")
    assert [token.type for token in found] == ["paragraph_open", "inline", "paragraph_close"]
    assert {child.type for child in found[1].children or []} <= HARMLESS


# Cards and reports ---------------------------------------------------------------------------------------------------


def test_text_of_others_marks_nothing_up_in_a_card_and_stays_out_of_its_head(tmp_path: Path) -> None:
    run = typed("iter=1")

    def said(word: str) -> str:
        model = dataclasses.replace(run.model, id=word, license=word)  # pyright: ignore
        sampled = dataclasses.replace(run.data, card_datasets=[word], parts=(Path(word),))  # pyright: ignore
        return card_of(run, tmp_path, f"python -m src.main {word}", model=model, data=sampled)

    plain = said("w !")
    for evil in [*EVILS, "odd \udcff bytes"]:
        found = said(evil)
        assert blocks(plain) == blocks(found), evil
        assert links(plain) == links(found), evil
        assert {t.type for t in flat(body(found))} - {t.type for t in flat(body(plain))} <= HARMLESS, evil
        assert ModelCard(found).data.to_dict() == ModelCard(plain).data.to_dict(), evil
        cells = [shown(t) for t in body(found) if t.type == "inline"]
        listed = json.dumps([str(Path(evil))], ensure_ascii=False)
        assert cells[cells.index("data.parts") + 1] == " ⏎ ".join(listed.splitlines()), "all of it, in its own cell"


def test_text_of_prompts_and_answers_marks_nothing_up_in_a_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores 0, 1, 2 win (1/2 + s(-1) + s(-2)) / 3 = .30, .50 and .70."""
    monkeypatch.setattr(report_module, "draw_all", lambda *_: None)

    def said(place: str, *words: str) -> str:
        story = made_up(tmp_path / place, *words, iterations=1)
        write_report(story.run, story.nodes, story.store, story.folder)
        return (story.folder / "report.md").read_text()

    plain = said("plain")
    for number, evil in enumerate(EVILS):
        found = said(str(number), evil, evil)
        assert blocks(plain) == blocks(found), evil
        kinds = {"image", "strong_open", "strong_close", "code_inline"} | HARMLESS
        assert {t.type for token in body(found) for t in token.children or []} <= kinds, evil
        images = [[t.attrs["src"] for t in flat(body(each)) if t.type == "image"] for each in (plain, found)]
        assert images[0] == images[1] and links(found) == links(plain), evil
        line = " ⏎ ".join(evil.strip().splitlines())
        lines = [shown(token) for token in body(found) if token.type == "inline"]
        assert {each for each in lines if "prompt, iter" in each} == {f"Training prompt, iteration 1: {line}"}, evil
        assert {each for each in lines if re.match(r"\d\.\d\d \(", each)} == {
            f"{win} (answer {k}, stop) {line}" for k, win in enumerate(("0.30", "0.50", "0.70"), start=1)
        }
        assert {each for each in lines if each.startswith(("base: ", "new: "))} == {f"base: {line}", f"new: {line}"}
    assert "\n* base: (empty)\n* new: (empty)\n" in said("empty", "what", " \n\t ")


def test_words_that_open_doors_are_taken_out_of_the_command(tmp_path: Path) -> None:
    typed_in = "python -m src.main ranker.endpoint.base_url=https://me:word@host:1/v1?a=b x=hf_abcdefgh1234"
    said = written(made_up(tmp_path), typed_in)
    assert "base_url=https://…@host:1/v1?a=b x=hf_…" in said and "word@" not in said
    assert scrubbed("mail me@host about x=hf_x") == "mail me@host about x=hf_x"


# A comparison as a whole ---------------------------------------------------------------------------------------------


def test_names_that_are_evil_everywhere_add_nothing_to_a_comparison(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """To the page and its plots, to Markdown, to the table for a spreadsheet, to the terminal."""
    pages, names = [], [("plain", "a", "b"), (f"x\x01{EVIL}", "=1+1\x1b[31m", "a|b`*_")]
    for number, (model, *methods) in enumerate(names):
        place = tmp_path / str(number)
        write(place, [Made(model=model, method=name, iterations=1) for name in methods], sweep="eta")
        assert compare([f"runs={place}/runs/eta", f"title={model}\udcff"]) == 0
        pages.append(Reader((place / "runs" / "compare-eta" / "index.html").read_text()))
    shapes = [[(tag, list(attributes)) for tag, attributes in page.elements] for page in pages]
    assert shapes[0] == shapes[1] and "script" in [tag for tag, _ in shapes[1]]
    images = [attributes["src"] or "" for tag, attributes in pages[1].elements if tag == "img"]
    assert images and all(image.startswith("data:image/svg+xml;base64,") for image in images)
    assert {"a|b`*_", "=1+1\ufffd[31m"} <= set(pages[1].cells)
    out = tmp_path / "1" / "runs" / "compare-eta"
    assert "| a\\|b\\`\\*\\_ " in (out / "compare.md").read_text()
    rows = list(csv.reader(io.StringIO((out / "compare.csv").read_text(), newline="")))
    assert "=1+1\ufffd[31m" in {cell for row in rows for cell in row}
    files = [(out / name).read_text() for name in ("index.html", "compare.md", "compare.csv")]
    for told in [*files, capsys.readouterr().out]:
        assert not re.search(r"[\x00-\x08\x0b-\x1f\udc00-\udfff]", told)
