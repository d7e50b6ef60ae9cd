"""The trainer against a loop written by hand: losses, batches, schedules, precision and what it leaves behind."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from tiny_training import ETA, LENGTHS, Weights, assert_same, metrics_of, train_stage, write_pairs, write_reference
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, TrainingArguments

from src import records
from src.config import UserError
from src.model import load_policy
from src.training.batch import Collator, Step
from src.training.lengths import Lengths
from src.training.loader import rows_of
from src.training.memory import Shape
from src.training.metrics import expected_first_loss
from src.training.reference import Reference
from src.training.stage import Train
from src.training.trainer import PairTrainer, arguments_of


@pytest.fixture(scope="module")
def reference(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven pairs: no batch size used here divides them."""
    return write_reference(tmp_path_factory.mktemp("reference"), llama, 11)


# The loss


def test_training_starts_at_the_reference_and_at_the_expected_loss(
    reference: Path, llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before the first step both log-ratios are 0: loss = mean of ETA^2 [(P_w - 1/2)^2 + (P_l - 1/2)^2] / 2."""
    stage, rows = train_stage(batch_pairs=11), records.read_rows(reference, records.REFERENCE)
    stage(reference, llama, out=tmp_path)
    (first,) = metrics_of(tmp_path)
    assert abs(first["chosen_logratio"]) < 1e-4
    assert abs(first["rejected_logratio"]) < 1e-4
    by_hand = sum(ETA**2 * ((r["chosen_win"] - 0.5) ** 2 + (r["rejected_win"] - 0.5) ** 2) / 2 for r in rows) / 11
    assert expected_first_loss(stage.method, rows) == pytest.approx(by_hand, rel=1e-5)
    assert first["loss"] == pytest.approx(by_hand, rel=1e-3)
    assert first["loss_scaled"] == pytest.approx(first["loss"] / ETA**2)
    assert f"expected loss before the first step {by_hand:.5g}" in capsys.readouterr().out


# Batches


def naive_logp(model: PreTrainedModel, prompt: list[int], answer: list[int]) -> Tensor:
    log_pi = model(input_ids=torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
    return sum((log_pi[len(prompt) + t - 1, token] for t, token in enumerate(answer)), torch.zeros(()))


def naive_training(stage: Train, policy: Path, batches: list[list[records.Row]], lrs: list[float]) -> Weights:
    """SPPO on full logits, pair by pair, with RMSprop or AdamW spelt out."""
    model = AutoModelForCausalLM.from_pretrained(policy, attn_implementation="eager").train()
    parameters = dict(model.named_parameters())
    mean = {name: torch.zeros_like(p) for name, p in parameters.items()}
    square = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for step, (batch, lr) in enumerate(zip(batches, lrs, strict=True), start=1):
        losses = []
        for r in batch:
            d = [naive_logp(model, r["prompt_token_ids"], r[f"{s}_token_ids"]) for s in ("chosen", "rejected")]
            d_w, d_l = d[0] - r["ref_chosen_logp"], d[1] - r["ref_rejected_logp"]
            losses.append(
                ((d_w - ETA * (r["chosen_win"] - 0.5)) ** 2 + (d_l - ETA * (r["rejected_win"] - 0.5)) ** 2) / 2
            )
        model.zero_grad()
        (sum(losses) / len(losses)).backward()  # type: ignore[union-attr]
        norm = math.sqrt(sum(float(p.grad.pow(2).sum()) for p in parameters.values()))
        shrink = min(1.0, (stage.recipe.max_grad_norm or math.inf) / norm)
        with torch.no_grad():
            for name, p in parameters.items():
                g = p.grad * shrink
                if stage.recipe.optimizer == "rmsprop":
                    square[name] = 0.99 * square[name] + 0.01 * g**2
                    p -= lr * g / (square[name].sqrt() + 1e-8)
                else:
                    mean[name] = 0.9 * mean[name] + 0.1 * g
                    square[name] = 0.999 * square[name] + 0.001 * g**2
                    decay = 0.0 if "norm" in name else stage.recipe.weight_decay
                    m, v = mean[name] / (1 - 0.9**step), square[name] / (1 - 0.999**step)
                    p -= lr * (decay * p + m / (v.sqrt() + 1e-8))
    return model.state_dict()


@pytest.mark.parametrize(
    "changes",
    [{"optimizer": "rmsprop", "max_grad_norm": 1.0}, {"optimizer": "adamw", "weight_decay": 0.1}],
    ids=["rmsprop, clipped", "adamw"],
)
def test_training_is_the_loop_by_hand_and_every_pair_counts_once_an_epoch(
    changes: dict[str, Any], reference: Path, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """11 pairs in batches of 4, twice: steps of 4, 4 and 3 pairs, each the mean over its own pairs."""
    rows, seen, collate = records.read_rows(reference, records.REFERENCE), [], Collator.__call__

    def note(self: Collator, pairs: list[records.Row]) -> Step:
        seen.extend(pair["prompt_id"] for pair in pairs)
        return collate(self, pairs)

    monkeypatch.setattr(Collator, "__call__", note)
    stage = train_stage(epochs=2, schedule_epochs=2, **changes)
    stage(reference, llama, out=tmp_path)
    assert [len(seen), sorted(map(int, seen[:11])), sorted(map(int, seen[11:]))] == [22, [*range(11)], [*range(11)]]
    assert seen[:11] != seen[11:], "each epoch has an order of its own"
    assert [line["pairs"] for line in metrics_of(tmp_path)] == [4, 4, 3, 4, 4, 3]
    assert all(line["grad_norm"] > 10 for line in metrics_of(tmp_path)), "clipping would show"

    batches = [[rows[int(i)] for i in seen[s : s + n]] for s, n in ((0, 4), (4, 4), (8, 3), (11, 4), (15, 4), (19, 3))]
    expected = naive_training(stage, llama, batches, [1e-4 * (6 - t) / 6 for t in range(6)])
    got, start = load_file(tmp_path / "model.safetensors"), load_file(llama / "model.safetensors")
    # The first step moves a weight by 10 lr whatever its gradient: where that is nothing but rounding, it may turn.
    assert_same(got, expected, largest=2.5e-3, mean=1e-6)
    assert max(float((got[name] - start[name]).abs().max()) for name in got) > 1e-4


def test_how_a_step_is_cut_does_not_matter(reference: Path, llama: Path, tmp_path: Path) -> None:
    """All pairs in one row, one a row, some with activation checkpointing: steps of 8 and 3 pairs."""
    outs = []
    for row_tokens, checkpointing in ((1000, False), (1, False), (60, True)):
        outs.append(tmp_path / f"{row_tokens}{checkpointing}")
        changes = {"row_tokens": row_tokens, "activation_checkpointing": checkpointing, "head_chunk": row_tokens}
        train_stage(batch_pairs=8, **changes)(reference, llama, out=outs[-1])
        assert [line["pairs"] for line in metrics_of(outs[-1])] == [8, 3]
        # RMSprop hides the scale of a gradient; its norm does not.
        norms = [line["grad_norm"] for line in metrics_of(outs[-1])]
        assert norms == pytest.approx([line["grad_norm"] for line in metrics_of(outs[0])], rel=1e-4)
    first, *others = (load_file(out / "model.safetensors") for out in outs)
    for other in others:
        assert_same(other, first, largest=2.5e-3, mean=1e-6)


# The schedule


def test_one_step_at_rate_zero_is_refused(reference: Path, llama: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="^train: 11 pairs are one step, and a warm-up begins at rate 0"):
        train_stage(batch_pairs=16, warmup=0.1)(reference, llama, out=tmp_path)
    for more, rates in (({}, [1e-4]), ({"warmup": 0.1, "epochs": 2, "schedule_epochs": 2}, [0, 1e-4])):
        out = tmp_path / str(len(rates))
        out.mkdir()
        train_stage(batch_pairs=16, **more)(reference, llama, out=out)
        assert [line["learning_rate"] for line in metrics_of(out)] == rates


def rates(stage: Train, pairs: int, policy: Path, folder: Path) -> list[float]:
    """Of an epoch."""
    data = rows_of([{}] * pairs)
    trainer = PairTrainer(load_policy(policy, "float32", "cpu"), arguments_of(stage, folder), train_dataset=data)
    trainer.set_up(stage, Shape.of(policy), folder)
    trainer.create_optimizer()
    scheduler = trainer.create_scheduler(0)
    found = [scheduler.get_last_lr()[0]]
    for _ in range(math.ceil(pairs / stage.recipe.batch_pairs)):
        trainer.optimizer.step()  # type: ignore[union-attr]
        scheduler.step()
        found.append(scheduler.get_last_lr()[0])
    return found


def test_learning_rates_follow_the_closed_form(llama: Path, tmp_path: Path) -> None:
    """11 steps an epoch; warm-up is a fifth of the horizon, rounded up: one epoch out of 18 never leaves it."""
    for schedule, schedule_epochs, warmup, horizon in (
        ("linear", 1, 3, 11),
        ("linear", 18, 40, 198),
        ("cosine", 1, 3, 11),
    ):
        stage = train_stage(batch_pairs=1, schedule=schedule, schedule_epochs=schedule_epochs, warmup=0.2)
        shares = [step / warmup if step < warmup else (horizon - step) / (horizon - warmup) for step in range(12)]
        if schedule == "cosine":
            shares[warmup:] = [(1 + math.cos(math.pi * (1 - left))) / 2 for left in shares[warmup:]]
        assert rates(stage, 11, llama, tmp_path) == pytest.approx([1e-4 * share for share in shares])


def test_the_published_schedule_ends_where_it_was_seen_to_end(llama: Path, tmp_path: Path) -> None:
    """19,766 pairs in batches of 64 are 309 steps; 18 x 309 / 10 is 557 rounded up, and 309/557 of 5e-7 is 2.774e-7."""
    for schedule_epochs, last in ((18, 2.77e-7), (1, 0.0)):
        stage = train_stage(lr=5e-7, batch_pairs=64, schedule_epochs=schedule_epochs, warmup=0.1)
        found = rates(stage, 19766, llama, tmp_path)
        assert found[0] == 0
        assert found[-1] == pytest.approx(last, abs=5e-10)
        assert max(found) == (found[-1] if schedule_epochs == 18 else 5e-7)


# Precision, and what is left behind


def test_the_result_is_an_ordinary_checkpoint(reference: Path, llama: Path, tmp_path: Path) -> None:
    """Saved in bf16, as it is published."""
    train_stage(save_dtype="bfloat16")(reference, llama, out=tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.dtype == torch.bfloat16
    start = AutoModelForCausalLM.from_pretrained(llama)
    assert model.generation_config.eos_token_id == start.generation_config.eos_token_id
    old, new = AutoTokenizer.from_pretrained(llama), AutoTokenizer.from_pretrained(tmp_path)
    assert new.chat_template == old.chat_template
    assert new("The word is <|im_end|> שלום")["input_ids"] == old("The word is <|im_end|> שלום")["input_ids"]
    with torch.no_grad():
        logits = [m(torch.arange(20)[None]).logits for m in (model.float(), start)]
    assert 0 < (logits[0] - logits[1]).abs().mean() < 0.1, "trained, and still the same model"


# Lengths


def test_prompts_keep_their_last_and_answers_their_first_tokens() -> None:
    lengths = Lengths(max_prompt=3, max_total=5, truncation="separate")
    assert lengths.fit([1, 2, 3, 4], [5, 6, 7], [8]) == ([2, 3, 4], [5, 6], [8])
    assert lengths.fit([1], [5, 6, 7, 8, 9], [5]) == ([1], [5, 6, 7, 8], [5]), "a short prompt leaves its room"
    assert lengths.fit([1, 2], [3], [4]) == ([1, 2], [3], [4])


def test_joint_limits_cut_nothing_of_a_pair_that_fits_and_then_the_prompt_and_then_both_answers() -> None:
    lengths = Lengths(max_prompt=3, max_total=6, truncation="joint")
    assert lengths.fit([1, 2, 3, 4], [5, 6], [7]) == ([1, 2, 3, 4], [5, 6], [7]), "over max_prompt, but it fits"
    assert lengths.fit([1, 2, 3, 4], [5, 6, 7], [8]) == ([2, 3, 4], [5, 6, 7], [8]), "cutting the prompt is enough"
    assert lengths.fit([1], [2, 3, 4, 5, 6, 7], [8, 9, 8, 9]) == ([1], [2, 3, 4], [8, 9, 8]), (
        "whatever the prompt leaves"
    )


def test_an_empty_answer_and_limits_without_room_are_refused() -> None:
    with pytest.raises(UserError, match="empty answer"):
        LENGTHS.fit([1, 2], [3], [])
    with pytest.raises(ValidationError, match="leaves no room"):
        Lengths(max_prompt=5, max_total=5, truncation="separate")
    with pytest.raises(ValidationError, match="shorter than epochs"):
        dataclasses.replace(train_stage().recipe, epochs=2)


def test_more_devices_or_processes_than_the_config_counts_are_refused(
    tmp_path: Path, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two visible devices would double the step, and the artifact would keep the key of the single one."""
    reference = write_reference(tmp_path / "reference", llama, 8)
    monkeypatch.setattr(TrainingArguments, "n_gpu", 2)
    with pytest.raises(UserError, match="hardware.devices.count: 1, but 2 are here"):
        train_stage()(reference, llama, out=tmp_path)


def test_what_the_lengths_cut_is_counted(tmp_path: Path, llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = write_pairs(tmp_path / "pairs", 20)
    stage = Reference(
        lengths=Lengths(max_prompt=6, max_total=16, truncation="separate"),
        precision="float32",
        device="cpu",
        batch_pairs=5,
        head_chunk=8,
        attention="segments",
    )
    stage(pairs, llama, out=tmp_path)
    rows = records.read_rows(pairs, records.PAIRS)
    room = [16 - min(6, len(row["prompt_token_ids"])) for row in rows]
    sides = [[len(row[f"{side}_token_ids"]) for side in ("chosen", "rejected")] for row in rows]
    expected = {
        "pairs": 20,
        "prompts_cut": sum(len(row["prompt_token_ids"]) > 6 for row in rows),
        "answers_cut": sum(length > left for both, left in zip(sides, room, strict=True) for length in both),
    }
    assert json.loads((tmp_path / "metrics.json").read_text()) == expected
    assert expected["prompts_cut"] > 0 and expected["answers_cut"] > 0
    assert f"cuts {expected['prompts_cut']} of 20 prompts, {expected['answers_cut']} of 40" in capsys.readouterr().out
