"""Every column of `compare.csv` is explained in docs/tracking.md."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

from made_up_sweep import Made, write
from tiny_run import ROOT

from src.compare.costs import costs
from src.compare.points import Comparison, compare_folders
from src.compare.tables import as_csv
from src.compare.varied import USUAL
from src.evaluation.quality import Quality, summarise


def undocumented(columns: list[str], varied: list[str]) -> list[str]:
    """Columns that are no varied key and not named in the part of the documentation that is about them."""
    text = (ROOT / "docs" / "tracking.md").read_text().partition("### The columns of `compare.csv`")[2]
    named = set(re.findall(r"`(\w+)`", text.partition("\n## ")[0]))
    assert len(named) > 30
    named |= {name for name in columns if re.fullmatch(r"[\w.-]+/.+", name) and "`<benchmark>/<number>`" in text}
    return [name for name in columns if name not in varied and name not in named]


def written(found: Comparison) -> list[str]:
    return next(csv.reader(io.StringIO(as_csv(found, costs(found)))))


def test_every_column_is_named_in_the_documentation(tmp_path: Path) -> None:
    """What the made-up runs do not have is asked of the evaluation itself."""
    found = compare_folders(write(tmp_path, [Made(eta=1), Made(eta=10), Made(eta=10, device="cuda")]), "x")
    columns = written(found)
    assert {"copy", "run_part_of_shared_s", "win_over_base_low"} <= set(columns)
    qualities = list(summarise([dict.fromkeys(Quality, 1.0)]))
    assert undocumented([*columns, *qualities, *(f"base_{name}" for name in qualities)], []) == []
    assert undocumented(["train.warmup", "no_such_column"], ["train.warmup"]) == ["no_such_column"]
    assert set(USUAL.values()) - set(columns) == {"ranker", "estimator", "pairing"}, "which are there where they vary"
