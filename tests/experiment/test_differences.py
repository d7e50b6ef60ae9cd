"""docs/differences.md: its numbers are those that come out, its keys exist, its table is that of the sources."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from places import ROOT, SHARED
from transformers import AutoTokenizer

from bench import differences, differences_small_model
from src.kernel.record import package_folder

PAGE = (ROOT / "docs" / "differences.md").read_text()
SAMPLE = SHARED / "ultrafeedback_binarized_sample" / "train_clean.jsonl"
BLOCK = re.compile(r"^\*\*(.+)\*\*\n\n((?:\|.*\|\n)+)", re.MULTILINE)
NUMBER = re.compile(r"(?<![\w.])[+-]?(?:\d*\.\d+(?:e-?\d+)?|[+-]\d+)(?![\w.])")
"""A number with a point or a sign; whole numbers are counts of something that is named."""


def cells(table: str) -> list[list[str]]:
    lines = [line.strip().strip("|").split(" | ") for line in table.strip().splitlines()]
    return [[cell.strip() for cell in line] for number, line in enumerate(lines) if number != 1]


MEASURED = {title: cells(table) for title, table in BLOCK.findall(PAGE)}


# Numbers -----------------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_the_page_quotes_what_comes_out() -> None:
    for make in (differences.estimators, differences.rules, differences.schedules, differences.clipping):
        table = make()
        assert MEASURED[table.title] == [table.head, *table.rows]


@pytest.mark.skipif(not SAMPLE.exists(), reason=f"{SAMPLE} is not here: a sample of UltraFeedback, no part of this")
@pytest.mark.full
def test_the_page_quotes_what_is_cut_of_real_pairs() -> None:
    """The tokenizer is SmolLM2's, from its package."""
    model: Any = differences.run_of().model
    tokenizer = AutoTokenizer.from_pretrained(package_folder(model.package, "model.package"), gguf_file=model.file)
    for table in (differences.truncation(SAMPLE, tokenizer), differences.nones(SAMPLE)):
        assert MEASURED[table.title] == [table.head, *table.rows]


def test_every_number_of_an_effect_is_in_a_measured_table() -> None:
    """So that what is said about a difference goes with what was measured of it."""
    known = {number for rows in MEASURED.values() for row in rows for cell in row for number in NUMBER.findall(cell)}
    for heading in ("SPPO", "WPO", "In no variant"):
        section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
        head, *rows = cells("".join(re.findall(r"^\|.*\|\n", section, re.MULTILINE)))
        quoted = {number for row in rows for number in NUMBER.findall(row[head.index("effect")])}
        assert quoted and quoted <= known, f"{heading}: {quoted - known} were not measured"


@pytest.mark.full
def test_the_small_models_tables_have_the_heads_of_the_page(llama: Path, tmp_path: Path) -> None:
    """On a tiny model: the same code in seconds."""
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"prompt": "why", "chosen": f"{n} " * 9, "rejected": "a"}) + "\n" for n in "ab"))
    made = list(differences_small_model.tables(llama, data))
    assert [table.title for table in made] == ["Sampling", "Weights", "Traps"]
    for table in made:
        assert MEASURED[table.title][0] == table.head
        assert {row[0] for row in table.rows} <= {row[0] for row in MEASURED[table.title]}
