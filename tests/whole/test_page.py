"""The page of `compare` in a real browser."""

from __future__ import annotations

from pathlib import Path

import pytest
from browser import look
from debian import BROWSER, lacking
from made_up_sweep import MadeUpRun, grid, write

from src.reporting.compare.command import compare

EVIL = "<script>alert(1)</script>"
POINTS = {
    "swept": [*grid((10, 100, 1000), (1e-5, 2e-5)), MadeUpRun(eta=1000, lr=3e-5, iterations=0)],
    "evil": [MadeUpRun(eta=10, model=EVIL, method="a|b`*_"), MadeUpRun(eta=100, model=EVIL, method="[red]x")],
}
MEASURE = """{
  loaded: page.performance.getEntriesByType("resource").map(entry => entry.name),
  widths: [page.innerWidth, page.document.documentElement.scrollWidth],
  inside: [...page.document.querySelectorAll("img, h1, p")].every(e => e.getBoundingClientRect().right <= 375),
  drawn: [...page.document.images].every(e => e.complete && e.naturalWidth > 100),
  clicked: page.document.querySelector("table").tHead.rows[0].cells[0].firstChild.click(),
  first: page.document.querySelector("tbody").rows[0].cells[0].textContent,
}"""


@pytest.mark.parametrize(("name", "first"), [("swept", "7"), ("evil", "2")])
def test_the_page_complains_of_nothing_loads_nothing_and_is_no_wider_than_a_phone(
    name: str, first: str, tmp_path: Path
) -> None:
    """A click sorts a table from the highest down."""
    if why := lacking(BROWSER):
        pytest.skip(why)
    write(tmp_path, POINTS[name], sweep="eta")
    assert compare([f"runs={tmp_path}/runs/eta", f"title={EVIL}"]) == 0
    measured, complaints = look(tmp_path / "runs/compare-eta/index.html", width=375, measure=f"({MEASURE})")
    assert complaints == []
    assert measured == {"loaded": [], "widths": [375, 375], "inside": True, "drawn": True, "first": first}
