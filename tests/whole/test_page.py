"""The page of `compare` in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser, browser
from debian import BROWSER, lacking
from made_up_sweep import Made, grid, write

from src.reporting.compare.command import compare

EVIL = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    if why := lacking(BROWSER):
        pytest.skip(why)
    with browser() as opened:
        yield opened


def test_the_page_complains_of_nothing_asks_for_nothing_and_is_no_wider_than_a_phone(
    chromium: Browser, tmp_path: Path
) -> None:
    points = {
        "swept": [*grid((10, 100, 1000), (1e-5, 2e-5)), Made(eta=1000, lr=3e-5, iterations=0)],
        "evil": [Made(eta=10, model=EVIL, method="a|b`*_"), Made(eta=100, model=EVIL, method="[red]x")],
    }
    for name, made in points.items():
        write(tmp_path / name, made, sweep="eta")
        assert compare([f"runs={tmp_path / name}/runs/eta", f"title={EVIL}"]) == 0
        file = tmp_path / name / "runs" / "compare-eta" / "index.html"
        page = chromium.open(file, width=375)
        elsewhere = [address for address in page.requests if not address.startswith("data:image/svg+xml;base64,")]
        assert page.errors == [] and elsewhere == [file.resolve().as_uri()], name
        assert page.evaluate("[innerWidth, document.documentElement.scrollWidth]") == [375, 375], name
        inside = "[...document.querySelectorAll('figure:not(.wide) img, h1, p')]"
        assert page.evaluate(f"{inside}.every(e => e.getBoundingClientRect().right <= 375)"), name
        assert page.evaluate("[...document.images].every(e => e.complete && e.naturalWidth > 100)"), name
        click = "document.querySelector('table').tHead.rows[0].cells[0].firstChild.click()"
        first = "document.querySelector('tbody').rows[0].cells[0].textContent"
        assert page.evaluate(f"{click}; {first}") == ("7" if name == "swept" else "2"), "sorted from the highest down"
