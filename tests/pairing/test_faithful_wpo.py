"""The WPO experiment against its sources: weights token by token over the vocabulary, pair rules answer by answer."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from padded_twin import drawn
from test_pairing import responses
from tiny_run import typed
from transformers import AutoModelForCausalLM

from src import records
from src.logps import bind_forward
from src.methods.pair_logps import PairLogps
from src.model import load_policy
from src.pipeline import Run
from src.records import Row
from src.training.batch import collate, pair_up

BETA, ON_POLICY = 0.01, 5
CLAMP = {"paper": False, "code": True, "card": False}
VARIANTS = pytest.mark.parametrize("variant", CLAMP)


@cache
def run_of(variant: str, *more: str, experiment: str = "gemma2_9b_it_wpo_hb") -> Run:
    return typed(f"experiment={experiment}", f"+variant={variant}", *more)


# Weights -----------------------------------------------------------------------------------------------------------


def lse(values: list[float]) -> float:
    highest = max(values)
    return highest + math.log(sum(math.exp(value - highest) for value in values))


def of_answer(model: Any, prompt: list[int], answer: list[int], alignment: str) -> tuple[float, float]:
    """log pi(y|x), and log w(x, y) = mean over its tokens of log pi(y_t) - log sum_v pi(v)^2 (greedy: max_v pi(v))."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + answer]), use_cache=False).logits[0].double().tolist()
    logp, log_weight = 0.0, 0.0
    for place, token in enumerate(answer, start=len(prompt) - 1):
        total = lse(logits[place])
        pi = [math.exp(z - total) for z in logits[place]]
        norm = 0.0
        for probability in pi:
            norm = norm + probability**2 if alignment == "sampled" else max(norm, probability)
        logp += math.log(pi[token])
        log_weight += (math.log(pi[token]) - math.log(norm)) / len(answer)
    return logp, log_weight


def random_rows(seed: int, count: int = 6) -> list[Row]:
    """REFERENCE rows of random tokens."""
    chance = random.Random(seed)

    def row() -> Row:
        answers = {f"{side}_token_ids": drawn(chance, chance.randint(1, 12)) for side in ("chosen", "rejected")}
        refs = {f"ref_{side}_logp": -60 * chance.random() for side in ("chosen", "rejected")}
        wins = {"chosen_win": 0.7, "rejected_win": 0.3, "chosen_beats_rejected": 0.8}
        return {"prompt_token_ids": drawn(chance, chance.randint(1, 30)), **answers, **refs, **wins}

    return [row() for _ in range(count)]


def forward(folder: Path, run: Run, rows: list[Row]) -> PairLogps:
    """Through the packed row, the chunked head and the run's limits, as training has it."""
    model: Any = load_policy(folder, "float32", "cpu")
    bind_forward(model, run.method.alignment, 5, "segments")
    batch = collate(rows, run.train.lengths)
    with torch.no_grad():
        return pair_up(model(batch.packed), batch)


@pytest.fixture(params=["llama", "gemma2"])
def likely(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A tiny policy that is nearly uniform, so that some answers weigh more than 1 and some less."""
    model: Any = AutoModelForCausalLM.from_pretrained(request.getfixturevalue(request.param))
    head = model.get_input_embeddings() if model.config.tie_word_embeddings else model.get_output_embeddings()
    with torch.no_grad():
        head.weight.mul_(0.04)
    model.save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("more", [(), ("method.alignment=greedy",)], ids=["sampled", "greedy"])
@VARIANTS
def test_the_loss_is_dpos_times_the_weights_of_the_source(variant: str, more: tuple[str, ...], likely: Path) -> None:
    run, rows = run_of(variant, *more), random_rows(seed=1)
    plain: Any = AutoModelForCausalLM.from_pretrained(likely, attn_implementation="eager").eval()
    weights, expected = [], []
    for row in rows:
        prompt = row["prompt_token_ids"]
        chosen, rejected = (
            of_answer(plain, prompt, row[f"{side}_token_ids"], run.method.alignment) for side in ("chosen", "rejected")
        )
        weights.append(math.exp(chosen[1]) * math.exp(rejected[1]))
        margin = (chosen[0] - row["ref_chosen_logp"]) - (rejected[0] - row["ref_rejected_logp"])
        dpo = math.log(1 + math.exp(-BETA * margin))
        expected.append((min(weights[-1], 1.0) if CLAMP[variant] else weights[-1]) * dpo)
    assert run.method.loss(forward(likely, run, rows)).tolist() == pytest.approx(expected, rel=2e-4)
    if not more:
        assert min(weights) < 0.98 and max(weights) > 1.02, "clamping would show"


@pytest.mark.parametrize("spread", [0.1, 3.0, 200.0])
def test_the_norm_of_the_weights_is_a_difference_of_two_log_sums(spread: float) -> None:
    """log sum_v pi(v)^2 = lse(2 z) - 2 lse(z), where the probabilities themselves have not underflown."""
    logits = [random.Random(7).gauss(0, spread) for _ in range(300)]
    squares = math.fsum(math.exp(z - lse(logits)) ** 2 for z in logits)
    assert math.log(squares) == pytest.approx(lse([2 * z for z in logits]) - 2 * lse(logits), rel=1e-12, abs=1e-12)


@VARIANTS
def test_without_weights_it_is_the_dpo_experiment(variant: str, llama: Path) -> None:
    """gemma2_9b_it_dpo_hb: the same pairs, limits, reference and recipe; weight 1 everywhere."""
    weighted, plain = run_of(variant), run_of(variant, experiment="gemma2_9b_it_dpo_hb")
    p = forward(llama, weighted, random_rows(seed=2))
    zeros = torch.zeros_like(p.policy_chosen)
    loss = plain.method.loss(forward(llama, plain, random_rows(seed=2)))
    assert torch.equal(weighted.method.loss(p._replace(chosen_log_weight=zeros, rejected_log_weight=zeros)), loss)
    assert not torch.allclose(weighted.method.loss(p), loss)
    assert weighted.method.beta == plain.method.beta == BETA
    same = [node.key for node in weighted.nodes() if node.name == "it1/reference"]
    assert same == [node.key for node in plain.nodes() if node.name == "it1/reference"], "made once for both"
    assert weighted.train == plain.train


# Pair rules --------------------------------------------------------------------------------------------------------


class Asked(NamedTuple):
    """A prompt, its six answers as (score, tokens), and the pair that was made of them: places, or None."""

    answers: list[tuple[float, int]]
    pair: Row | None


def rule_v1(answers: list[tuple[float, int]]) -> set[tuple[int, int]]:
    """Chosen has 5 or 6, the highest there is; rejected any at least a point lower."""
    found = set()
    for i, (chosen, _) in enumerate(answers):
        for j, (rejected, _) in enumerate(answers):
            if chosen >= 5 and chosen == max(score for score, _ in answers) and rejected <= chosen - 1:
                found.add((i, j))
    return found


def rule_v2(answers: list[tuple[float, int]]) -> set[tuple[int, int]]:
    """Highest against lowest; of several best the shortest; of several worst those nearest to it in length."""
    highest, lowest = max(answers)[0], min(answers)[0]
    shortest = min(tokens for score, tokens in answers if score == highest)
    best = {i for i, answer in enumerate(answers) if answer == (highest, shortest)}
    found = set()
    for i in best:
        worst = [j for j, (score, _) in enumerate(answers) if score == lowest and j != i]
        nearest = min(abs(answers[j][1] - shortest) for j in worst)
        found |= {(i, j) for j in worst if abs(answers[j][1] - shortest) == nearest}
    return found


def asked(seed: int, run: Run, folder: Path, prompts: int = 200) -> list[Asked]:
    """Six answers with many ties in score and length, judged 1 to 6, through the run's own Pair stage."""
    chance = random.Random(seed)
    some = [[(float(chance.randint(1, 6)), chance.randint(1, 4)) for _ in range(ON_POLICY + 1)] for _ in range(prompts)]
    places = [folder / name for name in ("responses", "ranking", "pairs")]
    for place in places:
        place.mkdir()
    rows = [hybrid(f"p{n}", answers) for n, answers in enumerate(some)]
    rest = {"logits": None, "truncated": [], "prompt_truncated": False, "terms": None}
    scores = [{"prompt_id": f"p{n}", "scores": [score for score, _ in answers]} for n, answers in enumerate(some)]
    records.write_rows(places[0], rows, records.RESPONSES)
    records.write_rows(places[1], [row | rest for row in scores], records.RANKING)
    next(n.stage for n in run.nodes() if n.name == "it1/pairs")(places[0], places[1], out=places[2])
    pairs = {pair["prompt_id"]: pair for pair in records.read_rows(places[2], records.PAIRS)}
    return [Asked(answers, pairs.get(f"p{n}")) for n, answers in enumerate(some)]


def hybrid(prompt_id: str, answers: list[tuple[float, int]]) -> Row:
    """Five answers of the policy and, behind them, one of gpt-4-turbo."""
    row = responses(prompt_id, [[k] * tokens for k, (_, tokens) in enumerate(answers)])
    for k, answer in enumerate(row["responses"]):
        answer["source"] = "policy" if k < ON_POLICY else "gpt4_turbo"
    return row


@pytest.mark.parametrize(("variant", "rule"), [("paper", rule_v1), ("card", rule_v2), ("code", rule_v2)])
def test_pairs_are_those_of_the_source(variant: str, rule: Callable[..., set[tuple[int, int]]], tmp_path: Path) -> None:
    """Where the rule leaves a choice, any of it; a prompt without a pair is left out. Sources stay with the answers."""
    made, sources = asked(3, run_of(variant), tmp_path), Counter[str]()
    for answers, pair in made:
        allowed = rule(answers)
        assert (pair is None) == (not allowed)
        if pair:
            places = (pair["chosen_index"], pair["rejected_index"])
            assert places in allowed
            for side, place in zip(("chosen", "rejected"), places, strict=True):
                assert pair[f"{side}_token_ids"] == [place] * answers[place][1]
                assert pair[f"{side}_source"] == ("policy" if place < ON_POLICY else "gpt4_turbo")
                sources[f"{side} {pair[f'{side}_source']}"] += 1
    assert len(sources) == 4, "both sides come from both"
    assert any(pair is None for _, pair in made) == (variant == "paper"), "v2 has a pair for every prompt"
