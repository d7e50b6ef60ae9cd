"""Text of models, prompts, runs and configs marks nothing up, wherever it is shown: any text, beside the known evils.

The pages as a whole: test_report.py, test_card_text.py, test_compare_page.py.
"""

from __future__ import annotations

import csv
import io
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from made_up_sweep import Made, write
from markdown_it import MarkdownIt

from src.card.markdown import fenced, literal
from src.compare.command import compare
from src.compare.page import _table
from src.compare.tables import Cell, Table, _plain
from src.report.write import _inline

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\" onload='x' javascript:alert(1) ]]> --> &lt;"
TEXT = st.lists(
    st.sampled_from(["<", ">", "&", '"', "'", "](", "javascript:", "</script>", "<!--", "```", "~~~", "\n", "|", "# "])
    | st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), max_size=5),
    max_size=8,
).map("".join)
HARMLESS = {"text", "text_special", "softbreak"}


class Seen(HTMLParser):
    """Elements with their attributes, and the text between them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, tuple[str, ...]]] = []
        self.text: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, tuple(name for name, _ in attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def handle_comment(self, data: str) -> None:
        self.elements.append(("comment", ()))


def table(text: str) -> str:
    """With the text in every place that there is."""
    return _table(Table([text, "b"], [[Cell(text, text), Cell(text)]], [1]), text)


@given(TEXT)
@example(EVIL)
def test_a_table_of_the_page_has_the_same_elements_whatever_it_says(text: str) -> None:
    found = Seen(table(text))
    assert found.elements == Seen(table("plain")).elements
    assert "".join(found.text).count(text) >= 3 if text else True


@pytest.mark.parametrize("shown", [literal, _inline], ids=["of cards", "of reports"])
@given(text=TEXT)
@example(text=EVIL)
def test_a_line_of_markdown_is_text_and_nothing_else(shown: object, text: str) -> None:
    assert callable(shown)
    found = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(f"x {shown(text)}")
    assert [token.type for token in found] == ["paragraph_open", "inline", "paragraph_close"]
    assert {child.type for child in found[1].children or []} <= HARMLESS


@given(TEXT)
@example("```\n````text\n~~~\n")
def test_a_block_ends_where_it_ends(text: str) -> None:
    (block,) = MarkdownIt("commonmark").parse(fenced(text))
    assert block.type == "fence" and block.content.strip() == text.strip()


@pytest.mark.full
def test_a_name_that_is_evil_everywhere_adds_nothing_to_a_comparison(tmp_path: Path) -> None:
    """To the page, to its plots, to the reports of W&B, to the table for a spreadsheet."""
    pages = []
    for number, name in enumerate(("plain", EVIL)):
        place = tmp_path / str(number)
        write(place, [Made(eta=eta, model=name, method=name) for eta in (10, 100)], sweep="eta")
        assert compare([f"runs={place}/runs/eta", f"title={name}"]) == 0
        pages.append((place / "runs" / "compare-eta" / "index.html").read_text())
    plain, evil = (Seen(page).elements for page in pages)
    assert {tag for tag, _ in evil} == {tag for tag, _ in plain}
    assert [element for element in evil if element[0] in ("script", "img", "a", "comment")] == [
        element for element in plain if element[0] in ("script", "img", "a", "comment")
    ]
    assert not [name for _, names in evil for name in names if name.startswith("on")]


@pytest.mark.parametrize("name", ["=HYPERLINK(1)", "+1+1", "-2+3", "@SUM(A1)", "\t=1", "\r=1"])
def test_a_spreadsheet_computes_nothing_that_a_run_says(name: str) -> None:
    out = io.StringIO()
    csv.writer(out).writerow(map(_plain, [name, -2.5, "plain", None]))
    assert next(csv.reader(io.StringIO(out.getvalue(), newline=""))) == [f"'{name}", "-2.5", "plain", ""]


@pytest.mark.full
def test_the_table_of_a_comparison_holds_no_formula(tmp_path: Path) -> None:
    write(tmp_path, [Made(eta=eta, model="=1+1", method="@x") for eta in (10, 100)], sweep="eta")
    assert compare([f"runs={tmp_path}/runs/eta"]) == 0
    told = (tmp_path / "runs" / "compare-eta" / "compare.csv").read_text()
    rows = list(csv.reader(io.StringIO(told, newline="")))
    assert {"'=1+1", "'@x"} <= set(rows[1]) and not [cell for row in rows for cell in row if cell[:1] in ("=", "@")]
