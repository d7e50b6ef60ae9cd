"""Drawing tokens from logits is the naive loop in words, with the nucleus, top_k and penalties."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import torch
from tiny_generation import naive_token
from torch import Tensor

from src.generation.engine import PenalisedSampling
from src.generation.sampling import FEW, draw, penalised

PLAIN: dict[str, Any] = {"K": 2, "max_new_tokens": 24, "max_prompt_tokens": 300}
SHAPES = [(None, 0.0, 0.0), (5, 1.5, 0.5), (None, 1.5, 0.5), (1, 0.1, 0.1), (9999, 0.1, 0.1)]
"""top_k, and the penalties for presence and frequency. 9999 tokens are more than there are."""


def test_a_draw_is_the_naive_one() -> None:
    """Over FEW tokens there is a shortcut: peaked rows take it, flat ones cannot."""
    rng, wrong, rows = np.random.default_rng(5), [], 8
    for case in product((40, 3 * FEW), (0.0, 0.7), (0.6, 1.0, 0.01), SHAPES):
        vocab, temperature, top_p, (top_k, presence, frequency) = case
        shape: dict[str, Any] = {"top_k": top_k, "presence_penalty": presence, "frequency_penalty": frequency}
        sampling = PenalisedSampling(**PLAIN, temperature=temperature, top_p=top_p, **shape)
        z = torch.tensor(rng.normal(size=(rows, vocab)) * rng.choice([0.1, 4.0], size=(rows, 1)), dtype=torch.float32)
        likely = z.topk(6, dim=-1).indices.tolist()
        answers = [[int(rng.choice(likely[row])) for _ in range(rng.integers(0, 9))] for row in range(rows)]
        uniforms = torch.tensor(rng.random(rows))
        tokens = draw(penalised(z, answers, presence, frequency), temperature, top_p, uniforms, top_k).tolist()
        for row in range(rows):
            # fp32 beside fp64: a uniform within rounding of a boundary may fall to either side.
            near = (naive_token(z[row], sampling, float(uniforms[row]) + d, answers[row]) for d in (0, 1e-6, -1e-6))
            wrong += [] if tokens[row] in near else [(case, row)]
    assert wrong == []


def drawn(z: Tensor, uniforms: list[float], top_p: float = 1.0, top_k: int | None = None) -> list[int]:
    return draw(z.expand(len(uniforms), -1), 1.0, top_p, torch.tensor(uniforms, dtype=torch.float64), top_k).tolist()


def test_without_nucleus_no_token_is_out_of_reach_and_what_has_no_mass_is_never_drawn() -> None:
    """The uniform next to 1 draws the last token of the vocabulary."""
    last = 1 - 2**-53
    assert drawn(2 * torch.randn(1, 50_000, generator=torch.Generator().manual_seed(0)), [last]) == [49_999]
    z = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]])
    for top_p in (1.0, 0.9):
        assert drawn(z, [0.0, 0.3, last], top_p) == [1, 1, 3]


def test_top_k_keeps_ties_and_the_nucleus_is_of_what_it_leaves() -> None:
    """Which of two equal logits goes must not be for the sort to say; those of bf16 tie all the time.

    Masses .4 .3 .2 .1: of two, .57 .43, so top_p .5 keeps the first alone; of all it would keep two.
    """
    assert {*drawn(torch.tensor([[1.0, 2.0, 1.0, 0.0, 1.0]]), [n / 100 for n in range(100)], top_k=2)} == {0, 1, 2, 4}
    z = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    assert (drawn(z, [0.99], 0.5), drawn(z, [0.99], 0.5, top_k=2)) == ([1], [0])
