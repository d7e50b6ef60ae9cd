"""Parts of a data set: by lot, without what is left out, and their keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import inputs
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_data import key, lines, made, own, own_cache  # noqa: F401

from src.config import UserError
from src.data.prompts import Lots, Portion
from src.data.reading import Source
from src.data.rows import Columns
from src.data.stage import PromptFiles

# Parts by lot


def cut(prompts: list[str], seed: int, start: float, stop: float) -> list[str]:
    source = Source(path="unread.jsonl")
    portion = Portion(source=source, columns=Columns(), content="", lots=Lots(seed=seed, start=start, stop=stop))
    return list(portion.cut({prompt: {} for prompt in prompts}))


@settings(deadline=None)
@given(st.sets(st.text("abcd", min_size=1, max_size=5), max_size=40), st.integers(0, 3), st.integers(1, 5))
def test_parts_by_lot_share_nothing_lose_nothing_and_are_equal(prompts: set[str], seed: int, parts: int) -> None:
    edges = [part / parts for part in range(parts + 1)]
    found = [cut(sorted(prompts), seed, *edge) for edge in zip(edges, edges[1:], strict=False)]
    assert sorted(prompt for part in found for prompt in part) == sorted(prompts)
    assert max(map(len, found)) - min(map(len, found)) <= 1


@given(st.lists(st.text("abcd", min_size=1, max_size=5), unique=True, max_size=20), st.randoms())
def test_parts_by_lot_do_not_depend_on_the_order_of_rows(prompts: list[str], shuffled: Any) -> None:
    other = list(prompts)
    shuffled.shuffle(other)
    assert cut(prompts, 3, 0.2, 0.7) == cut(other, 3, 0.2, 0.7)


def test_another_seed_draws_other_parts() -> None:
    prompts = [str(number) for number in range(300)]
    first, again, other = (set(cut(prompts, seed, 0.0, 0.5)) for seed in (0, 0, 1))
    assert first == again
    assert 50 < len(first & other) < 100, "half of the half, 75, is common by chance; standard error 4"


def test_a_data_set_is_cut_into_its_parts_and_what_is_held_out(tmp_path: Path) -> None:
    prompts = [f"prompt {number}" for number in range(40)]
    data = own(lines(tmp_path / "a.jsonl", *prompts), held_out_prompts=10)
    parts = [made(data.part(t), tmp_path)[0] for t in (1, 2, 3)]
    held_out, _ = made(data.held_out(), tmp_path)
    assert [len(part) for part in (*parts, held_out)] == [10, 10, 10, 10]
    assert [data.part(t).expected for t in (1, 2, 3)] == [10, 10, 10]
    assert sorted(sum(parts, held_out)) == sorted(prompts)


def test_after_the_last_part_comes_the_next_slice_of_the_first(tmp_path: Path) -> None:
    file = lines(tmp_path / "a.jsonl", *map(str, range(40)))
    whole, _ = made(own(file).part(1), tmp_path)
    data = own(file, prompts_per_iteration=5)
    assert [made(data.part(t), tmp_path)[0] for t in (1, 4)] == [whole[:5], whole[5:]]
    with pytest.raises(UserError, match=r"data.prompts_per_iteration: .* has 10 prompts in this part, 11 to 15 are"):
        data.part(7)


# What is left out


def files(tmp_path: Path, *parts: list[str], held_out: list[str], count: int | None = None) -> PromptFiles:
    paths = [lines(tmp_path / f"part{number}.jsonl", *part) for number, part in enumerate(parts, 1)]
    held_out_file = lines(tmp_path / "held_out.jsonl", *held_out)
    return PromptFiles(parts=paths, held_out_file=held_out_file, prompts_per_iteration=count, held_out_prompts=1)


def test_what_is_left_out_is_counted_by_its_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`c` is doubled, `a` was asked, `H 2` and `h 3` are held out; `h 3` is so in the earlier part too."""
    first, second = ["a", "b", "h 3"], ["c", "H\u00a02", "a", "c", "d", " h  3", "A"]
    data = files(tmp_path, first, second, held_out=["h 1", "h 2", "H 3"])
    assert made(data.part(2), tmp_path) == (
        ["c", "d", "A"],
        {"rows_read": 7, "doubled": 1, "leaked": 2, "asked_before": 1, "rows_left": 3, "rows": 3},
    )
    said = "prompts: 3 of 3 from part2; left out: 1 doubled, 1 of earlier parts, 2 held out\n"
    assert capsys.readouterr().out == said
    assert made(data.part(1), tmp_path)[0] == ["a", "b"]
    assert made(data.held_out(), tmp_path) == (
        ["h 1"],
        {"rows_read": 3, "doubled": 0, "leaked": 0, "asked_before": 0, "rows_left": 3, "rows": 1},
    )


@settings(max_examples=inputs(40))
@given(st.lists(st.lists(st.sampled_from("abcdefgABCD"), min_size=1, max_size=6), min_size=4, max_size=4))
def test_no_prompt_is_asked_twice_and_none_that_is_held_out(
    tmp_path_factory: pytest.TempPathFactory, four: list[list[str]]
) -> None:
    """And every other one is asked, by the first part that has it."""
    *parts, held_out = four
    folder = tmp_path_factory.mktemp("files")
    data, hidden, seen = files(folder, *parts, held_out=held_out), {text.casefold() for text in held_out}, set[str]()
    for t, part in enumerate(parts, 1):
        wanted = [text for text in dict.fromkeys(part) if text.casefold() not in hidden and text not in seen]
        seen |= set(part)
        if wanted:
            assert made(data.part(t), folder)[0] == wanted
        else:
            with pytest.raises(UserError, match=f"part{t}.jsonl: no prompts are left for this part"):
                made(data.part(t), folder)


def test_a_slice_is_taken_of_what_is_left(tmp_path: Path) -> None:
    data = files(tmp_path, ["h", "a", "a", "b", "c", "d", "e"], held_out=["x", "h"], count=2)
    assert [made(data.part(t), tmp_path)[0] for t in (1, 2, 3)] == [["a", "b"], ["c", "d"], ["e"]]


def test_the_held_out_prompts_are_other_ones_whatever_their_number(tmp_path: Path) -> None:
    """All of the source is kept out of training, so the number of those that are answered moves no training key."""
    few, many = (own(lines(tmp_path / "a.jsonl", *map(str, range(40))), held_out_prompts=n) for n in (2, 9))
    assert key(few.part(1)) == key(many.part(1)) and key(few.held_out()) != key(many.held_out())


# Keys


def test_a_key_follows_what_a_file_says(tmp_path: Path) -> None:
    def keys(folder: str, *prompts: str, **more: Any) -> list[str]:
        data = own(lines(tmp_path / folder / "a.jsonl", *prompts), **more)
        return [key(data.part(1)), key(data.held_out())]

    usual = keys("here", *"abcdefgh")
    assert keys("there", *"abcdefgh") == usual, "moved"
    others = [
        keys("here", *"abcdefgi"),
        keys("here", *"abcdefgh", split_seed=1),
        keys("here", *"abcdefgh", prompt="prompt"),
    ]
    assert all(mine != its for other in others for mine, its in zip(usual, other, strict=True))
    assert keys("here", *"abcdefgh", parts=2)[0] != usual[0]


def test_a_later_part_depends_on_the_earlier_ones_and_on_no_later(tmp_path: Path) -> None:
    before = [key(files(tmp_path, ["a"], ["b"], ["c"], held_out=["h"]).part(t)) for t in (1, 2, 3)]
    after = [key(files(tmp_path, ["a"], ["x"], ["c"], held_out=["h"]).part(t)) for t in (1, 2, 3)]
    assert [mine == its for mine, its in zip(before, after, strict=True)] == [True, False, False]
