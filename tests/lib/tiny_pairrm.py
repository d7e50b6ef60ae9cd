"""A PairRM small enough for tests, in both published forms: the real architecture, random weights, a real tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench import pairrm_shapes
from bench.pairrm_shapes import random_weights

ENCODER: dict[str, Any] = {
    "vocab_size": 408,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "position_buckets": 16,
}
"""Few buckets, so that short texts reach the logarithmic ones."""
LIMITS = {"source_maxlength": 40, "candidate_maxlength": 14}
PREFIXES = ["<|source|>", "<|candidate1|>", "<|candidate2|>", "<|candidate|>"]
SPREAD = 0.3
"""Of the weights: far from uniform, so that wrong positions and masks show."""


def build_vocabulary(folder: Path) -> Path:
    return pairrm_shapes.build_vocabulary(folder, ENCODER)


def build_pairrm(folder: Path, base: Path) -> Path:
    return pairrm_shapes.build_pairrm(folder, base, LIMITS, SPREAD)


def build_pairrm_hf(folder: Path, base: Path) -> Path:
    """The form of llm-blender/PairRM-hf: one folder, whose config names the ids of the prefixes."""
    from safetensors.torch import save_file

    from src.ranking.blender import load_pairrm_tokenizer

    folder.mkdir(parents=True, exist_ok=True)
    for name in ("spm.model", "tokenizer_config.json"):
        (folder / name).write_bytes((base / name).read_bytes())
    tokenizer = load_pairrm_tokenizer(base)
    tokenizer.add_tokens(PREFIXES)
    ids = dict(zip(("source", "cand1", "cand2", "cand"), tokenizer.convert_tokens_to_ids(PREFIXES), strict=True))
    settings = json.loads((base / "config.json").read_text()) | {f"{name}_prefix_id": i for name, i in ids.items()}
    (folder / "config.json").write_text(json.dumps(settings | LIMITS | {"architectures": ["DebertaV2PairRM"]}))
    save_file(random_weights(base, SPREAD), folder / "model.safetensors")
    return folder
