"""Offline first: a network that is gone costs seconds, once; a full spool is said, and costs nothing."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import wandb
from made_up_run import MadeUp, made_up
from wandb_files import UNTIDY, one_run, point_of, recorded, wandb_home  # noqa: F401
from wandb_server import KEY, WandbServer, history

from src.tracking.families import FAMILIES
from src.tracking.mirror import Mirror
from src.tracking.spool import UNSENT
from src.tracking.state import run_id, states
from src.tracking.sync import sync
from src.tracking.wandb_runs import Families

PATIENCE_S = 2.0
pytestmark = UNTIDY


@pytest.fixture
def unreachable(wandb_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:  # noqa: F811
    """A key, and nobody who answers."""
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("src.tracking.opening.source_diff", lambda: b"")  # work under way may hold made-up keys
    wandb.teardown()  # what an earlier test has had W&B read
    return wandb_home


def mirror_of(story: MadeUp, *words: str) -> Mirror:
    point = point_of(story, "tracking=wandb", f"tracking.patience_seconds={PATIENCE_S}", *words)
    return point.run.tracking.open(point)


@pytest.mark.full
@pytest.mark.parametrize("mode", ["auto", "online"])
def test_without_a_network_the_run_goes_on_offline_under_the_same_ids(
    unreachable: Path, mode: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wait is for one opening, not for each; showing rows waits for nothing."""
    story = made_up(unreachable)
    node = next(node for node in story.nodes if node.name == "it1/policy")
    mirror = mirror_of(story, f"tracking.mode={mode}")
    given: list[wandb.Settings] = []
    init = wandb.init
    monkeypatch.setattr(wandb, "init", lambda **told: given.append(told["settings"]) or init(**told))
    began = time.monotonic()
    mirror.begin(node)
    opened = time.monotonic()
    mirror.update()
    mirror.close()
    assert opened - began < 80, "W&B itself waits 90 s"
    assert len(given) > 1 and {(told.init_timeout, told.finish_timeout) for told in given} == {(PATIENCE_S, PATIENCE_S)}
    said = capsys.readouterr()
    assert said.err.count("W&B cannot be reached") == said.err.count("\n") == 1 and said.out == ""
    found = recorded(story.folder)
    assert {one.id for one in found} == {run_id(story.folder, family) for family in FAMILIES}
    assert [len(one.history) for one in found if one.family == "train"] == [6]
    assert not list(story.folder.glob("wandb/run-*")), "what could not be opened leaves nothing"


@pytest.mark.full
def test_what_comes_after_a_part_that_waits_is_offline_too(
    wandb_home: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Else later steps would overtake it: W&B is not even asked."""
    story = made_up(wandb_home)
    mirror = mirror_of(story, "tracking.mode=offline")
    mirror.begin(next(node for node in story.nodes if node.name == "it1/policy"))
    mirror.close()
    monkeypatch.setattr("src.tracking.opening.Opener._online", lambda *_: pytest.fail("went online"))
    mirror = mirror_of(story, "tracking.mode=online")
    assert isinstance(mirror, Families)
    mirror.runs["train"].update()
    mirror.close()
    assert capsys.readouterr().err.count("earlier parts wait for `make sync`") == 1
    assert [len(one.history) for one in recorded(story.folder) if one.family == "train"] == [0, 6]


def test_a_run_that_wandb_gave_up_is_marked(wandb_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """Within its patience W&B has not got all: the file is whole, and only W&B could tell."""

    def gave_up(self: wandb.Run, exit_code: int | None = None) -> None:
        finish(self, exit_code)
        raise TimeoutError

    finish = wandb.Run.finish
    monkeypatch.setattr(wandb.Run, "finish", gave_up)
    run = one_run(made_up(wandb_home))
    run.update()
    (place,) = (run.place.folder / "wandb").glob("offline-run-*")
    assert (place / UNSENT).exists() and run.state.unfinished is None


@pytest.mark.full
def test_a_network_that_goes_away_in_the_middle_loses_no_row(
    wandb_home: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Rows wait for nothing, the end waits for W&B's patience; `sync` uploads all of them, in order."""
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with WandbServer() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        wandb.teardown()
        story = made_up(wandb_home)
        (node,) = [node for node in story.nodes if node.name == "it1/policy"]
        mirror = mirror_of(story, "tracking.mode=online")
        mirror.begin(node)
        server.fails = lambda path: True
        assert isinstance(mirror, Families)
        mirror.runs["train"].update()
        mirror.close()
        (place,) = (story.folder / "wandb").glob("run-*")
        assert (place / UNSENT).exists()
        assert "Traceback" not in capsys.readouterr().err
        wandb.teardown()  # as the end of the process does
        server.asked.clear()
        server.fails = lambda path: False
        (story.folder / "config.yaml").write_text("iter: 2\n")
        assert sync([f"runs={story.folder}"]) == 0
        steps = [row["_step"] for row in history(server)]
    assert steps == list(range(6))
    assert [run.entity for run in states(story.folder)["train"]] == ["me"], "the account's own, which W&B tells"


@pytest.mark.full
def test_a_full_spool_is_said_once_and_opens_nothing(
    wandb_home: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    story = made_up(wandb_home)
    waiting = story.folder.parent / "other" / "wandb" / "offline-run-20200101_000000-abc"
    waiting.mkdir(parents=True)
    (waiting / "run-abc.wandb").write_bytes(b"x" * 2_000_000)
    for limit, opens in ((0.001, False), (1.0, True)):
        mirror = mirror_of(story, f"tracking.spool_gb={limit}")
        mirror.update()
        mirror.update()
        mirror.close()
        said = capsys.readouterr().err
        assert said.count("tracking: ") == said.count("make sync") == (not opens)
        assert (story.folder / "wandb").exists() == opens
    assert {one.family for one in recorded(story.folder)} == set(FAMILIES)
