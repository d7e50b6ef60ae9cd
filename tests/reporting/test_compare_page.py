"""The page of a comparison, its Markdown and pictures, its sentences, and the folder they are written to."""

from __future__ import annotations

import csv
import re
from base64 import b64decode
from pathlib import Path
from xml.etree import ElementTree

import pytest
from made_up_sweep import MadeUpRun, grid, write
from page_reader import Reader
from tiny_run import World

from src.kernel.config import UserError
from src.reporting.compare.command import compare
from src.reporting.compare.plots import draw
from src.reporting.compare.points import compare_folders

SECTIONS = ["Results", "Plots", "Do neighbours differ?", "Costs", "Runs", "How the numbers were made"]
POINTS = [*grid((10, 100, 1000), (1e-5, 2e-5)), MadeUpRun(eta=1000, lr=3e-5, iterations=0), MadeUpRun(eta=1)]


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("sweep")
    damaged = write(place, POINTS, sweep="eta")[-1]
    (damaged / "artifacts/it1/evaluation/rows.parquet").write_text("no parquet")
    assert compare([f"runs={place}/runs/eta", "title=Made-up numbers"]) == 0
    return place / "runs" / "compare-eta"


def test_the_page_has_every_section_is_well_nested_and_needs_nothing_from_elsewhere(swept: Path) -> None:
    text = (swept / "index.html").read_text()
    page = Reader(text)
    assert re.findall("<h2[^>]*>(.*?)</h2>", text) == SECTIONS and page.open == []
    addresses = [attrs[name] for _, attrs in page.elements for name in attrs.keys() & {"href", "src", "srcset"}]
    assert all(value and value.startswith(("#", "data:,", "data:image/svg+xml;base64,")) for value in addresses)
    assert not re.search(r"@import|url\(|//cdn|fetch\(|XMLHttpRequest", text)


def test_the_headline_names_the_best_point_and_markdown_has_a_row_a_run_and_iteration(swept: Path) -> None:
    text, markdown = (swept / "index.html").read_text(), (swept / "compare.md").read_text()
    lead = re.search(r'<p class="lead">(.*?)</p>', text)
    assert lead and re.match(r"Best: η 1000?, lr 1e-5, iteration 2, beats the base: win rate 0\.\d{3} \[", lead[1])
    assert re.search(r"over \d+ held-out prompts, by judge\.", lead[1]), "whose verdict it is"
    assert "1 of 7 runs are unfinished" in text and "0 of 2 iterations evaluated" in text
    assert re.search(r"tiny-sppo-s0-\w+ cannot be read and is left out: ", text)
    (results,) = re.findall(r"## Results\n\n(.*?)\n\n", markdown, re.DOTALL)
    assert len(results.splitlines()) == 2 + 6 * 2 + 1
    pictures = re.findall(r"\(plots/([\w.]+)\)", markdown)
    assert sorted(pictures) == sorted(path.name for path in (swept / "plots").iterdir())


def test_a_real_run_is_compared_as_its_evaluations_say(finished: World, tmp_path: Path) -> None:
    assert compare([f"runs={finished.folder}", f"out={tmp_path}/out"]) == 0
    with (tmp_path / "out" / "compare.csv").open(newline="") as file:
        rows = list(csv.DictReader(file, strict=True))
    assert [(row["iteration"], row["state"], row["eta"]) for row in rows] == [(t, "finished", "1000") for t in "12"]
    for row in rows:
        numbers = finished.metrics(f"it{row['iteration']}/evaluation")
        assert all(float(row[name]) == value for name, value in numbers.items() if row.get(name))
        assert float(row["win_over_base"]) == numbers["win_over_base"]


def test_where_no_run_can_be_read_or_others_files_lie_nothing_is_written(tmp_path: Path) -> None:
    (first,) = write(tmp_path, [MadeUpRun(iterations=1)], sweep="eta")
    words = [f"runs={tmp_path}/runs/eta", f"out={tmp_path}/mine"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match=r"^out: .* holds thesis\.txt"):
        compare(words)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    with pytest.raises(UserError, match="^out: "):
        compare([words[0], f"out={tmp_path}/mine/thesis.txt"])
    with pytest.raises(UserError, match="^runs: said twice"):
        compare([*words, words[0]])
    (tmp_path / "mine" / "thesis.txt").rename(tmp_path / "mine" / ".compare.md.0123abcd.tmp")  # of one that was killed
    assert compare(words) == 0 == compare(words)
    names = {path.name for path in (tmp_path / "mine").rglob("*")}
    assert {"index.html", "compare.md", "win_rate_against_tokens.png"} <= names and not any("tmp" in n for n in names)
    (first / "config.yaml").write_text("a: [")
    with pytest.raises(UserError, match=r"cannot be read \(.*config\.yaml"):
        compare([f"runs={tmp_path}/runs/eta"])
    assert not (tmp_path / "runs/compare-eta").exists()


def svg_of(address: str) -> str:
    return b64decode(address.partition("base64,")[2]).decode()


def test_pictures_show_the_points_of_the_iteration_to_which_most_have_come(tmp_path: Path) -> None:
    """Signs in names are no formulas and no elements; a map leaves missing cells empty."""
    points = [made._replace(iterations=t, wanted=3, method="a$b$<i>&") for made, t in
              zip(grid((1, 10), (1e-5, 2e-5, 3e-5)), [2, 2, 2, 3, 3, 1], strict=True)]  # fmt: skip
    sections = draw(compare_folders(write(tmp_path, points), "x"))
    drawn = {picture.name: picture for section in sections for picture in section.pictures}
    assert list(drawn) == [
        *("win_rate_by_eta", "win_rate_by_lr", "win_rate_by_iteration", "heat_eta_lr"),
        *("win_rate_against_tokens", "win_rate_against_kl_per_token"),
    ]
    assert sections[0].note.endswith(" 1 of 6 points have not come to iteration 2.")
    for name, picture in drawn.items():
        ElementTree.fromstring(svg_of(picture.svg))
        assert "<i>" not in svg_of(picture.svg), name
    hatched = svg_of(drawn["heat_eta_lr"].svg)
    assert hatched.count("± .") == 5 and hatched.count("<pattern") == 1


def test_words_that_compare_does_not_know_are_refused() -> None:
    for words, named in {"run=x": "run=x", "runs=": "runs=", "runs=a title=": "title=", "out=x": "runs"}.items():
        with pytest.raises(UserError, match=f"^{named}: "):
            compare(words.split())
