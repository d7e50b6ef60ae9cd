"""Model cards that are there already: who writes them anew, who keeps them, and what goes wrong with that."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
from made_up_cards import COMMAND, cards, written
from made_up_run import MadeUp, evaluation, made_up
from toy_stages import Copy

from src.artifact import Node
from src.attempts import locked
from src.card import write
from src.card.write import write_cards
from src.config import UserError
from src.provenance import CARD, RECORD, damage
from src.store import Store

pytestmark = pytest.mark.full


def two_runs(tmp_path: Path) -> tuple[MadeUp, MadeUp]:
    """They share their policies; the second has an evaluation of its own, which is not made yet."""
    first = made_up(tmp_path)
    run = dataclasses.replace(first.run, held_out=dataclasses.replace(first.run.held_out, confidence=0.9))
    second = first._replace(run=run, nodes=run.nodes())
    assert cards(first, 1) == cards(second, 1)
    return first, second


def make(story: MadeUp, name: str, metrics: dict[str, Any]) -> None:
    place = story.store.path(next(node for node in story.nodes if node.name == name))
    place.mkdir(parents=True, exist_ok=True)
    (place / "metrics.json").write_text(json.dumps(metrics))
    (place / RECORD).write_text('{"files": {}}')


def test_the_last_run_that_measured_a_policy_has_the_card(tmp_path: Path) -> None:
    first, second = two_runs(tmp_path)
    shown = written(first)
    assert "95% interval" in shown and "0.600" in shown
    assert written(second, "python -m src.main second") == shown, "it has not measured yet"
    make(second, "it1/evaluation", evaluation() | {"win_over_base": 0.7})
    after = written(second, "python -m src.main second")
    assert "90% interval" in after and "0.700" in after and "src.main second" in after
    assert written(first) == shown, "the last one that was carried out"


def test_a_run_with_less_measured_does_not_take_measurements_away(tmp_path: Path) -> None:
    first, second = two_runs(tmp_path)
    shown = written(first)
    make(second, "it1/evaluation", evaluation())
    for node in second.nodes:
        if node.name == "it1/divergence":
            shutil.rmtree(second.store.path(node))
    assert written(second) == shown


def test_the_card_there_is_looked_at_once_more_when_the_other_process_is_done(tmp_path: Path) -> None:
    first, second = two_runs(tmp_path)
    shown = written(first)
    cards(first, 1).unlink()
    waiting = threading.Thread(target=write_cards, args=(second.run, second.nodes, second.store, COMMAND))
    with locked(first.store.root / ".locks" / f"card-{cards(first, 1).parent.name}.lock", ""):
        waiting.start()
        waiting.join(0.5)
        assert waiting.is_alive() and not cards(first, 1).exists()
        cards(first, 1).write_text(shown)
    waiting.join(20)
    assert cards(first, 1).read_text() == shown


@pytest.mark.parametrize(
    "there", ["mine", "---\n{[\n---\n", "---\nmodel-index: x\n---\n", "---\nmodel-index: [{results: 1}]\n---\n", "\xff"]
)
def test_a_card_that_is_none_is_written_anew(there: str, tmp_path: Path) -> None:
    story = made_up(tmp_path)
    cards(story, 1).write_bytes(there.encode("latin-1"))
    assert written(story).startswith("---\nbase_model: mistralai/")


def test_a_kill_while_it_is_written_leaves_the_old_one_and_the_next_run_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    story = made_up(tmp_path)
    shown = written(story)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", killed)
        written(story, "python -m src.main again")
    assert cards(story, 1).read_text() == shown
    assert len(leftovers := [p.name for p in cards(story, 1).parent.iterdir() if p.suffix == ".tmp"]) == 1
    assert not [line for line in damage(cards(story, 1).parent) if leftovers[0] in line]
    assert "src.main again" in written(story, "python -m src.main again")
    assert [p.name for p in cards(story, 1).parent.iterdir() if p.suffix == ".tmp"] == []


def test_a_store_of_somebody_else_is_no_reason_to_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    story = made_up(tmp_path)

    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(write, "write_atomic", refuse)
    failures = write_cards(story.run, story.nodes, story.store, COMMAND)
    assert failures[0] == f"card: {cards(story, 1)} cannot be written (Permission denied); all else is there"
    assert len(failures) == 2


def test_numbers_that_cannot_be_read_are_one_line(tmp_path: Path) -> None:
    story = made_up(tmp_path)
    make(story, "it1/evaluation", {})
    place = story.store.path(next(node for node in story.nodes if node.name == "it1/evaluation"))
    (place / "metrics.json").write_text("{")
    with pytest.raises(UserError, match=r"metrics.json: cannot be read .*; delete the folder"):
        written(story)


def test_a_readme_that_a_stage_wrote_is_part_of_the_artifact(tmp_path: Path) -> None:
    story = made_up(tmp_path)
    cards(story, 1).write_text("of the stage")
    record = json.loads((cards(story, 1).with_name(RECORD)).read_text()) | {
        "files": {CARD: {"bytes": 1, "sha256": "x"}}
    }
    cards(story, 1).with_name(RECORD).write_text(json.dumps(record))
    assert written(story) == "of the stage"
    assert f"{cards(story, 1)}: damaged (sha256 differs from the record)" in damage(cards(story, 1).parent)


def test_a_card_in_a_deeper_folder_is_a_file_like_any_other(tmp_path: Path) -> None:
    store, node = Store(tmp_path), Node("x", Copy(text="x"))
    place = store.make(node)
    (place / CARD).write_text("card")
    assert damage(place) == []
    (place / "deep" / CARD).write_text("stray")
    assert damage(place) == [f"{place / 'deep' / CARD}: not in the record"]
