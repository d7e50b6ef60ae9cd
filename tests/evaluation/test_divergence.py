"""The KL from the base, at every position of the answers."""

from __future__ import annotations

import gc
import json
import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from answer_rows import answered, written
from bad_models import nan
from conftest import build_policy

from src.evaluation.held_out import Divergence
from src.kernel.config import UserError
from src.kernel.rows import RESPONSES, read_rows
from src.modeling.policy import load_policy

ANSWERS = [([3, 4, 5], [6, 7, 8, 9]), ([3], [10]), ([11, 12], [13, 14, 15, 16, 17, 18])]


@pytest.fixture(scope="module")
def other_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_policy(tmp_path_factory.mktemp("other"), "llama", seed=1)


@pytest.fixture
def responses(tmp_path: Path) -> Path:
    rows = [answered(i, "", []) for i in range(len(ANSWERS))]
    for row, (prompt, ids) in zip(rows, ANSWERS, strict=True):
        row["prompt_token_ids"], row["responses"][0]["token_ids"] = prompt, ids
    return written(tmp_path / "responses", rows, RESPONSES)


def divergence(
    responses: Path, policy: Path, base: Path, prompts: int = 3, batch: int = 2, chunk: int = 512
) -> dict[str, float]:
    out = responses.with_name(f"out{prompts}{batch}{chunk}")
    out.mkdir(exist_ok=True)
    Divergence(prompts=prompts, device="cpu", batch_answers=batch, head_chunk=chunk)(responses, policy, base, out=out)
    return json.loads((out / "metrics.json").read_text())


def naive_kl(policy: Path, base: Path) -> list[float]:
    """sum_t sum_v pi(v) (log pi(v) - log pi_0(v)) of every answer, from full logits, one row at a time."""
    models = [load_policy(folder, "float32", "cpu") for folder in (policy, base)]
    sums = []
    for prompt, ids in ANSWERS:
        with torch.no_grad():
            pi, base_pi = (model(torch.tensor([prompt + ids])).logits[0].log_softmax(-1) for model in models)
        positions = range(len(prompt) - 1, len(prompt) + len(ids) - 1)
        sums.append(sum(float((pi[t].exp() * (pi[t] - base_pi[t])).sum()) for t in positions))
    return sums


def test_the_divergence_is_the_full_kl_at_every_position_of_the_answers(
    responses: Path, llama: Path, other_llama: Path
) -> None:
    """11 answer tokens: 4 + 1 + 6. It is no distance: there and back differ."""
    expected = naive_kl(llama, other_llama)
    assert min(expected) > 0.01, "the two policies differ"
    for batch, chunk in ((1, 512), (2, 512), (3, 1), (3, 4), (3, 11)):
        metrics = divergence(responses, llama, other_llama, batch=batch, chunk=chunk)
        assert metrics["kl_per_token"] == pytest.approx(sum(expected) / 11, rel=1e-4)
        assert metrics["kl_per_answer"] == pytest.approx(sum(expected) / 3, rel=1e-4)
    back = divergence(responses, other_llama, llama)
    assert back["kl_per_answer"] == pytest.approx(sum(naive_kl(other_llama, llama)) / 3, rel=1e-4)
    assert back["kl_per_answer"] != pytest.approx(sum(expected) / 3, rel=1e-3)


def test_the_divergence_honours_the_soft_cap_of_gemma2(responses: Path, gemma2: Path, tmp_path: Path) -> None:
    other = build_policy(tmp_path / "gemma", "gemma2", seed=2)
    found, expected = divergence(responses, gemma2, other), naive_kl(gemma2, other)
    assert found["kl_per_answer"] == pytest.approx(sum(expected) / 3, rel=1e-4)


def test_one_model_at_a_time_is_in_memory(
    responses: Path, llama: Path, other_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import src.modeling.policy

    loaded: list[weakref.ref[Any]] = []

    def load(*given: Any) -> Any:
        assert not any(model() for model in loaded), "the first is still there"
        loaded.append(weakref.ref(model := load_policy(*given)))
        return model

    monkeypatch.setattr(src.modeling.policy, "load_policy", load)
    gc.disable()  # or chance may free what a cycle holds
    try:
        divergence(responses, llama, other_llama)
    finally:
        gc.enable()
    assert len(loaded) == 2


def test_a_divergence_that_is_no_number_is_refused_by_prompt(responses: Path, llama: Path, tmp_path: Path) -> None:
    """A NaN in the last layer's norm spoils every position; the first of the prompts is named."""
    broken = Path(shutil.copytree(llama, tmp_path / "broken"))
    nan("model.norm.weight")(broken)
    first = read_rows(responses, RESPONSES)[0]
    for policy, base in ((broken, llama), (llama, broken)):
        said = f"^divergence: KL .* is NaN or infinity for the answer to prompt {first['prompt_id']}; look at "
        with pytest.raises(UserError, match=said):
            divergence(responses, policy, base)
        assert not list(tmp_path.glob("out*/metrics.json"))


def test_only_the_first_prompts_are_measured_and_all_where_there_are_fewer(responses: Path, llama: Path) -> None:
    for prompts, measured in ((2, 2), (99, 3)):
        metrics = divergence(responses, llama, llama, prompts=prompts)
        assert metrics["prompts"] == measured and metrics["kl_per_token"] == 0, "of a policy from itself"
