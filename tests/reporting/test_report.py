"""The report: numbers with their intervals, honest sentences, pictures that open, and no markup from model text."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up_cards import tokens
from made_up_run import MadeUp, made_up
from PIL import Image
from tiny_run import K, World

from src.reporting import report as report_module
from src.reporting.report import write_report
from src.reporting.tables import literal


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes a second, and most tests look at the text."""
    monkeypatch.setattr(report_module, "draw_all", lambda *_: None)


def written(story: MadeUp) -> str:
    write_report(story.run, story.nodes, story.store, story.folder)
    return (story.folder / "report.md").read_text()


def tables(text: str) -> list[list[list[str]]]:
    """Every table as rows of cells, the headings first."""
    lines = [line if line.startswith("|") else "" for line in text.splitlines() if not line.startswith("|-")]
    return [[row.strip("| ").split(" | ") for row in table.split("\n")]
            for table in re.split(r"\n\n+", "\n".join(lines).strip())]  # fmt: skip


@pytest.mark.usefixtures("undrawn")
def test_tables_show_every_policy_with_its_interval(tmp_path: Path) -> None:
    """Loss and log-ratios: .5, 1.5, 2.5 in three steps; the last quarter is the last step."""
    progress, quality, ranking, pairs, provenance = tables(written(story := made_up(tmp_path)))
    assert [row[0] for row in progress] == ["policy", "base (null: other seeds)", "iteration 1", "iteration 2"]
    assert progress[1][1] == "0.500 [0.450, 0.550]"
    wins = ["0.600 [0.550, 0.650]", "0.600 [0.550, 0.650]", "0.600", "0.600 [0.550, 0.650]"]
    assert progress[3][1:] == [*wins, "0.3", "0.2500", "2.5000", "2.50", "2.50"]
    assert [row[0] for row in quality] == ["policy", "base", "iteration 1", "iteration 2"]
    assert set(quality[1][1:]) == {"0.200"} and set(quality[2][1:]) == {"0.300"}
    means = ["0.125", "0.125", "0.125", "0.1", "0.1", "0.125", "0.1250"]
    assert pairs[1:] == [[f"iteration {t}", "4", "0 / 1 / 2", "3", *means] for t in (1, 2)]
    numbers = ["12", "5 / 1", "2", "0.375", "–", "–", "0.375", "0.375", "7"]
    assert ranking[1:] == [[f"iteration {t}", *numbers] for t in (1, 2)]
    assert [row[0] for row in provenance[1:]] == [literal(node.name) for node in story.nodes]


@pytest.mark.usefixtures("undrawn")
def test_the_headline_says_whether_the_null_holds_a_half_and_beats_only_beyond_the_interval(tmp_path: Path) -> None:
    for case, (low, high, base, null, verdict) in enumerate((
        (0.45, 0.55, 0.501, "contains", "beats"),
        (0.50, 0.55, 0.5, "contains", "does not beat"),
        (0.40, 0.49, 0.3, "does NOT contain", "does not beat"),
    )):  # fmt: skip
        wins = {"null_win": 0.5, "null_win_low": low, "null_win_high": high, "win_over_base_low": base}
        story = made_up(tmp_path / str(case), iterations=1, **wins)
        _, _, headline, _, settings, *_ = written(story).splitlines()
        told = ("nowhere", "sppo", "eta 1000", "lr 1e-05", f"K {K}", "1 iterations", "seed 0", "embedded", "part0")
        assert all(value in settings for value in told)
        assert headline.startswith(
            f"Iteration 1 {verdict} the base on 6 held-out prompts, by embedded, the judge it was"
        )
        assert headline.endswith(f"The interval of the null, 0.500 [{low:.3f}, {high:.3f}], {null} 0.5.")
        assert (story.folder / "summary.txt").read_text().splitlines()[-1] == headline


def test_a_real_report_shows_every_picture_that_was_drawn(finished: World) -> None:
    report = (finished.folder / "report.md").read_text()
    linked = [token.attrs["src"] for token in tokens(report) if token.type == "image"]
    pictures = sorted((finished.folder / "plots").iterdir())
    assert len(pictures) == 3 and sorted(linked) == [f"plots/{path.name}" for path in pictures]
    for path in pictures:
        with Image.open(path) as picture:
            assert len(np.unique(np.asarray(picture.convert("L")))) > 20, f"{path} is blank"


def test_numbers_a_ranker_does_not_have_leave_gaps_not_errors(tmp_path: Path) -> None:
    """A pairwise ranker brings no relevance, PMI or echo; prompts without checks give no accuracy."""
    names = ("relevance", "pmi", "echo", "unseen_accuracy")
    unknown: dict[str, Any] = {f"{base}{name}": None for name in names for base in ("", "base_")}
    _, quality, *_ = tables(text := written(made_up(tmp_path, iterations=1, **unknown)))
    assert [row.count("–") for row in quality[1:]] == [4, 4] and "nan" not in text
