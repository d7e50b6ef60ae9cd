"""Lineage: one artifact of the store is one version at W&B, and what a run used is told once, when it can be.

W&B's run and its interface are stand-ins here; artifacts in W&B's own file: tests/whole/test_wandb_file.py.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from src.artifact import Node
from src.config import config
from src.links import link as show
from src.provenance import CARD, RECORD, sha256
from src.store import Store
from src.tracking.families import label
from src.tracking.lineage import MOST_COPIED, link, log_outputs, unlinked
from src.tracking.state import State, states

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


# What a run made -----------------------------------------------------------------------------------------------------


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


# What it used --------------------------------------------------------------------------------------------------------


class Artifact:
    def __init__(self, name: str) -> None:
        self.aliases = ["latest", name.rpartition(":")[2]]


class Run:
    def __init__(self, api: Api, path: str) -> None:
        self.api, self.path = api, path

    def used_artifacts(self, per_page: int = 100) -> list[Artifact]:
        return self.api.used.setdefault(self.path, [])

    def logged_artifacts(self, per_page: int = 100) -> list[Artifact]:
        return self.api.logged.get(self.path, [])

    def use_artifact(self, artifact: Artifact, use_as: str | None = None) -> Artifact:
        self.used_artifacts().append(artifact)
        return artifact


class Api:
    """`wandb.Api` over what is in its fields."""

    default_entity = "me"

    def __init__(self, *there: str) -> None:
        self.there, self.asked = set(there), list[str]()
        self.used: dict[str, list[Artifact]] = {}
        self.logged: dict[str, list[Artifact]] = {}
        self.runs: set[str] = set()

    def run(self, path: str = "") -> Run:
        from wandb.apis.public.runs import RunNotFoundError
        from wandb.errors import CommError

        if path not in self.runs:
            raise CommError("no such run", RunNotFoundError("no such run"))
        return Run(self, path)

    def artifact_exists(self, name: str, type: str | None = None) -> bool:
        self.asked.append(name)
        return name in self.there

    def artifact(self, name: str, type: str | None = None) -> Artifact:
        assert name in self.there
        return Artifact(name)


def remember(folder: Path, family: str, *nodes: Node, past: Sequence[State] = ()) -> State:
    """The state of a family whose W&B run has shown these."""
    made = {label(node): [label(parent) for parent in node.inputs] for node in nodes}
    state = State(f"{family}-id", "p", None, "plan", artifacts=made, past=list(past))
    (folder / ".wandb" / f"{family}.json").write_text(json.dumps(dataclasses.asdict(state)))
    return state


@pytest.fixture
def told(tmp_path: Path) -> tuple[Story, Path, Api]:
    """All is at W&B, pairs by one family and the policy by another, and nothing is linked."""
    story, folder = Story(tmp_path), tmp_path / "runs" / "one"
    nodes = (story.start, story.pairs, story.policy)
    for node in nodes:
        show(folder, node, story.store)
    (folder / ".wandb").mkdir()
    for family, node in (("rank", story.pairs), ("train", story.policy)):
        remember(folder, family, node)
    api = Api(*(f"me/p/{node.stage.kind}:{node.key}" for node in nodes))
    api.runs = {"me/p/rank-id", "me/p/train-id"}
    return story, folder, api


def uses(api: Api) -> dict[str, list[str]]:
    return {path: [one.aliases[1] for one in used] for path, used in api.used.items()}


def test_each_run_is_linked_to_what_its_artifacts_were_made_from_and_not_twice(told: tuple[Story, Path, Api]) -> None:
    story, folder, api = told
    wanted = {"me/p/rank-id": [story.start.key], "me/p/train-id": [story.pairs.key, story.start.key]}
    assert len(link([folder], api)) == 3 and uses(api) == wanted
    assert len(api.asked) == len(set(api.asked)), "each artifact is asked for once"
    assert list(unlinked([folder], again=False)) == []
    for again in (False, True):
        assert link([folder], api, again) == [] and uses(api) == wanted
    (old,) = states(folder)["train"]
    more = remember(folder, "train", story.policy, story.pairs)
    more.linked = old.linked
    (folder / ".wandb" / "train.json").write_text(json.dumps(dataclasses.asdict(more)))
    api.runs.clear()
    assert link([folder], api) == ["me/p/train-id: not at W&B yet"], "it has made more since"


def test_what_is_not_there_yet_is_a_line_and_is_linked_when_it_is(told: tuple[Story, Path, Api]) -> None:
    """A run that made what it read itself, as a trial of a sweep does, did not use it."""
    story, folder, api = told
    name = f"pairs:{story.pairs.key}"
    api.there.remove(f"me/p/{name}")
    lines = link([folder], api)
    assert [line.partition(": ")[0] for line in lines if name in line] == ["me/p/rank-id", "me/p/train-id"]
    assert uses(api)["me/p/train-id"] == [story.start.key]
    api.there.add(f"me/p/{name}")
    assert link([folder], api) == [f"me/p/train-id: used {name}"]
    remember(folder, "trial", story.pairs, story.policy)
    api.runs.add("me/p/trial-id")
    assert link([folder], api) and uses(api)["me/p/trial-id"] == [story.start.key]
