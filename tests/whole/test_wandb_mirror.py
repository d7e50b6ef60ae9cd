"""A W&B run that goes on is the same run: no step doubled, none left out, whatever is lost or killed in between.

W&B's own process writes the files, its own tool reads them, and its own command uploads them to a stand-in of its
server. In the first part the artifacts were written by hand.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
from filelock import FileLock
from made_up_run import STEPS, MadeUp, made_up, write_artifact
from tiny_run import ROOT, tiny, typed
from wandb_files import UNTIDY, Recorded, one_run, point_of, recorded, wandb_home  # noqa: F401
from wandb_server import KEY, WandbServer, history

from src.artifact import WORK, Node
from src.config import Stopped, UserError
from src.tracking.families import FAMILIES
from src.tracking.metrics import METRICS
from src.tracking.opening import Opener
from src.tracking.spool import UNSENT, ended, unsent_of
from src.tracking.state import RUNS, run_id, states
from src.tracking.sync import sync
from src.tracking.wandb_runs import Families

# ruff: noqa: F811
pytestmark = [pytest.mark.usefixtures("wandb_home"), UNTIDY]
REFUSED_S = 2.0
"""Of patience with a server that does not answer."""


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


# Processes that end well ---------------------------------------------------------------------------------------------


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
def test_another_experiment_or_project_is_another_run(story: MadeUp, wandb_home: Path) -> None:
    """Another eta: rows that look alike, of another artifact. The first one finds its own run again."""
    other = typed(*tiny(Path("nowhere"), wandb_home, "iter=1", "method.eta=5")).nodes()
    for node in other:
        if not story.store.has(node):
            write_artifact(story.store.path(node), node.name, "", "", {})
    for nodes in (None, other, other, None, other):
        update(story, nodes=nodes)
    first, second = recorded(story.folder)
    assert [first.id, second.id] == [run_id(story.folder, "train", number) for number in (0, 1)]
    assert (steps([first]), steps([second])) == (counted(2 * STEPS), counted(STEPS))
    for project in ("other", "tests"):
        update(story, project=project)
    found = recorded(story.folder)
    assert [one.run["project"] for one in found] == ["tests", "tests", "other"]
    assert steps(found[2:]) == counted(2 * STEPS)


@pytest.mark.full
def test_the_run_of_a_stage_is_open_while_it_works_and_no_other_and_its_end_is_told(story: MadeUp) -> None:
    point = point_of(story, "tracking=wandb", "tracking.mode=offline")
    mirror, by_name = point.run.tracking.open(point), {node.name: node for node in story.nodes}
    assert isinstance(mirror, Families)
    for name, family in (("base/policy", set[str]()), ("it1/responses", {"generate"}), ("base/answers", {"evaluate"})):
        mirror.begin(by_name[name])
        mirror.update()
        assert {each for each, one in mirror.runs.items() if one.run} == family, name
    with pytest.raises(Stopped):
        try:
            raise Stopped(signal.SIGUSR1)
        finally:
            mirror.close()
    assert not [one for one in mirror.runs.values() if one.run or one.lock.is_locked]
    found = recorded(story.folder)
    assert {one.family for one in found} == set(FAMILIES)
    (last,) = [one for one in found if one.of("preempting")]
    assert (last.family, last.of("exit")[0]["exit_code"]) == ("evaluate", 138)


@pytest.mark.full
def test_a_family_that_another_process_has_is_left_alone_and_shown_later(story: MadeUp) -> None:
    process = one_run(story)
    process.place.lock.parent.mkdir()
    with FileLock(process.place.lock):
        process.update()
        process.begin()
        process.update()
        assert not (story.folder / RUNS).exists()
    process.update()
    assert process.run is not None, "it is begun"
    process.finish()
    assert steps(recorded(story.folder)) == counted(2 * STEPS)


# Processes that are stopped ------------------------------------------------------------------------------------------


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
from src.store import Store
run = typed(*tiny(Path("nowhere"), Path(sys.argv[1]), "iter=2"))
process = one_run(MadeUp(run, run.nodes(), Store(run.store), run.runs / "made_up"))
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


# A state that is lost or damaged -------------------------------------------------------------------------------------


@pytest.fixture
def file(story: MadeUp) -> Path:
    """The state of `train`, after two openings of its W&B run."""
    for made in (0, 2):
        under_way(story, made)
        update(story)
    recorded(story.folder)  # W&B has ended
    return story.folder / ".wandb" / "train.json"


@pytest.mark.full
@pytest.mark.parametrize("damaged", [None, b'{"id": "x", "rows": ["'])
def test_what_was_shown_is_read_from_w_and_b_s_files(story: MadeUp, file: Path, damaged: bytes | None) -> None:
    (before,) = states(story.folder)["train"]
    file.unlink() if damaged is None else file.write_bytes(damaged)
    under_way(story, 3)
    update(story)
    found = recorded(story.folder)
    assert {one.id for one in found} == {before.id} and steps(found) == counted(STEPS + 3)
    (after,) = states(story.folder)["train"]
    assert after.rows[:-1] == before.rows and after.artifacts == before.artifacts and after.plan == before.plan
    assert file.with_name("train.json.damaged").exists() == (damaged is not None)


@pytest.mark.full
@pytest.mark.parametrize("left", ["nothing", "the last part", "no file that can be read"])
def test_where_w_and_b_s_files_do_not_tell_all_the_rows_come_in_a_run_of_their_own(
    story: MadeUp, file: Path, left: str
) -> None:
    """The old one may be at W&B: under its id they would be there twice."""
    first, second = recorded(story.folder)
    file.write_text("{")
    if left == "nothing":
        shutil.rmtree(story.folder / RUNS)
    elif left == "the last part":
        shutil.rmtree(first.folder)
    else:
        second.file.write_text("no file of W&B's")
    for _ in range(2):
        update(story)
    if left == "no file that can be read":
        shutil.rmtree(second.folder)
    new = [one for one in recorded(story.folder) if one.id != run_id(story.folder, "train")]
    assert len({one.id for one in new}) == 1 and steps(new) == counted(STEPS + 2)
    assert states(story.folder)["train"][-1].id == new[0].id


# A network -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def server(wandb_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    """Of W&B; there is a key."""
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("NETRC", str(wandb_home / "netrc"))
    monkeypatch.setattr("src.tracking.opening.source_diff", lambda: b"")  # work under way may hold made-up keys
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


@pytest.mark.faults
def test_a_network_that_goes_away_in_the_middle_loses_no_row(story: MadeUp, server: WandbServer) -> None:
    """Rows wait for nothing, the end waits for W&B's patience; `sync` uploads all of them, in order."""
    point = point_of(story, "tracking=wandb", f"tracking.patience_seconds={REFUSED_S}", "tracking.mode=online")
    mirror = point.run.tracking.open(point)
    assert isinstance(mirror, Families)
    mirror.begin(next(node for node in story.nodes if node.name == "it1/policy"))
    server.fails = lambda path: True
    mirror.runs["train"].update()
    mirror.close()
    (place,) = (story.folder / "wandb").glob("run-*")
    assert (place / UNSENT).exists()
    wandb.teardown()  # as the end of the process does
    server.asked.clear()
    server.fails = lambda path: False
    (story.folder / "config.yaml").write_text("iter: 2\n")
    assert sync([f"runs={story.folder}"]) == 0
    assert [row["_step"] for row in history(server)] == list(range(2 * STEPS))


@pytest.mark.faults
def test_without_a_network_the_run_goes_on_offline_under_the_same_ids(
    story: MadeUp, server: WandbServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The wait is for one opening, not for each."""
    server.fails = lambda path: True
    point = point_of(story, "tracking=wandb", f"tracking.patience_seconds={REFUSED_S}", "tracking.mode=online")
    mirror = point.run.tracking.open(point)
    mirror.begin(next(node for node in story.nodes if node.name == "it1/policy"))
    mirror.update()
    mirror.close()
    assert capsys.readouterr().err.count("W&B cannot be reached") == 1
    found = recorded(story.folder)
    assert {one.id for one in found} == {run_id(story.folder, family) for family in FAMILIES}
    assert [len(one.history) for one in found if one.family == "train"] == [2 * STEPS]


@pytest.mark.full
@pytest.mark.parametrize("has_end", [False, True])
def test_what_comes_after_an_online_part_that_was_cut_off_just_now_is_offline(
    story: MadeUp, monkeypatch: pytest.MonkeyPatch, has_end: bool
) -> None:
    """Later rows would overtake what W&B's process had. With an end, W&B has got it all."""
    under_way(story, 0)
    process = one_run(story)
    process.begin()
    process.update()
    file = story.folder / ".wandb" / "train.json"
    state = json.loads(file.read_text())
    process.finish()
    (one,) = recorded(story.folder)
    online = one.folder.with_name(one.folder.name.removeprefix("offline-"))
    one.folder.rename(online)
    file.write_text(json.dumps(state | {"unfinished": online.name}))  # as a killed process leaves it
    while ended(online) and not has_end:
        os.truncate(online / one.file.name, (online / one.file.name).stat().st_size - 8)
    asked: list[str] = []
    monkeypatch.setattr(Opener, "_online", lambda _, place, run_id: asked.append(run_id))
    under_way(story, 2)
    update(story, mode="online")
    assert asked == [one.id] * has_end
    assert steps(recorded(story.folder)) == counted(STEPS + 2)[STEPS:]
