"""Training that is stopped or killed and started again ends as if nothing had happened."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import ZERO, Inputs, Result, assert_same, result_of, train_stage, two, write_reference

from src.kernel.artifact import WORK
from src.kernel.config import Fault, Stopped, UserError
from src.training import trainer as trainer_module
from src.training.checkpoints import STOP, WHOLE, latest_checkpoint, mark_whole
from src.training.stage import Train

PAIRS = 11
AT_EVERY_STEP = 1e-6  # minutes between checkpoints


def short_stage(**changes: Any) -> Train:
    """Two epochs of 6 steps: 22 packed rows of a pair, the last step of an epoch has one instead of two."""
    return train_stage(batch_pairs=2, row_tokens=1, epochs=2, schedule_epochs=3, warmup=0.1, **changes)


def assert_alike(result: Result, expected: Result) -> None:
    """A state that is lost moves weights by 10 times the rate, 1e-3."""
    assert_same(result[0], expected[0], largest=2e-5, mean=1e-7)
    for row, other in zip(result[1], expected[1], strict=True):
        assert row == pytest.approx(other, rel=1e-3, abs=1e-3)


def train(inputs: Inputs, out: Path, stop_at: int = 0, **changes: Any) -> int:
    """Train, and return the number of forward passes; during pass `stop_at` the training is asked to stop."""
    count, pair_up = 0, trainer_module.pair_up

    def counted(*args: Any) -> Any:
        nonlocal count
        count += 1
        if count == stop_at:
            (out / WORK / STOP).write_text(str(int(signal.SIGTERM)))
        return pair_up(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer_module, "pair_up", counted)
        try:
            short_stage(**changes)(*inputs, out=out)
        except Stopped as stopped:
            assert stop_at and stopped.exit_code == 128 + signal.SIGTERM
    return count


@pytest.fixture(scope="module")
def inputs(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return write_reference(tmp_path_factory.mktemp("reference"), llama, PAIRS), llama


@pytest.fixture(scope="module")
def uninterrupted(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Result:
    out = tmp_path_factory.mktemp("uninterrupted")
    assert train(inputs, out) == 2 * PAIRS
    return result_of(out)


@pytest.fixture(scope="module")
def begun(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training that was stopped in its fifth step, after 10 rows; it was saved after every step."""
    out = tmp_path_factory.mktemp("begun")
    assert train(inputs, out, stop_at=9, save_minutes=AT_EVERY_STEP) == 10
    return out


@pytest.mark.parametrize(("at", "done"), [(1, 2), (12, 13), (22, 22)])
def test_a_stop_lets_the_step_finish_and_the_next_run_goes_on_from_there(
    at: int, done: int, inputs: Inputs, tmp_path: Path, uninterrupted: Result
) -> None:
    """In the first step, at the end of an epoch, and in the very last step."""
    assert train(inputs, tmp_path, stop_at=at) == done
    assert not any((tmp_path / name).exists() for name in ("model.safetensors", "metrics.jsonl"))
    assert train(inputs, tmp_path, save_minutes=AT_EVERY_STEP) == 2 * PAIRS - done
    assert_alike(result_of(tmp_path), uninterrupted)


# Damage ------------------------------------------------------------------------------------------------------------


def flip(file: Path) -> None:
    """Change one bit in the middle."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "harm", "warned"),
    [
        ("optimizer.pt", flip, True),
        ("model.safetensors", lambda file: os.truncate(file, 100), True),
        ("optimizer.pt", Path.unlink, True),
        (WHOLE, flip, True),
        (WHOLE, lambda file: os.truncate(file, 0), True),
        (WHOLE, Path.unlink, False),  # a kill while it was written
    ],
)
def test_training_goes_on_from_the_checkpoint_before_the_damaged_one(
    name: str,
    harm: Callable[[Path], None],
    warned: bool,
    begun: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    work = Path(shutil.copytree(begun / WORK, tmp_path / WORK))
    harm(work / "checkpoint-5" / name)
    (work / "checkpoint-99").mkdir()
    assert latest_checkpoint(work) == str(work / "checkpoint-4")
    assert ("checkpoint-5 is damaged" in capsys.readouterr().err) == warned
    assert sorted(path.name for path in work.glob("checkpoint-*")) == ["checkpoint-4"]


def test_what_was_done_since_a_damaged_checkpoint_is_done_again(
    begun: Path, inputs: Inputs, tmp_path: Path, uninterrupted: Result
) -> None:
    out = Path(shutil.copytree(begun, tmp_path / "out"))
    flip(out / WORK / "checkpoint-5/optimizer.pt")
    assert train(inputs, out) == 2 * PAIRS - 8
    assert_alike(result_of(out), uninterrupted)


def test_processes_in_another_arrangement_do_not_go_on_from_a_checkpoint(begun: Path, inputs: Inputs) -> None:
    """DeepSpeed's files are spread over as many processes as wrote them; the progress is not thrown away either."""
    with pytest.raises(UserError, match="checkpoint-.* was saved by one process, not by 2 processes under ZeRO-3"):
        short_stage(count=2, deepspeed=ZERO[3])(*inputs, out=begun)
    assert latest_checkpoint(begun / WORK)


# Saved states are plain data: what would run code ends the training in one line ------------------------------------


class Canary:
    """Leaves a folder where it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.place),)

    def plant(self, file: Path, checkpoint: Path, stage: Train) -> None:
        """Write it into `file`, as if it had been there when the checkpoint was marked as whole."""
        assert file.is_file()
        torch.save({"canary": self}, file)
        (checkpoint / WHOLE).unlink()
        mark_whole(checkpoint, stage.devices.layout)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_state_that_would_run_code_ends_the_training_in_one_line(
    name: str, begun: Path, inputs: Inputs, tmp_path: Path
) -> None:
    canary, out = Canary(tmp_path / "sung"), Path(shutil.copytree(begun, tmp_path / "out"))
    checkpoint = out / WORK / "checkpoint-5"
    canary.plant(checkpoint / name, checkpoint, short_stage())
    with pytest.raises(Fault, match="checkpoint-5: a state in it is no plain data") as error:
        short_stage()(*inputs, out=out)
    assert "\n" not in str(error.value) and not canary.place.exists()
    assert (checkpoint / WHOLE).exists(), "it is left to be looked at"


@pytest.mark.full
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
def test_deepspeeds_states_are_read_as_data_too(inputs: Inputs, tmp_path: Path) -> None:
    """It asks torch to unpickle whatever there is. Training goes on from its own checkpoint, from a planted one not."""
    stage, canary = two(2, save_minutes=AT_EVERY_STEP), Canary(tmp_path / "sung")
    (out := tmp_path / "out").mkdir()
    stage(*inputs, out=out)
    last, before = (out / WORK / f"checkpoint-{step}" for step in (3, 2))
    shutil.rmtree(last)
    stage(*inputs, out=out)
    assert (last / WHOLE).exists()
    shutil.rmtree(last)
    (state,) = before.rglob("zero_pp_rank_0_mp_rank_00_optim_states.pt")
    canary.plant(state, before, stage)
    with pytest.raises(UserError, match="checkpoint-2: a state in it is no plain data"):
        stage(*inputs, out=out)
    assert not canary.place.exists()
