"""What a step says of itself, by hand"""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from tiny_training import metrics_of, train_stage, write_reference

from src import records
from src.config import UserError
from src.methods.dpo import DPO
from src.methods.pair_logps import Method, PairLogps
from src.methods.sppo import SPPO
from src.methods.wpo import WPO
from src.records import SPEED
from src.training.batch import Collator
from src.training.memory import Shape
from src.training.metrics import StepClock, StepMetrics


def pairs(**columns: list[float]) -> PairLogps:
    count = len(next(iter(columns.values())))
    zero = {name: [0.0] * count for name in PairLogps._fields}
    return PairLogps(**{name: torch.tensor(values) for name, values in (zero | columns).items()})


def taken(method: Method, p: PairLogps, counted: list[float]) -> dict[str, float]:
    metrics = StepMetrics(method)
    metrics.add(p, method.loss(p), torch.tensor(counted))
    return metrics.take(Accelerator(cpu=True))


def test_log_ratios_rewards_and_the_distance_to_the_target() -> None:
    """eta 10: targets 10 (P - 1/2) are 3 and -2 for the first pair, 1 and 0 for the second; the third is a filler."""
    p = pairs(
        policy_chosen=[1.0, -4.0, 99.0],
        policy_rejected=[-3.0, 2.0, 99.0],
        chosen_win=[0.8, 0.6, 0.9],
        rejected_win=[0.3, 0.5, 0.1],
        chosen_tokens=[5.0, 1.0, 9.0],
        rejected_tokens=[2.0, 4.0, 9.0],
    )
    got = taken(SPPO(name="sppo", eta=10.0, center=0.5), p, [1.0, 1.0, 0.0])
    losses = [((1 - 3) ** 2 + (-3 + 2) ** 2) / 2, ((-4 - 1) ** 2 + 2**2) / 2]
    assert got == pytest.approx(
        {
            "pairs": 2,
            "loss": sum(losses) / 2,
            "loss_scaled": sum(losses) / 200,
            "chosen_logratio": -1.5,
            "rejected_logratio": -0.5,
            "chosen_reward": -0.15,
            "rejected_reward": -0.05,
            "reward_margin": -0.1,
            "reward_accuracy": 0.5,
            "kl_estimate": 1.0,
            "answer_tokens": 6.0,
            "target_distance": ((2 + 1) / 2 + (5 + 2) / 2) / 2,
        }
    )


def test_weights_of_wpo() -> None:
    """Products of two weights .5, 2 and 1.5; a filler of weight 0 is not the smallest."""
    p = pairs(chosen_log_weight=[math.log(w) for w in (0.5, 4, 1.5, 1e-9)], rejected_log_weight=[0, -math.log(2), 0, 0])
    for clamp, mean, clamped in ((False, (0.5 + 2 + 1.5) / 3, 0.0), (True, 2.5 / 3, 2 / 3)):
        got = taken(WPO(name="wpo", beta=0.1, alignment="sampled", clamp=clamp), p, [1.0, 1.0, 1.0, 0.0])
        assert (got["weight"], got["weight_min"], got["weight_clamped"]) == pytest.approx((mean, 0.5, clamped))
    got = taken(DPO(name="dpo", beta=0.1), pairs(policy_chosen=[1.0]), [1.0])
    assert not {"target_distance", "weight", "weight_min", "weight_clamped"} & got.keys(), "it has neither"


def test_the_clock_divides_what_was_computed_by_the_time_it_took(monkeypatch: pytest.MonkeyPatch) -> None:
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


@pytest.fixture(scope="module")
def reference(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_reference(tmp_path_factory.mktemp("reference"), llama, 11)


def test_every_step_of_a_training_has_them_as_soon_as_it_is_done(
    reference: Path, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
    groups = Collator(stage.recipe.lengths, 10_000)(records.read_rows(reference, records.REFERENCE))
    assert sum(row["tokens"] for row in rows) == groups.tokens
    work = Shape.of(llama).flops(groups.groups)
    measured = sum(row[SPEED + "mfu"] * row[SPEED + "seconds"] * 1e9 for row in rows)
    assert measured == pytest.approx(work, rel=0.01)


def test_a_gradient_that_is_not_finite_stops_too(
    reference: Path, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss may be finite all the same; the last step would otherwise save what it made of the weights."""
    backward = Accelerator.backward

    def spoilt(self: Accelerator, loss: torch.Tensor, **options: Any) -> None:
        backward(self, loss * float("inf"), **options)

    monkeypatch.setattr(Accelerator, "backward", spoilt)
    with pytest.raises(UserError, match="the gradient is not finite at step 0; its pairs are in .*not_finite"):
        train_stage()(reference, llama, out=tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
