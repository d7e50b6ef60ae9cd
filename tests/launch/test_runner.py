"""A run watches its stages, refuses what cannot fit, and shows in its folder that it lives."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import traceback
from pathlib import Path

import pytest
from places import ROOT
from tiny_run import call, tiny

from src.generation.stage import Generate
from src.kernel.config import UserError
from src.kernel.store import Store
from src.launch import runner
from src.launch.runner import repeated


def test_something_is_repeated_while_a_stage_works_and_not_after_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """An artifact that moves while it is looked at ends nothing."""
    monkeypatch.setattr(runner, "WATCH_S", 0.001)
    enough, before, threads = threading.Event(), threading.active_count(), list[str]()

    def look() -> None:
        threads.append(threading.current_thread().name)
        if len(threads) > 3:
            enough.set()
        raise FileNotFoundError

    with pytest.raises(ValueError, match="stage"), repeated(look):
        assert enough.wait(60)
        raise ValueError("stage")
    assert threading.active_count() <= before, "its thread has ended"
    assert threading.current_thread().name not in threads


def test_a_plan_says_whether_a_training_fits(llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run is refused with the same line: a row of tests/bad_inputs.md."""
    words = tiny(llama, tmp_path, "iter=1", "hardware.devices.memory_gb=0.00001")
    assert call("plan", *words) == 2
    assert "error: hardware.devices: expected peak of a device" in capsys.readouterr().err
    assert call("plan", *words[:-1]) == 0
    assert "training: expected peak of a device" in capsys.readouterr().out


KEEPING = """
import psutil
from src.kernel.processes import keep_memory, release_memory
keep_memory()
blocks, last = [b"x" * 10**7 for _ in range(20)], b"x" * 10**6
del blocks
kept = psutil.Process().memory_info().rss
release_memory()
print(kept - psutil.Process().memory_info().rss)
"""


def test_what_a_stage_has_kept_is_handed_back_before_the_next(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a process of its own, for malloc's settings last as long as it does."""
    done = subprocess.run([sys.executable, "-c", KEEPING], cwd=ROOT, capture_output=True, text=True)
    assert int(done.stdout) > 150e6, done.stderr
    events: list[str] = []
    monkeypatch.setattr(Store, "make", lambda *_: events.append("made"))
    monkeypatch.setattr(runner, "release_memory", lambda: events.append("handed back"))
    assert call(*tiny(llama, tmp_path, "iter=1"), "only=it1/prompts") == 0 and events == ["made", "handed back"]


def test_a_job_that_shows_the_run_folder_beats_there(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a command beside it would take the folder for given up."""
    beats: list[str] = []
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setattr(Store, "make", lambda *_: beats.extend(b.read_text() for b in _beats(tmp_path / "runs")))
    words = [*tiny(llama, tmp_path, "iter=1"), "launcher=allocation", "launcher.alone=true", "only=base/policy"]
    assert call(*words) == 0
    assert [f"process {os.getpid()}" in beat and "(job 77)" in beat for beat in beats] == [True]
    assert _beats(tmp_path / "runs") == []


def _beats(runs: Path) -> list[Path]:
    return list(runs.glob("*/.beat"))


def test_eight_frames_lead_from_main_to_the_call_of_a_stage(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames: list[traceback.FrameSummary] = []

    def answer(*_: object, **__: object) -> None:
        frames.extend(traceback.extract_stack()[:-1])
        raise UserError("enough")

    monkeypatch.setattr(Generate, "__call__", answer)
    assert call(*tiny(llama, tmp_path, "iter=3")) == 2
    files = [Path(frame.filename) for frame in frames]
    ours = frames[files.index(ROOT / "src" / "main.py") :]
    assert ours[0].name == "main" and len(ours) <= 8, [frame.name for frame in ours]
