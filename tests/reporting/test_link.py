"""Linking: what a W&B run used is told once, when it can be.

W&B's interface is a stand-in with the same signatures.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from filelock import FileLock
from test_lineage import Story, wandb_home  # noqa: F401

from src.artifact import Node
from src.links import link as show
from src.tracking.families import label
from src.tracking.lineage import link, unlinked
from src.tracking.state import State, damage, states


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
        remember(folder, family, node)


def remember(folder: Path, family: str, *nodes: Node, past: Sequence[State] = ()) -> State:
    """The state of a family whose W&B run has shown these."""
    made = {label(node): [label(parent) for parent in node.inputs] for node in nodes}
    state = State(f"{family}-id", "p", None, "plan", artifacts=made, past=list(past))
    (folder / ".wandb" / f"{family}.json").write_text(json.dumps(dataclasses.asdict(state)))
    return state


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
    for again in (False, True):
        assert link([folder], api, again) == []
        assert uses(api) == wanted


def test_what_is_linked_is_not_asked_about_again(world: tuple[Story, Path, Api]) -> None:
    """Not even whether there is such a run; but a run that has made more since is, and so is all with `again`."""
    story, folder, api = world
    link([folder], api)
    assert list(unlinked([folder], again=False)) == []
    assert [run.id for _, _, run in unlinked([folder], again=True)] == ["rank-id", "train-id"]
    api.runs.clear()
    assert link([folder], api) == []
    (old,) = states(folder)["train"]
    more = remember(folder, "train", story.policy, story.pairs)
    more.linked = old.linked
    (folder / ".wandb" / "train.json").write_text(json.dumps(dataclasses.asdict(more)))
    assert link([folder], api) == ["me/p/train-id: not at W&B yet"]


def test_while_a_process_shows_more_its_state_is_its_own(world: tuple[Story, Path, Api]) -> None:
    _, folder, api = world
    before = (folder / ".wandb" / "train.json").read_bytes()
    with FileLock(folder / ".wandb" / "train.lock"):
        link([folder], api)
    assert (folder / ".wandb" / "train.json").read_bytes() == before
    assert [family for _, family, _ in unlinked([folder], again=False)] == ["train"]
    assert link([folder], api) == [] and list(unlinked([folder], again=False)) == []


def test_runs_that_the_folder_had_before_are_linked_too(world: tuple[Story, Path, Api]) -> None:
    """Of another experiment, whose artifacts the run folder shows no more, and in another project."""
    story, folder, api = world
    old = State("old-id", "q", "them", "other", artifacts={"policy:ab": ["pairs:cd"], "reference:ef": ["pairs:cd"]})
    last = remember(folder, "train", story.policy, past=[old])
    api.runs.add("them/q/old-id")
    api.there |= {"them/q/policy:ab", "them/q/reference:ef", "them/q/pairs:cd"}
    assert "them/q/old-id: used pairs:cd" in link([folder], api)
    past, now = states(folder)["train"]
    assert (past.linked, now.linked) == (list(old.artifacts), list(last.artifacts))
    assert (past.entity, now.entity) == ("them", "me"), "once W&B has the run, it is known where"


@pytest.mark.parametrize("content", [None, "{"])
def test_a_state_that_is_lost_or_damaged_meanwhile_is_not_made_up(
    world: tuple[Story, Path, Api], content: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, folder, api = world
    file, ask = folder / ".wandb" / "train.json", api.run

    def meanwhile(path: str = "") -> Run:
        file.write_text(content) if content else file.unlink(missing_ok=True)
        return ask(path)

    monkeypatch.setattr(api, "run", meanwhile)
    link([folder], api)
    assert file.exists() == bool(content)
    assert list(states(folder)) == ["rank"], "another family's can be read all the same"
    assert list(damage([folder])) == [folder] * bool(content)


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
    remember(folder, "trial", story.pairs, story.policy)
    api.runs = {"me/p/trial-id"}
    link([folder], api)
    assert uses(api) == {"me/p/trial-id": [story.start.key]}
