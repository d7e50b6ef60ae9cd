"""What a run does beside making artifacts"""

from __future__ import annotations

import os
import threading
import traceback
from pathlib import Path

import pytest
from tiny_run import ROOT, call, tiny

from src.generation.stage import Generate
from src.kernel.config import UserError
from src.kernel.store import Store
from src.launch import runner
from src.launch.runner import repeated


def test_something_is_repeated_while_a_stage_works_and_not_after(monkeypatch: pytest.MonkeyPatch) -> None:
    """An artifact that moves while it is looked at ends nothing."""
    monkeypatch.setattr(runner, "WATCH_S", 0.001)
    seen, enough, before = [], threading.Event(), threading.active_count()

    def look() -> None:
        seen.append(threading.current_thread().name)
        if len(seen) > 3:
            enough.set()
        raise FileNotFoundError

    with repeated(look):
        assert enough.wait(60)
    assert threading.active_count() <= before, "its thread has ended"
    assert set(seen).isdisjoint({threading.current_thread().name})


def test_a_failing_stage_ends_the_repetition_too(monkeypatch: pytest.MonkeyPatch) -> None:
    before = threading.active_count()
    with pytest.raises(ValueError, match="stage"), repeated(lambda: None):
        raise ValueError("stage")
    assert threading.active_count() == before


def test_a_training_that_cannot_fit_is_refused_once_the_model_is_known_and_before_any_answer(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Again at every later start, and `plan` says it; with enough memory both go on."""
    words = tiny(llama, tmp_path, "iter=1", "hardware.devices.memory_gb=0.00001")
    assert call("plan", *words) == 0
    assert "training: memory is known once base/policy is made" in capsys.readouterr().out
    for again in (words, words, ["plan", *words]):
        assert call(*again) == 2
        shown = capsys.readouterr().err
        assert "error: hardware.devices: expected peak of a device" in shown and "Traceback" not in shown
    assert sorted(p.name for p in (tmp_path / "store").iterdir() if not p.name.startswith(".")) == ["policy", "prompts"]
    assert call("plan", *words[:-1]) == 0
    assert "training: expected peak of a device" in capsys.readouterr().out


def test_a_job_that_shows_the_run_folder_beats_there(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a command beside it would take the folder for given up."""
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
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All of them are ours: Hydra has composed before."""
    frames: list[traceback.FrameSummary] = []

    def answer(self: Generate, *inputs: Path, out: Path) -> None:
        frames.extend(traceback.extract_stack()[:-1])
        raise UserError("enough")

    monkeypatch.setattr(Generate, "__call__", answer)
    assert call(*tiny(llama, tmp_path, "iter=3")) == 2
    first = next(number for number, frame in enumerate(frames) if frame.filename == str(ROOT / "src" / "main.py"))
    names = [frame.name for frame in frames[first:]]
    assert names[0] == "main" and frames[-1].line == "node.stage(*map(self.path, node.inputs), out=out)"
    assert len(names) <= 8 and all(frame.filename.startswith(f"{ROOT}/src") for frame in frames[first:]), names
