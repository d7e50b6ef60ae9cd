"""Slots: a step of an answer is what the whole text would give, whatever is beside it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from src.generation.slots import Prefilled, Slots
from src.modeling.attention import Segments, use_packed_attention

SHAPES = {
    "llama": {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3},
    "mistral": {"hidden_size": 256, "intermediate_size": 640, "num_attention_heads": 8, "num_key_value_heads": 2}
    | {"sliding_window": 24, "head_dim": 32},
    "gemma2": {"hidden_size": 256, "intermediate_size": 640, "num_attention_heads": 4, "num_key_value_heads": 2}
    | {"sliding_window": 24, "head_dim": 64, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0},
}
STEPS = 20


def plain(architecture: str) -> PreTrainedModel:
    """Make two layers of a real width, with weights so large that soft-caps and windows matter."""
    torch.manual_seed(0)
    settings = AutoConfig.for_model(
        architecture, vocab_size=300, num_hidden_layers=2, initializer_range=0.2, **SHAPES[architecture]
    )
    return AutoModelForCausalLM.from_config(settings, attn_implementation="eager").eval()


def texts(count: int, tokens: int) -> list[list[int]]:
    """Return texts of different lengths; the last STEPS tokens of each are its answer."""
    stream = torch.Generator().manual_seed(1)
    lengths = torch.randint(tokens // 2, tokens, (count,), generator=stream).tolist()
    return [torch.randint(300, (n + STEPS,), generator=stream).tolist() for n in lengths]


@torch.inference_mode()
def stepwise(model: Any, texts: list[list[int]], rows: int, neighbour: list[int] | None = None) -> list[Tensor]:
    """Return logits [step, vocab] after each answer token of every text, `rows` rows side by side."""
    use_packed_attention(model)
    slots = Slots(rows)
    beside = [neighbour] if neighbour else []
    for row, text in enumerate(texts + beside):
        states, ids = Prefilled(), torch.tensor([text[:-STEPS]])
        positions = torch.arange(ids.shape[1])[None]
        layout = Segments(((ids.shape[1], ()),))
        model(input_ids=ids, position_ids=positions, past_key_values=states, layout=layout, use_cache=False)
        slots.put(row, states)
    steps = []
    for step in range(-STEPS, 0):
        column = [text[step] for text in texts + beside]
        ids = torch.tensor(column + [0] * (rows - len(column)))[:, None]
        positions = slots.advance()
        steps.append(
            model(input_ids=ids, position_ids=positions, past_key_values=slots, layout=slots, use_cache=False).logits
        )
    return [torch.cat([logits[row] for logits in steps]) for row in range(len(texts))]


@pytest.mark.parametrize("architecture", SHAPES)
def test_a_step_is_what_the_whole_text_gives_in_any_company(architecture: str) -> None:
    """Against one eager pass over each text by itself; 620 tokens are wider than a block."""
    model, short, long = plain(architecture), texts(7, 40), texts(2, 620)
    with torch.inference_mode():
        expected = {id(text): model(torch.tensor([text])).logits[0, -STEPS:] for text in short + long}
    for some, rows, neighbour in (
        (short, 16, None),
        (short[::-1], 48, None),
        (short[2:5], 16, long[0]),
        (long, 16, None),
    ):
        for text, ours in zip(some, stepwise(model, some, rows, neighbour), strict=True):
            torch.testing.assert_close(ours, expected[id(text)], rtol=1e-3, atol=1e-3)
