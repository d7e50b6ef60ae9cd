"""The page, its tables as Markdown, and the folder they are written to."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest
from browser import Browser, browser, install
from made_up_sweep import Made, grid, write
from page_reader import Reader
from PIL import Image

from src.compare.command import compare
from src.config import UserError

SECTIONS = [
    "Results",
    "Plots",
    "Do neighbours differ?",
    "Costs",
    "What was shared",
    "Runs",
    "How the numbers were made",
]
EVIL = "<script>alert(1)</script>"


def made(place: Path, points: list[Made], *words: str) -> Path:
    write(place, points, sweep="eta")
    assert compare([f"runs={place}/runs/eta", *words]) == 0
    return place / "runs" / "compare-eta"


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    points = [*grid((10, 100, 1000), (1e-5, 2e-5)), Made(eta=1000, lr=3e-5, iterations=0)]
    return made(tmp_path_factory.mktemp("sweep"), points, "title=Made-up numbers")


@pytest.fixture(scope="module")
def evil(tmp_path_factory: pytest.TempPathFactory) -> Path:
    points = [Made(eta=10, model=EVIL, method="a|b`*_"), Made(eta=100, model=EVIL, method="[red]x")]
    return made(tmp_path_factory.mktemp("evil"), points, f"title={EVIL}")


@pytest.mark.full
def test_the_page_has_every_section_and_nothing_from_elsewhere(swept: Path) -> None:
    text = (swept / "index.html").read_text()
    page = Reader(text)
    assert page.headings == SECTIONS and page.open == []
    addresses = [value for _, attrs in page.elements for name, value in attrs.items()
                 if name.rpartition(":")[2] in ("href", "src", "srcset", "action", "data", "poster")]  # fmt: skip
    assert all(value and value.startswith(("#", "data:,")) for value in addresses)
    assert not re.search(r"@import|url\((?!#)|//cdn|fetch\(|XMLHttpRequest", text)
    assert set(re.findall(r"https?://[^\s\"'<)]+", text)) == {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }


@pytest.mark.full
def test_the_page_can_be_read_aloud(swept: Path) -> None:
    page = Reader((swept / "index.html").read_text())
    assert all(attrs.get("aria-label") and attrs.get("role") == "img" for tag, attrs in page.elements if tag == "svg")
    assert all(attrs.get("scope") in ("row", "col") for tag, attrs in page.elements if tag == "th")
    assert sum(tag == "h1" for tag, _ in page.elements) == 1
    assert ("html", {"lang": "en"}) in page.elements
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {f"#{name}" for name in ids} >= {str(a["href"]) for tag, a in page.elements if tag == "a"}


@pytest.mark.full
def test_the_headline_names_the_best_point_and_its_neighbours(swept: Path) -> None:
    text = (swept / "index.html").read_text()
    lead = re.search(r'<p class="lead">(.*?)</p>', text)
    assert lead and re.match(r"Best: η 1000?, lr 1e-5, iteration 2, beats the base: win rate 0\.\d{3} \[", lead[1])
    assert re.search(r"It differs from \d of its \d neighbours", lead[1])
    assert "1 of 7 runs are unfinished" in text and "unfinished: 0 of 2 iterations evaluated" in text


@pytest.mark.full
def test_names_of_models_and_methods_mark_nothing_up(evil: Path) -> None:
    page = Reader((evil / "index.html").read_text())
    assert sum(tag == "script" for tag, _ in page.elements) == 1, "our own"
    assert {"a|b`*_", "[red]x"} <= set(page.cells)
    markdown = (evil / "compare.md").read_text()
    assert markdown.startswith("# \\<script\\>alert(1)\\</script\\>\n") and "| a\\|b\\`\\*\\_ |" in markdown


def test_control_characters_in_settings_and_titles_end_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A page, a plot and a terminal cannot hold them."""
    points = [Made(method=f"m\x07{name}\x1b[31m", model="x\x01", iterations=1) for name in "ab"]
    out = made(tmp_path, points, "title=a\x1b\udcffb")
    text = (out / "index.html").read_text()
    assert {"m\ufffda\ufffd[31m", "m\ufffdb\ufffd[31m"} <= set(Reader(text).cells) and "model x\ufffd" in text
    for told in (text, (out / "compare.md").read_text(), (out / "compare.csv").read_text(), capsys.readouterr().out):
        assert not re.search(r"[\x00-\x08\x0b-\x1f\udc00-\udfff]", told)


@pytest.mark.full
def test_tables_of_the_markdown_have_a_row_a_run_and_iteration(swept: Path) -> None:
    text = (swept / "compare.md").read_text()
    (results,) = re.findall(r"## Results\n\n(.*?)\n\n", text, re.DOTALL)
    assert len(results.splitlines()) == 2 + 6 * 2 + 1
    assert len({line.replace("\\|", "").count("|") for line in results.splitlines()}) == 1
    shown = re.findall(r"\(plots/([\w.]+)\)", text)
    assert sorted(shown) == sorted(path.name for path in (swept / "plots").iterdir())


@pytest.mark.full
def test_the_same_runs_give_the_same_files_and_the_old_ones_go(swept: Path) -> None:
    def contents() -> dict[str, bytes]:
        return {str(p.relative_to(swept)): p.read_bytes() for p in sorted(swept.rglob("*")) if p.is_file()}

    before = contents()
    (swept / "plots" / "old.png").write_bytes(b"")
    assert compare([f"runs={swept.parent}/eta", "title=Made-up numbers"]) == 0
    assert contents() == before
    assert [path.name for path in swept.parent.glob(".*")] == []


@pytest.mark.full
def test_results_are_shown_in_the_terminal_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = made(tmp_path, grid((10, 100), (1e-5,)))
    told = capsys.readouterr().out
    assert f"wrote: {out / 'index.html'}" in told and "Best: η" in told and "eta: 2 runs compared" in told
    assert compare([f"runs={tmp_path}/runs/tiny-*", f"out={tmp_path}/elsewhere"]) == 0
    assert (tmp_path / "elsewhere" / "compare.csv").exists()


@pytest.mark.full
def test_a_damaged_run_is_named_and_the_others_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = write(tmp_path, grid((1, 10, 100), (1e-5,)), sweep="eta")
    damaged = folders[1] / "artifacts/it1/evaluation/rows.parquet"
    damaged.write_text("no parquet")
    words = [f"runs={tmp_path}/runs/eta"]
    assert compare(words) == 0
    told = capsys.readouterr().out
    assert "eta: 2 runs compared" in told and "Best of 2" not in told
    (line,) = [line for line in told.splitlines() if line.startswith("could not be read: ")]
    assert line.startswith(f"could not be read: {folders[1].name}: {damaged}: cannot be read (")
    out = tmp_path / "runs/compare-eta"
    page, markdown = (out / "index.html").read_text(), (out / "compare.md").read_text()
    read = Reader(page)
    assert read.headings == [SECTIONS[0], "Could not be read", *SECTIONS[1:]] and read.open == []
    place = read.cells.index("reason")
    assert read.cells[place + 1] == folders[1].name and str(damaged) in read.cells[place + 2]
    assert "## Could not be read" in markdown and "rows.parquet: cannot be read" in markdown
    for text in (page, markdown.replace("\\", "")):
        assert "1 of 3 runs could not be read and is left out." in text and "2 runs, 2 points." in text
    with (out / "compare.csv").open(newline="") as file:
        rows = list(csv.DictReader(file, strict=True))
    assert {row["run"] for row in rows} == {folder.name for folder in folders} and all(None not in row for row in rows)
    (row,) = [row for row in rows if row["run"] == folders[1].name]
    assert row.pop("state").startswith(f"damaged: {damaged}: cannot be read (") and set(row.values()) == {
        row["run"],
        "",
    }


@pytest.mark.parametrize("others", [[], [Made(eta=1, iterations=0)]], ids=["none", "without an evaluation"])
def test_damaged_runs_alone_are_an_error_and_nothing_is_written(others: list[Made], tmp_path: Path) -> None:
    first, second, *_ = write(tmp_path, [*grid((10, 100), (1e-5,)), *others], sweep="eta")
    (first / "config.yaml").write_text("a: [")
    (second / "config.yaml").write_text("")
    with pytest.raises(UserError, match=r"config\.yaml: cannot be read"):
        compare([f"runs={tmp_path}/runs/eta"])
    assert not (tmp_path / "runs/compare-eta").exists()


@pytest.mark.parametrize("name", ["thesis.txt", "plots/notes.txt"])
def test_a_folder_with_anything_else_in_it_is_left_alone(name: str, tmp_path: Path) -> None:
    write(tmp_path, [Made()], sweep="eta")
    precious = tmp_path / "mine" / name
    precious.parent.mkdir(parents=True)
    precious.write_text("years of work")
    with pytest.raises(UserError, match=r"^out: .* holds .*\.txt"):
        compare([f"runs={tmp_path}/runs/eta", f"out={tmp_path}/mine"])
    assert precious.read_text() == "years of work"


@pytest.mark.full
def test_what_is_for_weights_and_biases_is_written_and_sent_only_when_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[str] = []
    monkeypatch.setattr("src.compare.wandb_report.publish", lambda found, place: sent.append(place))
    out = made(tmp_path, grid((10, 100), (1e-5,)))
    assert (
        sent == []
        and json.loads((out / "report.json").read_text())
        and json.loads((out / "workspace.json").read_text())
    )
    assert compare([f"runs={tmp_path}/runs/eta", "report=me/mine"]) == 0
    assert sent == ["me/mine"] and "mine" in (out / "report.json").read_text()


# In a real browser ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chromium() -> Browser:
    if why := install():
        pytest.skip(why)
    with browser() as opened:
        yield opened  # pyright: ignore


@pytest.mark.full
def test_nothing_is_wider_than_a_phone_and_nothing_complains(chromium: Browser, swept: Path, evil: Path) -> None:
    for folder in (swept, evil):
        page = chromium.open(folder / "index.html", width=375)
        assert page.evaluate("[innerWidth, document.documentElement.scrollWidth]") == [375, 375]
        assert page.errors == [] and page.requests == [(folder / "index.html").resolve().as_uri()]
        inside = "[...document.querySelectorAll('figure:not(.wide) svg, h1, p')]"
        assert page.evaluate(f"{inside}.every(e => e.getBoundingClientRect().right <= 375)")


@pytest.mark.full
def test_dark_and_light_are_two_pages_and_text_in_plots_follows(chromium: Browser, swept: Path, tmp_path: Path) -> None:
    seen = []
    for dark in (False, True):
        page = chromium.open(swept / "index.html", dark=dark)
        page.screenshot(tmp_path / "page.png", height=800)
        with Image.open(tmp_path / "page.png") as image:
            corner = image.convert("RGB").getpixel((2, 2))
        seen.append((corner, page.evaluate("getComputedStyle(document.querySelector('svg text')).fill")))
    (white, dark_text), (black, light_text) = seen
    assert white == (255, 255, 255) and black == (0x15, 0x18, 0x1C) and dark_text != light_text


@pytest.mark.full
def test_a_table_is_sorted_by_the_column_that_is_clicked(chromium: Browser, swept: Path) -> None:
    page = chromium.open(swept / "index.html")
    column = "[...document.querySelectorAll('table')[0].tBodies[0].rows].map(r => parseFloat(r.cells[{0}].textContent))"
    heads = page.evaluate("[...document.querySelectorAll('table')[0].tHead.rows[0].cells].map(c => c.textContent)")
    place = heads.index("win rate over base")
    click = f"document.querySelectorAll('table')[0].tHead.rows[0].cells[{place}].firstChild.click()"
    page.evaluate(click)
    wins = [win for win in page.evaluate(column.format(place)) if win is not None]
    assert len(wins) == 12 and wins == sorted(wins, reverse=True)
    page.evaluate(click)
    wins = [win for win in page.evaluate(column.format(place)) if win is not None]
    assert wins == sorted(wins)


@pytest.mark.full
def test_a_row_that_has_the_focus_shows_its_point_in_the_plots(chromium: Browser, swept: Path) -> None:
    page = chromium.open(swept / "index.html")
    page.evaluate("document.querySelector('tr[data-point=\"2\"]').focus()")
    assert page.evaluate("document.querySelectorAll('.mark.hot').length > 10")
    assert page.evaluate("[...document.querySelectorAll('.mark.hot')].every(m => m.classList.contains('p2'))")
    page.evaluate("document.activeElement.blur()")
    assert page.evaluate("document.querySelectorAll('.hot').length") == 0


@pytest.mark.full
def test_paper_is_white_and_has_nothing_to_click(chromium: Browser, swept: Path) -> None:
    """Chromium repeats the words of a table's head on the next page, but no button in it."""
    page = chromium.open(swept / "index.html", width=720, dark=True)
    page.evaluate("document.querySelector('tr[data-point=\"2\"]').focus()")
    dark = {"name": "prefers-color-scheme", "value": "dark"}
    page("Emulation.setEmulatedMedia", media="print", features=[dark])
    style = "(name) => { const found = document.querySelector(name); return found && getComputedStyle(found); }"
    assert page.evaluate(f"({style})('body').backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate(f"({style})('thead button').display") == "contents"
    assert page.evaluate(f"({style})('thead th').boxShadow") == "none"
    assert [page.evaluate(f"({style})('{name}').display") for name in ("nav", ".pointed")] == ["none", "none"]
    assert page.evaluate(f"({style})('summary').listStyleType") == "none"
    assert page.evaluate("[...document.querySelectorAll('.mark')].every(m => getComputedStyle(m).opacity === '1')")
    assert page.evaluate("document.documentElement.scrollWidth") == 720, "no table is cut"


@pytest.mark.full
def test_without_scripts_everything_is_there(chromium: Browser, swept: Path) -> None:
    page = chromium.open(swept / "index.html", script=False)
    assert page.errors == []
    assert page.evaluate(
        "document.querySelectorAll('tbody tr').length > 20 && document.querySelectorAll('svg').length > 10"
    )
