"""A W&B run that goes on is the same run: no step doubled, none left out, whatever is lost or killed in between.

W&B's own process writes the files, its own tool reads them, and its own command uploads them to a stand-in of its
server. In the first part the artifacts were written by hand.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
from made_up_run import STEPS, MadeUp, made_up
from tiny_run import ROOT
from wandb_files import UNTIDY, Recorded, one_run, point_of, recorded, wandb_home  # noqa: F401
from wandb_server import KEY, WandbServer, history

from src.kernel.artifact import WORK, Node
from src.kernel.config import Stopped, UserError
from src.reporting.tracking.metrics import METRICS
from src.reporting.tracking.spool import unsent_of
from src.reporting.tracking.state import run_id, states
from src.reporting.tracking.sync import sync

# ruff: noqa: F811
pytestmark = [pytest.mark.usefixtures("wandb_home"), UNTIDY]


@pytest.fixture
def story(wandb_home: Path) -> MadeUp:
    return made_up(wandb_home)


def under_way(story: MadeUp, steps: int, seconds: float = 0.0) -> None:
    """A training of iteration 2 that has made some of its steps, and is not finished."""
    (node,) = [node for node in story.nodes if node.name == "it2/policy"]
    attempt = story.store.path(node).with_name(f"{node.key}.partial-00000000")
    if story.store.has(node):
        shutil.move(story.store.path(node), attempt / WORK)
    rows = [{"step": step, "loss": step + seconds, "speed/seconds": seconds} for step in range(1, steps + 1)]
    (attempt / WORK / METRICS).write_text("".join(json.dumps(row) + "\n" for row in rows))


def update(story: MadeUp, nodes: list[Node] | None = None, **settings: Any) -> None:
    """As a process does that shows what is new, and ends."""
    one_run(story, nodes=nodes, **settings).update()


def steps(found: list[Recorded]) -> list[tuple[int, int]]:
    """(step of W&B, step of all trainings) in the order they were shown."""
    return [(row["_step"], row["train/total_step"]) for one in found for row in one.history]


def counted(number: int) -> list[tuple[int, int]]:
    return [(step, step + 1) for step in range(number)]


@pytest.mark.full
def test_a_run_that_goes_on_is_the_same_run_without_a_doubled_step(story: MadeUp) -> None:
    """After a kill there may be fewer rows for a while, and other last digits. With nothing new no run is opened."""
    for shown in ((0, 1), (1, 3)):
        process = one_run(story)
        for made in (*shown, shown[-1]):
            under_way(story, made, seconds=float(made))
            process.update()
    under_way(story, 2, seconds=9.0)
    update(story)
    found = recorded(story.folder)
    assert {one.id for one in found} == {run_id(story.folder, "train")} and len(found) <= 4
    assert steps(found) == counted(STEPS + 3)


@pytest.mark.full
def test_a_signal_between_a_row_and_its_note_neither_doubles_nor_loses_it(
    wandb_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for logged in (True, False):
        story = made_up(wandb_home / str(logged))
        process = one_run(story)
        process.begin()
        log = process._log

        def interrupted(row: dict[str, Any], logged: bool = logged, log: Any = log) -> None:
            last = row["train/total_step"] == 3
            if logged or not last:
                log(row)
            if last:
                raise Stopped(signal.SIGTERM)

        monkeypatch.setattr(process, "_log", interrupted)
        with pytest.raises(Stopped):
            process.update()
        process.finish(143)
        recorded(story.folder)  # W&B has ended
        update(story)
        assert steps(recorded(story.folder)) == counted(2 * STEPS), logged


KILLED = """
import os, signal, sys
sys.path[:0] = ["tests/lib", "tests"]
from pathlib import Path
from made_up_run import MadeUp
from wandb_files import one_run
from tiny_run import tiny, typed
from src.kernel.store import Store
run = typed(*tiny(Path("nowhere"), Path(sys.argv[1]), "iter=2"))
process = one_run(MadeUp(run, nodes_of(run), Store(run.store), run.runs / "made_up"))
process.begin()
process.update()
{before}
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.faults
@pytest.mark.parametrize("before", ["", "process.run.finish()"])
def test_what_a_killed_process_takes_with_it_is_shown_again(story: MadeUp, wandb_home: Path, before: str) -> None:
    """Or all was written, and nobody came to note it."""
    under_way(story, 2)
    words = [sys.executable, "-c", KILLED.format(before=before), str(wandb_home)]
    assert subprocess.run(words, cwd=ROOT, check=False).returncode == -signal.SIGKILL
    state = json.loads((story.folder / ".wandb" / "train.json").read_text())
    assert len(state["rows"]) == STEPS + 2 and state["unfinished"], "it was killed with a run open"
    under_way(story, 3)
    update(story)
    found = recorded(story.folder)
    assert {one.id for one in found} == {state["id"]}
    assert steps(found) == counted(STEPS + 3)


@pytest.mark.full
def test_where_the_state_is_lost_w_and_b_s_files_tell_what_was_shown(story: MadeUp) -> None:
    """Where they do not tell all, the rows come in a run of their own: the old one may be at W&B."""
    file = story.folder / ".wandb" / "train.json"
    for made, damaged in ((0, None), (2, None), (3, b'{"id": "x", "rows": ["')):
        under_way(story, made)
        update(story)
        recorded(story.folder)  # W&B has ended
        file.unlink() if damaged is None else file.write_bytes(damaged)
    update(story)
    found = recorded(story.folder)
    assert {one.id for one in found} == {run_id(story.folder, "train")} and steps(found) == counted(STEPS + 3)
    assert file.with_name("train.json.damaged").exists() and len(states(story.folder)["train"]) == 1
    file.unlink()
    shutil.rmtree(found[0].folder)
    for _ in range(2):
        update(story)
    new = [one for one in recorded(story.folder) if one.id != run_id(story.folder, "train")]
    assert len(new) == 1 and steps(new) == counted(STEPS + 3)


@pytest.fixture
def server(wandb_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    """Of W&B; there is a key."""
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("NETRC", str(wandb_home / "netrc"))
    monkeypatch.setattr("src.reporting.tracking.opening.source_diff", lambda: b"")  # it may hold made-up keys
    with WandbServer() as found:
        monkeypatch.setenv("WANDB_BASE_URL", found.url)
        wandb.teardown()  # its settings are read once a process
        yield found
        wandb.teardown()


@pytest.mark.full
def test_all_is_uploaded_in_order_and_once_and_what_w_and_b_lost_is_not_taken_for_uploaded(
    story: MadeUp, server: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W&B gives up, and marks the run as uploaded all the same."""
    for made in (0, 2):
        under_way(story, made)
        update(story)
    (story.folder / "config.yaml").write_text("iter: 2\n")
    wandb.teardown()
    waiting = unsent_of(story.folder)
    assert len(waiting) == 2
    with monkeypatch.context() as patch, pytest.raises(UserError, match="2 of 2 were not uploaded"):
        patch.setenv("WANDB__FILE_STREAM_RETRY_MAX", "1")
        patch.setenv("WANDB__FILE_STREAM_RETRY_WAIT_MAX_SECONDS", "0.1")
        server.fails = lambda path: path.endswith("file_stream")
        sync([f"runs={story.folder}"])
    assert unsent_of(story.folder) == waiting
    server.fails = lambda path: False
    server.asked.clear()
    for _ in range(2):
        sync([f"runs={story.folder}"])
        assert [row["_step"] for row in history(server)] == list(range(STEPS + 2))
    assert unsent_of(story.folder) == []
