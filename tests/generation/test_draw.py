"""Drawing tokens from logits"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import pytest
import torch
from torch import Tensor

from src.generation import draw as drawing
from src.generation.draw import FEW

GRID = 101
UNIFORMS = [(i + 0.5) / GRID for i in range(GRID)]
draw = partial(drawing.draw, temperature=1.0)


def naive_draw(logits: Sequence[float], top_p: float, uniform: float) -> int:
    """Nucleus sampling by inverse CDF, in words: likeliest first, until `top_p` is reached; then walk to u.

    Without a nucleus any order of the tokens serves: theirs.
    """
    weights = torch.tensor(logits, dtype=torch.float64).softmax(0).tolist()
    nucleus, mass = [], 0.0
    for token in sorted(range(len(weights)), key=lambda v: -weights[v] if top_p < 1 else v):
        if mass >= top_p:
            break
        nucleus.append(token)
        mass += weights[token]
    walked = 0.0
    for token in nucleus:
        walked += weights[token]
        if walked > uniform * mass:
            return token
    return nucleus[-1]


def random_logits(rows: int, vocab: int, spread: float, seed: int = 0) -> Tensor:
    return spread * torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("top_p", [1.0, 0.95, 0.5, 0.01])
@pytest.mark.parametrize("spread", [0.1, 3.0])
def test_draw_is_nucleus_sampling_by_inverse_cdf(top_p: float, spread: float) -> None:
    for row in random_logits(rows=4, vocab=50, spread=spread):
        drawn = draw(row.expand(GRID, -1), top_p=top_p, uniform=torch.tensor(UNIFORMS, dtype=torch.float64))
        assert drawn.tolist() == [naive_draw(row.tolist(), top_p, u) for u in UNIFORMS]


@pytest.mark.parametrize(("spread", "held"), [(4.0, True), (0.1, False)])
def test_draw_from_a_large_vocabulary_is_the_same_with_and_without_the_shortcut(spread: float, held: bool) -> None:
    """Peaked rows: the likeliest 512 of 2000 tokens hold the nucleus. Flat rows: they do not, and all are sorted."""
    for row in random_logits(rows=2, vocab=2000, spread=spread):
        assert bool(row.softmax(-1).topk(FEW).values.sum() > 0.91) == held
        drawn = draw(row.expand(GRID, -1), top_p=0.9, uniform=torch.tensor(UNIFORMS, dtype=torch.float64))
        assert drawn.tolist() == [naive_draw(row.tolist(), 0.9, u) for u in UNIFORMS]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_flat_neighbour_does_not_change_what_a_row_draws(dtype: torch.dtype) -> None:
    """One flat row sends the whole batch down the slow way. Logits of a bf16 model tie all the time."""
    peaked, flat = (random_logits(n, 2000, spread).to(dtype).float() for n, spread in ((GRID, 4.0), (1, 0.1)))
    uniforms = torch.tensor([*UNIFORMS, 0.5], dtype=torch.float64)
    together = draw(torch.cat([peaked, flat]), top_p=0.9, uniform=uniforms)
    assert together[:-1].tolist() == draw(peaked, top_p=0.9, uniform=uniforms[:-1]).tolist()


@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_draw_has_the_distribution_it_claims(top_p: float) -> None:
    """Over N equidistant uniforms, a token of probability p is drawn N p times, give or take one; others never."""
    n, row = 5000, random_logits(rows=1, vocab=40, spread=2.0)[0]
    p, order = row.double().softmax(0).sort(descending=True)
    size = int((p.cumsum(0) < top_p).sum()) + 1 if top_p < 1 else 40
    expected = torch.zeros(40, dtype=torch.float64).scatter(0, order[:size], p[:size] / p[:size].sum())
    uniform = (torch.arange(n).double() + 0.5) / n
    counts = draw(row.expand(n, -1), top_p=top_p, uniform=uniform).bincount(minlength=40)
    assert (counts - n * expected).abs().max() <= 1
    assert counts[expected == 0].sum() == 0


def test_without_nucleus_no_token_is_out_of_reach() -> None:
    """top_p = 1 cuts nothing: the uniform next to 1 draws the last token of the vocabulary."""
    rows = random_logits(rows=4, vocab=50_000, spread=2.0)
    drawn = draw(rows, top_p=1.0, uniform=torch.full((4,), 1 - 2**-53, dtype=torch.float64))
    assert drawn.tolist() == [49_999] * 4


def test_what_has_no_mass_is_never_drawn() -> None:
    row = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]])
    for top_p in (1.0, 0.9):
        drawn = {
            int(draw(row, top_p=top_p, uniform=torch.tensor([u], dtype=torch.float64))) for u in (0.0, 0.3, 1 - 2**-53)
        }
        assert drawn == {1, 3}


def test_a_temperature_divides_the_logits_and_zero_takes_the_likeliest() -> None:
    rows, uniforms = random_logits(rows=GRID, vocab=60, spread=2.0), torch.tensor(UNIFORMS, dtype=torch.float64)
    cold = drawing.draw(rows, 0.7, 0.9, uniforms)
    assert (
        cold.tolist()
        == draw(rows / 0.7, top_p=0.9, uniform=uniforms).tolist()
        != drawing.draw(rows, 1, 0.9, uniforms).tolist()
    )
    assert drawing.draw(rows, 0, 0.9, uniforms).tolist() == rows.argmax(-1).tolist()
