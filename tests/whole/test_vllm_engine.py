"""The vLLM engine, with the real vLLM on CPUs: answers, seeds, shared prompts, refusals, and processes that end."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_run import typed
from vllm_results import ARCHITECTURES, NEW_TOKENS, STOPS, K, Results, engine, needs_vllm, rows, sampling, vllm

from src.generation.engine import PenalisedSampling
from src.generation.vllm_engine import check_soft_caps, clear_errors, request_fields
from src.kernel.config import UserError, fingerprint
from src.modeling.policy import load_tokenizer

# ruff: noqa: F401, F811

# The real one -------------------------------------------------------------------------------------------------------


@needs_vllm
def test_every_answer_ends_where_it_says_and_is_its_seed_s_alone(vllm: Results) -> None:
    """Whatever else is asked: all together, a prompt at a time in another order, or the fourth answers only.

    The model's generation config says top_k 1: were it obeyed, all K answers to a prompt would be one.
    """
    for architecture in ARCHITECTURES:
        results = vllm.results[architecture]["sampled"]
        whole, tokenizer = results["whole"], load_tokenizer(vllm.policy(architecture))
        assert set(whole) == {f"p{n}/{k}" for n in range(len(rows())) for k in range(K)}
        assert {answer["finish_reason"] for answer in whole.values()} == {"stop", "length"}
        for answer in whole.values():
            ids, ended = answer["token_ids"], answer["finish_reason"] == "stop"
            assert [place for place, token in enumerate(ids) if token in STOPS] == ([len(ids) - 1] if ended else [])
            assert ended or len(ids) == NEW_TOKENS
            assert answer["text"] == tokenizer.decode(ids[:-1] if ended else ids, skip_special_tokens=True)
        assert results["alone"] == whole
        assert results["few"] == {f"p{n}/3": whole[f"p{n}/3"] for n in range(len(rows()))}
        for number in range(len(rows())):
            assert len({tuple(whole[f"p{number}/{k}"]["token_ids"]) for k in range(K)}) == K


# What needs no vLLM -------------------------------------------------------------------------------------------------


def test_soft_caps_that_did_not_arrive_are_refused(gemma2: Path, mistral: Path) -> None:
    """A vLLM that keeps its layers elsewhere shows none."""

    def loaded(attention: Any, logits: Any) -> Any:
        return SimpleNamespace(collective_rpc=lambda method: [{"attention": attention, "logits": logits}])

    check_soft_caps(gemma2, loaded([50.0], [30.0]))
    check_soft_caps(mistral, loaded([0], [0]))
    for attention, logits in (([0], [30.0]), ([50.0], [0]), ([0, 50.0], [30.0]), ([], [30.0])):
        with pytest.raises(UserError, match=r"hardware.engine: vLLM would not cap .*attention 50.0, logits 30.0"):
            check_soft_caps(gemma2, loaded(attention, logits))


def test_errors_of_vllm_become_one_line() -> None:
    for text, line in (
        ("1 validation error for ModelConfig\n  Value error, too long [type=value_error, x]\n  For more", "too long"),
        ("CUDA out of memory. Tried\nmore", "CUDA out of memory. Tried; change hardware.engine.memory_share"),
    ):
        with pytest.raises(UserError, match=rf"^hardware.engine: vLLM: {re.escape(line)}[^\n]*$"), clear_errors():
            raise ValueError(text)


def test_without_vllm_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, mistral: Path) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    monkeypatch.setattr(os, "environ", os.environ.copy())
    with pytest.raises(UserError, match=r"hardware.engine: vLLM is not installed .*EXTRAS=dev,vllm"):
        engine().open(mistral, sampling())


def test_only_the_number_type_is_in_the_key() -> None:
    assert typed("engine@hardware.engine=vllm_cpu").hardware.engine.own_process
    assert engine(tensor_parallel=4).devices_each == 4
    free = engine(tensor_parallel=4, memory_share=0.5, cache_gb=None, max_sequences=9, enforce_eager=False)
    assert fingerprint(free) == fingerprint(engine()) != fingerprint(engine(dtype="bfloat16"))


def test_a_request_says_what_is_set_and_nothing_else() -> None:
    plain = {"temperature": 0.9, "top_p": 0.9, "max_tokens": NEW_TOKENS, "stop_token_ids": [2, 7], "ignore_eos": True}
    assert request_fields(sampling(), {7, 2}) == plain
    for shape in (
        {"top_k": 50, "presence_penalty": 0.1, "frequency_penalty": 0.1},
        {"top_k": None, "presence_penalty": 0.1, "frequency_penalty": 0.1},
        {"top_k": 7, "presence_penalty": 0.0, "frequency_penalty": 0.0},
    ):
        settings = PenalisedSampling(**vars(sampling()) | shape)
        assert request_fields(settings, {7, 2}) == plain | {name: value for name, value in shape.items() if value}
