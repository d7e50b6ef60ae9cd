"""Cells: what several processes have worked out, found by all, whole or not at all.

Run: python -m pytest -q tests/test_cells.py
"""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from src.artifact import Store
from src.cells import CELLS, Cells, cell_key
from src.ranking.stage import Rank


@given(st.lists(st.text(), max_size=3), st.lists(st.text(), max_size=3))
def test_a_key_is_that_of_its_texts_in_their_order(one: list[str], other: list[str]) -> None:
    assert (cell_key(*one) == cell_key(*other)) == (one == other)


def test_a_key_takes_lone_surrogates() -> None:
    assert len(cell_key("\ud800")) == 32


def test_what_one_process_adds_the_others_find(tmp_path: Path) -> None:
    one, other = Cells(tmp_path), Cells(tmp_path)
    one.add({"a": 1.5, "b": {"verdict": "A"}})
    other.add({"c": 0.1 + 0.2})
    assert (one.refresh(), other.refresh(), one.refresh()) == (1, 2, 0)
    assert one.values == other.values == Cells(tmp_path).values == {"a": 1.5, "b": {"verdict": "A"}, "c": 0.1 + 0.2}


def test_a_line_torn_by_a_crash_is_not_read_until_it_is_whole(tmp_path: Path) -> None:
    cells = Cells(tmp_path)
    torn = tmp_path / "dead.jsonl"
    torn.write_text('["a", 1.0]\n["b", 2.')
    assert cells.refresh() == 1 and cells.values == {"a": 1.0}
    with torn.open("a") as file:
        file.write("5]\n")
    assert cells.refresh() == 1 and cells.values == {"a": 1.0, "b": 2.5}


def test_rankings_of_an_equal_ranker_share_their_cells_and_others_do_not(tmp_path: Path) -> None:
    from test_ranking import ByLength

    store = Store(tmp_path / "store")
    places = []
    for number, says in enumerate(("", "", "7")):
        link = tmp_path / f"partial{number}" / "work" / CELLS
        link.parent.mkdir(parents=True)
        store._share(Rank(ranker=ByLength(says=says, name=f"label{number}")), link)
        places.append(link.resolve())
    same = ByLength(says="")
    assert places[0] == places[1], f"{same.name}: a label changes no result"
    assert not store.leftovers(), "clean must not take them for unfinished artifacts"
