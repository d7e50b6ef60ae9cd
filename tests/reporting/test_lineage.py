"""Lineage: one artifact of the store is one version at W&B, and what a run used is told once, when it can be.

W&B works offline here, and its own tool reads its files back; its interface is a stand-in with the same signatures.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from wandb_server import KEY, WandbServer

from src.artifact import Node
from src.config import config
from src.provenance import CARD, RECORD, sha256
from src.records import Row
from src.store import Store
from src.tracking.lineage import MOST_COPIED, log_outputs

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


@pytest.fixture(scope="module", autouse=True)
def wandb_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No network, and everything W&B writes beside the run goes away."""
    place = tmp_path_factory.mktemp("wandb")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("CACHE", "CONFIG", "DATA"):
            patch.setenv(f"WANDB_{name}_DIR", str(place / name))
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        yield


def opened(folder: Path, **more: Any) -> Any:
    import wandb

    settings = wandb.Settings(silent=True, console="off", use_dot_wandb=False, finish_timeout=20)
    folder.mkdir(parents=True, exist_ok=True)
    return wandb.init(project="p", id="one", dir=folder, settings=settings, **more)


def logged(run: Any) -> list[Row]:
    """Artifacts in the file of a run that is finished, as W&B's own tool tells them."""
    import wandb

    run.finish()
    wandb.teardown()  # the file is whole when W&B's process has ended
    (file,) = Path(run.settings.sync_dir).glob("*.wandb")
    words = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
    told = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    records = [json.loads(line) for line in told.splitlines()]
    return [record["artifact"] for record in records if record["type"] == "artifact"]


class Recorder:
    """A run that keeps what it is handed."""

    disabled = False

    def __init__(self, folder: Path) -> None:
        self.settings = SimpleNamespace(sync_dir=str(folder))
        self._interface, self.artifacts = self, list[Any]()

    def publish_artifact(self, run: Any, artifact: Any, aliases: list[str], tags: None, **_: bool) -> None:
        self.artifacts.append(artifact)

    def keys(self) -> list[str]:
        return [artifact.metadata["key"] for artifact in self.artifacts]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Story, Path, list[Row]]:
    """A story, W&B's folder of a run that showed it, and the artifacts in its file."""
    place = tmp_path_factory.mktemp("told")
    story, run = Story(place), opened(place / "run")
    log_outputs(run, [story.pairs, story.policy], story.store)
    return story, Path(run.settings.sync_dir), logged(run)


@pytest.mark.full
def test_an_artifact_is_what_it_is_in_the_store_whoever_shows_it_and_from_where(
    told: tuple[Story, Path, list[Row]], tmp_path: Path
) -> None:
    """The second run has another folder, another iteration, and a store that was moved."""
    (story, _, first), moved = told, Story(tmp_path, t=2)
    shutil.rmtree(moved.store.root)
    shutil.copytree(story.store.root, moved.store.root)
    (moved.store.path(moved.policy) / CARD).write_text("# A card, written later")
    run = Recorder(tmp_path / "run")
    log_outputs(run, [moved.pairs, moved.policy], moved.store)
    assert [one["digest"] for one in first] == [one.digest for one in run.artifacts]
    assert [(one["name"], one["type"], one["aliases"][1]) for one in first] == [
        (node.stage.kind, node.stage.kind, node.key) for node in (story.start, story.pairs, story.policy)
    ]
    assert len({one["digest"] for one in first}) == 3
    assert [json.loads(one["metadata"]) for one in first] == [one.metadata for one in run.artifacts]
    assert [one.description for one in run.artifacts] == [None, None, "# A card, written later"]
    seen = json.loads(first[2]["metadata"])
    assert (seen["key"], seen["name"]) == (story.policy.key, "policy")
    assert seen["inputs"] == [f"pairs:{story.pairs.key}", f"policy:{story.start.key}"]
    assert seen["config"]["word"] == "c" and seen["versions"] and seen["commit"] and seen["rows"] is None
    files = json.loads((story.store.path(story.policy) / RECORD).read_text())["files"]
    assert seen["bytes"] == sum(file["bytes"] for file in files.values())


def test_what_nobody_made_is_used_and_no_output(told: tuple[Story, Path, list[Row]]) -> None:
    """W&B's `user_created`: an output of no run; `use_after_commit`: an input of this one."""
    flags = [(one.get("user_created", False), one.get("use_after_commit", False)) for one in told[2]]
    assert flags == [(True, True), (False, False), (False, False)]


def test_small_files_are_copied_and_big_ones_referred_to(told: tuple[Story, Path, list[Row]]) -> None:
    story, spool, artifacts = told
    contents = {file["path"]: file for file in artifacts[1]["manifest"]["contents"]}
    folder = story.store.path(story.pairs)
    weights = folder / "weights.bin"
    assert contents.pop("weights.bin") == {
        "path": "weights.bin",
        "ref": weights.resolve().as_uri(),
        "digest": sha256(weights),
        "size": str(weights.stat().st_size),
    }
    assert set(contents) == {RECORD, "metrics.json", "metrics.jsonl"}
    for name, file in contents.items():
        copy = Path(file["local_path"])
        assert copy.read_bytes() == (folder / name).read_bytes()
        assert copy.is_relative_to(spool), "it waits in the spool, and goes with it"
        assert not file.get("ref")


def test_no_more_than_a_megabyte_is_copied(tmp_path: Path) -> None:
    store, node = Store(tmp_path / "store"), Node("it1/pairs", Words(word="b", steps=MOST_COPIED // len('{"step": 1}')))
    store.make(node)
    run = Recorder(tmp_path / "run")
    log_outputs(run, [node], store)
    entries = run.artifacts[0].manifest.entries
    assert {name for name, entry in entries.items() if entry.ref} == {"weights.bin", "metrics.jsonl"}
    assert sum(file.stat().st_size for file in (tmp_path / "run").rglob("*.json")) < MOST_COPIED


def test_a_large_file_is_not_read(tmp_path: Path) -> None:
    """Its sha256 is the record's: here one that its bytes do not have."""
    story = Story(tmp_path)
    folder = story.store.path(story.pairs)
    record = json.loads((folder / RECORD).read_text())
    with (folder / "rows.parquet").open("wb") as file:
        file.truncate(TB)
    record["files"]["rows.parquet"] = {"bytes": TB, "sha256": "0" * 64}
    (folder / RECORD).write_text(json.dumps(record))
    run = Recorder(tmp_path / "run")
    log_outputs(run, [story.start], story.store)
    log_outputs(run, [story.pairs], story.store)
    entry = run.artifacts[1].manifest.entries["rows.parquet"]
    assert (entry.digest, entry.size, run.artifacts[1].size > TB) == ("0" * 64, TB, True)


def test_what_is_missing_is_logged_later_and_nothing_twice(tmp_path: Path) -> None:
    story = Story(tmp_path)
    shutil.move(story.store.path(story.policy), tmp_path / "kept")
    run = Recorder(tmp_path / "run")
    for _ in range(2):
        log_outputs(run, [story.pairs, story.policy], story.store)
    shutil.move(tmp_path / "kept", story.store.path(story.policy))
    for _ in range(2):
        log_outputs(run, [story.pairs, story.policy], story.store)
    assert run.keys() == [story.start.key, story.pairs.key, story.policy.key]


@pytest.mark.full
def test_online_artifacts_are_uploaded_and_a_server_that_fails_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    story = Story(tmp_path)
    with WandbServer() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        run = opened(tmp_path / "run", mode="online", entity="me")
        log_outputs(run, [story.pairs], story.store)
        while len(server.told("CommitArtifact")) < 2:
            time.sleep(0.05)
        server.fails = lambda path: True
        log_outputs(run, [story.policy], story.store)
        server.fails = lambda path: False
        assert [one["aliases"][1] for one in logged(run)] == [story.start.key, story.pairs.key, story.policy.key]
    made = {one["aliases"][1]["alias"]: one["runName"] for one in server.told("CreateArtifact")}
    assert made[story.start.key] is None, "an output of no run"
    assert made[story.pairs.key] == "one"
    assert [one["runName"] for one in server.told("UseArtifact")] == ["one"]
    uploaded = {file["path"] for name, file in server.asked if name == "PUT"}
    assert not any("weights" in path for path in uploaded)


def test_kinds_and_keys_are_names_that_w_and_b_takes() -> None:
    """Its rules for names, types and aliases; every kind of the repository."""
    from wandb.sdk.artifacts import _validators as rules

    source = Path(__file__).parents[2] / "src"
    told = (path.read_text() for path in source.rglob("*.py"))
    kinds = {line.split('"')[1] for text in told for line in text.splitlines() if 'kind: ClassVar[str] = "' in line}
    assert kinds >= {"prompts", "responses", "ranking", "pairs", "reference", "policy", "evaluation", "divergence"}
    import wandb

    for kind in kinds:
        assert rules.validate_artifact_types([kind]) == [kind]
        assert rules.validate_artifact_type(kind, kind) == kind
        assert wandb.Artifact(kind, kind).name == kind
    assert rules.validate_aliases([Node("a", Words(word="a")).key])
    assert os.environ["WANDB_MODE"] == "offline"
