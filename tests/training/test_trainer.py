"""The trainer against a loop written by hand: losses, batches, schedules, metrics, LoRA and what it leaves behind."""

from __future__ import annotations

import dataclasses
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from padded_twin import assert_close, odd_groups
from pydantic import ValidationError
from pytest import CaptureFixture, MonkeyPatch
from safetensors.torch import load_file
from tiny_training import ETA, Weights, assert_same, metrics_of, train_stage, write_reference
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, TrainingArguments

from src.kernel.artifact import WORK
from src.kernel.config import UserError
from src.kernel.rows import REFERENCE, SPEED, Row, read_rows
from src.methods.dpo import DPO
from src.methods.method import Method, PairLogps
from src.methods.sppo import SPPO
from src.methods.wpo import WPO
from src.modeling.logps import bind_forward
from src.modeling.packing import pack
from src.modeling.policy import load_policy
from src.training.batch import Collator, Step
from src.training.memory import Shape
from src.training.metrics import StepClock, StepMetrics, expected_first_loss
from src.training.recipe import Lengths, Lora
from src.training.stage import Train
from src.training.trainer import PairTrainer, arguments_of


@pytest.fixture(scope="module")
def reference(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven pairs: no batch size used here divides them."""
    return write_reference(tmp_path_factory.mktemp("reference"), llama, 11)


# The loss


def test_training_starts_at_the_reference_and_at_the_expected_loss(
    reference: Path, llama: Path, tmp_path: Path, capsys: CaptureFixture[str]
) -> None:
    """Before the first step both log-ratios are 0: loss = mean of ETA^2 [(P_w - 1/2)^2 + (P_l - 1/2)^2] / 2."""
    stage, rows = train_stage(batch_pairs=11), read_rows(reference, REFERENCE)
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


def naive_training(stage: Train, policy: Path, batches: list[list[Row]], lrs: list[float]) -> Weights:
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
    changes: dict[str, Any], reference: Path, llama: Path, tmp_path: Path, monkeypatch: MonkeyPatch
) -> None:
    """11 pairs in batches of 4, twice: steps of 4, 4 and 3 pairs, each the mean over its own pairs."""
    rows, seen, collate = read_rows(reference, REFERENCE), [], Collator.__call__

    def note(self: Collator, pairs: list[Row]) -> Step:
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
    data: Any = [{}] * pairs
    arguments = arguments_of(stage.recipe, stage.devices, stage.seed, folder)
    trainer = PairTrainer(load_policy(policy, "float32", "cpu"), arguments, train_dataset=data)
    trainer.set_up(stage.method, stage.recipe, stage.devices, Shape.of(policy), folder)
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


def test_limits_without_room_are_refused() -> None:
    with pytest.raises(ValidationError, match="leaves no room"):
        Lengths(max_prompt=5, max_total=5, truncation="separate")
    with pytest.raises(ValidationError, match="shorter than epochs"):
        dataclasses.replace(train_stage().recipe, epochs=2)


def test_more_devices_or_processes_than_the_config_counts_are_refused(
    tmp_path: Path, llama: Path, monkeypatch: MonkeyPatch
) -> None:
    """Two visible devices would double the step, and the artifact would keep the key of the single one."""
    reference = write_reference(tmp_path / "reference", llama, 8)
    monkeypatch.setattr(TrainingArguments, "n_gpu", 2)
    with pytest.raises(UserError, match="hardware.devices.count: 1, but 2 are here"):
        train_stage()(reference, llama, out=tmp_path)


def logps_of(**columns: list[float]) -> PairLogps:
    count = len(next(iter(columns.values())))
    zero = {name: [0.0] * count for name in PairLogps._fields}
    return PairLogps(**{name: torch.tensor(values) for name, values in (zero | columns).items()})


def taken(method: Method, p: PairLogps, counted: list[float]) -> dict[str, float]:
    metrics = StepMetrics(method)
    metrics.add(p, method.loss(p), torch.tensor(counted))
    return metrics.take(Accelerator(cpu=True))


def test_log_ratios_rewards_and_the_distance_to_the_target() -> None:
    """eta 10: targets 10 (P - 1/2) are 3 and -2 for the first pair, 1 and 0 for the second; the third is a filler."""
    policy = {"policy_chosen": [1.0, -4.0, 99.0], "policy_rejected": [-3.0, 2.0, 99.0]}
    tokens = {"chosen_tokens": [5.0, 1.0, 9.0], "rejected_tokens": [2.0, 4.0, 9.0]}
    p = logps_of(**policy, **tokens, chosen_win=[0.8, 0.6, 0.9], rejected_win=[0.3, 0.5, 0.1])
    got = taken(SPPO(name="sppo", eta=10.0, center=0.5), p, [1.0, 1.0, 0.0])
    loss = (((1 - 3) ** 2 + (-3 + 2) ** 2) / 2 + ((-4 - 1) ** 2 + 2**2) / 2) / 2
    expected = {"pairs": 2, "loss": loss, "loss_scaled": loss / 100, "kl_estimate": 1.0, "answer_tokens": 6.0}
    expected |= {"chosen_logratio": -1.5, "rejected_logratio": -0.5, "chosen_reward": -0.15, "rejected_reward": -0.05}
    expected |= {"reward_margin": -0.1, "reward_accuracy": 0.5, "target_distance": ((2 + 1) / 2 + (5 + 2) / 2) / 2}
    assert got == pytest.approx(expected)


def test_weights_of_wpo() -> None:
    """Products of two weights .5, 2 and 1.5; a filler of weight 0 is not the smallest."""
    p = logps_of(
        chosen_log_weight=[math.log(w) for w in (0.5, 4, 1.5, 1e-9)], rejected_log_weight=[0, -math.log(2), 0, 0]
    )
    for clamp, mean, clamped in ((False, (0.5 + 2 + 1.5) / 3, 0.0), (True, 2.5 / 3, 2 / 3)):
        got = taken(WPO(name="wpo", beta=0.1, alignment="sampled", clamp=clamp), p, [1.0, 1.0, 1.0, 0.0])
        assert (got["weight"], got["weight_min"], got["weight_clamped"]) == pytest.approx((mean, 0.5, clamped))
    got = taken(DPO(name="dpo", beta=0.1), logps_of(policy_chosen=[1.0]), [1.0])
    assert not {"target_distance", "weight", "weight_min", "weight_clamped"} & got.keys(), "it has neither"


def test_the_clock_divides_what_was_computed_by_the_time_it_took(monkeypatch: MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("src.training.metrics.time.monotonic", lambda: now[0])
    clock = StepClock(flops_per_s=1000.0)
    step: Any = SimpleNamespace(tokens=300, unshared_tokens=400)
    for left, seconds in ((2, 4.0), (1, 2.0)):
        clock.begin(step, flops=600.0, waited=0.0)
        now[0] += seconds
        got = clock.take(left, Accelerator(cpu=True))
        assert got["tokens"] == 300 and got["tokens_saved"] == 0.25
        assert got[SPEED + "tokens_per_s"] == 300 / seconds
        assert got[SPEED + "mfu"] == 600 / seconds / 1000
    assert got[SPEED + "eta_s"] == 1 * (4 + 2) / 2
    assert got[SPEED + "memory_gb"] > 0.1
    (without := StepClock(None)).begin(step, 600.0, 0.0)
    now[0] += 1
    assert SPEED + "mfu" not in without.take(0, Accelerator(cpu=True))


def test_every_step_of_a_training_has_them_as_soon_as_it_is_done(
    reference: Path, llama: Path, tmp_path: Path, monkeypatch: MonkeyPatch
) -> None:
    """While it is under way they are in the working folder; the finished file has the same."""
    seen, take, live = [], StepClock.take, tmp_path / "work" / "metrics.jsonl"

    def look(self: StepClock, *args: Any) -> dict[str, float]:
        seen.append(live.read_text().splitlines() if live.exists() else [])
        return take(self, *args)

    monkeypatch.setattr(StepClock, "take", look)
    stage = train_stage(peak_tflops=0.001)
    stage(reference, llama, out=tmp_path)
    assert [len(lines) for lines in seen] == [0, 1, 2]
    assert (tmp_path / "metrics.jsonl").read_text().splitlines()[:2] == seen[-1]
    expected = {"loss", "loss_scaled", "grad_norm", "learning_rate", "epoch", "step", "pairs", "tokens", "tokens_saved"}
    expected |= {f"{side}_{what}" for side in ("chosen", "rejected") for what in ("logratio", "reward")}
    expected |= {"reward_margin", "reward_accuracy", "kl_estimate", "answer_tokens", "target_distance"}
    expected |= {SPEED + name for name in ("seconds", "tokens_per_s", "data_wait_s", "memory_gb", "eta_s", "mfu")}
    rows = metrics_of(tmp_path)
    assert [set(row) for row in rows] == [expected] * 3
    groups = Collator(stage.recipe.lengths, 10_000)(read_rows(reference, REFERENCE))
    assert sum(row["tokens"] for row in rows) == groups.tokens
    work = Shape.of(llama).flops(groups.groups)
    measured = sum(row[SPEED + "mfu"] * row[SPEED + "seconds"] * 1e9 for row in rows)
    assert measured == pytest.approx(work, rel=0.01)


def test_a_gradient_that_is_not_finite_stops_too(
    reference: Path, llama: Path, tmp_path: Path, monkeypatch: MonkeyPatch
) -> None:
    """The loss may be finite all the same; the last step would otherwise save what it made of the weights."""
    backward = Accelerator.backward

    def spoilt(self: Accelerator, loss: torch.Tensor, **options: Any) -> None:
        backward(self, loss * float("inf"), **options)

    monkeypatch.setattr(Accelerator, "backward", spoilt)
    with pytest.raises(UserError, match="the gradient is not finite at step 0; its pairs are in .*not_finite"):
        train_stage()(reference, llama, out=tmp_path)
    assert not (tmp_path / "model.safetensors").exists()


LORA = Lora(rank=4, alpha=8.0)
# peft 0.21 uses names of transformers that transformers calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")


def test_with_the_adapter_fresh_or_off_it_is_the_reference(llama: Path, mistral: Path, gemma2: Path) -> None:
    for folder in (llama, mistral, gemma2):
        check_adapter(folder)


def check_adapter(folder: Path) -> None:
    """B = 0 at the start; the stored log-probabilities of the reference are those of the policy itself."""
    model = load_policy(folder, "float32", "cpu")
    bind_forward(model, "none", 7, "segments")
    packed = pack(odd_groups(0))
    with torch.no_grad():
        expected = model(packed).logp
        wrapped = LORA.attach(model)
        assert_close(wrapped(packed).logp, expected, largest=1e-4, mean=2e-5)
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
        assert (wrapped(packed).logp - expected).abs().max() > 1
        with wrapped.disable_adapter():
            assert_close(wrapped(packed).logp, expected, largest=1e-4, mean=2e-5)


def test_training_moves_the_additions_and_merges_them(reference: Path, llama: Path, tmp_path: Path) -> None:
    """Head, embedding and norms stay as they are, the linear layers move; plain transformers loads the result."""
    train_stage(lora=LORA, lr=1e-2, epochs=2, schedule_epochs=2)(reference, llama, out=tmp_path)
    start, end = load_file(llama / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert start.keys() == end.keys()
    for name, weight in start.items():
        assert torch.equal(end[name], weight) != ("_proj" in name), name
        if "_proj" in name:
            assert torch.linalg.matrix_rank((end[name] - weight).double(), rtol=1e-4) <= LORA.rank
    first, *_, last = metrics_of(tmp_path)
    assert abs(first["chosen_logratio"]) < 1e-4 and abs(last["chosen_logratio"]) > 1e-3
    _, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info


def test_checkpoints_hold_the_additions_only_and_resume(reference: Path, llama: Path, tmp_path: Path) -> None:
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    stage = train_stage(lora=LORA, lr=1e-2, save_minutes=1e-6)
    stage(reference, llama, out=whole)
    stage(reference, llama, out=resumed)
    saved = [path.name for path in (resumed / WORK).glob("checkpoint-*/*.safetensors")]
    assert saved and set(saved) == {"adapter_model.safetensors"}
    shutil.rmtree(resumed / WORK / "checkpoint-3")
    (resumed / "model.safetensors").unlink()
    stage(reference, llama, out=resumed)
    assert_same(*(load_file(out / "model.safetensors") for out in (resumed, whole)), largest=1e-4, mean=1e-6)
