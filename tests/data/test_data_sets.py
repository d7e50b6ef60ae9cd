"""Data sets: the hub's way through folders laid out like it, rows in every format, and what the command says."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_data import key, lines, made, own, own_cache  # noqa: F401
from tiny_run import call, folders, typed

from src.config import UserError
from src.data.reading import Source, read_columns
from src.data.stage import PublishedParts

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
    return PublishedParts(**vars(data) | {"path": str(path), "part_rows": (3, 3, 3), "held_out_rows": 9} | more)


def test_published_parts_are_the_splits_and_the_tests_are_held_out(tmp_path: Path) -> None:
    texts = {
        "train_iteration_1": ["a", "b None", "T1"],
        "train_iteration_2": ["a", "c", "c"],
        "test_iteration_3": ["t1"],
    }
    data = published(snorkel(tmp_path / "set", lambda split: texts.get(split, [split])), held_out_prompts=3)
    first, second = made(data.part(1), tmp_path), made(data.part(2), tmp_path)
    assert (first[0], second[0]) == (["a", "b None"], ["c"])
    assert (first[1]["leaked"], second[1]["asked_before"], second[1]["doubled"]) == (1, 1, 1)
    assert made(data.held_out(), tmp_path)[0] == ["test_iteration_1", "test_iteration_2", "t1"]


def test_a_row_of_a_split_is_refused_by_its_number(tmp_path: Path) -> None:
    data = published(snorkel(tmp_path / "set", lambda split: [*map(str, range(1500)), " ", "b"]))
    with pytest.raises(UserError, match=f"^{re.escape(str(tmp_path / 'set'))}.train_iteration_1.:1501: prompt: "):
        made(data.part(1), tmp_path)


def test_a_folder_is_read_by_the_path_a_hub_id_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snorkel(tmp_path / "owner" / "name", lambda split: [split])
    monkeypatch.chdir(tmp_path)
    source = Source(path="owner/name", split="train_iteration_2+test_iteration_1", revision="ignored")
    place = "owner/name[train_iteration_2+test_iteration_1]"
    assert list(read_columns(source, ["prompt", "nope"])) == [
        (f"{place}:1", {"prompt": "train_iteration_2"}),
        (f"{place}:2", {"prompt": "test_iteration_1"}),
    ]


def test_a_subset_is_chosen_and_a_missing_one_is_told(tmp_path: Path) -> None:
    snorkel(tmp_path, lambda split: [split])
    named = [
        f"- config_name: s{t}\n  data_files: [{{split: train, path: data/train_iteration_{t}*}}]\n" for t in (1, 2)
    ]
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{''.join(named)}---\n")
    ((_, row),) = read_columns(Source(path=str(tmp_path), split="train", subset="s2"), ["prompt"])
    assert row == {"prompt": "train_iteration_2"}
    for subset, split, there in ((None, "train", "s1"), ("s3", "train", "s2"), ("s1", "nope", "train")):
        with pytest.raises(UserError, match=rf"^[^\n]*cannot load the split '{split}': [^\n]*{there}[^\n]*$"):
            list(read_columns(Source(path=str(tmp_path), split=split, subset=subset), ["prompt"]))


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


def test_a_hub_id_is_asked_for_with_its_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load(path: str, name: str | None, *, split: str, revision: str | None) -> datasets.Dataset:
        asked.append((path, name, split, revision))
        return datasets.Dataset.from_dict({"prompt": ["a", "b"], "answers": ["x", "y"]})

    monkeypatch.setattr(datasets, "load_dataset", load)
    source = Source(path="owner/name", subset="sub", split="train", revision="1f2e")
    assert [row for _, row in read_columns(source, ["prompt"])] == [{"prompt": "a"}, {"prompt": "b"}]
    assert asked == [("owner/name", "sub", "train", "1f2e")]


def test_a_set_that_cannot_be_fetched_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    told = r"^owner/name: no folder here, and its split 'train' cannot be fetched from the hub: [^\n]+$"
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


def test_revision_and_seed_are_part_of_the_key_and_published_counts_are_not() -> None:
    for name in ("ultrafeedback", "ultrafeedback_snorkel"):

        def keys(name: str, *more: str) -> list[str]:
            found = typed(f"data={name}", *more).data
            return [key(found.part(1)), key(found.held_out())]

        usual = keys(name)
        assert keys(name, "data.revision=main") == usual
        assert set(keys(name, "data.revision=1f2e")).isdisjoint(usual)
        rows = "data.part_rows=[30000,1,1]" if "snorkel" in name else "data.rows=90000"
        assert keys(name, rows)[0] == usual[0]


# Every format


def test_rows_make_the_same_parts_in_every_format(tmp_path: Path) -> None:
    """As JSON lines, CSV, Parquet, a folder of two files, and a data set of one split."""
    texts = [f'prompt {n}, "quoted"' + "\n" * (n % 3) for n in range(40)]
    table = pa.table({"prompt": texts, "chosen": texts})
    for place in ("whole", "halves", "set/data"):
        (tmp_path / place).mkdir(parents=True)
    whole = tmp_path / "whole"
    (whole / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    datasets.Dataset(table).to_csv(whole / "r.csv")
    pq.write_table(table, whole / "r.parquet")
    pq.write_table(table[:15], tmp_path / "halves" / "1.parquet")
    pq.write_table(table[15:], tmp_path / "halves" / "2.parquet")
    pq.write_table(table, tmp_path / "set" / "data" / "train_prefs-00000-of-00001.parquet")
    given = [own(whole / f"r{suffix}", prompts_per_iteration=8) for suffix in (".jsonl", ".csv", ".parquet")]
    given.append(own(tmp_path / "halves", prompts_per_iteration=8))
    given.append(own(tmp_path / "set", split="train_prefs", prompts_per_iteration=8))
    found = [[made(data.part(t), tmp_path)[0] for t in (1, 2, 3)] for data in given]
    assert all(parts == found[0] for parts in found)
    asked = [prompt for part in found[0] for prompt in part]
    assert len(set(asked)) == len(asked) == 24 and set(asked) <= set(texts)


# The command


def test_a_mistake_in_the_config_is_one_line_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = []
    for overrides, told in [
        ("data=local", "data.path: no file"),
        ("data=local data.held_out_share=1.0", "data: held_out_share: 1.0"),
        ("data=local data.path=src/data/embedded/part1.jsonl", "data.held_out_prompts: "),
        ("data=ultrafeedback iter=4", "data.prompts_per_iteration: "),
        ("data=ultrafeedback data.held_out_prompts=2001", "data.held_out_prompts: "),
        ("data=ultrafeedback_snorkel data.part_rows=[1]", "data: part_rows: "),
    ]:
        code = call("plan", *overrides.split(), *folders(tmp_path))
        shown = capsys.readouterr().err
        if code != 2 or not shown.startswith(f"error: {told}") or shown.count("\n") != 1:
            wrong.append((overrides, code, shown))
    assert wrong == [] and not list(tmp_path.iterdir())
