"""Training that is stopped or killed and started again ends as if nothing had happened."""

from __future__ import annotations

import os
import random
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_training import ZERO, assert_same, hit, metrics_of, saved, train_stage, two, write_reference

from src.kernel.artifact import WORK
from src.kernel.config import Fault, Stopped, UserError
from src.kernel.rows import SPEED
from src.training import trainer as trainer_module
from src.training.checkpoints import STOP, WHOLE, latest_checkpoint, mark_whole
from src.training.stage import Train

PAIRS = 11
AT_EVERY_STEP = 1e-6  # minutes between checkpoints


def short_stage(**changes: Any) -> Train:
    """Two epochs of 6 steps: 22 packed rows of a pair, the last step of an epoch has one instead of two."""
    return train_stage(batch_pairs=2, row_tokens=1, epochs=2, schedule_epochs=3, warmup=0.1, **changes)


Inputs = tuple[Path, Path]
Result = tuple[dict[str, torch.Tensor], list[dict[str, float]]]


def result(out: Path) -> Result:
    """Weights, and metrics without those of the clock."""
    rows = [{k: v for k, v in row.items() if not k.startswith(SPEED)} for row in metrics_of(out)]
    return load_file(out / "model.safetensors"), rows


def assert_alike(got: Result, expected: Result) -> None:
    """A state that is lost moves weights by 10 times the rate, 1e-3."""
    assert_same(got[0], expected[0], largest=2e-5, mean=1e-7)
    for one, other in zip(got[1], expected[1], strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-3)


@pytest.fixture(scope="module")
def reference(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_reference(tmp_path_factory.mktemp("reference"), llama, PAIRS)


class Passes:
    """Counts forward passes and asks the training to stop during number `at`."""

    def __init__(self, at: int = 0) -> None:
        self.count, self.at = 0, at

    def run(self, inputs: Inputs, out: Path, **changes: Any) -> Result:
        pair_up, stop = trainer_module.pair_up, out / WORK / STOP

        def counted(*args: Any) -> Any:
            self.count += 1
            if self.count == self.at:
                stop.write_text(str(int(signal.SIGTERM)))
            return pair_up(*args)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(trainer_module, "pair_up", counted)
            short_stage(**changes)(*inputs, out=out)
        return result(out)


@pytest.fixture(scope="module")
def inputs(reference: Path, llama: Path) -> Inputs:
    return reference, llama


@pytest.fixture(scope="module")
def uninterrupted(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Result:
    return Passes().run(inputs, tmp_path_factory.mktemp("uninterrupted"))


@pytest.fixture(scope="module")
def begun(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stopped in its fifth step, after 10 rows; saved after every step."""
    out = tmp_path_factory.mktemp("begun")
    with pytest.raises(Stopped):
        Passes(at=9).run(inputs, out, save_minutes=AT_EVERY_STEP)
    return out


@pytest.fixture
def stopped(begun: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(begun, tmp_path / "stopped"))


def test_checkpoints_on_the_way_change_nothing(inputs: Inputs, tmp_path: Path, uninterrupted: Result) -> None:
    assert_alike((whole := Passes()).run(inputs, tmp_path, save_minutes=AT_EVERY_STEP), uninterrupted)
    assert whole.count == 2 * PAIRS


@pytest.mark.parametrize(("at", "done"), [(1, 2), (12, 13), (22, 22)])
def test_a_stop_lets_the_step_finish_and_the_next_run_goes_on_from_there(
    at: int, done: int, inputs: Inputs, tmp_path: Path, uninterrupted: Result
) -> None:
    """In the first step, at the end of an epoch, and in the very last step."""
    with pytest.raises(Stopped) as stopped:
        (first := Passes(at)).run(inputs, tmp_path)
    assert stopped.value.exit_code == 128 + signal.SIGTERM
    assert first.count == done
    assert not any((tmp_path / name).exists() for name in ("model.safetensors", "metrics.jsonl"))
    assert_alike((second := Passes()).run(inputs, tmp_path), uninterrupted)
    assert second.count == 2 * PAIRS - done


# Damage ------------------------------------------------------------------------------------------------------------


def flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@pytest.mark.parametrize(
    ("name", "harm"),
    [("optimizer.pt", flip), ("optimizer.pt", lambda data: data[:100]), ("optimizer.pt", None)]
    + [(WHOLE, flip), (WHOLE, lambda data: b"")],
)
def test_a_damaged_checkpoint_is_told_and_passed_over(
    name: str, harm: Any, begun: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = Path(shutil.copytree(begun / WORK, tmp_path / WORK))
    file = work / "checkpoint-5" / name
    file.write_bytes(harm(file.read_bytes())) if harm else file.unlink()
    assert latest_checkpoint(work) == str(work / "checkpoint-4")
    assert "checkpoint-5 is damaged (" in (said := capsys.readouterr().err) and (name in said or name == WHOLE)


def test_training_goes_on_from_the_checkpoint_before_the_damaged_one(
    stopped: Path, inputs: Inputs, uninterrupted: Result
) -> None:
    file = stopped / WORK / "checkpoint-5/optimizer.pt"
    file.write_bytes(flip(file.read_bytes()))
    assert_alike((second := Passes()).run(inputs, stopped), uninterrupted)
    assert second.count == 2 * PAIRS - 8


def test_a_torn_checkpoint_is_passed_over(stopped: Path) -> None:
    """A kill while checkpoint 5 was written: no marker, half a file."""
    work = stopped / WORK
    (work / "checkpoint-5" / WHOLE).unlink()
    os.truncate(work / "checkpoint-5/model.safetensors", 100)
    (work / "checkpoint-99").mkdir()
    assert latest_checkpoint(work) == str(work / "checkpoint-4")
    assert not (work / "checkpoint-5").exists()
    shutil.rmtree(work)
    (work / "checkpoint-1").mkdir(parents=True)
    assert latest_checkpoint(work) is None


def test_processes_in_another_arrangement_do_not_go_on_from_a_checkpoint(stopped: Path, inputs: Inputs) -> None:
    """DeepSpeed's files are spread over as many processes as wrote them; the progress is not thrown away either."""
    with pytest.raises(UserError, match="checkpoint-.* was saved by one process, not by 2 processes under ZeRO-3"):
        short_stage(count=2, deepspeed=ZERO[3])(*inputs, out=stopped)
    assert latest_checkpoint(stopped / WORK)


# Saved states are plain data: what would run code ends the training in one line ------------------------------------


class Canary:
    """Leaves a folder where it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.place),)


def plant(canary: Canary, file: Path, checkpoint: Path, stage: Train) -> None:
    """As if it had been there when the checkpoint was noted as whole."""
    assert file.is_file()
    torch.save({"canary": canary}, file)
    (checkpoint / WHOLE).unlink()
    mark_whole(checkpoint, stage.devices.layout)


def test_a_state_that_would_run_code_ends_the_training_in_one_line(begun: Path, inputs: Inputs, tmp_path: Path) -> None:
    canary, stage = Canary(tmp_path / "sung"), short_stage()
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        out = Path(shutil.copytree(begun, tmp_path / name))
        checkpoint = out / WORK / "checkpoint-5"
        plant(canary, checkpoint / name, checkpoint, stage)
        with pytest.raises(Fault, match="checkpoint-5: a state in it is no plain data") as error:
            stage(*inputs, out=out)
        assert "\n" not in str(error.value) and not canary.place.exists(), name
        assert (checkpoint / WHOLE).exists(), "it is left to be looked at"


@pytest.mark.full
@pytest.mark.usefixtures("forked")
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
def test_deepspeeds_states_are_read_as_data_too(inputs: Inputs, tmp_path: Path) -> None:
    """It asks torch to unpickle whatever there is. A checkpoint of its own is gone on with, a planted one not."""
    stage, canary = two(2, save_minutes=AT_EVERY_STEP), Canary(tmp_path / "sung")
    (out := tmp_path / "out").mkdir()
    stage(*inputs, out=out)
    checkpoints = out / WORK
    shutil.rmtree(checkpoints / "checkpoint-3")
    stage(*inputs, out=out)
    assert (checkpoints / "checkpoint-3" / WHOLE).exists()
    shutil.rmtree(checkpoints / "checkpoint-3")
    (state,) = (checkpoints / "checkpoint-2").rglob("zero_pp_rank_0_mp_rank_00_optim_states.pt")
    plant(canary, state, checkpoints / "checkpoint-2", stage)
    with pytest.raises(UserError, match="checkpoint-2: a state in it is no plain data"):
        stage(*inputs, out=out)
    assert not canary.place.exists()


# Killed processes --------------------------------------------------------------------------------------------------


@pytest.mark.faults
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_process_hit_at_a_random_moment_loses_nothing(number: int, code: int, inputs: Inputs, tmp_path: Path) -> None:
    """Hit twice, at moments of a seeded stream, and finished by a third run in this process; bit for bit the same."""
    changes: dict[str, Any] = {"batch_pairs": 1, "epochs": 6, "schedule_epochs": 6, "optimizer": "adamw"}  # 66 steps
    (tmp_path / "whole").mkdir()
    train_stage(**changes)(*inputs, out=tmp_path / "whole")
    chance, out = random.Random(number), tmp_path / "hit"
    out.mkdir()
    for first, last in ((1, 20), (25, 45)):
        step, delay = chance.randint(first, last), chance.uniform(0, 0.05)
        assert hit(train_stage(**changes, save_minutes=AT_EVERY_STEP), inputs, out, number, step, delay) == code
        assert step <= saved(out) < 66
    train_stage(**changes)(*inputs, out=out)
    assert (out / "model.safetensors").read_bytes() == (tmp_path / "whole/model.safetensors").read_bytes()
    assert result(out)[1] == result(tmp_path / "whole")[1]
