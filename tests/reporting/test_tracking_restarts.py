"""A W&B run that goes on is the same run: no step doubled, none left out, one process at a time."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from made_up_run import STEPS, MadeUp, made_up, write_artifact
from tiny_run import ROOT, tiny, typed
from wandb_files import UNTIDY, Recorded, one_run, point_of, recorded, wandb_home  # noqa: F401

from src.artifact import WORK, Node
from src.config import Stopped
from src.tracking.metrics import METRICS
from src.tracking.state import RUNS, run_id, states
from src.tracking.wandb_runs import Families, WandB

KINDS = ("reference", "policy")
pytestmark = [pytest.mark.usefixtures("wandb_home"), UNTIDY]


@pytest.fixture
def story(wandb_home: Path) -> MadeUp:  # noqa: F811
    return made_up(wandb_home)


def under_way(story: MadeUp, steps: int, name: str = "it2/policy", seconds: float = 0.0) -> None:
    """A training that has made some of its steps, and is not finished."""
    (node,) = [node for node in story.nodes if node.name == name]
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
    """Two updates of one process, then two of another; a training under way is rows already."""
    for shown in ((0, 1), (1, 3)):
        process = one_run(story)
        for made in shown:
            under_way(story, made)
            process.update()
            process.update()
    found = recorded(story.folder)
    assert {one.id for one in found} == {run_id(story.folder, "train")}
    assert steps(found) == counted(STEPS + 3)


def test_a_run_with_nothing_new_opens_no_run(story: MadeUp) -> None:
    for _ in range(2):
        update(story)
    assert len(recorded(story.folder)) == 1


@pytest.mark.full
def test_a_step_made_again_after_a_kill_is_the_step_that_was_shown(story: MadeUp) -> None:
    """Other last digits at another speed, and fewer rows for a while: the checkpoint was older than the last row."""
    for made, seconds in ((2, 1.0), (1, 2.0), (3, 2.0)):
        under_way(story, made, seconds=seconds)
        update(story)
    first, second = recorded(story.folder)
    assert first.id == second.id and steps([first, second]) == counted(STEPS + 3)
    assert second.history[0]["train/speed/seconds"] == 2.0


@pytest.mark.full
def test_another_experiment_in_the_same_folder_is_another_run(story: MadeUp, wandb_home: Path) -> None:  # noqa: F811
    """Another eta: rows that look alike, of another artifact. Fewer rows, as after a lost one: the same run still.

    The first one finds its own run again, and what both have shown can be linked.
    """
    other = typed(*tiny(Path("nowhere"), wandb_home, "iter=1", "method.eta=5")).nodes()
    for node in other:
        if not story.store.has(node):
            write_artifact(story.store.path(node), node.name, "", "", {})
    for nodes in (None, other, other, None, other):
        update(story, nodes=nodes)
    first, second = recorded(story.folder)
    old, last = states(story.folder)["train"]
    assert (old.id, last.id) == (first.id, second.id)
    shown = {kind: {run.id for run in (old, last) if any(kind in name for name in run.artifacts)} for kind in KINDS}
    assert shown == dict.fromkeys(KINDS, {first.id, second.id})
    assert [first.id, second.id] == [run_id(story.folder, "train", number) for number in (0, 1)]
    assert (steps([first]), steps([second])) == (counted(2 * STEPS), counted(STEPS))


@pytest.mark.full
def test_a_stage_of_another_experiment_begins_in_a_run_of_its_own(story: MadeUp, wandb_home: Path) -> None:  # noqa: F811
    """Before it has a row: W&B's figures of the machine, and its name, are not the first one's."""
    update(story)
    update(story, nodes=typed(*tiny(Path("nowhere"), wandb_home, "iter=3")).nodes())
    other = typed(*tiny(Path("nowhere"), wandb_home, "iter=1", "method.eta=5")).nodes()
    mirror = one_run(story, nodes=other)
    mirror.begin()
    mirror.finish()
    assert [one.id for one in recorded(story.folder)] == [run_id(story.folder, "train", number) for number in (0, 1)]


@pytest.mark.full
def test_another_project_is_shown_everything(story: MadeUp) -> None:
    for project in ("tests", "tests", "other", "tests"):
        update(story, project=project)
    found = recorded(story.folder)
    assert [one.run["project"] for one in found] == ["tests", "other"]
    assert steps(found) == counted(2 * STEPS) * 2


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


@pytest.mark.full
@pytest.mark.parametrize("before", ["", "process.run.finish()"])
def test_a_killed_process_takes_with_it_what_wandb_had_not_written_and_that_is_shown_again(
    story: MadeUp,
    wandb_home: Path,  # noqa: F811
    before: str,
) -> None:
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
    assert len(found[0].history) == (STEPS + 2 if before else 0)
    made = {node.key for node in story.nodes if node.name in ("it1/reference", "it1/policy", "it2/reference")}
    assert made <= {alias for one in found for each in one.of("artifact") for alias in each["aliases"]}


@pytest.mark.full
@pytest.mark.parametrize("logged", [True, False])
def test_a_signal_between_a_row_and_its_note_neither_doubles_nor_loses_it(
    story: MadeUp, logged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = one_run(story)
    process.begin()
    log = process._log

    def interrupted(row: dict[str, Any]) -> None:
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
    assert steps(recorded(story.folder)) == counted(2 * STEPS)


@pytest.mark.full
def test_where_the_file_of_a_killed_process_is_gone_the_note_counts(story: MadeUp) -> None:
    """It was uploaded, and removed."""
    under_way(story, 0)
    process = one_run(story)
    process.begin()
    process.update()
    state = (story.folder / ".wandb" / "train.json").read_text()
    process.finish()
    recorded(story.folder)
    (story.folder / ".wandb" / "train.json").write_text(state)  # as a killed process leaves it
    shutil.rmtree(story.folder / RUNS)
    under_way(story, 2)
    update(story)
    assert steps(recorded(story.folder)) == counted(STEPS + 2)[STEPS:]


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
    FileLock(process.place.lock).acquire(timeout=0).lock.release()


OFFLINE = WandB(project="tests", entity=None, mode="offline", group=None, patience_seconds=5.0, spool_gb=1.0)


@pytest.mark.full
def test_the_run_of_a_stage_is_open_while_it_works_and_no_other(story: MadeUp) -> None:
    """Opened before it, so that what W&B measures of the machine is the stage's; others are opened for their rows."""
    mirror = OFFLINE.open(point_of(story))
    assert isinstance(mirror, Families)
    by_name = {node.name: node for node in story.nodes}
    opened: dict[str, set[str]] = {}
    for name in ("base/policy", "it1/responses", "it1/policy", "it2/prompts", "base/answers"):
        mirror.begin(by_name[name])
        first = {family for family, one in mirror.runs.items() if one.run}
        mirror.update()
        opened[name] = {family for family, one in mirror.runs.items() if one.run}
        assert first == opened[name]
    mirror.close()
    assert not [one for one in mirror.runs.values() if one.run or one.lock.is_locked]
    assert opened == {
        "base/policy": set(),
        "it1/responses": {"generate"},
        "it1/policy": {"train"},
        "it2/prompts": {"generate"},
        "base/answers": {"evaluate"},
    }
    found = recorded(story.folder)
    families = [one.family for one in found]
    assert families == ["generate", "rank", "train", "evaluate", "generate", "train", "generate", "evaluate"]
    assert all(one.of("exit")[0].get("exit_code", 0) == 0 for one in found)
    assert any(one.of("stats") for one in found), "W&B measures the machine"


@pytest.mark.full
@pytest.mark.parametrize(
    ("error", "code", "preempted"),
    [(ValueError("x"), 1, 0), (Stopped(signal.SIGTERM), 143, 0), (Stopped(signal.SIGUSR1), 138, 1)],
)
def test_what_ends_a_run_is_what_wandb_is_told(story: MadeUp, error: BaseException, code: int, preempted: int) -> None:
    mirror = OFFLINE.open(point_of(story))
    (node,) = [node for node in story.nodes if node.name == "it1/policy"]
    with pytest.raises(type(error)):
        try:
            mirror.begin(node)
            raise error
        finally:
            mirror.close()
    (one,) = recorded(story.folder)
    assert one.of("exit")[0]["exit_code"] == code
    assert len(one.of("preempting")) == preempted
