"""`sync`: what W&B has not seen is uploaded by W&B's own command, bounded in time, and what went wrong is one line.

A real `wandb sync` uploads real files of W&B to a stand-in of its server.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from sync_runs import FIRST, SECOND, key, recorded, runs, server, uploaded, waiting, words  # noqa: F401
from wandb_server import KEY, WandbServer, history

from src.config import UserError
from src.tracking import spool, uploading
from src.tracking import sync as module
from src.tracking.state import State
from src.tracking.sync import sync

# ruff: noqa: F811


@pytest.mark.full
def test_all_of_a_run_is_uploaded_in_order_and_once(
    server: WandbServer, key: None, runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """WANDB_MODE=offline is for runs. Called again it uploads nothing, and only asks for what is not linked."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    linked: list[list[Path]] = []
    monkeypatch.setattr(module, "link", lambda folders, *_: linked.append(list(folders)) or ["a: used b"])
    assert sync(words(runs)) == 0
    assert [(row["_step"], row["loss"]) for row in history(server)] == [(0, 0.5), (1, 1.5)]
    assert waiting(runs) == []
    out = capsys.readouterr().out
    assert "uploading: 2 parts of W&B runs" in out and "lineage: a: used b" in out
    asked = len(history(server))
    assert sync(words(runs)) == 0
    assert len(history(server)) == asked
    assert linked == [[runs / "one"]] * 2
    assert "uploading: 0 parts of W&B runs" in capsys.readouterr().out
    assert sync(words(runs, "delete=true")) == 0
    assert list(runs.glob("one/wandb/*run-*")) == []
    assert "removed: 2 parts of W&B runs" in capsys.readouterr().out
    assert (runs / "one" / ".wandb" / "train.json").exists()


@pytest.mark.full
def test_the_real_interface_tells_a_run_that_is_not_there(
    server: WandbServer, key: None, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """W&B's own client asks, not a stand-in; the stand-in of the server knows no run."""
    for place in runs.glob("one/wandb/*"):
        shutil.rmtree(place)
    artifact = runs / "one" / "artifacts" / "it1" / "policy"
    artifact.mkdir(parents=True)
    (artifact / "record.json").write_text(json.dumps({"key": "aa", "kind": "policy", "inputs": [], "files": {}}))
    assert sync(words(runs)) == 0
    assert "lineage: me/p/one-id: not at W&B yet" in capsys.readouterr().out


@pytest.mark.full
def test_what_w_and_b_lost_is_not_taken_for_uploaded(
    server: WandbServer, key: None, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W&B gives up, and marks the run as uploaded."""
    monkeypatch.setenv("WANDB__FILE_STREAM_RETRY_MAX", "1")
    monkeypatch.setenv("WANDB__FILE_STREAM_RETRY_WAIT_MAX_SECONDS", "0.1")
    monkeypatch.setattr(module, "link", lambda *_: [])
    server.fails = lambda path: path.endswith("file_stream")
    with pytest.raises(UserError, match="2 of 2 were not uploaded"):
        sync(words(runs))
    assert waiting(runs) == [FIRST, SECOND]
    server.fails = lambda path: False
    assert sync(words(runs)) == 0
    assert waiting(runs) == []


def test_what_w_and_b_says_nothing_of_is_not_taken_for_uploaded(
    server: WandbServer, key: None, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a busy machine its command has ended well, with every mark and not a word of what it lost."""
    silent = tmp_path / "silent"
    silent.write_text(
        '#!/bin/sh\nfor folder; do [ -d "$folder" ] && touch "$folder/run-one-id.wandb.synced"; done; :\n'
    )
    silent.chmod(0o755)
    monkeypatch.setattr(module, "link", lambda *_: [])
    with monkeypatch.context() as patch, pytest.raises(UserError, match="2 of 2 were not uploaded"):
        patch.setattr("sys.executable", str(silent))
        sync(words(runs))
    assert waiting(runs) == [FIRST, SECOND]


@pytest.mark.full
def test_a_server_that_goes_away_meanwhile_ends_it_in_bounded_time(
    server: WandbServer, key: None, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`wandb sync` would try for hours."""
    monkeypatch.setattr(uploading, "POLL_S", 0.2)
    monkeypatch.setattr(uploading, "SILENT_S", 3.0)
    answers = iter([True])
    monkeypatch.setattr(uploading, "reachable", lambda _: next(answers, False))
    server.fails = lambda path: path == "/graphql"
    with pytest.raises(UserError, match="does not answer any more; all is kept"):
        sync(words(runs))
    assert waiting(runs) == [FIRST, SECOND]


@pytest.mark.full
def test_a_server_that_answers_and_takes_nothing_ends_it_too(
    server: WandbServer, key: None, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploading, "POLL_S", 0.2)
    monkeypatch.setattr(uploading, "LONGEST_S", 1.0)
    monkeypatch.setattr(uploading, "EACH_S", 0.5)
    server.fails = lambda path: path == "/graphql"
    with pytest.raises(UserError, match="not done in 2 s; all is kept"):
        sync(words(runs))
    assert waiting(runs) == [FIRST, SECOND]


def test_without_a_key_it_is_one_line_and_nothing_changes(server: WandbServer, runs: Path) -> None:
    before = sorted(runs.rglob("*"))
    with pytest.raises(UserError, match="not logged in to W&B; `wandb login`"):
        sync(words(runs))
    assert server.asked == [] and [path for path in sorted(runs.rglob("*")) if path.name != module.LOCK] == before


def test_a_key_in_netrc_is_one(server: WandbServer, runs: Path, tmp_path: Path) -> None:
    from urllib.parse import urlsplit

    host = urlsplit(server.url).netloc
    (tmp_path / "netrc").write_text(f"machine {host}\n  login user\n  password {KEY}\n")
    (tmp_path / "netrc").chmod(0o600)
    assert module._server() == server.url


def test_a_server_that_does_not_answer_is_one_line_at_once(
    server: WandbServer, key: None, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is started for it."""
    server.shutdown()
    server.server_close()
    monkeypatch.setattr(module, "upload", lambda *_: pytest.fail("W&B was called"))
    with pytest.raises(UserError, match="does not answer; all is kept, the same command tries again"):
        sync(words(runs))
    assert waiting(runs) == [FIRST, SECOND]


def test_a_dry_run_needs_no_key_and_uploads_nothing(
    server: WandbServer, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(runs.rglob("*"))
    assert sync(words(runs, "dry_run=true")) == 0
    out = capsys.readouterr().out
    assert FIRST in out and SECOND in out and "would upload: 2 parts of W&B runs" in out
    assert sorted(runs.rglob("*")) == before and server.asked == []


def test_nothing_to_upload_and_nothing_to_link_asks_nobody(
    server: WandbServer, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(runs / "one" / "wandb")
    shutil.rmtree(runs / "one" / ".wandb")
    assert sync(words(runs)) == 0
    assert "to upload: 0 parts of W&B runs" in capsys.readouterr().out
    assert server.asked == []


def test_a_run_that_is_being_written_is_left_for_the_next_time(
    server: WandbServer, key: None, runs: Path, uploaded: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Its family's lock is held; another family's run in the same folder is uploaded."""
    other = runs / "one" / "wandb" / "offline-run-20260101_000003-two-id"
    other.mkdir()
    shutil.copy(runs / "one" / "wandb" / FIRST / "run-one-id.wandb", other / "run-two-id.wandb")
    state = dataclasses.asdict(State("two-id", "p", None, "plan"))
    (runs / "one" / ".wandb" / "rank.json").write_text(json.dumps(state))
    (runs / "one" / ".wandb" / "rank.lock").touch()
    with FileLock(runs / "one" / ".wandb" / "train.lock"):
        sync(words(runs, "delete=true"))
    assert uploaded == [other.name]
    assert capsys.readouterr().out.count("left for later") == 2
    sync(words(runs))
    assert uploaded == [other.name, FIRST, SECOND]


def test_a_file_that_w_and_b_has_not_ended_yet_is_left_too(
    server: WandbServer, key: None, runs: Path, uploaded: list[str]
) -> None:
    """W&B's own process ends it when ours has already gone."""
    file = runs / "one" / "wandb" / SECOND / "run-one-id.wandb"
    file.write_bytes(file.read_bytes()[:-3])
    sync(words(runs))
    assert uploaded == [FIRST]


def test_two_uploads_at_once_are_one(
    server: WandbServer, key: None, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, end = threading.Event(), threading.Event()

    def upload(*_: Any) -> None:
        inside.set()
        end.wait(20)

    monkeypatch.setattr(module, "upload", upload)
    monkeypatch.setattr(module, "link", lambda *_: [])
    monkeypatch.setattr("wandb.Api", lambda: None)
    thread = threading.Thread(target=lambda: pytest.raises(UserError, sync, words(runs)))
    thread.start()
    assert inside.wait(20)
    with pytest.raises(UserError, match="another process uploads"):
        sync(words(runs))
    end.set()
    thread.join()


def test_an_online_run_that_wandb_gave_up_is_uploaded(
    server: WandbServer, key: None, runs: Path, uploaded: list[str]
) -> None:
    """Its file has an end, and a mark lies beside it; the other one went through."""
    for name in (FIRST, SECOND):
        place = runs / "one" / "wandb" / name
        place.rename(place.with_name(name.removeprefix("offline-")))
    spool.mark_unsent(runs / "one" / "wandb" / FIRST.removeprefix("offline-"))
    sync(words(runs))
    assert uploaded == [FIRST.removeprefix("offline-")]


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("dryrun=true", "dryrun=true is none of runs=, dry_run=, again=, delete="),
        ("now", "now is none of runs="),
        ("dry_run=yes", "dry_run is true or false, not yes"),
        ("runs=a runs=b", "runs is given twice; several by commas"),
        ("dry_run=true dry_run=false", "dry_run is given twice"),
    ],
)
def test_words_that_mean_nothing_are_refused(word: str, line: str) -> None:
    with pytest.raises(UserError, match=line):
        sync(word.split())


def test_runs_that_are_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="runs: "):
        sync([f"runs={tmp_path}/*"])
