"""Parts of a data set, by lot, by file or by split: what is asked, what is left out, and their keys."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import inputs
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_run import typed

from src.data.parts import OwnParts, PromptFiles, PublishedParts
from src.data.prompts import Prompts
from src.kernel.artifact import Node
from src.kernel.config import UserError
from src.kernel.rows import PROMPTS, ROWS, read_rows


@pytest.fixture(autouse=True)
def no_shared_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def lines(file: Path, *prompts: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    return file


def own_parts(path: Path, **changes: Any) -> OwnParts:
    """Return `data=local` with these changes, of which few prompts are held out."""
    usual = vars(typed("data=local").data) | {"held_out_share": 0.25, "held_out_prompts": 1}
    return OwnParts(**usual | {"path": str(path)} | changes)


def files(tmp_path: Path, *parts: list[str], held_out: list[str], count: int | None = None) -> PromptFiles:
    paths = [lines(tmp_path / f"part{number}.jsonl", *part) for number, part in enumerate(parts, 1)]
    held_out_file = lines(tmp_path / "held_out.jsonl", *held_out)
    return PromptFiles(parts=paths, held_out_file=held_out_file, prompts_per_iteration=count, held_out_prompts=1)


def key(stage: Prompts) -> str:
    return Node("x", stage).key


def written(stage: Prompts, folder: Path) -> tuple[list[str], dict[str, int]]:
    """Return the prompts that the stage writes, and its metrics."""
    out = folder / "made" / key(stage)
    out.mkdir(parents=True)
    stage(out=out)
    rows = read_rows(out, PROMPTS)
    return [row["messages"][-1]["content"] for row in rows], json.loads((out / "metrics.json").read_text())


# Parts by lot


@settings(max_examples=inputs(5, 40))
@given(st.sets(st.text("abcd", min_size=1, max_size=5), min_size=12, max_size=40), st.integers(0, 3), st.integers(1, 4))
def test_parts_by_lot_share_nothing_lose_nothing_and_are_equal(
    tmp_path_factory: pytest.TempPathFactory, prompts: set[str], seed: int, count: int
) -> None:
    """And they do not depend on the order of the rows. A quarter is held out."""
    changes = {"split_seed": seed, "parts": count, "held_out_prompts": round(len(prompts) / 4)}
    cuts = []
    for rows in (sorted(prompts), sorted(prompts, reverse=True)):
        folder = tmp_path_factory.mktemp("lots")
        data = own_parts(lines(folder / "a.jsonl", *rows), **changes)
        stages = [*(data.part(t) for t in range(1, count + 1)), data.held_out()]
        cuts.append([written(stage, folder)[0] for stage in stages])
        assert [len(part) for part in cuts[-1]] == [stage.expected for stage in stages]
    assert cuts[0] == cuts[1]
    *parts, held_out = cuts[0]
    assert sorted(sum(parts, held_out)) == sorted(prompts)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


# What is left out


def test_what_is_left_out_is_counted_by_its_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`c` is doubled, `a` was asked, `H 2` and `h 3` are held out; `h 3` is so in the earlier part too."""
    first, second = ["a", "b", "h 3"], ["c", "H\u00a02", "a", "c", "d", " h  3", "A"]
    data = files(tmp_path, first, second, held_out=["h 1", "h 2", "H 3"])
    assert written(data.part(2), tmp_path) == (
        ["c", "d", "A"],
        {"rows_read": 7, "doubled": 1, "leaked": 2, "asked_before": 1, "rows_left": 3, "rows": 3},
    )
    assert "left out: 1 doubled, 1 asked in earlier parts, 2 held out too" in capsys.readouterr().out
    assert written(data.held_out(), tmp_path)[0] == ["h 1"]
    assert written(replace(data, held_out_start=1).held_out(), tmp_path)[0] == ["h 2"]


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
            assert written(data.part(t), folder)[0] == wanted
        else:
            with pytest.raises(UserError, match=f"part{t}.jsonl: no prompts are left for this part"):
                written(data.part(t), folder)


def test_iterations_read_their_part_and_then_the_next_slice_of_what_is_left_of_it(tmp_path: Path) -> None:
    """A doubled or held-out prompt does not shorten the slice it stands in."""
    data = files(tmp_path, ["a0", "h", "a0", "a1", "a2", "a3"], ["b0", "b1", "b1", "b2"], held_out=["x", "h"], count=2)
    slices = [written(data.part(t), tmp_path)[0] for t in (1, 2, 3, 4)]
    assert slices == [["a0", "a1"], ["b0", "b1"], ["a2", "a3"], ["b2"]]
    whole = files(tmp_path, ["a"], ["b0", "b1"], held_out=["h"])
    assert written(whole.part(2), tmp_path)[0] == ["b0", "b1"]
    for few, t in ((whole, 3), (data, 5), (files(tmp_path, ["a"], held_out=["h"], count=3), 1)):
        with pytest.raises(UserError, match="^(iter|data.prompts_per_iteration): "):
            few.part(t)


def test_a_file_that_changed_since_the_plan_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    for changed in ("part1.jsonl", "held_out.jsonl"):
        stage = files(tmp_path, ["a", "b"], held_out=["h"]).part(1)
        lines(tmp_path / changed, "a", "c")
        with pytest.raises(UserError, match=f"{changed}: changed since"):
            written(stage, tmp_path / changed.removesuffix(".jsonl"))
    assert not list(tmp_path.rglob(ROWS))


# Keys


def test_a_key_follows_what_a_file_says(tmp_path: Path) -> None:
    def keys(folder: str, *prompts: str, **changes: Any) -> list[str]:
        data = own_parts(lines(tmp_path / folder / "a.jsonl", *prompts), **changes)
        return [key(data.part(1)), key(data.held_out())]

    usual = keys("here", *"abcdefgh")
    assert keys("there", *"abcdefgh") == usual, "moved"
    for changed in (keys("here", *"abcdefgi"), keys("here", *"abcdefgh", split_seed=1)):
        assert not set(usual) & set(changed)
    assert keys("here", *"abcdefgh", parts=2)[0] != usual[0]


def test_a_later_part_depends_on_the_earlier_ones_and_on_no_later(tmp_path: Path) -> None:
    before = [key(files(tmp_path, ["a"], ["b"], ["c"], held_out=["h"]).part(t)) for t in (1, 2, 3)]
    after = [key(files(tmp_path, ["a"], ["x"], ["c"], held_out=["h"]).part(t)) for t in (1, 2, 3)]
    assert [one == other for one, other in zip(before, after, strict=True)] == [True, False, False]


# The hub, and folders laid out like it


def snorkel(folder: Path, prompts: Callable[[str], list[str]]) -> Path:
    """Write three parts and three test splits as Parquet, with columns of the published set."""
    (folder / "data").mkdir(parents=True)
    for split in [f"{kind}_iteration_{t}" for kind in ("train", "test") for t in (1, 2, 3)]:
        texts = prompts(split)
        table = {"prompt_id": texts, "prompt": texts, "all_generated_responses": [["x" * 50] * 5] * len(texts)}
        pq.write_table(pa.table(table), folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


def test_published_parts_are_the_splits_and_the_tests_are_held_out(tmp_path: Path) -> None:
    texts = {"train_iteration_1": ["a", "b None", "T1"], "train_iteration_2": ["a", "c", "c"]}
    texts["test_iteration_3"] = ["t1"]
    folder = snorkel(tmp_path / "set", lambda split: texts.get(split, [split]))
    published = vars(typed("data=ultrafeedback_snorkel").data)
    data = PublishedParts(**published | {"path": str(folder), "part_rows": (3, 3, 3), "held_out_prompts": 3})
    first, second = written(data.part(1), tmp_path), written(data.part(2), tmp_path)
    assert (first[0], second[0]) == (["a", "b None"], ["c"])
    assert (first[1]["leaked"], second[1]["asked_before"], second[1]["doubled"]) == (1, 1, 1)
    assert written(data.held_out(), tmp_path)[0] == ["test_iteration_1", "test_iteration_2", "t1"]


def test_held_out_may_be_a_split_of_the_same_set_or_a_file_of_its_own(tmp_path: Path) -> None:
    """Then the whole training split is cut into parts, without what is held out."""
    folder = snorkel(tmp_path / "set", lambda split: ["both", f"{split} 0", f"{split} 1"])
    file = lines(tmp_path / "mine.jsonl", "x", "BOTH")
    split = {"split": "train_iteration_1", "parts": 1, "held_out_prompts": 2}
    same = own_parts(folder, **split, held_out_split="test_iteration_2")
    other = own_parts(folder, **split, held_out_path=str(file))
    held_out = [written(data.held_out(), tmp_path)[0] for data in (same, other)]
    assert held_out == [["both", "test_iteration_2 0"], ["x", "BOTH"]]
    for data in (same, other):
        asked, metrics = written(data.part(1), tmp_path)
        assert sorted(asked) == ["train_iteration_1 0", "train_iteration_1 1"] and metrics["leaked"] == 1


def test_a_set_that_cannot_be_fetched_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"^owner/name: no folder here, and .* the split 'train': [^\n]+$"):
        written(own_parts(Path("owner/name"), split="train").part(1), tmp_path)
    assert not list(tmp_path.rglob(ROWS))


def test_hub_sets_are_planned_before_anything_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load_dataset", None)
    parts, cuts = typed("data=ultrafeedback_snorkel").data, typed("data=ultrafeedback").data
    assert [parts.part(t).expected for t in (1, 2, 3)] == [19766, 19958, 19996]
    assert [cuts.part(t).expected // 10 for t in (1, 2, 3)] == [2037] * 3
    assert typed("data=ultrafeedback", "data.rows=null").data.part(1).expected == 0, "unknown"
    for word, moves in (("data.revision=main", False), ("data.rows=90000", False), ("data.revision=1f2e", True)):
        assert (key(typed("data=ultrafeedback", word).data.part(1)) != key(cuts.part(1))) == moves, word
