"""Where things lie: the repository, its tests, and the public data that may lie beside the checkout."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
LIB = TESTS / "lib"
SHARED = ROOT.parent / "shared" / "data"
PYTHONPATH = ":".join(map(str, [ROOT, TESTS, *sorted(folder for folder in TESTS.iterdir() if folder.is_dir())]))
"""For processes that tests start: they find src, the helpers, and the test that started them."""
