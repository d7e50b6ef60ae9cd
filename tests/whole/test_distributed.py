"""Training in two processes under DeepSpeed is training in one"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_training import assert_same, metrics_of, train_stage, write_reference
from transformers import AutoModelForCausalLM

from src import records
from src.artifact import WORK
from src.config import Fault, UserError
from src.records import SPEED
from src.training.checkpoints import WHOLE
from src.training.deepspeed import DeepSpeed
from src.training.lora import Lora
from src.training.stage import Train

ROOT = Path(__file__).parents[2]
PAIRS = 11
ZERO = {n: DeepSpeed(stage=n, offload_optimizer=False, offload_weights=False) for n in (2, 3)}  # type: ignore[arg-type]
LORA = Lora(rank=4, alpha=8.0)
pytestmark = [pytest.mark.full, pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")]

SCRIPT = """
import pickle, sys
from pathlib import Path
from src.config import Stopped
stage, reference, policy, out = pickle.loads(Path(sys.argv[1]).read_bytes())
try: stage(reference, policy, out=out)
except Stopped as stopped: sys.exit(stopped.exit_code)
"""


@pytest.fixture(scope="module")
def references(
    llama: Path, mistral: Path, gemma2: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Path, Path]]:
    policies = {"llama": llama, "mistral": mistral, "gemma2": gemma2}
    return {
        name: (write_reference(tmp_path_factory.mktemp("reference"), policy, PAIRS), policy)
        for name, policy in policies.items()
    }


def two(stage: int, **changes: Any) -> Train:
    """Steps of 4, 4 and 3 pairs over two processes; rows of one to three pairs."""
    return train_stage(**{"count": 2, "deepspeed": ZERO[stage], **changes})


def trained(
    stage: Train, inputs: tuple[Path, Path], out: Path
) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    out.mkdir(parents=True, exist_ok=True)
    stage(*inputs, out=out)
    return load_file(out / "model.safetensors"), metrics_of(out)


def same_metrics(got: list[dict[str, float]], expected: list[dict[str, float]]) -> None:
    for one, other in zip(got, expected, strict=True):
        assert one.keys() == other.keys()
        for name in (name for name in one if not name.startswith(SPEED)):
            assert one[name] == pytest.approx(other[name], rel=1e-4, abs=1e-3), name


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize(
    ("architecture", "stage", "changes"),
    [
        ("llama", 2, {"max_grad_norm": 1.0}),
        ("mistral", 3, {"optimizer": "adamw", "weight_decay": 0.1}),
        ("gemma2", 3, {"row_tokens": 1, "activation_checkpointing": True}),  # more rows in one process than pairs
        ("llama", 3, {"lora": LORA, "lr": 1e-3, "save_dtype": "bfloat16", "activation_checkpointing": True}),
        ("mistral", 3, {"deepspeed": DeepSpeed(stage=3, offload_optimizer=True, offload_weights=True)}),
    ],
    ids=["zero2, clipped", "zero3, adamw", "zero3, tied, a pair a row", "zero3, lora", "zero3, offloaded"],
)
def test_two_processes_end_where_one_does(
    architecture: str, stage: int, changes: dict[str, Any], references: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    """Same losses, same weights; the checkpoint is whole and plain transformers loads it."""
    single = {key: value for key, value in changes.items() if key != "deepspeed"}
    expected, alone = trained(train_stage(**single), references[architecture], tmp_path / "one")
    got, together = trained(two(stage, **changes), references[architecture], tmp_path / "two")
    same_metrics(together, alone)
    assert [line["pairs"] for line in together] == [4, 4, 3]
    coarse = changes.get("save_dtype") == "bfloat16"
    assert_same(
        {k: v.float() for k, v in got.items()},
        {k: v.float() for k, v in expected.items()},
        largest=1e-2 if coarse else 2e-5,
        mean=1e-5 if coarse else 1e-7,
    )
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "two", output_loading_info=True)
    assert not any(info.values()), info
    assert not list((tmp_path / "two" / WORK).glob("checkpoint-*")), "no checkpoint was due"
    assert model.dtype == (torch.bfloat16 if coarse else torch.float32)


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize("stage", [2, 3])
def test_bf16_products_of_fp32_weights(stage: int, references: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    """Autocast in both; a pair a row in both, since bf16 rounds by shape. Weights and gradients travel in fp32."""
    changes = {"precision": "bfloat16", "row_tokens": 1}
    _, alone = trained(train_stage(**changes), references["gemma2"], tmp_path / "one")
    weights, together = trained(two(stage, **changes), references["gemma2"], tmp_path / "two")
    assert together[0]["chosen_logratio"] == pytest.approx(alone[0]["chosen_logratio"], abs=1e-4)
    for one, other in zip(together, alone, strict=True):
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=0.02)
        assert one["chosen_logratio"] == pytest.approx(other["chosen_logratio"], abs=0.05)
    assert {w.dtype for w in weights.values()} == {torch.float32}


def test_a_forked_launch_ends_where_a_real_one_does(
    request: pytest.FixtureRequest, references: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    """The stand-in of the other tests (forked_launch.py)."""
    real, _ = trained(two(3), references["llama"], tmp_path / "real")
    request.getfixturevalue("forked")
    other, _ = trained(two(3), references["llama"], tmp_path / "forked")
    assert all(torch.equal(real[name], other[name]) for name in real)


def start(stage: Train, inputs: tuple[Path, Path], out: Path) -> subprocess.Popen[bytes]:
    import pickle

    out.mkdir(parents=True, exist_ok=True)
    job = out.with_suffix(".pickle")
    job.write_bytes(pickle.dumps((stage, *inputs, out)))
    with out.with_suffix(".log").open("wb") as log:
        return subprocess.Popen([sys.executable, "-c", SCRIPT, str(job)], cwd=ROOT, stderr=log)


def wait_for_checkpoint(out: Path, process: subprocess.Popen[bytes]) -> None:
    """Any but the first; an early one may be gone again before it is seen."""
    deadline = time.monotonic() + 200
    while not any((out / WORK / f"checkpoint-{step}" / WHOLE).exists() for step in range(2, 12)):
        said = out.with_suffix(".log").read_text()
        assert process.poll() is None and time.monotonic() < deadline, said
        time.sleep(0.01)


MANY = {"batch_pairs": 2, "epochs": 2, "schedule_epochs": 2}


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize(
    ("number", "code", "zero", "changes"),
    [
        (signal.SIGTERM, 143, 3, {}),
        (signal.SIGKILL, -9, 3, {"lora": LORA, "lr": 1e-3}),
        (signal.SIGKILL, -9, 2, {"optimizer": "adamw"}),
    ],
    ids=["zero3", "zero3, lora", "zero2"],
)
def test_hit_and_started_again_it_ends_bit_for_bit_the_same(
    number: int,
    code: int,
    zero: int,
    changes: dict[str, Any],
    references: dict[str, tuple[Path, Path]],
    tmp_path: Path,
) -> None:
    """All processes save together; no process of the first attempt is left to write into the second."""
    expected, metrics = trained(two(zero, **MANY, **changes), references["llama"], tmp_path / "whole")
    stage = two(zero, **MANY, **changes, save_minutes=1e-6)
    process = start(stage, references["llama"], out := tmp_path / "hit")
    wait_for_checkpoint(out, process)
    process.send_signal(number)
    assert process.wait(timeout=100) == code, out.with_suffix(".log").read_text()
    assert not (out / "model.safetensors").exists()
    got, again = trained(stage, references["llama"], out)
    assert got.keys() == expected.keys() and all(torch.equal(got[name], expected[name]) for name in got)
    strip = [[{k: v for k, v in line.items() if not k.startswith(SPEED)} for line in m] for m in (again, metrics)]
    assert strip[0] == strip[1]


@pytest.mark.usefixtures("forked")
def test_a_loss_that_is_not_finite_in_one_process_stops_all(
    references: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    reference, policy = references["llama"]
    rows = records.read_rows(reference, records.REFERENCE)
    rows[4]["ref_chosen_logp"] = float("nan")
    (tmp_path / "reference").mkdir()
    records.write_rows(tmp_path / "reference", rows, records.REFERENCE)
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(
        UserError, match="under the reference is not finite at step .; its pairs are in .*not_finite/rows"
    ):
        two(2)(tmp_path / "reference", policy, out=out)
    aside = records.read_rows(out / WORK / "not_finite", records.REFERENCE)
    assert rows[4]["prompt_id"] in [row["prompt_id"] for row in aside]


def processes_run(code: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`code`, before anything else, in every process of trainings to come, which knows its `rank`."""
    lines = "".join(f"    {line}\n" for line in code.strip().splitlines())
    (folder / "sitecustomize.py").write_text(f"import os\nrank = os.environ.get('RANK')\nif rank:\n{lines}")
    monkeypatch.setenv("PYTHONPATH", f"{folder}:{ROOT}")


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize("lora", [None, LORA], ids=["all weights", "lora"])
def test_the_head_is_gathered_once_a_step_and_not_once_a_chunk_or_row(
    lora: Lora | None, references: dict[str, tuple[Path, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step of two rows a process. What is released has to be gathered again."""
    seen = tmp_path / "seen.jsonl"
    note = f"""
import json
import src.chunked_head as head
import deepspeed.runtime.zero.partition_parameters as zero
from src.training.deepspeed import DeepSpeed
def note(*what):
    if rank == "0":
        with open({str(seen)!r}, "a") as file:
            print(json.dumps(what), file=file)
settings = DeepSpeed.settings
def without_threshold(*given):  # below it, matrices as small as these are never released
    found = settings(*given)
    found["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    return found
DeepSpeed.settings = without_threshold
apply, free = head._ChunkedHead.apply, zero.free_param
def row(hidden, weight, *rest):
    note("row", weight.ds_id)
    return apply(hidden, weight, *rest)
def freed(weight):
    note("freed", weight.ds_id)
    return free(weight)
head._ChunkedHead.apply, zero.free_param = row, freed
"""
    processes_run(note, tmp_path, monkeypatch)
    trained(two(3, head_chunk=2, row_tokens=1, lora=lora), references["llama"], tmp_path / "out")
    events = [json.loads(line) for line in seen.read_text().splitlines()]
    (head,) = {number for what, number in events if what == "row"}
    of_head = [what for what, number in events if number == head]
    assert of_head.count("row") == 3 * 2
    assert of_head[-7:] == ["freed", *["row", "row", "freed"] * 2], "the first step is the one DeepSpeed learns from"


@pytest.mark.usefixtures("forked")
def test_a_gradient_that_is_not_finite_in_one_process_stops_all(
    references: dict[str, tuple[Path, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoilt = """
import src.chunked_head as head
real = head._grad_logits
if rank == "1":
    head._grad_logits = lambda *given: real(*given) * float("inf")
"""
    processes_run(spoilt, tmp_path, monkeypatch)
    for zero in (2, 3):
        (out := tmp_path / f"zero{zero}").mkdir()
        with pytest.raises(UserError, match="the gradient is not finite at step 0; its pairs are in .*not_finite"):
            two(zero)(*references["llama"], out=out)
        assert not (out / "model.safetensors").exists()


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize(
    ("dies", "said"),
    [
        (
            "os.kill(os.getpid(), 9)",
            r"process 1 was killed by SIGKILL; was memory short\? \(.*launch.log\); .* goes on$",
        ),
        ("__import__('torch').empty(10**15)", r"^train: out of memory .*hardware.devices.row_tokens.* goes on$"),
        ("raise ValueError('of ours')", r"ValueError: of ours \(.*launch.log\); .* goes on$"),
    ],
    ids=["killed", "short of memory", "a mistake of ours"],
)
def test_a_process_that_dies_is_a_failure_of_the_machine_in_one_line(
    dies: str, said: str, references: dict[str, tuple[Path, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dying = f"""
import src.chunked_head as head
def die(*_):
    {dies}
if rank == "1":
    head._grad_logits = die
"""
    processes_run(dying, tmp_path, monkeypatch)
    (out := tmp_path / "out").mkdir()
    with pytest.raises(Fault, match=said) as fault:
        two(2)(*references["llama"], out=out)
    assert "\n" not in str(fault.value)


def test_a_run_of_the_command_line_trains_in_two_processes(llama: Path, tmp_path: Path) -> None:
    from tiny_run import call, tiny

    words = tiny(llama, tmp_path, "iter=1", "+deepspeed@hardware.devices.deepspeed=zero2", "hardware.devices.count=2")
    assert call(*words) == 0
    (policy,) = [p for p in (tmp_path / "store" / "policy").iterdir() if (p / "metrics.jsonl").exists()]
    assert len(metrics_of(policy)) == 2
    assert os.path.exists(policy / "tokenizer.json")
