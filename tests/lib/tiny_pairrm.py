"""A PairRM small enough for tests: the real architecture, random weights, a real tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench import pairrm_shapes

ENCODER: dict[str, Any] = {"vocab_size": 408, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
ENCODER |= {"intermediate_size": 64, "max_position_embeddings": 64, "position_buckets": 16}
"""Few buckets, so that short texts reach the logarithmic ones."""
LIMITS = {"source_maxlength": 40, "candidate_maxlength": 14}
SPREAD = 0.3
"""Standard deviation of the weights: far from uniform, so that wrong positions and masks show."""


def build_vocabulary(folder: Path) -> Path:
    return pairrm_shapes.build_vocabulary(folder, ENCODER)


def build_pairrm(folder: Path, base: Path) -> Path:
    return pairrm_shapes.build_pairrm(folder, base, LIMITS, SPREAD)
