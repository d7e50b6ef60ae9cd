"""The slow, obvious twin of packed rows: every answer in a padded row of its own, whole logits, plain transformers."""

from __future__ import annotations

import random
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from src.modeling.head import Alignment
from src.modeling.packing import Group

IDS = st.lists(st.integers(0, 99), min_size=1, max_size=12)
GROUPS = st.lists(st.builds(Group, IDS, st.lists(IDS, min_size=1, max_size=4)), min_size=1, max_size=5)
LIMIT = 300  # token ids below the vocabulary of the tiny policies


def drawn(chance: random.Random, length: int) -> list[int]:
    return [chance.randrange(LIMIT) for _ in range(length)]


def odd_groups(seed: int) -> list[Group]:
    """Pairs of fresh random tokens: answers and prompts of one token, identical answers, rows beyond any window."""
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


def padded_logits(model: Any, groups: list[Group]) -> tuple[Tensor, Tensor, Tensor]:
    """(answer, seq, vocab) fp32 logits, ids and answer mask of right-padded rows `prompt + answer`."""
    rows = [(group.prompt, answer) for group in groups for answer in group.answers]
    width = max(len(prompt) + len(answer) for prompt, answer in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    attended, answers = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    for i, (prompt, answer) in enumerate(rows):
        end = len(prompt) + len(answer)
        ids[i, :end] = torch.tensor([*prompt, *answer])
        attended[i, :end] = 1
        answers[i, len(prompt) : end] = True
    logits = model(input_ids=ids, attention_mask=attended, use_cache=False).logits
    return logits.float(), ids, answers


def padded_token_logps(model: Any, groups: list[Group]) -> Tensor:
    """log pi of every answer token, group by group and answer by answer, as in a packed row."""
    logits, ids, answers = padded_logits(model, groups)
    log_pi = logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
    return log_pi[answers[:, 1:]]


def padded_log_weights(model: Any, groups: list[Group], alignment: Alignment) -> Tensor:
    """WPO's mean log-weight of every answer (arXiv:2406.11827 §3.2), in fp64 from the probabilities themselves."""
    logits, ids, answers = padded_logits(model, groups)
    pi = logits[:, :-1].double().softmax(-1)
    token = pi.gather(-1, ids[:, 1:, None]).squeeze(-1)
    norm = {"none": token, "sampled": (pi**2).sum(-1), "greedy": pi.amax(-1)}[alignment]
    log_weight = (token.log() - norm.log()) * answers[:, 1:]
    return log_weight.sum(1) / answers[:, 1:].sum(1)


def by_definition(groups: list[Group], length: int, window: int | None) -> Tensor:
    """(query, key) which token of the row sees which: same group, in the prompt or the same answer, not later."""
    where = [
        (g, part, position)
        for g, (prompt, answers) in enumerate(groups)
        for part, count, start in [(0, len(prompt), 0)]
        + [(n, len(a) - 1, len(prompt)) for n, a in enumerate(answers, 1)]
        for position in range(start, start + count)
    ]
    where += [(-1, 0, position) for position in range(length - len(where))]  # filler sees filler
    seen = torch.zeros(length, length, dtype=torch.bool)
    for q, (group_q, part_q, position_q) in enumerate(where):
        for k, (group_k, part_k, position_k) in enumerate(where):
            near = window is None or position_q - position_k < window
            seen[q, k] = group_q == group_k and part_k in (0, part_q) and k <= q and near
    return seen


def assert_close(got: Tensor, expected: Tensor | list[float], largest: float, mean: float) -> None:
    """Both the largest and the mean absolute difference are bounded: a one-sided drift shows in the mean."""
    difference = (got.double() - torch.as_tensor(expected).double()).abs()
    assert difference.max() <= largest, f"largest difference {difference.max():.3g}"
    assert difference.mean() <= mean, f"mean difference {difference.mean():.3g}"


def assert_same_gradients(got: Any, expected: Any, largest: float, mean: float) -> None:
    """Of every parameter, relative to the largest entry of its gradient."""
    twins = dict(expected.named_parameters())
    for name, parameter in got.named_parameters():
        assert parameter.grad is not None and twins[name].grad is not None, name
        scale = float(twins[name].grad.abs().max())
        assert scale > 0, name
        assert_close(parameter.grad / scale, twins[name].grad / scale, largest, mean)
