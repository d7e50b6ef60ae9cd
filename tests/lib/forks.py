"""Fixtures: commands and trainings in several processes, as forks of one server (forked_launch.py)."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import forked_launch
import pytest
from places import PYTHONPATH

ROOT = Path(__file__).parents[2]
PROGRAM = forked_launch.__file__


@dataclass
class Server:
    place: str
    process: subprocess.Popen[bytes]

    def wait(self) -> None:
        """Until it has imported what it imports."""
        deadline = time.monotonic() + 240
        while not os.path.exists(self.place):
            assert self.process.poll() is None, "the server of forks ended while it imported; stderr says why"
            assert time.monotonic() < deadline, "the server of forks has not imported all after 240 s"
            time.sleep(0.05)


@pytest.fixture(scope="session")
def forks() -> Iterator[Server]:
    """Started at its first use."""
    from src.kernel.processes import die_with_parent

    with tempfile.TemporaryDirectory() as place:
        env = os.environ | forked_launch.SINGLE | {"DS_ACCELERATOR": "cpu", "PYTHONPATH": PYTHONPATH}
        words = [sys.executable, PROGRAM, "serve", f"{place}/forks"]
        with subprocess.Popen(words, cwd=ROOT, env=env, preexec_fn=die_with_parent) as process:
            yield Server(f"{place}/forks", process)
            process.kill()


@pytest.fixture(scope="session")
def forking_python(forks: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program that stands in for `python -m …`: it takes no time for imports. A signal to it kills the command."""
    program = tmp_path_factory.mktemp("bin") / "python"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -S -E {PROGRAM} ask {forks.place} "$@"\n')
    program.chmod(0o755)
    forks.wait()
    return program


@pytest.fixture
def forked(forks: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings of this process in several processes are launched so."""
    from src.training import launch

    real = launch.launch_command

    def stand_in(devices: Any, job: Path) -> list[str]:
        python, *words = real(devices, job)
        assert words[:2] == ["-m", forked_launch.LAUNCHER]
        forks.wait()
        return [python, "-S", "-E", PROGRAM, "ask", forks.place, *words]

    monkeypatch.setattr(launch, "launch_command", stand_in)
