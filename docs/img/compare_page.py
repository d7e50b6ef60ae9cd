"""Draw compare.png: the page of `compare` in headless Chromium.

`python docs/img/compare_page.py` shows a sweep of made-up numbers; with `runs=<as of compare>` it shows those runs.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "lib")]

from made_up_sweep import grid, smooth_wins, write  # noqa: E402

from src.reporting.compare.command import compare  # noqa: E402


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        words = sys.argv[1:]
        if not words:
            write(Path(folder), grid((10, 100, 1000), (5e-6, 1e-5, 2e-5)), smooth_wins(256), sweep="eta_lr")
            words = [f"runs={folder}/runs/eta_lr", "title=η and the learning rate (made-up numbers)"]
        compare([*words, f"out={folder}/page"])
        picture = f"--screenshot={Path(__file__).with_name('compare.png')}"
        flags = ("--headless", "--no-sandbox", "--hide-scrollbars", "--window-size=1280,2850", picture)
        subprocess.run(["chromium", *flags, f"{folder}/page/index.html"], check=True)


if __name__ == "__main__":
    main()
