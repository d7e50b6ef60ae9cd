"""The packed encoder is transformers' own, document by document, and a document does not feel its neighbours."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import DebertaV2Config, DebertaV2Model

from bench.pairrm_shapes import SHAPES, SWITCHES
from src.model import AttentionKind
from src.ranking.deberta import PackedDeberta

TINY = SWITCHES | SHAPES["tiny"] | {"position_buckets": 16, "max_position_embeddings": 64}
WANTED = [1, 3, 5]


def model(settings: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    made = DebertaV2Model(DebertaV2Config(**settings)).eval()
    for parameter in made.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=1.5 / parameter.shape[-1] ** 0.5)
    return made


def documents(lengths: list[int]) -> list[list[int]]:
    torch.manual_seed(1)
    return [torch.randint(5, 500, (length,)).tolist() for length in lengths]


def alone(encoder: Any, document: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return encoder(torch.tensor([document])).last_hidden_state[0, WANTED]


@pytest.mark.full
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("kind", ["segments", "flex"])
@pytest.mark.parametrize("change", [{}, {"position_buckets": -1, "max_relative_positions": 24}])
def test_a_packed_document_is_what_transformers_makes_of_it(kind: AttentionKind, change: dict[str, int]) -> None:
    """Lengths on both sides of where positions become logarithmic and where they end; shorter than 16 too."""
    encoder, lengths = model(TINY | change), [6, 7, 40, 90, 200]
    found = PackedDeberta(encoder, kind)(documents(lengths), [WANTED] * len(lengths), 16)
    for document, states in zip(documents(lengths), found, strict=True):
        torch.testing.assert_close(states, alone(encoder, document), atol=2e-5, rtol=1e-4)


def test_what_fills_a_row_up_is_not_seen() -> None:
    encoder = PackedDeberta(model(TINY), "segments")
    short, filled = (encoder(documents([30]), [WANTED], row) for row in (16, 300))
    torch.testing.assert_close(short, filled, atol=0, rtol=0)


@pytest.mark.full
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_at_the_real_width_a_document_does_not_feel_its_neighbours(dtype: torch.dtype) -> None:
    """Two layers of DeBERTa-v3-large: bit for bit, in any company. A property of the matrix products beneath."""
    shape = SWITCHES | SHAPES["large"] | {"vocab_size": 512, "num_hidden_layers": 2}
    encoder = PackedDeberta(model(shape).to(dtype), "segments")
    lengths = [8, 30, 77, 128, 300, 515, 900]
    some = documents(lengths)
    together = encoder(some, [WANTED] * len(some))
    turned = encoder(some[::-1], [WANTED] * len(some)).flip(0)
    single = torch.cat([encoder([document], [WANTED]) for document in some])
    assert torch.equal(together, turned) and torch.equal(together, single)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_compiled_kernel_is_the_same_encoder() -> None:
    encoder, lengths = model(TINY | {"hidden_size": 64}).cuda(), [6, 40, 200]
    found = PackedDeberta(encoder, "flex")(documents(lengths), [WANTED] * 3, 256).cpu()
    for document, states in zip(documents(lengths), found, strict=True):
        torch.testing.assert_close(states, alone(encoder.cpu(), document), atol=1e-3, rtol=1e-3)
        encoder.cuda()
