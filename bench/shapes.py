"""Load models for the trainer's benchmark: real weights from a folder, or a published shape with random ones."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from src.modeling.packing import Group
from src.training.memory import Shape

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {
        "model_type": "llama",
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    "mistral-7b": {
        "model_type": "mistral",
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 32768,
        "rope_theta": 1e6,
        "sliding_window": None,
    },
    "gemma-2-9b": {
        "model_type": "gemma2",
        "vocab_size": 256000,
        "hidden_size": 3584,
        "intermediate_size": 14336,
        "num_hidden_layers": 42,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "max_position_embeddings": 8192,
    },
}


def build(model: str, device: str) -> Any:
    """Load a causal LM in fp32. `model` names a shape or is a checkpoint folder."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    if model not in SHAPES:
        loaded: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, trust_remote_code=False)
        return loaded.to(device)
    settings: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0} | SHAPES[model]
    torch.manual_seed(0)
    with torch.device(device):
        shape = AutoConfig.for_model(**settings)
        return AutoModelForCausalLM.from_config(shape, dtype=torch.float32, trust_remote_code=False)


def config_of(model: str) -> dict[str, Any]:
    """Return what `Shape.of` reads."""
    import json

    if model not in SHAPES:
        return json.loads((Path(model) / "config.json").read_text())
    return {"model_type": "llama"} | SHAPES[model]


def flops(shape: Shape, groups: Iterable[Group]) -> float:
    """Count the operations of forward and backward over `groups`.

    There are 6 a weight and token, and 12 a head channel and pair of tokens of which one sees the other. Only answer
    tokens meet the LM head. Recomputation and what a causal mask hides do not count; what a sliding window hides
    beyond that does.
    """
    tokens = answer_tokens = seen = 0
    for prompt, answers in groups:
        lengths, p = [len(answer) - 1 for answer in answers], len(prompt)
        tokens += p + sum(lengths)
        answer_tokens += sum(map(len, answers))
        seen += p * (p + 1) // 2 + sum(n * p + n * (n + 1) // 2 for n in lengths)
    matrices = tokens * shape.layers * shape.layer_weights + answer_tokens * shape.head_weights
    return 6.0 * matrices + 12.0 * shape.layers * shape.heads * shape.head_dim * seen
