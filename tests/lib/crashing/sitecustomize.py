"""Imported by every interpreter whose PYTHONPATH names this folder: notes what it writes in a folder, and
crashes there.

CRASH_PLACE   the folder
CRASH_LOG     a file that gets a line an event, of all processes: what is done to which path
CRASH_AT      `<text> <n> <delay>`: the n-th event from the first one on whose path holds the text ends the command, so
              many seconds later (or one after it, where several processes write); none where it is unset
CRASH_SIGNAL  what the process group gets; default SIGKILL
"""

import os
import signal
import sys
import threading

PLACE, LOG = os.environ.get("CRASH_PLACE"), os.environ.get("CRASH_LOG")
MOVES = ("os.rename", "os.link", "os.symlink")
WRITES = (*MOVES, "open", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.utime")
group = int(os.environ.setdefault("CRASH_GROUP", str(os.getpgid(0))))


def watch(event: str, told: tuple) -> None:
    if event not in WRITES:
        return
    if event == "open" and not (isinstance(told[2], int) and told[2] & (os.O_WRONLY | os.O_RDWR)):
        return
    path = told[1] if event in MOVES else told[0]
    path = os.fsdecode(path) if isinstance(path, (str, bytes, os.PathLike)) else ""
    if path.startswith(f"{PLACE}/"):  # the log may begin like it
        note(f"{event} {path[len(PLACE) + 1 :]}\n".encode())


def note(line: bytes) -> None:
    """Append it; the number of lines is what all processes count by."""
    handle = os.open(LOG, os.O_RDWR | os.O_APPEND | os.O_CREAT)
    try:
        os.write(handle, line)
        if at := os.environ.get("CRASH_AT"):
            crash_at(handle, *at.split(" "))
    finally:
        os.close(handle)


def crash_at(handle: int, text: str, n: str, delay: str) -> None:
    lines = os.pread(handle, os.fstat(handle).st_size, 0).decode().splitlines()
    first = next((number for number, line in enumerate(lines) if text in line), None)
    if first is not None and len(lines) - first >= int(n):
        threading.Timer(float(delay), crash).start() if float(delay) else crash()


def crash() -> None:
    """Once: who was stopped may wake."""
    try:
        os.close(os.open(f"{LOG}.crashed", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    os.killpg(group, int(os.environ.get("CRASH_SIGNAL", signal.SIGKILL)))


if PLACE and LOG:
    sys.addaudithook(watch)
