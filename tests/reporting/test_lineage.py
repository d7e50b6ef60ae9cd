"""Lineage: one artifact of the store is one version at W&B.

W&B's run is a stand-in here; artifacts in W&B's own file: tests/whole/test_wandb_file.py.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

from src.kernel.artifact import Node
from src.kernel.config import config
from src.kernel.record import CARD, RECORD, sha256
from src.kernel.store import Store
from src.reporting.tracking.lineage import MOST_COPIED, log_outputs

TB = 1 << 40


@config
class Words:
    """Writes what it read and its own word, with numbers and a table of bytes."""

    kind: ClassVar[str] = "pairs"
    version: ClassVar[int] = 1
    resumable: ClassVar[bool] = False

    word: str
    steps: int = 1

    def __call__(self, *inputs: Path, out: Path) -> None:
        read = b"".join((path / "weights.bin").read_bytes() for path in inputs)
        (out / "weights.bin").write_bytes(read + self.word.encode())
        (out / "metrics.json").write_text(json.dumps({"words": len(inputs) + 1}))
        (out / "metrics.jsonl").write_text(json.dumps({"step": 1}) * self.steps + "\n")


@config
class Policy(Words):
    kind: ClassVar[str] = "policy"


class Story:
    """start -> pairs -> policy, made in a store; `t` is the iteration under which the run shows them."""

    def __init__(self, place: Path, t: int = 1) -> None:
        self.store = Store(place / "store")
        self.start = Node("base/policy", Policy(word="a"))
        self.pairs = Node(f"it{t}/pairs", Words(word="b"), (self.start,))
        self.policy = Node(f"it{t}/policy", Policy(word="c"), (self.pairs, self.start))
        for node in (self.start, self.pairs, self.policy):
            self.store.make(node)


class Recorder:
    """A W&B run that keeps what it is handed."""

    disabled = False

    def __init__(self, folder: Path) -> None:
        self.settings = SimpleNamespace(sync_dir=str(folder))
        self._interface, self.artifacts, self.flags = self, list[Any](), list[tuple[bool, bool]]()

    def publish_artifact(self, run: Any, artifact: Any, aliases: list[str], tags: None, **how: bool) -> None:
        assert aliases == ["latest", artifact.metadata["key"]]
        self.artifacts.append(artifact)
        self.flags.append((how["is_user_created"], how["use_after_commit"]))


def logged(story: Story, place: Path) -> Recorder:
    run = Recorder(place / "run")
    log_outputs(run, [story.pairs, story.policy], story.store)
    return run


def test_an_artifact_is_what_it_is_in_the_store_whoever_shows_it_and_from_where(tmp_path: Path) -> None:
    """The second run has another folder, another iteration, and a store that was moved."""
    story, moved = Story(tmp_path / "one"), Story(tmp_path / "two", t=2)
    shutil.rmtree(moved.store.root)
    shutil.copytree(story.store.root, moved.store.root)
    (moved.store.path(moved.policy) / CARD).write_text("# A card, written later")
    first, second = logged(story, tmp_path / "one"), logged(moved, tmp_path / "two")
    assert [one.digest for one in first.artifacts] == [one.digest for one in second.artifacts]
    assert len({one.digest for one in first.artifacts}) == 3
    assert [one.metadata for one in first.artifacts] == [one.metadata for one in second.artifacts]
    assert [one.description for one in second.artifacts] == [None, None, "# A card, written later"]
    assert first.flags == [(True, True), (False, False), (False, False)], "what nobody made is used, and no output"
    seen = first.artifacts[2].metadata
    assert (seen["key"], seen["name"]) == (story.policy.key, "policy") and seen["config"]["word"] == "c"
    assert seen["inputs"] == [f"pairs:{story.pairs.key}", f"policy:{story.start.key}"]


def test_small_files_are_copied_and_big_ones_referred_to_without_being_read(tmp_path: Path) -> None:
    """Their sha256 is the record's: here one that the bytes of a terabyte do not have."""
    story, store = Story(tmp_path), Store(tmp_path / "store")
    folder = store.path(story.pairs)
    record = json.loads((folder / RECORD).read_text())
    with (folder / "rows.parquet").open("wb") as file:
        file.truncate(TB)
    record["files"]["rows.parquet"] = {"bytes": TB, "sha256": "0" * 64}
    (folder / RECORD).write_text(json.dumps(record))
    entries = logged(story, tmp_path).artifacts[1].manifest.entries
    rows, weights = entries["rows.parquet"], entries["weights.bin"]
    assert (rows.digest, rows.size) == ("0" * 64, TB)
    place = (folder / "weights.bin").resolve()
    assert (weights.ref, weights.digest, weights.size) == (place.as_uri(), sha256(place), place.stat().st_size)
    for name in entries.keys() - {"rows.parquet", "weights.bin"}:
        copy = Path(entries[name].local_path)
        assert copy.read_bytes() == (folder / name).read_bytes() and copy.is_relative_to(tmp_path / "run")
    long = Node("it1/pairs", Words(word="b", steps=MOST_COPIED // len('{"step": 1}')))
    store.make(long)
    run = Recorder(tmp_path / "other")
    log_outputs(run, [long], store)
    assert {name for name, entry in run.artifacts[0].manifest.entries.items() if entry.ref} == {
        "weights.bin",
        "metrics.jsonl",
    }, "no more than a megabyte is copied"
