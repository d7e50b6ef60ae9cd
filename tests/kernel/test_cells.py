"""Cells: what several processes have worked out is found by all, whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_stages import Shares

from src.kernel.artifact import WORK, Node
from src.kernel.cells import Cells, cell_key, line_of
from src.kernel.record import read_record
from src.kernel.store import Store


@given(st.lists(st.text(), max_size=3), st.lists(st.text(), max_size=3))
def test_a_key_is_that_of_its_texts_in_their_order(one: list[str], other: list[str]) -> None:
    assert (cell_key(*one) == cell_key(*other)) == (one == other)
    assert len(cell_key("\ud800")) == 32


def test_what_one_process_adds_the_others_find(tmp_path: Path) -> None:
    one, other = Cells(tmp_path), Cells(tmp_path)
    one.add({"a": 1.5, "b": {"verdict": "A"}})
    other.add({3: 0.1 + 0.2})
    assert [len(cells.refresh()) for cells in (one, other, one)] == [1, 2, 0]
    assert one.values == other.values == Cells(tmp_path).values == {"a": 1.5, "b": {"verdict": "A"}, 3: 0.1 + 0.2}


def test_torn_at_any_byte_every_whole_line_is_kept_and_the_rest_is_read_when_it_is_whole(tmp_path: Path) -> None:
    values = {0: {"text": "a\nb\u2028\r"}, "b": None, 2: -1e-300}
    content = "".join(line_of([key, value]) for key, value in values.items()).encode()
    (file := tmp_path / "dead.jsonl").touch()
    cells = Cells(tmp_path)
    for length in range(len(content) + 1):
        file.write_bytes(content[:length])
        whole = list(values)[: content[:length].count(b"\n")]
        cells.refresh()
        assert list(cells.values) == list(Cells(tmp_path).values) == whole
    assert cells.values == values


@given(st.data())
def test_no_flipped_bit_goes_unseen(data: st.DataObject) -> None:
    values = data.draw(st.dictionaries(st.text(), st.floats(allow_nan=False) | st.text(), min_size=1, max_size=4))
    with tempfile.TemporaryDirectory() as place:
        Cells(Path(place)).add(values)
        (file,) = Path(place).glob("*.jsonl")
        content = bytearray(file.read_bytes())
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        file.write_bytes(content)
        read = Cells(Path(place)).values
    assert read.items() <= values.items() and len(read) >= len(values) - 2


def test_after_a_full_disk_the_next_values_are_not_glued_to_a_torn_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        (torn,) = tmp_path.glob("*.jsonl")
        os.truncate(torn, 7)
        raise OSError(28, "No space left on device")

    cells = Cells(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(os, "fsync", full)
        cells.add({"a": 1.0})
    cells.add({"b": 2.0})
    assert Cells(tmp_path).values == {"b": 2.0}


def test_equal_stages_with_equal_models_share_their_cells(tmp_path: Path) -> None:
    """The first input is what is asked about, the rest is what answers."""
    nodes = {name: Node(name, Shares(name=name, group="")) for name in ("answers", "more answers", "model", "other")}

    def place(*inputs: str, name: str = "one", group: str = "all") -> Path | None:
        node = Node("ranking", Shares(name=name, group=group), tuple(nodes[name] for name in inputs))
        return Store(tmp_path / "store").cells(node)

    cells = place("answers", "model")
    assert cells == place("answers", "model", name="label") == place("more answers", "model")
    assert cells != place("answers", "model", group="others") and cells != place("answers", "other")


def test_artifacts_find_each_others_cells_wherever_the_store_is_moved(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    nodes = [Node(name, Shares(name=name, group="all")) for name in "abc"]
    for node in nodes[:2]:
        store.make(node)
    moved = Store((tmp_path / "store").rename(tmp_path / "moved"))
    moved.make(nodes[2])
    assert [json.loads((moved.path(node) / "known").read_text()) for node in nodes] == [[], ["a"], ["a", "b"]]
    assert not (moved.path(nodes[2]) / WORK).exists() and not moved.leftovers()
    resumed = [read_record(moved.path(node))["resumed"] for node in nodes]
    assert resumed == [False, True, True], "forecasts must not learn from them"
