"""The parity probe: vLLM is the model that transformers has, and what makes it another one is warned of."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from conftest import build_policy
from places import PYTHONPATH
from tiny_run import tiny
from vllm_results import ARCHITECTURES, NEW_TOKENS, Results, needs_vllm, plain_greedy, requests, vllm  # noqa: F401

from bench.parity import compared, main
from src.generation.engine import Answering, Engine, Request, Sampling
from src.kernel.config import Device, Free, config
from src.modeling.policy import Precision, load_tokenizer

# ruff: noqa: F811


@config
class PlainEngine(Engine):
    """Plain transformers in place of vLLM."""

    dtype: Precision
    device: Free[Device]
    other_policy: Free[str | None] = None
    """Whose weights it really has: a wrong engine."""

    def open(self, policy: Path, sampling: Sampling) -> Answering:
        raise AssertionError("nothing is sampled")

    def greedy(self, policy: Path, requests: list[Request], most: int) -> list[tuple[list[int], list[float]]]:
        return [plain_greedy(Path(self.other_policy or policy), request.token_ids, most) for request in requests]


@needs_vllm
def test_vllm_is_the_model_that_transformers_has_and_a_doubled_bos_is_warned_of(vllm: Results) -> None:
    for architecture in ARCHITECTURES:
        results, policy = vllm.results[architecture], vllm.policy(architecture)
        asked = [request for request in requests(policy) if request.k == 0]
        gap, equal = compared(results["greedy"], asked, policy, "cpu", NEW_TOKENS)
        assert float(gap.split()[2]) < 1e-5 and equal == "greedy answers equal: 4 of 4"
        assert len(compared(results["doubled"], asked, policy, "cpu", NEW_TOKENS)) == 3


def test_a_prompt_with_two_bos_is_warned_of(mistral: Path) -> None:
    bos = load_tokenizer(mistral).bos_token_id
    prompts: list[list[int]] = [[bos, 5, 6], [bos, bos, 5, 6]]
    asked = [Request(str(n), 0, ids, 0) for n, ids in enumerate(prompts)]
    lines = compared([plain_greedy(mistral, ids, 4) for ids in prompts], asked, mistral, "cpu", 4)
    assert [line.startswith("warning: 1 of 2 prompts") for line in lines] == [False, False, True]


@pytest.mark.full
def test_the_command_warns_of_other_weights_and_refuses_an_engine_that_is_not_vllm(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{PYTHONPATH}{os.pathsep}{Path(__file__).parent}")
    words = tiny(llama, tmp_path)
    plain = [*words, "hardware.engine._target_=test_bench_parity.PlainEngine", "~hardware.engine.batch_answers"]
    other = build_policy(tmp_path / "other", "llama", seed=1)
    assert main(plain) == 0
    assert "warning" not in capsys.readouterr().out
    assert main([*plain, f"+hardware.engine.other_policy={other}"]) == 0
    assert "warning: mean |Δlogp|" in capsys.readouterr().out
    assert main(words) == 2
    assert "hardware.engine: TransformersEngine" in capsys.readouterr().err
    assert main([*plain, "sampling.max_prompt_tokens=1"]) == 2
    assert "sampling.max_prompt_tokens: all held-out prompts are longer than 1" in capsys.readouterr().err
