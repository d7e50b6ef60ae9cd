"""Saved states of a training are read as plain data: what would run code ends it in one line."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from test_security_pickles import Canary, canary  # noqa: F401
from tiny_training import train_stage, write_reference

from src.artifact import WORK
from src.config import Fault, UserError
from src.training.checkpoints import SUMS, WHOLE, mark_whole, note_sums
from src.training.deepspeed import DeepSpeed, read_states_as_data

ZERO = DeepSpeed(stage=2, offload_optimizer=False, offload_weights=False)
STATES = ["optimizer.pt", "scheduler.pt", "rng_state.pth"]


def stopped_training(stage: Any, llama: Path, place: Path) -> tuple[Path, Path, Path]:
    """Its last step is gone, the checkpoint before it is there."""
    reference, out = write_reference(place / "reference", llama, 8), place / "out"
    out.mkdir()
    stage(reference, llama, out=out)
    shutil.rmtree(out / WORK / "checkpoint-2")
    return reference, out, out / WORK / "checkpoint-1"


def plant(canary: Canary, file: Path, checkpoint: Path) -> None:  # noqa: F811
    """Before the trainer notes sums, and marks its checkpoint whole."""
    assert file.is_file()
    torch.save({"canary": canary}, file)
    (checkpoint / WHOLE).unlink()
    for told in checkpoint.glob(f"{SUMS}-*.json"):
        told.unlink()


@pytest.fixture(scope="module")
def begun(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    place = tmp_path_factory.mktemp("begun")
    reference, out, _ = stopped_training(train_stage(save_minutes=1e-6), llama, place)
    return reference, out


@pytest.mark.full
@pytest.mark.parametrize("name", STATES)
def test_a_state_that_would_run_code_ends_the_training_in_one_line(
    name: str,
    begun: tuple[Path, Path],
    llama: Path,
    tmp_path: Path,
    canary: Canary,  # noqa: F811
) -> None:
    reference, out = begun[0], Path(shutil.copytree(begun[1], tmp_path / "out"))
    stage = train_stage(save_minutes=1e-6)
    checkpoint = out / WORK / "checkpoint-1"
    plant(canary, checkpoint / name, checkpoint)
    note_sums(checkpoint, 0, 1)
    mark_whole(checkpoint, stage.devices.layout)
    with pytest.raises(
        Fault, match=r"checkpoint-1: a state in it is no plain data \(.*mkdir\).*delete that folder"
    ) as error:
        stage(reference, llama, out=out)
    assert "\n" not in str(error.value)
    assert (checkpoint / WHOLE).exists(), "it is left to be looked at"


@pytest.mark.full
def test_what_was_planted_nowhere_goes_on(begun: tuple[Path, Path], llama: Path, tmp_path: Path) -> None:
    """The same checkpoint as it was saved: the twin of the test above."""
    out = Path(shutil.copytree(begun[1], tmp_path / "out"))
    train_stage(save_minutes=1e-6)(begun[0], llama, out=out)
    assert (out / WORK / "checkpoint-2" / WHOLE).exists()


@pytest.mark.full
def test_deepspeed_by_itself_would_run_what_a_state_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trap is there, and `read_states_as_data` closes it."""
    from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine

    for name in ("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"):
        monkeypatch.setenv(name, "0")  # so that both are put back
    own, file = Canary(tmp_path / "sung"), tmp_path / "state.pt"
    torch.save({"canary": own}, file)
    engine: Any = TorchCheckpointEngine(None)
    engine.load(str(file))
    assert own.place.exists()
    own.place.rmdir()
    with torch.serialization.safe_globals([]):
        read_states_as_data()
        with pytest.raises(pickle.UnpicklingError):
            engine.load(str(file))
    assert not own.place.exists()


@pytest.mark.full
@pytest.mark.usefixtures("forked")
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
def test_deepspeeds_states_are_read_as_data_too(llama: Path, tmp_path: Path, canary: Canary) -> None:  # noqa: F811
    """It asks torch to unpickle whatever there is. A checkpoint of its own is gone on with, a planted one not."""
    stage = train_stage(count=2, deepspeed=ZERO, save_minutes=1e-6)
    reference, out, checkpoint = stopped_training(stage, llama, tmp_path)
    stage(reference, llama, out=out)
    assert (out / WORK / "checkpoint-2" / WHOLE).exists()
    shutil.rmtree(out / WORK / "checkpoint-2")
    (state,) = checkpoint.rglob("zero_pp_rank_0_mp_rank_00_optim_states.pt")
    plant(canary, state, checkpoint)
    for process in range(2):
        note_sums(checkpoint, process, 2)
    mark_whole(checkpoint, stage.devices.layout)
    with pytest.raises(UserError, match=r"checkpoint-1: a state in it is no plain data \(.*mkdir\)"):
        stage(reference, llama, out=out)
