"""The slow, obvious twin of packed rows: plain transformers with every answer in a row of its own, and whole logits."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor

from src.modeling.head import Alignment
from src.modeling.logps import AnswerLogps
from src.modeling.packing import Group

LIMIT = 300  # token ids below the vocabulary of the tiny policies


def drawn(chance: random.Random, length: int) -> list[int]:
    return [chance.randrange(LIMIT) for _ in range(length)]


def odd_groups(seed: int) -> list[Group]:
    """Draw pairs of random tokens: answers and prompts of one token, identical answers, rows beyond any window."""
    chance = random.Random(seed)
    same = drawn(chance, 7)
    groups = [
        Group(drawn(chance, 1), [drawn(chance, 1), drawn(chance, 1)]),
        Group(drawn(chance, 9), [drawn(chance, 1), drawn(chance, 12)]),
        Group(drawn(chance, 40), [drawn(chance, 25), drawn(chance, 1)]),
        Group(drawn(chance, 5), [same, list(same)]),
    ]
    lengths = [[chance.randint(1, most) for most in (35, 30, 30)] for _ in range(4)]
    return groups + [Group(drawn(chance, p), [drawn(chance, c), drawn(chance, r)]) for p, c, r in lengths]


def answer_by_answer(model: Any, groups: list[Group], alignment: Alignment = "none") -> AnswerLogps:
    """Score the answers of all groups; WPO's log-weights (arXiv:2406.11827 §3.2) come in fp64 from probabilities."""
    sums, log_weights = [], []
    for prompt, answer in ((group.prompt, answer) for group in groups for answer in group.answers):
        logits = model(input_ids=torch.tensor([[*prompt, *answer]]), use_cache=False).logits[0, len(prompt) - 1 : -1]
        tokens = torch.tensor(answer)[:, None]
        sums.append(logits.float().log_softmax(-1).gather(-1, tokens).sum())
        pi = logits.detach().double().softmax(-1)
        token = pi.gather(-1, tokens)[:, 0]
        norm = {"none": 1.0, "sampled": (pi**2).sum(-1), "greedy": pi.amax(-1)}[alignment]
        log_weights.append((token / norm).log().mean())
    lengths = [float(len(answer)) for group in groups for answer in group.answers]
    return AnswerLogps(torch.stack(sums), torch.tensor(lengths), torch.stack(log_weights).float())


def assert_close(values: Tensor, expected: Tensor | list[float], largest: float, mean: float) -> None:
    """Bound the largest and the mean absolute difference: a one-sided drift shows in the mean."""
    difference = (values.double() - torch.as_tensor(expected).double()).abs()
    assert difference.max() <= largest, f"largest difference {difference.max():.3g}"
    assert difference.mean() <= mean, f"mean difference {difference.mean():.3g}"
