"""plan: what it shows is what is there and what is to make, and it makes nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from tiny_run import call, folders, tiny, typed
from toy_stages import Copy
from toy_store import CHAIN, store, tree  # noqa: F401

from src.artifact import Node
from src.provenance import RECORD, read_record
from src.store import Store

# ruff: noqa: F811

pytestmark = pytest.mark.full
Capture = pytest.CaptureFixture[str]


def rows_of_plan(text: str) -> dict[str, list[str]]:
    """artifact -> the other cells of its line."""
    cells = [[cell.strip() for cell in line.strip("│\n").split("│")] for line in text.splitlines() if "│" in line]
    return {name: rest for name, *rest in cells if name}


def test_plan_shows_what_is_kept_and_to_make_and_makes_nothing(tmp_path: Path, capsys: Capture) -> None:
    words = tiny(Path("nowhere"), tmp_path, "iter=2")
    nodes = typed(*words).nodes()
    store = Store(tmp_path / "store")
    assert call("plan", *words) == 0
    assert not store.root.exists() and not (tmp_path / "runs").exists()
    shown = capsys.readouterr().out
    assert list(rows_of_plan(shown)) == [node.name for node in nodes]
    assert {cells[1] for cells in rows_of_plan(shown).values()} == {"to make"}
    assert f"{len(nodes)} of {len(nodes)} to make" in shown

    prompts = next(node for node in nodes if node.name == "it1/prompts")
    responses = next(node for node in nodes if node.name == "it1/responses")
    store.make(prompts)
    path = store.path(responses)
    (path.parent / f"{path.name}.partial").mkdir(parents=True)
    before = tree(tmp_path)
    assert call("plan", *words) == 0
    assert tree(tmp_path) == before
    planned = rows_of_plan(shown := capsys.readouterr().out)
    assert planned["it1/prompts"] == [prompts.key[:8], "kept", "", "4", ""]
    assert planned["it1/responses"][:4] == [responses.key[:8], "to resume", "it1/prompts, base/policy", "4"]
    assert planned["it2/prompts"][1] == "to make"
    assert f"{len(nodes) - 1} of {len(nodes)} to make" in shown


def test_a_forecast_is_the_median_rate_of_records_of_the_same_workload(tmp_path: Path, capsys: Capture) -> None:
    """4 prompts x 3 answers at 1, 10 and 100 seconds an answer: 120 s. Records of interrupted stages do not count."""
    words = tiny(Path("nowhere"), tmp_path, "iter=1", "~hardware.seconds_per_unit.embedded")
    store = Store(tmp_path / "store")
    workload = next(node.workload for node in typed(*words).nodes() if node.name == "it1/responses")
    for number, (rate, resumed) in enumerate([(1, False), (10, False), (100, False), (7000, True), (7000, True)]):
        folder = store.make(Node(f"old{number}", Copy(text=str(number)), work=2, workload=workload))
        record = read_record(folder) | {"seconds": 2.0 * rate, "resumed": resumed}
        (folder / RECORD).write_text(json.dumps(record))
    assert call("plan", *words) == 0
    shown = capsys.readouterr().out
    assert rows_of_plan(shown)["it1/responses"][-1] == "2 min"
    assert rows_of_plan(shown)["it1/ranking"][-1] == "not measured"
    assert re.search(r"to make, about .* \(rates from records\); \d+ without a measured rate", shown)


def test_a_store_with_unreadable_records_can_still_be_planned(tmp_path: Path, store: Store) -> None:
    for node, noise in zip(CHAIN, (b"\xff\x00", b"{", b"{}"), strict=True):
        (store.path(node) / RECORD).write_bytes(noise)
    assert call("plan", *folders(tmp_path)) == 0
