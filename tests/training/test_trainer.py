"""The trainer against a loop written by hand: losses, batches, schedules, metrics, LoRA and what it leaves behind."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from pytest import CaptureFixture, MonkeyPatch
from safetensors.torch import load_file
from tiny_training import ETA, LENGTHS, Weights, assert_same, metrics_of, step_sums, train_stage, write_reference
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from src.kernel.artifact import WORK
from src.kernel.config import UserError
from src.kernel.rows import REFERENCE, Row, read_rows
from src.methods.sppo import SPPO
from src.methods.wpo import WPO
from src.modeling.policy import load_policy
from src.training import trainer as trainer_module
from src.training.batch import Collator, Step
from src.training.metrics import expected_first_loss, means_of
from src.training.recipe import Lengths, Lora
from src.training.stage import Train
from src.training.trainer import PairTrainer, arguments_of

# peft 0.21 uses names of transformers that transformers calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")


@pytest.fixture(scope="module")
def reference(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven pairs: no batch size used here divides them."""
    return write_reference(tmp_path_factory.mktemp("reference"), llama, 11)


# Loss and steps ----------------------------------------------------------------------------------------------------


def test_training_starts_at_the_reference_and_at_the_expected_loss(
    reference: Path, llama: Path, tmp_path: Path, capsys: CaptureFixture[str]
) -> None:
    """Before the first step both log-ratios are 0: loss = mean of ETA^2 [(P_w - 1/2)^2 + (P_l - 1/2)^2] / 2."""
    stage, rows = train_stage(batch_pairs=11), read_rows(reference, REFERENCE)
    stage(reference, llama, out=tmp_path)
    (first,) = metrics_of(tmp_path)
    assert max(abs(first["chosen_logratio"]), abs(first["rejected_logratio"])) < 1e-4
    by_hand = sum(ETA**2 * ((r["chosen_win"] - 0.5) ** 2 + (r["rejected_win"] - 0.5) ** 2) / 2 for r in rows) / 11
    assert expected_first_loss(stage.method, rows) == pytest.approx(by_hand, rel=1e-5)
    assert first["loss"] == pytest.approx(by_hand, rel=1e-3)
    assert f"expected loss before the first step {by_hand:.5g}" in capsys.readouterr().out


def naive_logp(model: PreTrainedModel, prompt: list[int], answer: list[int]) -> Tensor:
    log_pi = model(input_ids=torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
    return sum((log_pi[len(prompt) + t - 1, token] for t, token in enumerate(answer)), torch.zeros(()))


def naive_training(stage: Train, policy: Path, batches: list[list[Row]], lrs: list[float]) -> Weights:
    """Train by SPPO on full logits, pair by pair, with RMSprop or AdamW spelt out."""
    model = AutoModelForCausalLM.from_pretrained(policy, attn_implementation="eager").train()
    parameters = dict(model.named_parameters())
    mean = {name: torch.zeros_like(p) for name, p in parameters.items()}
    square = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for step, (batch, lr) in enumerate(zip(batches, lrs, strict=True), start=1):
        loss = torch.zeros(())
        for r in batch:
            for side in ("chosen", "rejected"):
                logp = naive_logp(model, r["prompt_token_ids"], r[f"{side}_token_ids"])
                log_ratio, target = logp - r[f"ref_{side}_logp"], ETA * (r[f"{side}_win"] - 0.5)
                loss = loss + (log_ratio - target) ** 2 / 2 / len(batch)
        model.zero_grad()
        loss.backward()
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
    changes: dict[str, Any], reference: Path, llama: Path, tmp_path: Path, monkeypatch: MonkeyPatch
) -> None:
    """There are 11 pairs in batches of 4, twice: steps of 4, 4 and 3 pairs, each the mean over its own pairs."""
    rows, batches, collate = read_rows(reference, REFERENCE), [], Collator.__call__

    def note(self: Collator, pairs: list[Row]) -> Step:
        batches.append([rows[int(pair["prompt_id"])] for pair in pairs])
        return collate(self, pairs)

    monkeypatch.setattr(Collator, "__call__", note)
    stage = train_stage(epochs=2, schedule_epochs=2, **changes)
    stage(reference, llama, out=tmp_path)
    epochs = [[row["prompt_id"] for batch in batches[start : start + 3] for row in batch] for start in (0, 3)]
    assert epochs[0] != epochs[1], "each epoch has an order of its own"
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(row["prompt_id"] for row in rows)
    assert [line["pairs"] for line in metrics_of(tmp_path)] == [4, 4, 3, 4, 4, 3]
    assert all(line["grad_norm"] > 10 for line in metrics_of(tmp_path)), "clipping would show"

    expected = naive_training(stage, llama, batches, [1e-4 * (6 - t) / 6 for t in range(6)])
    trained, start = load_file(tmp_path / "model.safetensors"), load_file(llama / "model.safetensors")
    # The first step moves a weight by 10 lr whatever its gradient: where that is nothing but rounding, it may turn.
    assert_same(trained, expected, largest=2.5e-3, mean=1e-6)
    assert max(float((trained[name] - start[name]).abs().max()) for name in trained) > 1e-4


def test_how_a_step_is_cut_does_not_matter(reference: Path, llama: Path, tmp_path: Path) -> None:
    """All pairs in one row, one per row, some with activation checkpointing: steps of 8 and 3 pairs."""
    outs = []
    for row_tokens, checkpointing in ((1000, False), (1, False), (60, True)):
        outs.append(tmp_path / f"{row_tokens}{checkpointing}")
        changes = {"row_tokens": row_tokens, "activation_checkpointing": checkpointing, "head_chunk": row_tokens}
        train_stage(batch_pairs=8, **changes)(reference, llama, out=outs[-1])
        # RMSprop hides the scale of a gradient; its norm does not.
        norms = [line["grad_norm"] for line in metrics_of(outs[-1])]
        assert norms == pytest.approx([line["grad_norm"] for line in metrics_of(outs[0])], rel=1e-4)
        weights, first = (load_file(out / "model.safetensors") for out in (outs[-1], outs[0]))
        assert_same(weights, first, largest=2.5e-3, mean=1e-6)


# The schedule ------------------------------------------------------------------------------------------------------


def test_one_step_at_rate_zero_is_refused(reference: Path, llama: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="^train.batch_pairs: all 11 pairs are one step, and a warm-up begins at rate 0"
    ):
        train_stage(batch_pairs=16, warmup=0.1)(reference, llama, out=tmp_path)


def test_learning_rates_follow_the_closed_form(llama: Path, tmp_path: Path) -> None:
    """One epoch is trained. Warm-up is a share of the horizon, rounded up: of 18 epochs, the first never leaves it."""
    for pairs, batch, schedule, epochs, warmup, rise, horizon, last in (
        (11, 1, "linear", 1, 0.2, 3, 11, 0.0),
        (11, 1, "cosine", 1, 0.2, 3, 11, 0.0),
        # As the published logs end: 18 x 309 steps / 10 are 557 rounded up, and 309/557 of 5e-7 is 2.774e-7.
        (19766, 64, "linear", 18, 0.1, 557, 5562, 2.774e-7),
        (19766, 64, "linear", 1, 0.1, 31, 309, 0.0),
    ):
        stage = train_stage(lr=5e-7, batch_pairs=batch, schedule=schedule, schedule_epochs=epochs, warmup=warmup)
        rows: Any = [{}] * pairs
        arguments = arguments_of(stage.recipe, stage.devices, stage.seed, tmp_path)
        trainer: Any = PairTrainer(load_policy(llama, "float32", "cpu"), arguments, train_dataset=rows)
        trainer.set_up(stage.method, stage.recipe, stage.devices)
        trainer.create_optimizer()
        scheduler = trainer.create_scheduler(0)
        rates = [scheduler.get_last_lr()[0]]
        for _ in range(math.ceil(pairs / batch)):
            trainer.optimizer.step()
            scheduler.step()
            rates += scheduler.get_last_lr()[:1]
        shares = [min(t / rise, (horizon - t) / (horizon - rise)) for t in range(len(rates))]
        if schedule == "cosine":
            shares[rise:] = [(1 - math.cos(math.pi * share)) / 2 for share in shares[rise:]]
        assert rates == pytest.approx([5e-7 * share for share in shares])
        assert rates[-1] == pytest.approx(last, abs=5e-11)


# Lengths -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("truncation", "max_total", "pair", "expected"),
    [
        ("separate", 5, ([1, 2, 3, 4], [5, 6, 7], [8]), ([2, 3, 4], [5, 6], [8])),
        ("separate", 5, ([1], [5, 6, 7, 8, 9], [5]), ([1], [5, 6, 7, 8], [5])),  # a short prompt leaves its room
        ("joint", 6, ([1, 2, 3, 4], [5, 6], [7]), ([1, 2, 3, 4], [5, 6], [7])),  # over max_prompt, but it fits
        ("joint", 6, ([1, 2, 3, 4], [5, 6, 7], [8]), ([2, 3, 4], [5, 6, 7], [8])),  # cutting the prompt is enough
        ("joint", 6, ([1], [2, 3, 4, 5, 6, 7], [8, 9, 8, 9]), ([1], [2, 3, 4], [8, 9, 8])),  # whatever it leaves
    ],
)
def test_prompts_keep_their_last_and_answers_their_first_tokens(
    truncation: Any, max_total: int, pair: tuple[list[int], ...], expected: tuple[list[int], ...]
) -> None:
    assert Lengths(max_prompt=3, max_total=max_total, truncation=truncation).fit(*pair) == expected


# Metrics -----------------------------------------------------------------------------------------------------------


def test_log_ratios_rewards_and_the_distance_to_the_target() -> None:
    """eta 10: targets 10 (P - 1/2) are 3 and -2 for the first pair, 1 and 0 for the second; the third is a filler."""
    policy = {"policy_chosen": [1.0, -4.0, 99.0], "policy_rejected": [-3.0, 2.0, 99.0]}
    tokens = {"chosen_tokens": [5.0, 1.0, 9.0], "rejected_tokens": [2.0, 4.0, 9.0]}
    wins = {"chosen_win": [0.8, 0.6, 0.9], "rejected_win": [0.3, 0.5, 0.1]}
    loss = (((1 - 3) ** 2 + (-3 + 2) ** 2) / 2 + ((-4 - 1) ** 2 + 2**2) / 2) / 2
    expected = {"pairs": 2, "loss": loss, "loss_scaled": loss / 100, "kl_estimate": 1.0, "answer_tokens": 6.0}
    expected |= {"chosen_logratio": -1.5, "rejected_logratio": -0.5, "chosen_reward": -0.15, "rejected_reward": -0.05}
    expected |= {"reward_margin": -0.1, "reward_accuracy": 0.5, "target_distance": ((2 + 1) / 2 + (5 + 2) / 2) / 2}
    sppo = SPPO(name="sppo", eta=10.0, center=0.5)
    sums = step_sums(sppo, [1.0, 1.0, 0.0], policy | tokens | wins)
    assert means_of(sums) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("clamp", "mean", "clamped"), [(False, (0.5 + 2 + 1.5) / 3, 0.0), (True, (0.5 + 1 + 1) / 3, 2 / 3)]
)
def test_weights_of_wpo(clamp: bool, mean: float, clamped: float) -> None:
    """Products of two weights are .5, 2 and 1.5; a filler of weight 0 is not the smallest."""
    weights = {"chosen_log_weight": [math.log(w) for w in (0.5, 4, 1.5, 1e-9)]}
    weights |= {"rejected_log_weight": [0.0, -math.log(2), 0.0, 0.0]}
    wpo = WPO(name="wpo", beta=0.1, alignment="sampled", clamp=clamp)
    metrics = means_of(step_sums(wpo, [1.0, 1.0, 1.0, 0.0], weights))
    assert [metrics[f"weight{part}"] for part in ("", "_min", "_clamped")] == pytest.approx([mean, 0.5, clamped])


def test_every_step_of_a_training_has_its_metrics_as_soon_as_it_is_done(
    reference: Path, llama: Path, tmp_path: Path, monkeypatch: MonkeyPatch
) -> None:
    """They are in the working folder meanwhile; the finished file has the same. Weights are saved in bf16."""
    lines_before_each, live = [], tmp_path / WORK / "metrics.jsonl"

    def note_lines(sums: dict[str, float]) -> dict[str, float]:
        lines_before_each.append(live.read_text().splitlines() if live.exists() else [])
        return means_of(sums)

    monkeypatch.setattr(trainer_module, "means_of", note_lines)
    train_stage(save_dtype="bfloat16")(reference, llama, out=tmp_path)
    assert {weight.dtype for weight in load_file(tmp_path / "model.safetensors").values()} == {torch.bfloat16}
    finished = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert lines_before_each == [[], finished[:1], finished[:2]]
    rows = metrics_of(tmp_path)
    step = Collator(LENGTHS, 10_000)(read_rows(reference, REFERENCE))
    assert sum(row["tokens"] for row in rows) == step.tokens
    saved = sum(row["tokens"] / (1 - row["tokens_saved"]) - row["tokens"] for row in rows)
    assert saved == pytest.approx(sum(len(group.prompt) for group in step.groups))
    (exact := tmp_path / "exact").mkdir()
    train_stage()(reference, llama, out=exact)
    start, *ends = (load_file(folder / "model.safetensors") for folder in (llama, exact, tmp_path))
    updates = [torch.cat([(end[name].double() - start[name]).flatten() for name in start]) for end in ends]
    cosine = torch.nn.functional.cosine_similarity(*updates, dim=0).item()
    assert rows[-1]["saved_cosine"] == pytest.approx(cosine, rel=1e-6) and cosine < 1
    assert metrics_of(exact)[-1]["saved_cosine"] == pytest.approx(1, abs=1e-12) and "saved_cosine" not in rows[0]


# LoRA --------------------------------------------------------------------------------------------------------------


LORA = Lora(rank=4, alpha=8.0)


def test_training_moves_the_additions_and_merges_them(reference: Path, llama: Path, tmp_path: Path) -> None:
    """Head, embedding and norms stay as they are. Checkpoints hold the additions alone, and resume."""
    stage, work = train_stage(lora=LORA, lr=1e-2, save_minutes=1e-6), tmp_path / WORK
    stage(reference, llama, out=tmp_path)
    start, end = load_file(llama / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert start.keys() == end.keys()
    for name, weight in start.items():
        assert torch.equal(end[name], weight) != ("_proj" in name), name
        if "_proj" in name:
            assert torch.linalg.matrix_rank((end[name] - weight).double(), rtol=1e-4) <= LORA.rank
    assert {path.name for path in work.glob("checkpoint-*/*.safetensors")} == {"adapter_model.safetensors"}
    shutil.rmtree(work / "checkpoint-3")
    (tmp_path / "model.safetensors").unlink()
    stage(reference, llama, out=tmp_path)
    assert_same(load_file(tmp_path / "model.safetensors"), end, largest=1e-4, mean=1e-6)
