"""The embedded ranker: what each term is, that the score is their sum, and that no answer leans on its neighbours.

The frozen model is a tiny random Llama, so PMI is meaningless here but exact.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from tiny_run import composed

from src.kernel.rows import Row
from src.launch.compose import build
from src.modeling.policy import load_policy, load_tokenizer, render
from src.ranking.embedded import EmbeddedRanker, ShuffledRanker

PMI_POWER, RANGE = 0.25, [-2.0, 2.0]


def row(question: str, answers: list[str], checks: list[dict[str, Any]] | None = None) -> Row:
    """Make a RESPONSES row. An answer with a full stop at its end ended by itself."""
    responses = [
        {"text": text, "token_ids": [1] * len(text), "finish_reason": "stop" if text.endswith(".") else "length"}
        for text in answers
    ]
    messages = [{"role": "user", "content": question}]
    return {"prompt_id": question, "messages": messages, "checks": json.dumps(checks or []), "responses": responses}


SKY = ["Light is scattered by air.", "", "is the sky blue, is the sky blue", " \n"]
ROWS = [
    row("Why is the sky blue?", SKY, [{"kind": "words_at_most", "n": 5}, {"kind": "no_commas"}]),
    row("Name two colours", ["red and green", "word " * 50]),
    row("None", ["yes.", "no."]),
]


@pytest.fixture(scope="module")
def ranker(llama: Path) -> EmbeddedRanker:
    cfg = composed().ranker
    place = {"name": "tiny", "repo": str(llama), "revision": "main"}
    cfg.frozen_model = {"_target_": "src.modeling.checkpoints.Checkpoint"} | place
    cfg.device, cfg.precision, cfg.pmi_length_power, cfg.pmi_range = "cpu", "float32", PMI_POWER, RANGE
    return build(OmegaConf.create({"_convert_": "all", **cfg}))  # type: ignore[return-value, arg-type]


@pytest.fixture(scope="module")
def rank(ranker: EmbeddedRanker, llama: Path) -> Callable[[list[Row]], list[Row]]:
    """Rank rows as if nothing had been ranked before."""

    def go(rows: list[Row]) -> list[Row]:
        with TemporaryDirectory() as work:
            return ranker.rank(rows, (llama,), Path(work))

    return go


@pytest.fixture(scope="module")
def ranked(rank: Any) -> list[Row]:
    return rank(ROWS)


def test_a_placebo_deals_the_same_scores_by_lot(ranker: EmbeddedRanker, llama: Path, tmp_path: Path) -> None:
    """Over many prompts an answer keeps its score as often as chance has it: one time in K."""
    rows = [row(f"Question {i}", ["yes.", "no", "a b"]) for i in range(50)]
    true = ranker.rank(rows, (llama,), tmp_path / "true")
    dealt = ShuffledRanker(**vars(ranker)).rank(rows, (llama,), tmp_path / "dealt")
    assert [sorted(one["scores"]) for one in dealt] == [sorted(one["scores"]) for one in true]
    assert [one | {"scores": 0} for one in dealt] == [one | {"scores": 0} for one in true]
    kept = np.mean([one["scores"][0] == other["scores"][0] for one, other in zip(true, dealt, strict=True)])
    assert 0.2 < kept < 0.47, "the prompts say which: always the same"


def terms_of(ranking: Row) -> dict[str, list[float]]:
    return {term["name"]: term["values"] for term in ranking["terms"]}


def test_the_score_is_the_documented_sum_over_tau(ranker: EmbeddedRanker, ranked: list[Row]) -> None:
    """PMI has a range, and two terms count against an answer."""
    signs = {"repetition": -1, "echo": -1}
    assert any(not RANGE[0] < pmi < RANGE[1] for ranking in ranked for pmi in terms_of(ranking)["pmi"])
    for ranking in ranked:
        terms = terms_of(ranking)
        assert set(terms) == set(vars(ranker.weights))
        for i, score in enumerate(ranking["scores"]):
            parts = {name: values[i] for name, values in terms.items()}
            parts["pmi"] = min(max(parts["pmi"], RANGE[0]), RANGE[1])
            total = sum(signs.get(name, 1) * getattr(ranker.weights, name) * value for name, value in parts.items())
            assert score == pytest.approx(total / ranker.tau, rel=1e-9)


def test_terms_that_can_be_counted_by_hand(ranked: list[Row]) -> None:
    """Answers: 5 words and no comma; empty; 8 words with one comma; white space. The last 4 words of a prompt of 5."""
    terms = terms_of(ranked[0])
    assert terms["check"] == [1.0, 0.0, 0.0, 0.0]
    assert terms["finished"] == [1.0, 0.0, 0.0, 0.0]
    assert terms["substance"] == [5 / 50, 0.0, 8 / 50, 0.0]
    # is-the-sky the-sky-blue, sky-blue,-is blue,-is-the is-the-sky the-sky-blue: one of six was there before
    assert terms["repetition"] == pytest.approx([0, 0, 1 / 6, 0])
    assert terms["echo"] == pytest.approx([0, 0, 2 / 6, 0])  # is-the-sky, twice; "blue?" is another word than "blue"
    assert terms["pmi"][1] == terms["relevance"][1] == terms["relevance"][3] == ranked[0]["scores"][1] == 0
    assert terms_of(ranked[1])["check"] == [0.0, 0.0]  # none asked for
    assert terms_of(ranked[1])["substance"] == [3 / 50, 1.0]


def test_pmi_is_what_the_prompt_adds_to_the_log_probability_of_the_answer(llama: Path, ranked: list[Row]) -> None:
    """Token by token, from full logits of the bare model."""
    tokenizer, model = load_tokenizer(llama), load_policy(llama, "float32", "cpu")

    def naive_logp(prompt: list[int], answer: list[int]) -> float:
        with torch.no_grad():
            logp = model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
        return sum(logp[len(prompt) + i - 1, token].item() for i, token in enumerate(answer))

    empty = render(tokenizer, [{"role": "user", "content": ""}])
    for asked, ranking in zip(ROWS, ranked, strict=True):
        prompt = render(tokenizer, asked["messages"])
        for answer, pmi in zip(asked["responses"], terms_of(ranking)["pmi"], strict=True):
            ids = tokenizer(answer["text"], add_special_tokens=False)["input_ids"]
            difference = naive_logp(prompt, ids) - naive_logp(empty, ids)
            assert pmi == pytest.approx(difference / max(1, len(ids)) ** PMI_POWER, abs=2e-3)


def test_no_answer_depends_on_the_rows_and_answers_beside_it(rank: Any, ranked: list[Row]) -> None:
    """Padding only rounds: fp32, sums of log-probabilities near 1e2 nats."""
    turned = rank(ROWS[::-1])[::-1]
    single = [[rank([asked | {"responses": [one]}])[0] for one in asked["responses"]] for asked in ROWS]
    for other, alone, together in zip(turned, single, ranked, strict=True):
        np.testing.assert_allclose(other["scores"], together["scores"], atol=5e-3)
        np.testing.assert_allclose([one["scores"][0] for one in alone], together["scores"], atol=5e-3)


def test_what_the_embedding_model_cannot_read_is_flagged(rank: Any) -> None:
    """`a b` is two words, two tokens, and begin and end around them."""
    rows = [row("Say it", ["a b " * 127, "a b " * 128, ""])]
    assert rank(rows)[0]["truncated"] == [False, True, False]
