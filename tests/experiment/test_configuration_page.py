"""docs/configuration.md is what conf/ and the code say: `make golden` writes it anew."""

from __future__ import annotations

import os
import re
import runpy

from omegaconf import OmegaConf
from tiny_run import ROOT, composed

WRITER = runpy.run_path(str(ROOT / "docs" / "configuration_page.py"))
PAGE, page = WRITER["PAGE"], WRITER["page"]


def test_the_page_is_the_golden_one() -> None:
    text = page()
    if os.environ.get("GOLDEN"):
        PAGE.write_text(text)
    assert text == PAGE.read_text(), "configuration has changed; make golden, and review"


def test_every_key_of_a_run_is_on_the_page() -> None:
    def keys(config: object, place: str = "") -> set[str]:
        if not isinstance(config, dict) or not config:
            return {place}
        return set().union(*(keys(value, f"{place}.{key}".strip(".")) for key, value in config.items()))

    told = set(re.findall(r"^\| `([\w.]+)`", PAGE.read_text(), re.MULTILINE))
    own = keys(OmegaConf.to_container(composed(), resolve=False))
    known = {key for key in own if not re.search(r"(^|\.)_\w+_$", key) and not key.startswith("hydra.")}
    assert {key for key in known if not any(key == one or key.startswith(f"{one}.") for one in told)} == set()
