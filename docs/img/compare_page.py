"""Draws compare.png, compare_dark.png and compare_phone.png: `python docs/img/compare_page.py runs=<as of compare>`.

The page of `compare` in a real browser; docs/tracking.md has the sweep that it shows.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "lib")]

from browser import browser  # noqa: E402
from debian import BROWSER, lacking  # noqa: E402

from src.reporting.compare.command import compare  # noqa: E402

VIEWS = {"compare": (1280, False, 2850), "compare_dark": (1280, True, 2850), "compare_phone": (375, False, 1700)}
"""Name -> width, dark, height."""


def main() -> None:
    if why := lacking(BROWSER):
        sys.exit(f"compare_page: {why}")
    with tempfile.TemporaryDirectory() as folder:
        compare([*sys.argv[1:], f"out={folder}/page"])
        with browser() as opened:
            for name, (width, dark, height) in VIEWS.items():
                page = opened.open(Path(folder) / "page" / "index.html", width, dark)
                page.screenshot(Path(__file__).parent / f"{name}.png", height)


if __name__ == "__main__":
    main()
