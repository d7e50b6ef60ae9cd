"""Processes that find the same damage at once: one makes each artifact again, the others go on with what it made."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from crashes import TIMEOUT_S, Command, assert_whole
from test_crashes import Whole, whole  # noqa: F401
from test_damage import flip
from tiny_run import contents

from src.provenance import RECORD
from src.store import Store

pytestmark = [pytest.mark.full, pytest.mark.timeout(1800)]


@pytest.mark.parametrize("count", [2, pytest.param(8, marks=pytest.mark.faults)])
def test_so_many_processes_mend_one_store(count: int, whole: Whole, tmp_path: Path) -> None:  # noqa: F811
    commands = [Command(whole.words, tmp_path, tmp_path / f"log{n}", "iter=2", f"name=run{n}") for n in range(count)]
    assert commands[0].run().code == 0
    store = Store(tmp_path / "store")
    for number, node in enumerate(whole.nodes):
        if node.stage.kind in ("responses", "pairs"):
            flip(store.path(node) / ("rows.parquet" if number % 2 else RECORD), random.Random(number))
    started = [command.start() for command in commands]
    ended = [(process.communicate(timeout=TIMEOUT_S)[1], process.returncode) for process in started]
    assert [code for _, code in ended] == [0] * count, ended
    assert all("Traceback" not in said for said, _ in ended), ended
    assert "damaged" in "".join(said for said, _ in ended)
    assert_whole(store)
    assert contents(store) == whole.contents
