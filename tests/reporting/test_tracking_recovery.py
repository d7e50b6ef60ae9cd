"""A state file that is lost or damaged: W&B's own files say what was shown, and no row comes twice in a W&B run."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from made_up_run import STEPS, MadeUp, made_up, write_artifact
from test_tracking_restarts import counted, steps, under_way, update
from tiny_run import tiny, typed
from wandb_files import UNTIDY, Recorded, one_run, recorded, wandb_home  # noqa: F401

from src.artifact import Node
from src.tracking.opening import Opener
from src.tracking.spool import ended
from src.tracking.state import RUNS, damage, run_id, states

pytestmark = [pytest.mark.full, pytest.mark.usefixtures("wandb_home"), UNTIDY]


@pytest.fixture
def story(wandb_home: Path) -> MadeUp:  # noqa: F811
    return made_up(wandb_home)


@pytest.fixture
def file(story: MadeUp) -> Path:
    """The state of `train`, after two openings of its W&B run."""
    for made in (0, 2):
        under_way(story, made)
        update(story)
    recorded(story.folder)  # W&B has ended
    return story.folder / ".wandb" / "train.json"


def by_id(story: MadeUp) -> dict[str, list[Recorded]]:
    found = recorded(story.folder)
    return {name: [one for one in found if one.id == name] for name in dict.fromkeys(one.id for one in found)}


@pytest.mark.parametrize("damaged", [None, b"", b'{"id": "x", "rows": ["'])
def test_what_was_shown_is_read_from_w_and_b_s_files_and_not_shown_again(
    story: MadeUp, file: Path, damaged: bytes | None, capsys: pytest.CaptureFixture[str]
) -> None:
    (before,) = states(story.folder)["train"]
    file.unlink() if damaged is None else file.write_bytes(damaged)
    assert states(story.folder) == {} and bool(damage([story.folder])) == (damaged is not None)
    under_way(story, 3)
    update(story)
    found = by_id(story)
    assert list(found) == [run_id(story.folder, "train")]
    assert steps(found[before.id]) == counted(STEPS + 3)
    (after,) = states(story.folder)["train"]
    assert after.rows[:-1] == before.rows and after.artifacts == before.artifacts and after.plan == before.plan
    aside = file.with_name("train.json.damaged")
    line = f"tracking: {file}: damaged; now train.json.damaged, and made again from W&B's files\n"
    assert capsys.readouterr().err == line * (damaged is not None)
    assert (aside.read_bytes() if aside.exists() else None) == damaged


def test_a_run_that_has_nothing_new_is_left_alone(story: MadeUp, file: Path) -> None:
    file.unlink()
    update(story)
    assert len(recorded(story.folder)) == 2 and states(story.folder)["train"][0].steps == STEPS + 2


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
    new = [(name, found) for name, found in by_id(story).items() if name != run_id(story.folder, "train")]
    ((name, found),) = new
    assert steps(found) == counted(STEPS + 2)
    assert states(story.folder)["train"][-1].id == name
    file.unlink()
    update(story)
    assert len(by_id(story)[name]) == 1, "it is found again"


@pytest.mark.parametrize("has_end", [False, True])
def test_what_comes_after_an_online_part_that_was_cut_off_just_now_is_offline(
    story: MadeUp, monkeypatch: pytest.MonkeyPatch, has_end: bool
) -> None:
    """W&B's process may have died too, and later rows would overtake what it had. With an end, W&B has got it all."""
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
    with one_run(story, mode="online")._turn():
        pass
    assert states(story.folder)["train"][0].unfinished is None, "it is recovered, and the process ends"
    under_way(story, 2)
    update(story, mode="online")
    assert asked == [one.id] * has_end
    assert steps(recorded(story.folder)) == counted(STEPS + 2)[STEPS:]


def test_each_experiment_and_each_project_finds_its_own_or_has_a_new_one(story: MadeUp, wandb_home: Path) -> None:  # noqa: F811
    other = typed(*tiny(Path("nowhere"), wandb_home, "iter=1", "method.eta=5")).nodes()
    for node in other:
        if not story.store.has(node):
            write_artifact(story.store.path(node), node.name, "", "", {})
    given: list[tuple[list[Node] | None, str]] = [(None, "p"), (other, "p"), (None, "q")]
    for nodes, project in given:
        update(story, nodes=nodes, project=project)
    recorded(story.folder)
    (story.folder / ".wandb" / "train.json").unlink()
    for nodes, project in given * 2:
        update(story, nodes=nodes, project=project)
    found = recorded(story.folder)
    runs = {(one.id, one.run["project"]): one for one in found}
    assert len(found) == len(runs) == 4, "the other experiment, which is not known as such, is shown once more"
    assert sorted(len(steps([one])) for one in found) == [STEPS, STEPS, 2 * STEPS, 2 * STEPS]


def test_an_entity_that_is_not_given_is_whichever_the_run_is_in(story: MadeUp, file: Path) -> None:
    """And one that is given goes on with a run of which that is not known yet; another one is shown everything."""
    for made, entity in ((3, "me"), (3, None), (3, "team")):
        under_way(story, made)
        update(story, entity=entity)
    found = recorded(story.folder)
    assert [one.run.get("entity") for one in found] == [None, None, "me", "team"]
    assert steps(found[:3]) == counted(STEPS + 3) == steps(found[3:])
    assert [run.entity for run in states(story.folder)["train"]] == ["me", "team"]
