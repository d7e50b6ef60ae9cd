"""The WPO experiment against its sources: weights token by token over the vocabulary, pair rules answer by answer."""

from __future__ import annotations

import math
import random
from collections import Counter
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from made_up_pairs import responses, run_stage
from padded_twin import drawn
from tiny_run import typed
from transformers import AutoModelForCausalLM

from src.experiment.graph import nodes_of
from src.experiment.run import Run
from src.kernel.rows import Row
from src.methods.method import PairLogps, alignment_of
from src.modeling.logps import bind_forward
from src.modeling.policy import load_policy
from src.training.batch import collate, pair_up

BETA, ON_POLICY = 0.01, 5
CLAMP = {"paper": False, "code": True, "card": False}


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
    bind_forward(model, alignment_of(run.method), 5, "segments")
    batch = collate(rows, run.train.lengths)
    with torch.no_grad():
        return pair_up(model(batch.packed), batch)


def nearly_uniform(policy: Path, folder: Path) -> Path:
    """The tiny policy, flattened, so that some answers weigh more than 1 and some less."""
    model: Any = AutoModelForCausalLM.from_pretrained(policy)
    head = model.get_input_embeddings() if model.config.tie_word_embeddings else model.get_output_embeddings()
    with torch.no_grad():
        head.weight.mul_(0.04)
    model.save_pretrained(folder)
    return folder


def test_the_loss_is_dpos_times_the_weights_of_the_source(llama: Path, gemma2: Path, tmp_path: Path) -> None:
    """Of a policy with and one without soft caps; as sampled (all sources) and greedy."""
    rows = random_rows(seed=1)
    for policy, alignment in product((llama, gemma2), ("sampled", "greedy")):
        flat = nearly_uniform(policy, tmp_path / policy.name)
        plain: Any = AutoModelForCausalLM.from_pretrained(flat, attn_implementation="eager").eval()
        weights, losses = [], []
        for row in rows:
            prompt = row["prompt_token_ids"]
            chosen, rejected = (
                of_answer(plain, prompt, row[f"{side}_token_ids"], alignment) for side in ("chosen", "rejected")
            )
            weights.append(math.exp(chosen[1]) * math.exp(rejected[1]))
            margin = (chosen[0] - row["ref_chosen_logp"]) - (rejected[0] - row["ref_rejected_logp"])
            losses.append(math.log(1 + math.exp(-BETA * margin)))
        for variant, clamps in CLAMP.items():
            run = run_of(variant, f"method.alignment={alignment}")
            used = [min(weight, 1.0) if clamps else weight for weight in weights]
            expected = [weight * loss for weight, loss in zip(used, losses, strict=True)]
            found = run.method.loss(forward(flat, run, rows)).tolist()
            assert found == pytest.approx(expected, rel=1e-3), (policy.name, alignment, variant)
        if alignment == "sampled":
            assert min(weights) < 0.98 and max(weights) > 1.02, "clamping would show"
    assert all(alignment_of(run_of(variant).method) == "sampled" for variant in CLAMP)


def test_without_weights_it_is_the_dpo_experiment(llama: Path) -> None:
    """gemma2_9b_it_dpo_hb: the same pairs, limits, reference and recipe; weight 1 everywhere."""
    for variant in CLAMP:
        weighted, plain = run_of(variant), run_of(variant, experiment="gemma2_9b_it_dpo_hb")
        p = forward(llama, weighted, random_rows(seed=2))
        zeros = torch.zeros_like(p.policy_chosen)
        loss = plain.method.loss(forward(llama, plain, random_rows(seed=2)))
        unweighted = weighted.method.loss(p._replace(chosen_log_weight=zeros, rejected_log_weight=zeros))
        torch.testing.assert_close(unweighted, loss, rtol=1e-5, atol=0)
        assert not torch.allclose(weighted.method.loss(p), loss)
        assert weighted.method.beta == plain.method.beta == BETA
        keys = [[node.key for node in nodes_of(run) if node.name == "it1/reference"] for run in (weighted, plain)]
        assert keys[0] == keys[1], "made once for both"
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
    rows = [hybrid(f"p{n}", answers) for n, answers in enumerate(some)]
    ranked: list[Row] = [{"scores": [score for score, _ in answers], "logits": None} for answers in some]
    made, _ = run_stage(next(n.stage for n in nodes_of(run) if n.name == "it1/pairs"), folder, rows, ranked)
    pairs = {pair["prompt_id"]: pair for pair in made}
    return [Asked(answers, pairs.get(f"p{n}")) for n, answers in enumerate(some)]


def hybrid(prompt_id: str, answers: list[tuple[float, int]]) -> Row:
    """Five answers of the policy and, behind them, one of gpt-4-turbo."""
    row = responses(prompt_id, [[k] * tokens for k, (_, tokens) in enumerate(answers)])
    for k, answer in enumerate(row["responses"]):
        answer["source"] = "policy" if k < ON_POLICY else "gpt4_turbo"
    return row


def test_pairs_are_those_of_the_source(tmp_path: Path) -> None:
    """Where the rule leaves a choice, any of it; a prompt without a pair is left out. Sources stay with the answers."""
    for variant, rule in {"paper": rule_v1, "card": rule_v2, "code": rule_v2}.items():
        made, sources = asked(3, run_of(variant), tmp_path / variant), Counter[str]()
        for answers, pair in made:
            allowed = rule(answers)
            assert (pair is None) == (not allowed), variant
            if pair:
                places = (pair["chosen_index"], pair["rejected_index"])
                assert places in allowed, variant
                for side, place in zip(("chosen", "rejected"), places, strict=True):
                    assert pair[f"{side}_token_ids"] == [place] * answers[place][1]
                    assert pair[f"{side}_source"] == ("policy" if place < ON_POLICY else "gpt4_turbo")
                    sources[f"{side} {pair[f'{side}_source']}"] += 1
        assert len(sources) == 4, "both sides come from both"
        assert any(pair is None for _, pair in made) == (variant == "paper"), "v2 has a pair for every prompt"
