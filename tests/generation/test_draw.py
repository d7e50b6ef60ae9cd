"""Drawing tokens from logits: the naive loop in words, with the nucleus, top_k and penalties"""

from __future__ import annotations

from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from tiny_generation import naive_token
from torch import Tensor

from src.generation import sampling as drawing
from src.generation.engine import PenalisedSampling
from src.generation.sampling import FEW, penalised

GRID = 101
UNIFORMS = torch.tensor([(i + 0.5) / GRID for i in range(GRID)], dtype=torch.float64)
PLAIN: dict[str, Any] = {"K": 2, "temperature": 1.0, "top_p": 0.9, "max_new_tokens": 24, "max_prompt_tokens": 300}
WPO: dict[str, Any] = {"top_k": 50, "presence_penalty": 0.1, "frequency_penalty": 0.1}
STRONG: dict[str, Any] = {"top_k": 5, "presence_penalty": 1.5, "frequency_penalty": 0.5}
OFF: dict[str, Any] = {"top_k": None, "presence_penalty": 0.0, "frequency_penalty": 0.0}
draw = partial(drawing.draw, temperature=1.0)


def random_logits(rows: int, vocab: int, spread: float, seed: int = 0) -> Tensor:
    return spread * torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed))


def test_a_draw_is_the_naive_one() -> None:
    """Over FEW tokens there is a shortcut: peaked rows take it, flat ones cannot. A 9999th of fewer cuts nothing."""
    shapes = [OFF, WPO, STRONG, {**STRONG, "top_k": None}, {**WPO, "top_k": 1}, {**WPO, "top_k": 9999}]
    rng, wrong, rows = np.random.default_rng(5), [], 8
    for vocab, temperature, top_p, shape in product((40, 3 * FEW), (0.0, 0.7), (0.6, 1.0, 0.01), shapes):
        sampling = PenalisedSampling(**PLAIN | shape | {"temperature": temperature, "top_p": top_p})
        z = torch.tensor(rng.normal(size=(rows, vocab)) * rng.choice([0.1, 4.0], size=(rows, 1)), dtype=torch.float32)
        likely = z.topk(6, dim=-1).indices.tolist()
        answers = [[int(rng.choice(likely[row])) for _ in range(rng.integers(0, 9))] for row in range(rows)]
        uniforms = torch.tensor(rng.random(rows))
        shaped = penalised(z, answers, sampling.presence_penalty, sampling.frequency_penalty)
        found = drawing.draw(shaped, temperature, top_p, uniforms, sampling.top_k).tolist()
        for row in range(rows):
            uniform = float(uniforms[row])
            # fp32 beside fp64: a uniform within rounding of a boundary may fall to either side.
            near = (naive_token(z[row], sampling, uniform + d, answers[row]) for d in (0, 1e-6, -1e-6))
            wrong += [(vocab, temperature, top_p, shape, row)] * (found[row] not in near)
    assert wrong == []


def test_draw_has_the_distribution_it_claims() -> None:
    """Over N equidistant uniforms, a token of probability p is drawn N p times, give or take one; others never."""
    n, row = 5000, random_logits(rows=1, vocab=40, spread=2.0)[0]
    p, order = row.double().softmax(0).sort(descending=True)
    uniform = (torch.arange(n).double() + 0.5) / n
    for top_p in (1.0, 0.8):
        size = int((p.cumsum(0) < top_p).sum()) + 1 if top_p < 1 else 40
        expected = torch.zeros(40, dtype=torch.float64).scatter(0, order[:size], p[:size] / p[:size].sum())
        counts = draw(row.expand(n, -1), top_p=top_p, uniform=uniform).bincount(minlength=40)
        assert (counts - n * expected).abs().max() <= 1
        assert counts[expected == 0].sum() == 0


def test_without_nucleus_no_token_is_out_of_reach_and_what_has_no_mass_is_never_drawn() -> None:
    """top_p = 1 cuts nothing: the uniform next to 1 draws the last token of the vocabulary."""
    last = torch.full((4,), 1 - 2**-53, dtype=torch.float64)
    assert draw(random_logits(4, 50_000, 2.0), top_p=1.0, uniform=last).tolist() == [49_999] * 4
    row = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]])
    for top_p in (1.0, 0.9):
        uniforms = torch.tensor([0.0, 0.3, 1 - 2**-53], dtype=torch.float64)
        assert set(draw(row.expand(3, -1), top_p=top_p, uniform=uniforms).tolist()) == {1, 3}


def test_penalties_count_once_and_each_time_and_leave_the_logits_given_alone() -> None:
    z = torch.zeros(2, 4, dtype=torch.bfloat16)
    assert penalised(z, [[1, 1, 2], []], 0.5, 0.25).tolist() == [[0.0, -1.0, -0.75, 0.0], [0.0] * 4]
    assert penalised(z, [[1], [3]], -2.0, 0.0).tolist() == [[0.0, 2.0, 0.0, 0.0], [0.0, 0.0, 0.0, 2.0]]
    assert not z.any()


def test_top_k_keeps_ties_and_the_nucleus_is_of_what_it_leaves() -> None:
    """bf16 logits tie all the time; which of two equals goes must not be for the sort to say.

    Masses .4 .3 .2 .1: of two, .57 .43, so top_p .5 keeps the first alone; of all it would keep two.
    """
    z = torch.tensor([[1.0, 2.0, 1.0, 0.0, 1.0]])
    assert {draw(z, top_p=1.0, uniform=torch.tensor([u]), top_k=2).item() for u in UNIFORMS.tolist()} == {0, 1, 2, 4}
    z, uniform = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log(), torch.tensor([0.99])
    assert (draw(z, top_p=0.5, uniform=uniform).item(), draw(z, top_p=0.5, uniform=uniform, top_k=2).item()) == (1, 0)


def test_what_is_out_of_range_is_refused() -> None:
    for name, value in (("top_k", 0), ("presence_penalty", 2.01), ("frequency_penalty", -2.01)):
        with pytest.raises(ValidationError, match=name):
            PenalisedSampling(**PLAIN | WPO | {name: value})
