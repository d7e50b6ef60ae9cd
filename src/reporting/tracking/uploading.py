"""One call of `wandb sync`: bounded in time, and what it lost although it marked it as uploaded is told apart."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import IO, NamedTuple

from src.kernel.config import UserError
from src.kernel.processes import die_with_parent
from src.reporting.tracking import spool

ASKED_S = 10.0
"""That the server may take to answer when asked whether it is there."""
POLL_S = 15.0
SILENT_S = 120.0
"""That the server may be gone for during an upload; `wandb sync` itself would wait for it for hours."""
LONGEST_S, EACH_S, BYTES_S = 900.0, 60.0, 50_000
"""An upload may take so long, and so long for each run, and be so slow: a server that answers but takes nothing."""
LOST = re.compile(r"\[(?:.*/)?([^/\]]+)\] Fatal error while uploading")
"""W&B marks such a run as uploaded all the same."""
FINISHED = re.compile(r"Finished syncing .*?([^/]+)$")
"""A part is uploaded when this names its folder: on a busy machine W&B's command may end without it, as if it were."""
TOLD = {"WANDB_SILENT": "false", "WANDB_QUIET": "false"}
"""Whatever a user has set for runs: a silent command does not say what it has uploaded."""


class Said(NamedTuple):
    """By `wandb sync`: ids of W&B runs that it lost, names of folders that it is done with."""

    lost: set[str]
    finished: set[str]


def upload(ready: list[Path], server: str, again: bool) -> None:
    """`wandb sync` on all of them at once: it takes the files of one run in the order in which they were begun."""
    command = [sys.executable, "-m", "wandb", "sync", "--include-online", *["--include-synced"] * again]
    limit = LONGEST_S + EACH_S * len(ready) + spool.size(ready) / BYTES_S
    environment = {name: value for name, value in os.environ.items() if name != "WANDB_MODE"} | TOLD
    environment.setdefault("WANDB_DIR", tempfile.gettempdir())  # for a log, else in the folder where somebody is
    said = Said(set(), set())
    with subprocess.Popen(
        [*command, *map(str, ready)],
        env=environment,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        preexec_fn=die_with_parent,
        start_new_session=True,  # W&B's service is its child and ends with it
    ) as process:
        echo = threading.Thread(target=_echo, args=(process.stderr, said), daemon=True)
        echo.start()
        try:
            _await(process, server, limit)
        finally:
            _kill(process)
            echo.join()
            _unmark(ready, said)
    if process.returncode:
        raise UserError("sync: `wandb sync` failed, and says why above; the same command tries again")


def _echo(lines: IO[str], said: Said) -> None:
    for line in lines:
        print(line, end="", file=sys.stderr, flush=True)
        if found := LOST.search(line):
            said.lost.add(found[1])
        elif found := FINISHED.search(line.rstrip()):
            said.finished.add(found[1])


def _await(process: subprocess.Popen[str], server: str, limit: float) -> None:
    begun = answered = time.monotonic()
    while True:
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=POLL_S)
            return
        now = time.monotonic()
        if reachable(server):
            answered = now
        if now - answered > SILENT_S:
            raise UserError(f"sync: {server} does not answer any more; all is kept, the same command goes on from here")
        if now - begun > limit:
            raise UserError(f"sync: not done in {limit:.0f} s; all is kept, the same command goes on from here")


def _kill(process: subprocess.Popen[str]) -> None:
    """With all that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, 9)
    process.wait()


def _unmark(ready: Iterable[Path], said: Said) -> None:
    for place in ready:
        if spool.run_id(place) in said.lost or place.name not in said.finished:
            for mark in place.glob(f"*{spool.SYNCED}"):
                mark.unlink()


def reachable(server: str) -> bool:
    """Any answer will do."""
    import requests

    try:
        requests.get(server, timeout=ASKED_S, stream=True).close()
        return True
    except requests.RequestException:
        return False
