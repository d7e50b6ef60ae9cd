"""Training that is stopped or killed and started again ends as if nothing had happened, bit for bit."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_training import metrics_of, train_stage, write_reference

from src.artifact import WORK
from src.config import Stopped, UserError
from src.records import SPEED
from src.training import trainer as trainer_module
from src.training.checkpoints import WHOLE, latest_checkpoint
from src.training.deepspeed import DeepSpeed
from src.training.stage import Train

pytestmark = pytest.mark.full

ROOT = Path(__file__).parents[2]
PAIRS = 11
RESULT = ("model.safetensors", "metrics.jsonl")
AT_EVERY_STEP = 1e-6  # minutes between checkpoints

SCRIPT = f"""
import sys; sys.path[:0] = ["tests/lib", "tests"]
from pathlib import Path
from src.config import Stopped, UserError
from src.records import SPEED
from test_trainer_resume import long_stage
reference, policy, out = map(Path, sys.argv[1:])
try: long_stage(save_minutes={AT_EVERY_STEP})(reference, policy, out=out)
except Stopped as stopped: sys.exit(stopped.exit_code)
"""


def short_stage(**changes: Any) -> Train:
    """Two epochs of 6 steps: 22 packed rows of a pair, the last step of an epoch has one instead of two."""
    return train_stage(batch_pairs=2, row_tokens=1, epochs=2, schedule_epochs=3, warmup=0.1, **changes)


def long_stage(**changes: Any) -> Train:
    """66 steps: long enough to be hit from outside."""
    return train_stage(batch_pairs=1, epochs=6, schedule_epochs=6, optimizer="adamw", **changes)


def result(out: Path) -> dict[str, bytes]:
    """The bytes of the weights, and the metrics without those of the clock."""
    rows = [{k: v for k, v in row.items() if not k.startswith(SPEED)} for row in metrics_of(out)]
    return {"weights": (out / RESULT[0]).read_bytes(), "metrics": json.dumps(rows).encode()}


@pytest.fixture(scope="module")
def reference(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_reference(tmp_path_factory.mktemp("reference"), llama, PAIRS)


@pytest.fixture(scope="module")
def uninterrupted(reference: Path, llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("uninterrupted")
    short_stage()(reference, llama, out=out)
    return result(out)


class Passes:
    """Counts forward passes and sends this process a signal during number `at`."""

    def __init__(self, at: int = 0, number: int = signal.SIGTERM) -> None:
        self.count, self.at, self.number = 0, at, number
        self.pair_up = trainer_module.pair_up

    def __call__(self, *args: Any) -> Any:
        self.count += 1
        if self.count == self.at:
            os.kill(os.getpid(), self.number)
        return self.pair_up(*args)


Go = Callable[..., dict[str, bytes]]


@pytest.fixture
def go(reference: Path, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Go:
    """Run the short stage, always in the same folder; on its own it saves after every `save_minutes`."""

    def run(passes: Passes, save_minutes: float = 60.0) -> dict[str, bytes]:
        with monkeypatch.context() as patch:
            patch.setattr(trainer_module, "pair_up", passes)
            short_stage(save_minutes=save_minutes)(reference, llama, out=tmp_path)
        return result(tmp_path)

    return run


def test_checkpoints_on_the_way_change_nothing(go: Go, uninterrupted: dict[str, bytes]) -> None:
    assert go(whole := Passes(), save_minutes=AT_EVERY_STEP) == uninterrupted
    assert whole.count == 2 * PAIRS


@pytest.mark.parametrize(
    ("number", "at", "done"),
    [(signal.SIGTERM, at, done) for at, done in ((1, 2), (11, 11), (12, 13), (22, 22))] + [(signal.SIGUSR1, 7, 8)],
)
def test_a_signal_lets_the_step_finish_and_the_next_run_goes_on_from_there(
    number: int, at: int, done: int, go: Go, tmp_path: Path, uninterrupted: dict[str, bytes]
) -> None:
    """In the first step, in the middle, at the end of an epoch and after it, and in the very last step."""
    before = signal.getsignal(number)
    with pytest.raises(Stopped) as stopped:
        go(first := Passes(at, number))
    assert stopped.value.exit_code == 128 + number
    assert first.count == done
    assert signal.getsignal(number) == before
    assert not any((tmp_path / name).exists() for name in RESULT)
    assert go(second := Passes()) == uninterrupted
    assert second.count == 2 * PAIRS - done


def test_stopped_again_and_again_it_still_arrives(go: Go, uninterrupted: dict[str, bytes]) -> None:
    for _ in range(3):
        with pytest.raises(Stopped):
            go(Passes(at=3))
    assert go(Passes()) == uninterrupted


def test_a_torn_checkpoint_is_passed_over(go: Go, tmp_path: Path, uninterrupted: dict[str, bytes]) -> None:
    """A kill while checkpoint 5 was written: no marker, half a file. Checkpoint 4, of 8 rows, is whole."""
    with pytest.raises(Stopped):
        go(Passes(at=9), save_minutes=AT_EVERY_STEP)
    torn, work = tmp_path / WORK / "checkpoint-5", tmp_path / WORK
    (torn / WHOLE).unlink()
    os.truncate(torn / "model.safetensors", 100)
    (work / "checkpoint-99").mkdir()
    assert latest_checkpoint(work) == str(work / "checkpoint-4")
    assert not torn.exists()
    assert go(second := Passes()) == uninterrupted
    assert second.count == 2 * PAIRS - 8


@pytest.mark.parametrize("harm", ["flip", "truncate", "delete", "sums", "no sums", "empty mark", "mark"])
def test_a_damaged_checkpoint_is_told_and_passed_over(
    harm: str, go: Go, tmp_path: Path, uninterrupted: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Stopped):
        go(Passes(at=9), save_minutes=AT_EVERY_STEP)
    newest = tmp_path / WORK / "checkpoint-5"
    file = newest / {"sums": "sums-0.json", "no sums": "sums-0.json"}.get(
        harm, WHOLE if "mark" in harm else "optimizer.pt"
    )
    whole = file.read_bytes()
    if harm == "no sums":
        (newest / "optimizer.pt").write_bytes(b"")
    if harm in ("delete", "no sums"):
        file.unlink()
    else:
        middle = len(whole) // 2
        file.write_bytes(whole[:middle] + (bytes([whole[middle] ^ 1]) + whole[middle + 1 :] if harm == "flip" else b""))
    if harm == "empty mark":
        file.write_bytes(b"")
    assert go(second := Passes()) == uninterrupted
    assert second.count == 2 * PAIRS - 8
    assert (
        f"checkpoint-5 is damaged ({'optimizer.pt' if file.name == 'optimizer.pt' else 'whole or sums'})"
        in capsys.readouterr().err
    )


def test_without_a_whole_checkpoint_training_starts_afresh(
    go: Go, tmp_path: Path, uninterrupted: dict[str, bytes]
) -> None:
    (tmp_path / WORK / "checkpoint-1").mkdir(parents=True)
    assert go(whole := Passes()) == uninterrupted
    assert whole.count == 2 * PAIRS


def test_processes_in_another_arrangement_do_not_go_on_from_a_checkpoint(
    go: Go, reference: Path, llama: Path, tmp_path: Path
) -> None:
    """DeepSpeed's files are spread over as many processes as wrote them; the progress is not thrown away either."""
    with pytest.raises(Stopped):
        go(Passes(at=3))
    zero = DeepSpeed(stage=3, offload_optimizer=False, offload_weights=False)
    with pytest.raises(UserError, match="checkpoint-2 was saved by one process, not by 2 processes under ZeRO-3"):
        short_stage(count=2, deepspeed=zero)(reference, llama, out=tmp_path)
    assert latest_checkpoint(tmp_path / WORK)


def hit(out: Path, reference: Path, policy: Path, number: int, step: int, delay: float) -> int:
    """Start the long stage in a process of its own, send it a signal `delay` seconds after a step; its exit code."""
    command = [sys.executable, "-c", SCRIPT, str(reference), str(policy), str(out)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + 120
            while latest(out) < step and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.005)
            time.sleep(delay)
            process.send_signal(number)
            return process.wait(timeout=60)
        finally:
            process.kill()


def latest(out: Path) -> int:
    """Newest step of which a whole checkpoint is seen."""
    return max((int(p.parent.name.split("-")[1]) for p in out.glob(f"{WORK}/checkpoint-*/{WHOLE}")), default=0)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_process_hit_at_a_random_moment_loses_nothing(
    number: int, code: int, reference: Path, llama: Path, tmp_path: Path
) -> None:
    """Hit twice, at moments of a seeded stream, and finished by a third run in this process."""
    (tmp_path / "whole").mkdir()
    long_stage()(reference, llama, out=tmp_path / "whole")
    chance, out = random.Random(number), tmp_path / "hit"
    for first, last in ((1, 20), (25, 45)):
        step, delay = chance.randint(first, last), chance.uniform(0, 0.05)
        assert hit(out, reference, llama, number, step, delay) == code
        assert step <= latest(out) < 66
    long_stage()(reference, llama, out=out)
    assert result(out) == result(tmp_path / "whole")
