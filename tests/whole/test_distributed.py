"""Training in two processes under DeepSpeed is training in one; test_rehearsal.py does it by the command."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from places import ROOT
from pytest import MonkeyPatch
from tiny_training import Inputs, Result, assert_same, hit, result_of, saved, train_stage, two, write_reference
from transformers import AutoModelForCausalLM

from src.kernel.artifact import WORK
from src.kernel.config import Fault, Stopped
from src.training.recipe import DeepSpeed, Lora
from src.training.stage import Train

LORA = Lora(rank=4, alpha=8.0)
ADAMW: dict[str, Any] = {"optimizer": "adamw", "weight_decay": 0.1}
WITHOUT_THRESHOLD = """
from src.training.recipe import DeepSpeed
settings = DeepSpeed.settings
def without_threshold(*args):
    config = settings(*args)
    config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    return config
DeepSpeed.settings = without_threshold
"""
"""DeepSpeed would never release matrices as small as these."""
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")


@pytest.fixture(scope="module")
def inputs(llama: Path, mistral: Path, gemma2: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Inputs]:
    policies = {"llama": llama, "mistral": mistral, "gemma2": gemma2}
    place = tmp_path_factory.mktemp("references")
    return {name: (write_reference(place / name, policy, 11), policy) for name, policy in policies.items()}


def trained(stage: Train, inputs: Inputs, out: Path) -> Result:
    out.mkdir(parents=True, exist_ok=True)
    stage(*inputs, out=out)
    return result_of(out)


def assert_alike(result: Result, expected: Result, coarse: bool = False) -> None:
    """A few weights may turn round in the first step, where their gradient is nothing but rounding."""
    assert_same(result[0], expected[0], largest=1e-2 if coarse else 2.5e-3, mean=1e-5 if coarse else 1e-6)
    for row, other in zip(result[1], expected[1], strict=True):
        assert row == pytest.approx(other, rel=1e-3, abs=2e-3)


def processes_run(code: str, folder: Path, patch: MonkeyPatch) -> None:
    """Have every process of trainings to come, which knows its `rank`, run `code` before anything else."""
    lines = "".join(f"    {line}\n" for line in code.strip().splitlines())
    (folder / "sitecustomize.py").write_text(f"import os\nrank = os.environ.get('RANK')\nif rank:\n{lines}")
    patch.setenv("PYTHONPATH", f"{folder}:{ROOT}")


@pytest.fixture(scope="module")
def in_one_process(inputs: dict[str, Inputs], tmp_path_factory: pytest.TempPathFactory) -> Result:
    return trained(train_stage(**ADAMW), inputs["mistral"], tmp_path_factory.mktemp("one"))


def test_two_processes_end_where_one_does(
    inputs: dict[str, Inputs], in_one_process: Result, forking_python: Path, tmp_path: Path, monkeypatch: MonkeyPatch
) -> None:
    """Same losses, same weights; the checkpoint is whole and plain transformers loads it."""
    monkeypatch.setattr(sys, "executable", str(forking_python))  # the launcher's
    monkeypatch.setenv("PYTHON_EXEC", str(forking_python))  # that of the processes it starts
    together = trained(two(3, **ADAMW), inputs["mistral"], tmp_path)
    assert_alike(together, in_one_process)
    assert [line["pairs"] for line in together[1]] == [4, 4, 3]
    _, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert not list((tmp_path / WORK).glob("checkpoint-*")), "no checkpoint was due"


@pytest.mark.full
def test_two_processes_that_are_stopped_go_on_to_the_same_end(
    inputs: dict[str, Inputs], in_one_process: Result, tmp_path: Path, monkeypatch: MonkeyPatch
) -> None:
    """One of them is asked to stop in its first row: both finish the step and save together."""
    out = tmp_path / "out"
    stopping = f"""
import src.training.trainer as trainer
pair_up, stop, checkpoint = trainer.pair_up, {str(out / WORK / "stop")!r}, {str(out / WORK / "checkpoint-1")!r}
def asked_to_stop(*args):
    if rank == "0" and not os.path.exists(checkpoint):
        open(stop, "w").write("15")
    return pair_up(*args)
trainer.pair_up = asked_to_stop
"""
    processes_run(stopping, tmp_path, monkeypatch)
    with pytest.raises(Stopped) as stopped:
        trained(two(3, **ADAMW), inputs["mistral"], out)
    assert stopped.value.exit_code == 143 and saved(out) == 1 and not (out / "model.safetensors").exists()
    assert_alike(trained(two(3, **ADAMW), inputs["mistral"], out), in_one_process)


@pytest.mark.full
@pytest.mark.parametrize(
    ("model", "zero", "changes"),
    [
        ("llama", {"stage": 2, "offload": False}, {"max_grad_norm": 1.0}),
        ("gemma2", {"stage": 3, "offload": False}, {"row_tokens": 1, "activation_checkpointing": True}),
        ("llama", {"stage": 3, "offload": False}, {"lora": LORA, "lr": 1e-3, "save_dtype": "bfloat16"}),
        ("mistral", {"stage": 3, "offload": True}, {}),
    ],
)
def test_other_recipes_in_two_processes_end_where_one_does(
    model: str, zero: Any, changes: Any, inputs: dict[str, Inputs], tmp_path: Path, monkeypatch: MonkeyPatch
) -> None:
    """With one pair per row there are more rows in one process than pairs."""
    processes_run(WITHOUT_THRESHOLD, tmp_path, monkeypatch)
    expected = trained(train_stage(**changes), inputs[model], tmp_path / "one")
    together = trained(train_stage(count=2, deepspeed=DeepSpeed(**zero), **changes), inputs[model], tmp_path / "two")
    assert_alike(together, expected, coarse="save_dtype" in changes)


@pytest.mark.full
def test_the_head_is_gathered_once_a_step_and_not_once_a_row(
    inputs: dict[str, Inputs], tmp_path: Path, monkeypatch: MonkeyPatch
) -> None:
    """A step has two rows per process. What is released has to be gathered again."""
    events = tmp_path / "events.jsonl"
    noting = f"""
import json
import src.modeling.head as head
import deepspeed.runtime.zero.partition_parameters as zero
def note(event, weight):
    if rank == "0":
        with open({str(events)!r}, "a") as file:
            print(json.dumps([event, weight.ds_id]), file=file)
apply, free = head._ChunkedHead.apply, zero.free_param
def row(hidden, weight, *rest):
    note("row", weight)
    return apply(hidden, weight, *rest)
def freed(weight):
    note("freed", weight)
    return free(weight)
head._ChunkedHead.apply, zero.free_param = row, freed
"""
    processes_run(WITHOUT_THRESHOLD + noting, tmp_path, monkeypatch)
    trained(two(3, head_chunk=2, row_tokens=1, lora=LORA), inputs["llama"], tmp_path / "out")
    noted = [json.loads(line) for line in events.read_text().splitlines()]
    (head,) = {number for event, number in noted if event == "row"}
    of_head = [event for event, number in noted if number == head]
    assert of_head.count("row") == 3 * 2
    assert of_head[-7:] == ["freed", *["row", "row", "freed"] * 2], "the first step is the one DeepSpeed learns from"


@pytest.mark.faults
@pytest.mark.parametrize(
    ("zero", "changes"), [(3, {"lora": LORA, "lr": 1e-3}), (2, {"optimizer": "adamw"})], ids=["zero3, lora", "zero2"]
)
def test_killed_and_started_again_it_ends_bit_for_bit_the_same(
    zero: int, changes: dict[str, Any], inputs: dict[str, Inputs], tmp_path: Path
) -> None:
    """No process of the first attempt is left to write into the second."""
    changes = {**changes, "batch_pairs": 2, "epochs": 2, "schedule_epochs": 2}
    (out := tmp_path / "out").mkdir()
    assert hit(two(zero, **changes, save_minutes=1e-6), inputs["llama"], out, signal.SIGKILL, step=2) == -9
    assert not (out / "model.safetensors").exists()
    expected = trained(two(zero, **changes), inputs["llama"], tmp_path / "whole")
    resumed = trained(two(zero, **changes, save_minutes=1e-6), inputs["llama"], out)
    assert all(torch.equal(resumed[0][name], expected[0][name]) for name in expected[0])
    assert resumed[1] == expected[1]


@pytest.mark.faults
@pytest.mark.parametrize(
    ("death", "message"),
    [
        ("os.kill(os.getpid(), 9)", r"process 1 was killed by SIGKILL; .* resumes$"),
        ("__import__('torch').empty(10**15)", r"^train: out of memory; .* resumes$"),
    ],
)
def test_a_process_that_dies_is_a_failure_of_the_machine_in_one_line(
    death: str, message: str, inputs: dict[str, Inputs], tmp_path: Path, monkeypatch: MonkeyPatch
) -> None:
    dying = f"""
import src.modeling.head as head
def die(*_):
    {death}
if rank == "1":
    head._grad_logits = die
"""
    processes_run(dying, tmp_path, monkeypatch)
    (out := tmp_path / "out").mkdir()
    with pytest.raises(Fault, match=message) as fault:
        two(2)(*inputs["llama"], out=out)
    assert "\n" not in str(fault.value)
