"""The judge that shares nothing with the embedded ranker: what each signal is, and that the score is their sum.

The language model is a tiny random Llama, so likelihoods are meaningless here but exact.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from tiny_run import composed
from transformers import AutoTokenizer

from src.kernel.rows import Row
from src.launch.compose import build
from src.modeling.policy import load_policy
from src.ranking.independent import IndependentRanker, TokenEmbedding

RANGE = [-9.0, -0.5]
CHECKS = [{"kind": kind} for kind in ("no_digits", "ends_with_full_stop", "no_commas")]  # the last is a trained one
ASKED = {
    "Why is the sky blue?": (["Light, scattered by air.", "", "Rayleigh 1871"], CHECKS),
    "Name two colours": (["red and green", "word " * 50], []),
}
ROWS: list[Row] = [
    {"prompt_id": question, "messages": [{"role": "user", "content": question}], "checks": json.dumps(asked)}
    | {"responses": [{"text": text} for text in texts]}
    for question, (texts, asked) in ASKED.items()
]


@pytest.fixture(scope="module")
def ranker(llama: Path) -> IndependentRanker:
    cfg = composed("ranker=independent").ranker
    place = {"name": "tiny", "repo": str(llama), "revision": "main"}
    cfg.language_model = {"_target_": "src.modeling.checkpoints.Checkpoint"} | place
    cfg.device, cfg.precision, cfg.likelihood_range = "cpu", "float32", RANGE
    return build(OmegaConf.create({"_convert_": "all", **cfg}))  # type: ignore[return-value, arg-type]


@pytest.fixture(scope="module")
def ranked(ranker: IndependentRanker, llama: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    return ranker.rank(ROWS, (llama,), tmp_path_factory.mktemp("work"))


def signals_of(ranking: Row) -> dict[str, list[float]]:
    return {term["name"]: term["values"] for term in ranking["terms"]}


def test_the_score_is_the_documented_sum_over_tau(ranker: IndependentRanker, ranked: list[Row]) -> None:
    for ranking in ranked:
        weights = {"kept": 1.0, "relevance": 3.0, "likelihood": 1.0}
        total = sum(weights[name] * np.array(values) for name, values in signals_of(ranking).items())
        assert ranking["scores"] == pytest.approx((total / 0.5).tolist(), rel=1e-9)


def test_only_instructions_of_kinds_that_no_training_prompt_has_count(ranked: list[Row]) -> None:
    assert signals_of(ranked[0])["kept"] == [1.0, 0.0, 0.0]  # the comma is no matter; nothing at all keeps nothing
    assert signals_of(ranked[1])["kept"] == [0.0, 0.0]


def test_the_likelihood_is_the_mean_log_probability_of_a_token_after_the_message(
    llama: Path, ranked: list[Row]
) -> None:
    """Token by token, from full logits of the bare model."""
    tokenizer: Any = AutoTokenizer.from_pretrained(llama)
    model = load_policy(llama, "float32", "cpu")
    for asked, ranking in zip(ROWS, ranked, strict=True):
        prompt = tokenizer(asked["messages"][0]["content"] + "\n\n")["input_ids"]
        for answer, likelihood in zip(asked["responses"], signals_of(ranking)["likelihood"], strict=True):
            ids = tokenizer(answer["text"], add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                logp = model(torch.tensor([prompt + ids])).logits[0].log_softmax(-1)
            each = [logp[len(prompt) + i - 1, token].item() for i, token in enumerate(ids)]
            expected = min(max(float(np.mean(each)), RANGE[0]), RANGE[1]) if each else RANGE[0]
            assert likelihood == pytest.approx(expected, abs=1e-4)


def test_relevance_is_the_cosine_of_averaged_token_embeddings(ranked: list[Row]) -> None:
    embedding = TokenEmbedding()
    question, near, far = map(
        embedding, ("Why is the sky blue?", "Blue light is scattered in the sky.", "Bake a cake.")
    )
    assert np.linalg.norm(near) == pytest.approx(1) and question @ near > question @ far + 0.2
    assert not embedding(" ").any()
    both = embedding.table[embedding.tokenizer.encode("sky blue", add_special_tokens=False).ids].astype(float).mean(0)
    np.testing.assert_allclose(embedding("sky blue"), both / np.linalg.norm(both), atol=1e-12)
    assert signals_of(ranked[0])["relevance"][0] == pytest.approx(question @ embedding("Light, scattered by air."))
