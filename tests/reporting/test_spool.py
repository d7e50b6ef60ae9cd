"""The spool: what W&B has not seen yet."""

from __future__ import annotations

import os
import struct
import time
from pathlib import Path

import pytest

from src.tracking import spool
from src.tracking.spool import (
    BLOCK,
    WHOLE,
    behind,
    ended,
    full,
    mark_unsent,
    places,
    run_id,
    settled,
    size,
    unsent_of,
)

FIRST, MIDDLE, LAST = 2, 3, 4


def written(place: Path, records: list[bytes]) -> None:
    """A file in LevelDB's log format, whose checksums nobody reads here."""
    data = b":W&B" + b"\0" * 3

    def put(part: int, piece: bytes) -> None:
        nonlocal data
        data += struct.pack("<IHB", 0, len(piece), part) + piece

    for record in records:
        begun = False
        while True:
            left = BLOCK - len(data) % BLOCK
            if left < 7:
                data += b"\0" * left
                continue
            piece, record = record[: left - 7], record[left - 7 :]
            put(
                {(False, True): WHOLE, (False, False): FIRST, (True, False): MIDDLE}.get((begun, not record), LAST),
                piece,
            )
            begun = True
            if not record:
                break
    place.mkdir(parents=True, exist_ok=True)
    (place / f"run-{run_id(place)}.wandb").write_bytes(data)


def record(kind: str, filler: int = 0) -> bytes:
    from wandb.proto import wandb_internal_pb2 as proto

    found = proto.Record()  # pyright: ignore[reportAttributeAccessIssue]
    if kind == "exit":
        found.exit.exit_code = 0
    else:
        found.output_raw.line = "x" * filler
    return found.SerializeToString()


def place(folder: Path, name: str, end: bool = True, sent: bool = False, filler: int = 10) -> Path:
    found = folder / "wandb" / name
    written(found, [record("line", filler)] + [record("exit")] * end)
    if sent:
        (found / f"run-{run_id(found)}.wandb.synced").touch()
    return found


def test_offline_runs_wait_until_they_were_uploaded_and_online_ones_when_they_were_cut_off(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    waits = [
        place(one, "offline-run-20260101_000002-aa"),
        place(one, "run-20260101_000003-aa", end=False),
        place(two, "offline-run-20260101_000001-b-b", end=False),
    ]
    place(one, "offline-run-20260101_000001-aa", sent=True)
    place(one, "run-20260101_000004-aa")
    place(two, "run-20260101_000009-bb", end=False, sent=True)
    (two / "wandb" / "offline-run-20260101_000005-cc").mkdir()  # W&B had no time to write anything
    (one / "wandb" / "latest-run").symlink_to("run-20260101_000003-aa")
    (tmp_path / "sweep-2-aaaaaa").mkdir()
    assert [unsent_of(one), unsent_of(two)] == [waits[:2], waits[2:]]
    assert run_id(waits[2]) == "b-b"
    again = waits[2].rename(waits[2].with_name(f"{waits[2].name}-1"))
    assert run_id(again) == "b-b", "what W&B calls a folder whose name is taken"
    assert [path.name[-9:] for path in places(one)] == ["000001-aa", "000002-aa", "000003-aa", "000004-aa"]
    assert unsent_of(tmp_path / "nowhere") == []


def test_an_online_run_that_wandb_gave_up_waits_too(tmp_path: Path) -> None:
    gone, sent = (place(tmp_path, f"run-20260101_00000{n}-aa", sent=n == 2) for n in (1, 2))
    for each in (gone, sent):
        mark_unsent(each)
    assert unsent_of(tmp_path) == [gone]
    assert full(tmp_path.parent, 1e-9)


def test_a_run_is_behind_while_a_part_of_it_waits_that_nobody_writes_any_more(tmp_path: Path) -> None:
    place(tmp_path, "run-20260101_000001-aa")
    cut = place(tmp_path, "run-20260101_000002-aa", end=False)
    place(tmp_path, "offline-run-20260101_000003-bb")
    assert (behind(tmp_path, "aa"), behind(tmp_path, "bb")) == (False, True), "the one of aa may be ending just now"
    (file,) = cut.glob("*.wandb")
    os.utime(file, (0, 0))
    assert behind(tmp_path, "aa")
    mark_synced = cut / f"{file.name}.synced"
    mark_synced.touch()
    assert not behind(tmp_path, "aa")


@pytest.mark.parametrize("filler", [0, BLOCK - 60, BLOCK, 3 * BLOCK + 100, 3 * BLOCK - 40])
def test_the_end_is_found_wherever_it_lies(filler: int, tmp_path: Path) -> None:
    """Also where the last two blocks begin within a record."""
    assert ended(place(tmp_path, "run-20260101_000001-aa", filler=filler))
    assert not ended(place(tmp_path, "run-20260101_000002-bb", filler=filler, end=False))


def test_a_file_that_was_cut_within_a_record_has_no_end(tmp_path: Path) -> None:
    found = place(tmp_path, "run-20260101_000001-aa")
    (file,) = found.glob("*.wandb")
    file.write_bytes(file.read_bytes()[:-1])
    assert not ended(found)


def test_what_has_no_end_is_settled_once_nobody_has_touched_it_for_a_while(tmp_path: Path) -> None:
    whole, cut = (place(tmp_path, f"offline-run-20260101_00000{n}-a", end=not n) for n in range(2))
    assert settled(whole) and not settled(cut)
    (file,) = cut.glob("*.wandb")
    os.utime(file, (0, time.time() - spool.QUIET_S - 1))
    assert settled(cut)


def test_the_size_is_that_of_all_files(tmp_path: Path) -> None:
    found = place(tmp_path, "offline-run-20260101_000001-aa")
    before = size([found])
    (found / "files" / "media").mkdir(parents=True)
    (found / "files" / "media" / "x.png").write_bytes(b"x" * 1000)
    (found / "link").symlink_to(tmp_path)
    assert size([found]) - before == 1000 + (found / "link").stat().st_size
    assert size([tmp_path / "gone"]) == 0


def test_a_full_spool_is_one_line_that_says_what_helps(tmp_path: Path) -> None:
    """What was uploaded, and online runs, do not count."""
    place(tmp_path / "one", "offline-run-20260101_000001-aa", filler=600_000)
    place(tmp_path / "two", "offline-run-20260101_000001-bb", filler=600_000)
    place(tmp_path / "two", "offline-run-20260101_000002-bb", filler=600_000, sent=True)
    place(tmp_path / "two", "run-20260101_000003-bb", filler=600_000, end=False)
    assert full(tmp_path, 0.0013) is None
    line = full(tmp_path, 0.001)
    assert line is not None and "\n" not in line
    assert all(word in line for word in (str(tmp_path), "0.0012 GB", "0.001 GB", "make sync", "tracking.spool_gb"))
    assert full(tmp_path / "nowhere", 0.001) is None


def test_thousands_of_runs_cost_a_stat_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file is opened, and no folder is looked into twice."""
    runs, each = 300, 4
    for number in range(runs):
        for family in range(each):
            found = tmp_path / f"{number:03}" / "wandb" / f"offline-run-20260101_00000{family}-a{family}"
            found.mkdir(parents=True)
            (found / "run-a.wandb").touch()
    looked: list[str] = []
    scan = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: (looked.append(str(path)), scan(path))[1])
    monkeypatch.setattr(Path, "open", lambda *_: pytest.fail("a file was read"))
    assert full(tmp_path, 1.0) is None
    assert len(looked) == len(set(looked)) == 1 + runs + each * runs
