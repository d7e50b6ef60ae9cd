"""Draw compare.png, compare_dark.png and compare_phone.png: the page of `compare` in a real browser.

`python docs/img/compare_page.py` shows a sweep of made-up numbers; with `runs=<as of compare>` it shows those runs.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "lib")]

from browser import look  # noqa: E402
from debian import BROWSER, lacking  # noqa: E402
from made_up_sweep import grid, smooth_wins, write  # noqa: E402

from src.reporting.compare.command import compare  # noqa: E402

VIEWS = {"compare": (1280, False, 2850), "compare_dark": (1280, True, 2850), "compare_phone": (375, False, 1700)}
"""Name -> width, dark, height."""


def main() -> None:
    if why := lacking(BROWSER):
        sys.exit(f"compare_page: {why}")
    with tempfile.TemporaryDirectory() as folder:
        words = sys.argv[1:]
        if not words:
            write(Path(folder), grid((10, 100, 1000), (5e-6, 1e-5, 2e-5)), smooth_wins(256), sweep="eta_lr")
            words = [f"runs={folder}/runs/eta_lr", "title=η and the learning rate (made-up numbers)"]
        compare([*words, f"out={folder}/page"])
        for name, (width, dark, height) in VIEWS.items():
            picture = Path(__file__).with_name(f"{name}.png")
            look(Path(folder) / "page" / "index.html", width, height, dark, picture=picture)


if __name__ == "__main__":
    main()
