"""Lineage: one artifact of the store is one version at W&B, and what a run used is told once, when it can be.

Run: python -m pytest -q tests/test_lineage.py
W&B works offline here, and its own tool reads its files back; its interface is a stand-in with the same signatures.
"""

from __future__ import annotations

import inspect
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

from src.artifact import Node, Store
from src.config import config
from src.provenance import CARD, RECORD, sha256
from src.records import Row
from src.runner import link as show
from src.tracking.lineage import MOST_COPIED, link, log_outputs

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


# linking -----------------------------------------------------------------------------------------------------------


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


def test_the_stand_in_has_the_signatures_of_the_real_interface() -> None:
    import wandb
    from wandb.apis.public import Run as RealRun

    for own, real in ((Api, wandb.Api), (Run, RealRun)):
        methods = [name for name, _ in inspect.getmembers(own, inspect.isfunction) if not name.startswith("_")]
        assert methods
        for name in methods:
            mine, theirs = (list(inspect.signature(getattr(each, name)).parameters.values()) for each in (own, real))
            assert [(p.name, p.kind, p.default) for p in mine] == [(p.name, p.kind, p.default) for p in theirs]
    assert isinstance(inspect.getattr_static(wandb.Api, "default_entity"), property)
    assert hasattr(wandb.Artifact, "aliases")


def mirrored(story: Story, folder: Path) -> None:
    """A run folder as the mirror leaves it: pairs by one family, the policy by another."""
    for node in (story.start, story.pairs, story.policy):
        show(folder, node, story.store)
    (folder / ".wandb").mkdir()
    for family, node in (("rank", story.pairs), ("train", story.policy)):
        state = {"id": f"{family}-id", "project": "p", "entity": None, "artifacts": [node.key], "steps": 3}
        (folder / ".wandb" / f"{family}.json").write_text(json.dumps(state))


@pytest.fixture
def world(tmp_path: Path) -> tuple[Story, Path, Api]:
    """All is at W&B, and nothing is linked."""
    story, folder = Story(tmp_path), tmp_path / "runs" / "one"
    mirrored(story, folder)
    nodes = (story.start, story.pairs, story.policy)
    api = Api(*(f"me/p/{node.stage.kind}:{node.key}" for node in nodes))
    api.runs = {"me/p/rank-id", "me/p/train-id"}
    return story, folder, api


def uses(api: Api) -> dict[str, list[str]]:
    return {path: [one.aliases[1] for one in used] for path, used in api.used.items()}


def test_each_run_is_linked_to_what_its_artifacts_were_made_from_and_not_twice(world: tuple[Story, Path, Api]) -> None:
    story, folder, api = world
    wanted = {
        "me/p/rank-id": [story.start.key],
        "me/p/train-id": [story.pairs.key, story.start.key],
    }
    lines = link([folder], api)
    assert uses(api) == wanted
    assert lines == [
        f"me/p/rank-id: used policy:{story.start.key}",
        f"me/p/train-id: used pairs:{story.pairs.key}",
        f"me/p/train-id: used policy:{story.start.key}",
    ]
    assert len(api.asked) == len(set(api.asked)), "each artifact is asked for once"
    assert link([folder], api) == []
    assert uses(api) == wanted


def test_what_is_not_there_yet_is_a_line_and_is_linked_when_it_is(world: tuple[Story, Path, Api]) -> None:
    story, folder, api = world
    name = f"pairs:{story.pairs.key}"
    api.there.remove(f"me/p/{name}")
    api.logged["me/p/rank-id"] = []
    lines = link([folder], api)
    assert f"me/p/train-id: {name}, which it used, is not at W&B yet; sync the run folder that made it" in lines
    assert f"me/p/rank-id: {name}, which it made, did not arrive; sync with again=true" in lines
    assert uses(api)["me/p/train-id"] == [story.start.key]
    api.there.add(f"me/p/{name}")
    assert link([folder], api) == [f"me/p/train-id: used {name}"]


def test_a_run_that_w_and_b_does_not_have_is_a_line(world: tuple[Story, Path, Api]) -> None:
    _, folder, api = world
    api.runs.remove("me/p/train-id")
    assert link([folder], api)[1:] == ["me/p/train-id: not at W&B yet"]


def test_a_server_that_cannot_be_asked_is_not_taken_for_one_that_has_nothing(world: tuple[Story, Path, Api]) -> None:
    from wandb.errors import CommError

    _, folder, api = world

    def gone(path: str = "") -> Run:
        raise CommError("no network", OSError("no network"))

    api.run = gone
    with pytest.raises(CommError, match="no network"):
        link([folder], api)


def test_what_a_run_made_itself_it_did_not_use(tmp_path: Path, world: tuple[Story, Path, Api]) -> None:
    """As in a trial of a W&B sweep, where one run has all families."""
    story, folder, api = world
    for file in (folder / ".wandb").iterdir():
        file.unlink()
    state = {"id": "trial-id", "project": "p", "entity": None, "artifacts": [story.pairs.key, story.policy.key]}
    (folder / ".wandb" / "trial.json").write_text(json.dumps(state))
    api.runs = {"me/p/trial-id"}
    link([folder], api)
    assert uses(api) == {"me/p/trial-id": [story.start.key]}


def test_kinds_and_keys_are_names_that_w_and_b_takes() -> None:
    """Its rules for names, types and aliases; every kind of the repository."""
    from wandb.sdk.artifacts import _validators as rules

    source = Path(__file__).parents[1] / "src"
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
