"""The parity probe: vLLM is the model that transformers has, and what makes it another one is warned of."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import INST, build_policy
from tiny_run import call, tiny
from vllm_results import ARCHITECTURES, NEW_TOKENS, Results, needs_vllm, requests, vllm  # noqa: F401

# ruff: noqa: F811
from src.generation.engine import Request, Sampling
from src.generation.parity import CAUSES, LIMIT, Parity, Told, ask, compare, prompts_of
from src.generation.transformers_engine import TransformersEngine
from src.modeling.policy import load_tokenizer, render


def found(results: Results, architecture: str, logps: str = "right") -> Parity:
    said, policy = results.said[architecture], results.policy(architecture)
    told = Told(said["greedy"], said["measured"][logps])
    return compare(told, requests(policy), policy, "cpu", NEW_TOKENS)


@needs_vllm
def test_vllm_is_the_model_that_transformers_has_and_a_doubled_bos_is_warned_of(vllm: Results) -> None:
    for architecture in ARCHITECTURES:
        parity = found(vllm, architecture)
        assert parity.mean < 1e-5 and parity.tokens > 60
        assert parity.equal == parity.prompts and parity.warnings == []
        doubled = found(vllm, architecture, "doubled")
        assert doubled.mean > 10 * LIMIT and CAUSES in doubled.warnings[0]


def test_warns_of_a_template_that_doubles_the_bos_and_of_prompts_that_it_does_not_give(tmp_path: Path) -> None:
    policy = build_policy(tmp_path, "llama", "{{ bos_token }}" + INST)
    messages = [{"role": "user", "content": "the of"}]
    ids = render(load_tokenizer(policy), messages)
    for given in (ids, [1, 5, 6]):
        told = Told([[7, 8]], [[-1.0, -1.0]])
        parity = compare(told, [Request("p", messages, given, {0: 0})], policy, "cpu", 2)
        assert any("exactly one BOS" in warning for warning in parity.warnings)


@pytest.fixture
def plain(llama: Path, tmp_path: Path) -> list[str]:
    """Overrides of a tiny run whose engine is plain transformers."""
    own = ["hardware.engine._target_=plain_engine.HerePlainEngine", "~hardware.engine.batch_answers"]
    return [*tiny(llama, tmp_path), *own]


def test_our_own_engine_is_the_model_that_transformers_has(llama: Path, mistral: Path, gemma2: Path) -> None:
    """In slots, with soft-caps and windows: the same greedy answers, and log-probabilities."""
    ours = TransformersEngine(dtype="float32", batch_answers=16, device="cpu")
    chats = [[{"role": "user", "content": text}] for text in ("hi", "what is it", "be it so", "and so on " * 12)]
    sampling = Sampling(K=1, temperature=0.0, top_p=1.0, max_new_tokens=20, max_prompt_tokens=200)
    rows = [{"prompt_id": str(n), "messages": chat} for n, chat in enumerate(chats)]
    for policy in (llama, mistral, gemma2):
        asked = prompts_of(rows, policy, 200)
        parity = compare(ask(ours, policy, sampling, asked, policy), asked, policy, "cpu", 20)
        assert parity.mean < 1e-4 and parity.equal == 4 and parity.warnings == [], policy


def test_the_verb_warns_of_other_weights_and_refuses_an_engine_that_cannot_measure(
    plain: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = build_policy(tmp_path / "other", "llama", seed=1)
    assert call("parity", *plain) == 0
    assert "warning" not in capsys.readouterr().out
    assert call("parity", *plain, f"+hardware.engine.other_policy={other}") == 0
    assert "warning: mean |Δlogp|" in capsys.readouterr().out
    assert call("parity", *plain, "hardware.engine._target_=plain_engine.MuteEngine") == 2
    assert "hardware.engine: MuteEngine" in capsys.readouterr().err
