"""`sync`: what W&B has not seen is found, uploaded in order and once, and removed when nothing but a copy is left.

W&B's files are written by hand here, and nothing is uploaded; a real `wandb sync`: tests/whole/test_wandb_mirror.py.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import struct
from pathlib import Path

import pytest
from filelock import FileLock

from src.kernel.config import UserError
from src.reporting.tracking import sync as module
from src.reporting.tracking.spool import (
    BLOCK,
    WHOLE,
    behind,
    ended,
    mark_unsent,
    places,
    run_id,
    settled,
    synced,
    unsent_of,
)
from src.reporting.tracking.state import State
from src.reporting.tracking.sync import sync

PARTS = {(True, True): WHOLE, (True, False): 2, (False, False): 3, (False, True): 4}
"""Of a record in LevelDB's log format: whether a piece is its first, and whether it is its last."""
FIRST, SECOND = "offline-run-20260101_000001-one-id", "offline-run-20260101_000002-one-id"


def log(records: list[bytes]) -> bytes:
    """A file in LevelDB's log format, whose checksums nobody reads here."""
    data = b":W&B" + b"\0" * 3
    for record in records:
        begun = False
        while record or not begun:
            left = BLOCK - len(data) % BLOCK
            if left < 7:
                data += b"\0" * left
                continue
            piece, record = record[: left - 7], record[left - 7 :]
            data += struct.pack("<IHB", 0, len(piece), PARTS[not begun, not record]) + piece
            begun = True
    return data


def place(folder: Path, name: str, end: bool = True, sent: bool = False, filler: int = 10) -> Path:
    """One of W&B's folders, with a line of output of `filler` bytes and, where it has an `end`, an exit."""
    from wandb.proto import wandb_internal_pb2 as proto

    line, last = proto.Record(), proto.Record()  # pyright: ignore[reportAttributeAccessIssue]
    line.output_raw.line = "x" * filler
    last.exit.exit_code = 0
    found = folder / "wandb" / name
    found.mkdir(parents=True)
    file = found / f"run-{run_id(found)}.wandb"
    file.write_bytes(log([line.SerializeToString(), *[last.SerializeToString()] * end]))
    if sent:
        file.with_name(f"{file.name}.synced").touch()
    return found


# The spool -----------------------------------------------------------------------------------------------------------


def test_offline_runs_wait_until_they_were_uploaded_and_online_ones_when_they_were_cut_off(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    waits = [
        place(one, "offline-run-20260101_000002-aa"),
        place(one, "run-20260101_000003-aa", end=False),
        place(two, "offline-run-20260101_000001-b-b", end=False),
    ]
    place(one, "offline-run-20260101_000001-aa", sent=True)
    given_up = place(one, "run-20260101_000004-aa")
    place(two, "run-20260101_000009-bb", end=False, sent=True)
    (two / "wandb" / "offline-run-20260101_000005-cc").mkdir()  # W&B had no time to write anything
    (one / "wandb" / "latest-run").symlink_to("run-20260101_000003-aa")
    assert [unsent_of(one), unsent_of(two), unsent_of(tmp_path / "nowhere")] == [waits[:2], waits[2:], []]
    mark_unsent(given_up)
    assert unsent_of(one) == [*waits[:2], given_up]
    again = waits[2].rename(waits[2].with_name(f"{waits[2].name}-1"))
    assert run_id(again) == "b-b", "what W&B calls a folder whose name is taken"
    assert [path.name[-9:] for path in places(one)] == ["000001-aa", "000002-aa", "000003-aa", "000004-aa"]


def test_a_run_is_behind_while_a_part_of_it_waits_that_nobody_writes_any_more(tmp_path: Path) -> None:
    place(tmp_path, "run-20260101_000001-aa")
    cut = place(tmp_path, "run-20260101_000002-aa", end=False)
    place(tmp_path, "offline-run-20260101_000003-bb")
    assert (behind(tmp_path, "aa"), behind(tmp_path, "bb")) == (False, True), "the one of aa may be ending just now"
    assert not settled(cut)
    (file,) = cut.glob("*.wandb")
    os.utime(file, (0, 0))
    assert settled(cut) and behind(tmp_path, "aa")
    (cut / f"{file.name}.synced").touch()
    assert not behind(tmp_path, "aa")


def test_the_end_of_a_file_is_found_wherever_it_lies(tmp_path: Path) -> None:
    """Also where the last two blocks begin within a record; one that was cut within a record has no end."""
    for number, filler in enumerate((0, *range(BLOCK - 50, BLOCK), 3 * BLOCK + 100, 3 * BLOCK - 40)):
        whole = place(tmp_path / str(number), "run-20260101_000001-aa", filler=filler)
        assert ended(whole), filler
        assert not ended(place(tmp_path / str(number), "run-20260101_000002-bb", filler=filler, end=False)), filler
        (file,) = whole.glob("*.wandb")
        file.write_bytes(file.read_bytes()[:-1])
        assert not ended(whole), filler


# Uploads -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A run folder with two of W&B's, and the state of the family whose run they are."""
    folder = tmp_path / "runs" / "one"
    for name in (FIRST, SECOND):
        place(folder, name)
    (folder / "config.yaml").write_text("iter: 1\n")
    (folder / ".wandb").mkdir()
    remember(folder, State("one-id", "p", "me", "plan", artifacts={"policy:aa": []}, steps=2))
    return tmp_path / "runs"


def remember(folder: Path, state: State, family: str = "train") -> None:
    (folder / ".wandb" / f"{family}.json").write_text(json.dumps(dataclasses.asdict(state)))


@pytest.fixture
def uploaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of what would be uploaded, in place of uploading: marked as W&B does. Its server is there."""
    found: list[str] = []

    def upload(ready: list[Path], server: str, again: bool) -> None:
        for each in ready:
            found.append(each.name)
            (each / f"run-{run_id(each)}.wandb.synced").touch()

    for name, value in {"upload": upload, "link": lambda *_: [], "has_key": lambda: True, "server": lambda: "http://w",
                        "reachable": lambda _: True}.items():  # fmt: skip
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr("wandb.Api", lambda: None)
    return found


def waiting(runs: Path) -> list[str]:
    return [each.name for each in sorted(runs.glob("one/wandb/*run-*")) if not synced(each)]


def test_all_is_uploaded_in_order_and_once_and_then_removed(runs: Path, uploaded: list[str]) -> None:
    for _ in range(2):
        assert sync([f"runs={runs}/*"]) == 0
        assert uploaded == [FIRST, SECOND] and waiting(runs) == []
    assert sync([f"runs={runs}/*", "delete=true"]) == 0
    assert list(runs.glob("one/wandb/*run-*")) == [] and (runs / "one" / ".wandb" / "train.json").exists()


def test_without_a_key_a_server_or_anything_to_do_nothing_changes(
    runs: Path, uploaded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dry run asks for neither; while another process uploads, this one does not."""
    before = sorted(runs.rglob("*"))
    for name, said in (("has_key", "not logged in"), ("reachable", "does not answer; all is kept")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, lambda *_: False)
            with pytest.raises(UserError, match=said):
                sync([f"runs={runs}/*"])
            assert sync([f"runs={runs}/*", "dry_run=true"]) == 0
    with FileLock(runs / module.LOCK), pytest.raises(UserError, match="another process uploads"):
        sync([f"runs={runs}/*"])
    assert uploaded == [] and [path for path in sorted(runs.rglob("*")) if path.name != module.LOCK] == before


def test_a_run_that_is_being_written_is_left_for_the_next_time(runs: Path, uploaded: list[str]) -> None:
    """Its family's lock is held; another family's run in the same folder is uploaded."""
    other = place(runs / "one", "offline-run-20260101_000003-two-id")
    remember(runs / "one", State("two-id", "p", None, "plan"), "rank")
    (runs / "one" / ".wandb" / "rank.lock").touch()
    with FileLock(runs / "one" / ".wandb" / "train.lock"):
        sync([f"runs={runs}/*", "delete=true"])
    assert uploaded == [other.name]
    sync([f"runs={runs}/*"])
    assert uploaded == [other.name, FIRST, SECOND]


def test_no_part_overtakes_one_whose_file_may_still_be_written(runs: Path, uploaded: list[str]) -> None:
    """A process was killed a moment ago, and the next one went on offline and ended."""
    (file,) = (runs / "one" / "wandb" / FIRST).glob("*.wandb")
    whole = file.read_bytes()
    file.write_bytes(whole[:-3])
    sync([f"runs={runs}/*"])
    assert uploaded == []
    file.write_bytes(whole)
    sync([f"runs={runs}/*"])
    assert uploaded == [FIRST, SECOND]


def test_what_only_w_and_b_s_file_tells_is_not_removed(runs: Path, uploaded: list[str]) -> None:
    """A process was killed, or the state was lost: the next start reads it."""
    state = State("one-id", "p", "me", "plan")
    state.open(SECOND)
    remember(runs / "one", state)
    sync([f"runs={runs}/*", "delete=true"])
    assert uploaded == [FIRST, SECOND] and [path.name for path in places(runs / "one")] == [SECOND]
    (runs / "one" / ".wandb" / "train.json").unlink()
    sync([f"runs={runs}/*", "delete=true"])
    assert [path.name for path in places(runs / "one")] == [SECOND]


def test_a_damaged_state_leaves_out_its_folder_and_no_other(runs: Path, uploaded: list[str]) -> None:
    shutil.copytree(runs / "one", runs / "two")
    file = runs / "two" / ".wandb" / "train.json"
    wrong = json.dumps({"id": "one-id", "project": "p", "entity": "me", "plan": "plan", "artifacts": []})
    for damage in ("", "{", "\xff", wrong):
        file.write_bytes(damage.encode("latin-1"))
        for word in ("dry_run=true", "delete=true"):
            with pytest.raises(UserError, match=f"sync: 1 of 2 run folders left out: {runs / 'two'}"):
                sync([f"runs={runs}/*", word])
        assert uploaded == [FIRST, SECOND] and waiting(runs) == [], damage
    assert len(list(runs.glob("two/wandb/*"))) == 2


def test_what_w_and_b_s_command_says_nothing_of_is_not_taken_for_uploaded(
    runs: Path, uploaded: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a busy machine it has ended well, with every mark and not a word of what it lost. Here it is a shell's."""
    from src.reporting.tracking.uploading import upload

    silent = tmp_path / "silent"
    mark = '[ -d "$folder" ] && touch "$folder/run-one-id.wandb.synced"'
    silent.write_text(f"#!/bin/sh\nfor folder; do {mark}; done; echo Finished syncing x/{SECOND} >&2\n")
    silent.chmod(0o755)
    monkeypatch.setattr(module, "upload", upload)
    with monkeypatch.context() as patch, pytest.raises(UserError, match="1 of 2 were not uploaded"):
        patch.setattr("sys.executable", str(silent))
        sync([f"runs={runs}/*"])
    assert waiting(runs) == [FIRST]


def test_words_that_mean_nothing_are_refused(tmp_path: Path) -> None:
    for words, key in (("dryrun=true", "dryrun"), ("now", "now"), ("dry_run=yes", "dry_run"), ("runs=a runs=b", "runs"),
                       ("dry_run=true dry_run=false", "dry_run"), (f"runs={tmp_path}/*", "runs")):  # fmt: skip
        with pytest.raises(UserError, match=key):
            sync(words.split())
