"""The spool: W&B runs on disk that W&B has not seen yet, and how much room they take.

An offline run is uploaded once `wandb sync` has left a `.wandb.synced` beside its file. Of an online run nothing tells
that, but where its file has no end the process was cut off, and where W&B gave up a mark is left.
"""

from __future__ import annotations

import os
import re
import struct
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from src.reporting.tracking.state import RUNS

FILE = ".wandb"
SYNCED = ".wandb.synced"
UNSENT = ".unsent"
"""Left in the folder of an online run that the network went away from."""
OFFLINE = "offline-run-"
ONLINE = "run-"
NAME = re.compile(r"(?:offline-)?run-\d{8}_\d{6}-(.+)")
QUIET_S = 60.0
"""W&B's own process ends a file some time after ours is done; one without an end is touched no more by then."""
BLOCK = 32768
"""Bytes of a block of a `.wandb` file, which are LevelDB's: records of (crc, length, type, data)."""
HEAD = struct.Struct("<IHB")
WHOLE, FIRST, LAST = 1, 2, 4
"""Parts of a record."""


def unsent_of(folder: Path) -> list[Path]:
    """W&B's folders of a run folder that wait: offline ones that were not uploaded, online ones that were cut off."""
    return [place for place in places(folder) if _waits(place) and (_kept(place) or not ended(place))]


def behind(folder: Path, run: str, cut: str | None = None) -> bool:
    """Whether parts of a W&B run wait, which later ones must not overtake.

    `cut`: W&B's folder that a killed process left. While its file has no end it waits, however new it is.
    """
    own = (place for place in unsent_of(folder) if run_id(place) == run)
    return any(_kept(place) or place.name == cut or settled(place) for place in own)


def mark_unsent(place: Path) -> None:
    (place / UNSENT).touch()


def places(folder: Path) -> list[Path]:
    """W&B's folders of a run folder, the oldest first."""
    found = [path for path in _folders(folder / RUNS) if path.name.startswith((OFFLINE, ONLINE))]
    return sorted(found, key=lambda path: path.name.removeprefix("offline-"))


def run_id(place: Path) -> str:
    """Of the W&B run whose folder this is: its file says it, for a second folder of the same second has a suffix."""
    file = next((name for name in _names(place) if name.endswith(FILE)), None)
    if file:
        return file.removeprefix(ONLINE).removesuffix(FILE)
    name = NAME.fullmatch(place.name)
    return name[1] if name else ""


def size(found: Iterable[Path]) -> int:
    """Bytes of all files below these folders; those that vanish meanwhile count nothing."""
    return sum(map(_bytes, found))


def full(runs: Path, limit_gb: float) -> str | None:
    """One line when what W&B has not seen takes more than the limit; None where there is room."""
    waiting = (place for folder in _folders(runs) for place in places(folder) if _kept(place) and _waits(place))
    taken = size(waiting) / 1e9
    if taken <= limit_gb:
        return None
    return (
        f"W&B runs that wait below {runs} take {taken:.3g} GB, the limit is {limit_gb:g} GB; "
        "`make sync` uploads them, tracking.spool_gb raises the limit"
    )


def synced(place: Path) -> bool:
    return any(name.endswith(SYNCED) for name in _names(place))


def _waits(place: Path) -> bool:
    names = _names(place)
    return any(name.endswith(FILE) for name in names) and not any(name.endswith(SYNCED) for name in names)


def settled(place: Path) -> bool:
    """Whether W&B has written all there will be."""
    with suppress(OSError):
        return ended(place) or all(time.time() - file.stat().st_mtime > QUIET_S for file in place.glob("*.wandb"))
    return False


def ended(place: Path) -> bool:
    """Whether W&B's file of a run says how the run ended."""
    from google.protobuf.message import DecodeError
    from wandb.proto import wandb_internal_pb2 as proto

    def kind(data: bytes) -> str | None:
        record: Any = proto.Record()  # pyright: ignore[reportAttributeAccessIssue]
        try:
            record.ParseFromString(data)
        except DecodeError:  # damaged
            return None
        return record.WhichOneof("record_type")

    return any(kind(data) == "exit" for file in place.glob("*.wandb") for data in _last(file))


def _last(file: Path) -> Iterator[bytes]:
    """The records that begin in the last two blocks of a file; what is cut short or begins earlier is left out."""
    with file.open("rb") as opened:
        start = max(0, (file.stat().st_size // BLOCK - 1) * BLOCK)
        opened.seek(start)
        data = opened.read()
    position, parts = (7 if start == 0 else 0), None  # the file begins with 7 bytes of its own
    while position + HEAD.size <= len(data):
        left = BLOCK - position % BLOCK
        if left < HEAD.size:
            position += left
            continue
        _, length, part = HEAD.unpack_from(data, position)
        position += HEAD.size + length
        if part in (WHOLE, FIRST):
            parts = b""
        if parts is None or position > len(data):
            continue
        parts += data[position - length : position]
        if part in (WHOLE, LAST):
            yield parts
            parts = None


def _kept(place: Path) -> bool:
    """Whether it holds what W&B is known not to have."""
    return place.name.startswith(OFFLINE) or (place / UNSENT).exists()


def _folders(folder: Path) -> list[Path]:
    """Those in a folder that are no links; none where there is no such folder."""
    with suppress(OSError), os.scandir(folder) as found:
        return sorted(Path(entry.path) for entry in found if entry.is_dir(follow_symlinks=False))
    return []


def _names(folder: Path) -> list[str]:
    with suppress(OSError):
        return os.listdir(folder)
    return []


def _bytes(folder: Path | str) -> int:
    total = 0
    with suppress(OSError), os.scandir(folder) as found:
        for entry in found:
            with suppress(OSError):
                total += _bytes(entry.path) if entry.is_dir(follow_symlinks=False) else entry.stat().st_size
    return total
