"""Draws compare.png, compare_dark.png and compare_phone.png: `python docs/img/compare_page.py [folder]`.

The page of `compare` for a sweep whose numbers are made up, in a real browser.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from browser import browser, install  # noqa: E402
from made_up_sweep import grid, smooth_wins, write  # noqa: E402

from src.compare.command import compare  # noqa: E402

VIEWS = {"compare": (1280, False, 2850), "compare_dark": (1280, True, 2850), "compare_phone": (375, False, 1700)}
"""Name -> width, dark, height."""


def main() -> None:
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    if why := install():
        sys.exit(f"compare_page: {why}")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        points = grid((10, 100, 1000, 10000), (5e-6, 1e-5, 2e-5), iterations=3, wanted=3)
        write(place, points[:-1], smooth_wins(prompts=128), sweep="eta_lr")
        compare([f"runs={place}/runs/eta_lr", "title=Made-up numbers: a sweep of η and the learning rate"])
        with browser() as opened:
            for name, (width, dark, height) in VIEWS.items():
                page = opened.open(place / "runs" / "compare-eta_lr" / "index.html", width, dark)
                page.screenshot(out / f"{name}.png", height)


if __name__ == "__main__":
    main()
