"""`sync` beside states that are damaged, lost, unfinished or not ours to write."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from sync_runs import FIRST, SECOND, key, recorded, runs, server, uploaded, waiting, words  # noqa: F401
from wandb_server import WandbServer

from src.config import UserError
from src.tracking.spool import ended, places
from src.tracking.state import State, states
from src.tracking.sync import sync

# ruff: noqa: F811

WHOLE: dict[str, Any] = {"id": "one-id", "project": "p", "entity": "me", "plan": "plan"}


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"\xff", json.dumps(WHOLE | {"artifacts": []}).encode(), json.dumps({"id": "x"}).encode(), None],
)
def test_a_damaged_state_leaves_out_its_folder_and_no_other(
    server: WandbServer,
    key: None,
    runs: Path,
    uploaded: list[str],
    content: bytes | None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """None: a folder in its place."""
    shutil.copytree(runs / "one", runs / "two")
    file = runs / "two" / ".wandb" / "train.json"
    file.unlink()
    file.write_bytes(content) if content is not None else file.mkdir()
    for word in ("dry_run=true", "delete=true"):
        with pytest.raises(
            UserError, match=f"sync: 1 of 2 run folders left out: {runs / 'two'}; the reasons are above"
        ):
            sync(words(runs, word))
        out = capsys.readouterr().out
        assert (
            f"left out: {file}: damaged; the run's next start" in out
            and "upload: 2 parts of W&B runs" in out.replace("ing", "")
        )
    assert uploaded == [FIRST, SECOND] and waiting(runs) == [], "and those were removed"
    assert len(list(runs.glob("two/wandb/*"))) == 2


def test_a_state_without_what_came_before_is_whole(server: WandbServer, runs: Path) -> None:
    (runs / "one" / ".wandb" / "train.json").write_text(json.dumps(WHOLE))
    assert sync(words(runs, "dry_run=true")) == 0
    assert [run.past for run in states(runs / "one")["train"]] == [[]]


@pytest.mark.parametrize("lost", [False, True])
def test_what_only_w_and_b_s_file_tells_is_not_removed(
    server: WandbServer, key: None, runs: Path, uploaded: list[str], lost: bool
) -> None:
    """A process was killed, or the state was lost: the next start reads it."""
    file = runs / "one" / ".wandb" / "train.json"
    state = State("one-id", "p", "me", "plan")
    state.open(SECOND)
    file.unlink() if lost else file.write_text(json.dumps(dataclasses.asdict(state)))
    sync(words(runs, "delete=true"))
    assert uploaded == [FIRST, SECOND]
    assert [path.name for path in places(runs / "one")] == [FIRST, SECOND][not lost :]


def test_no_part_overtakes_one_whose_file_may_still_be_written(
    server: WandbServer, key: None, runs: Path, uploaded: list[str]
) -> None:
    """A process was killed a moment ago, and the next one went on offline and ended."""
    first = runs / "one" / "wandb" / FIRST
    (file,) = first.glob("*.wandb")
    whole = file.read_bytes()
    while ended(first):
        os.truncate(file, file.stat().st_size - 8)
    sync(words(runs))
    assert uploaded == []
    file.write_bytes(whole)
    sync(words(runs))
    assert uploaded == [FIRST, SECOND]


def test_a_dry_run_looks_at_locks_that_it_may_only_read(
    server: WandbServer, runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, opened = runs / "one" / ".wandb" / "train.lock", os.open
    lock.touch()

    def denied(path: Any, flags: int, *more: Any, **named: Any) -> int:
        if Path(path) == lock and flags & (os.O_RDWR | os.O_WRONLY):
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, flags, *more, **named)

    with FileLock(lock), monkeypatch.context() as patch:
        patch.setattr(os, "open", denied)
        sync(words(runs, "dry_run=true"))
        assert capsys.readouterr().out.count("left for later") == 2
    monkeypatch.setattr(os, "open", denied)
    sync(words(runs, "dry_run=true"))
    assert "would upload: 2 parts of W&B runs" in capsys.readouterr().out
    lock.unlink()
    lock.mkdir()
    with pytest.raises(UserError, match=r"sync: cannot read .*train.lock \(Is a directory\); are these runs yours"):
        sync(words(runs, "dry_run=true"))
