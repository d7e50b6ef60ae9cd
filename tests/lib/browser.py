"""A real browser: headless Chromium, for what a page looks like, measures and complains of."""

from __future__ import annotations

import html
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
         "--disable-web-security", "--enable-logging=stderr", "--dump-dom", "--virtual-time-budget=5000")  # fmt: skip
FRAME = """<!doctype html><meta name="color-scheme" content="light dark">
<script>const measure = page => %s;</script>
<body style="margin:0"><iframe src="%s" style="border:0" width="%d" height="%d"
onload="document.title = JSON.stringify(measure(this.contentWindow))"></iframe>"""
"""Windows of Chromium are at least 500 pixels wide, a frame is as narrow as a phone."""


def look(
    page: Path, width: int, height: int = 900, dark: bool = False, measure: str = "null", picture: Path | None = None
) -> tuple[Any, list[str]]:
    """Open a page; return the value of `measure`, JavaScript that knows its window as `page`, and its console.

    With `picture`, the first `height` pixels of the page are saved there.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        frame, whole = Path(folder) / "frame.html", Path(folder) / "whole.png"
        frame.write_text(FRAME % (measure, page.resolve().as_uri(), width, height))
        words = [f"--user-data-dir={folder}/profile", f"--screenshot={whole}", frame.as_uri(),
                 f"--window-size={max(500, width)},{height}",
                 f"--blink-settings=preferredColorScheme={0 if dark else 1}"]  # fmt: skip
        done = subprocess.run(["chromium", *FLAGS, *words], capture_output=True, text=True, timeout=60, check=True)
        if picture:
            Image.open(whole).crop((0, 0, width, height)).save(picture)
    title = html.unescape(done.stdout.partition("<title>")[2].partition("</title>")[0])
    return json.loads(title), [line for line in done.stderr.splitlines() if "CONSOLE" in line]
