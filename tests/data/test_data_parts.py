"""Parts of a data set, by lot, a file each or splits of the hub: what is asked, what is left out, and their keys."""

from __future__ import annotations

import json
from collections.abc import Callable
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
from src.data.prompts import Columns, Lots, Portion, Prompts
from src.data.source import Source, read_columns
from src.kernel.artifact import Node
from src.kernel.config import UserError
from src.kernel.rows import PROMPTS, ROWS, read_rows

Made = tuple[list[str], dict[str, int]]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def lines(file: Path, *prompts: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    return file


def own(path: Path | str, **more: Any) -> OwnParts:
    """`data=local`, with everything that can be said of it."""
    usual: dict[str, Any] = {
        **dict.fromkeys(["split", "subset", "revision", "rows", "prompt", "messages", "held_out_path"]),
        **dict.fromkeys(["held_out_split", "prompts_per_iteration"]),
        **{"parts": 3, "split_seed": 0, "held_out_share": 0.25, "held_out_prompts": 1},
    }
    return OwnParts(**usual | {"path": str(path)} | more)


def made(stage: Prompts, folder: Path) -> Made:
    """What is asked, and the metrics."""
    out = folder / "made" / Node("x", stage).key
    out.mkdir(parents=True)
    stage(out=out)
    rows = read_rows(out, PROMPTS)
    return [row["messages"][-1]["content"] for row in rows], json.loads((out / "metrics.json").read_text())


def key(stage: Prompts) -> str:
    return Node("x", stage).key


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


def test_a_data_set_is_cut_into_its_parts_and_what_is_held_out(tmp_path: Path) -> None:
    prompts = [f"prompt {number}" for number in range(40)]
    data = own(lines(tmp_path / "a.jsonl", *prompts), held_out_prompts=10)
    parts = [made(data.part(t), tmp_path)[0] for t in (1, 2, 3)]
    held_out, _ = made(data.held_out(), tmp_path)
    assert [len(part) for part in (*parts, held_out)] == [10, 10, 10, 10]
    with pytest.raises(UserError, match="data.prompts_per_iteration: .* in this part"):
        own(tmp_path / "a.jsonl", prompts_per_iteration=5).part(7)
    assert [data.part(t).expected for t in (1, 2, 3)] == [10, 10, 10]
    assert sorted(sum(parts, held_out)) == sorted(prompts)


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
    assert "left out: 1 doubled, 1 of earlier parts, 2 held out\n" in capsys.readouterr().out
    assert made(data.part(1), tmp_path)[0] == ["a", "b"]
    assert made(data.held_out(), tmp_path)[0] == ["h 1"]


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


def test_iterations_read_their_part_and_then_the_next_slice_of_what_is_left_of_it(tmp_path: Path) -> None:
    """A doubled or held-out prompt does not shorten the slice it stands in."""
    data = files(tmp_path, ["a0", "h", "a0", "a1", "a2", "a3"], ["b0", "b1", "b1", "b2"], held_out=["x", "h"], count=2)
    seen = [made(data.part(t), tmp_path)[0] for t in (1, 2, 3, 4)]
    assert seen == [["a0", "a1"], ["b0", "b1"], ["a2", "a3"], ["b2"]]
    whole = files(tmp_path, ["a"], ["b0", "b1"], held_out=["h"])
    assert made(whole.part(2), tmp_path)[0] == ["b0", "b1"] and whole.part(2).expected == 2
    for few, t in ((whole, 3), (data, 5), (files(tmp_path, ["a"], held_out=["h"], count=3), 1)):
        with pytest.raises(UserError, match="^data.prompts_per_iteration: "):
            few.part(t)


def test_a_file_that_changed_since_the_plan_or_has_a_mistake_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    for changed in ("part1.jsonl", "held_out.jsonl"):
        stage = files(tmp_path, ["a", "b"], held_out=["h"]).part(1)
        lines(tmp_path / changed, "a", "c")
        with pytest.raises(UserError, match=f"{changed}: changed since"):
            made(stage, tmp_path / changed.removesuffix(".jsonl"))
    stage = files(tmp_path, ["a", " ", "c"], held_out=["h"]).part(1)
    with pytest.raises(UserError, match=r"^\S+/part1.jsonl:2: prompt: empty, or only white space[^\n]*$"):
        made(stage, tmp_path / "mistake")
    assert not list(tmp_path.rglob(ROWS))


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


# The hub, and folders laid out like it


def snorkel(folder: Path, prompts: Callable[[str], list[str]]) -> Path:
    """Three parts and three test splits of Parquet files, with the columns of the published set."""
    for split in [f"{kind}_iteration_{t}" for kind in ("train", "test") for t in (1, 2, 3)]:
        texts = prompts(split)
        answers = [["x" * 50] * 5] * len(texts)
        table = {"prompt_id": texts, "prompt": texts, "chosen": answers, "all_generated_responses": answers}
        (folder / "data").mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(table), folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


def published(path: Path | str, **more: Any) -> PublishedParts:
    """`data=ultrafeedback_snorkel` of another place."""
    data = typed("data=ultrafeedback_snorkel").data
    assert isinstance(data, PublishedParts)
    return PublishedParts(**vars(data) | {"path": str(path), "part_rows": (3, 3, 3)} | more)


def test_published_parts_are_the_splits_and_the_tests_are_held_out(tmp_path: Path) -> None:
    texts = {"train_iteration_1": ["a", "b None", "T1"], "train_iteration_2": ["a", "c", "c"]}
    texts["test_iteration_3"] = ["t1"]
    data = published(snorkel(tmp_path / "set", lambda split: texts.get(split, [split])), held_out_prompts=3)
    first, second = made(data.part(1), tmp_path), made(data.part(2), tmp_path)
    assert (first[0], second[0]) == (["a", "b None"], ["c"])
    assert (first[1]["leaked"], second[1]["asked_before"], second[1]["doubled"]) == (1, 1, 1)
    assert made(data.held_out(), tmp_path)[0] == ["test_iteration_1", "test_iteration_2", "t1"]
    with pytest.raises(UserError, match=r"^[^\n]*cannot load the split 'nope': [^\n]*train_iteration_1[^\n]*$"):
        list(read_columns(Source(path=str(tmp_path / "set"), split="nope"), ["prompt"]))


def test_held_out_may_be_a_split_of_the_same_set_or_a_file_of_its_own(tmp_path: Path) -> None:
    """Then the whole training split is cut into parts, without what is held out."""
    folder = snorkel(tmp_path / "set", lambda split: ["both", *(f"{split} {number}" for number in range(5))])
    named = (
        "- config_name: s\n  data_files: [{split: a, path: data/train_iteration_1*}, {split: b, path: data/test_*_2*}]"
    )
    (folder / "README.md").write_text(f"---\nconfigs:\n{named}\n---\n")
    lines(tmp_path / "own.jsonl", "x", "BOTH")
    same = own(folder, split="a", subset="s", held_out_split="b", parts=1, held_out_prompts=2)
    other = own(folder, split="a", subset="s", held_out_path=str(tmp_path / "own.jsonl"), parts=1, held_out_prompts=2)
    assert [made(data.held_out(), tmp_path)[0] for data in (same, other)] == [
        ["both", "test_iteration_2 0"],
        ["x", "BOTH"],
    ]
    for data in (same, other):
        asked, metrics = made(data.part(1), tmp_path)
        assert sorted(asked) == [f"train_iteration_1 {number}" for number in range(5)]
        assert metrics["leaked"] == 1


def test_a_set_that_cannot_be_fetched_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    told = r"^owner/name: no folder here, and from the hub cannot be fetched the split 'train': [^\n]+$"
    with pytest.raises(UserError, match=told):
        made(own("owner/name", split="train").part(1), tmp_path)
    assert not list(tmp_path.rglob("rows.parquet"))


def test_hub_sets_are_planned_before_anything_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load_dataset", None)
    parts = typed("data=ultrafeedback_snorkel").data
    assert [parts.part(t).expected for t in (1, 2, 3)] == [19766, 19958, 19996]
    cuts = typed("data=ultrafeedback").data
    assert sum(cuts.part(t).expected for t in (1, 2, 3)) == 61135
    assert [cuts.part(t).expected // 10 for t in (1, 2, 3)] == [2037] * 3
    assert typed("data=ultrafeedback", "data.rows=null").data.part(1).expected == 0, "unknown"
    for word, moves in (("data.revision=main", False), ("data.rows=90000", False), ("data.revision=1f2e", True)):
        assert (key(typed("data=ultrafeedback", word).data.part(1)) != key(cuts.part(1))) == moves, word
