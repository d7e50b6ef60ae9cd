"""Make a PairRM of a given shape with random weights and a real tokenizer, for benchmarks and, small, for tests."""

from __future__ import annotations

import json
import random
import string
from pathlib import Path
from typing import Any

TEXT = (
    "the a of to and in is it you that he was for on are with as his they be at one have this from or had by hot but "
    "some what there we can out other were all your when up use word how said an each she which do their time if will "
    "way about many then them would write like so these her long make thing see him two has look more day could go"
)
WORDS = TEXT.split()
SWITCHES: dict[str, Any] = {
    "relative_attention": True,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "layer_norm_eps": 1e-7,
    "position_biased_input": False,
    "type_vocab_size": 0,
    "max_relative_positions": -1,
    "pad_token_id": 0,
}
"""The sizes of deberta-v3-large."""
SHAPES: dict[str, dict[str, Any]] = {
    "large": {
        "vocab_size": 128100,
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "max_position_embeddings": 512,
        "position_buckets": 256,
    },
    "tiny": {
        "vocab_size": 512,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 512,
        "position_buckets": 256,
    },
}
LIMITS = {"source_maxlength": 1224, "candidate_maxlength": 412}


def build(shape: str, folder: Path) -> None:
    """Write `folder/base` and `folder/checkpoint`, in the form of llm-blender/PairRM."""
    build_vocabulary(folder / "base", SHAPES[shape])
    build_pairrm(folder / "checkpoint", folder / "base", LIMITS, 0.02)


def build_vocabulary(folder: Path, encoder: dict[str, Any]) -> Path:
    """Write a sentencepiece model with DeBERTa's character map (nmt_nfkc), and the config of an encoder."""
    import sentencepiece

    chance = random.Random(0)
    letters = string.ascii_letters + string.digits + ".,;:!?()"
    lines = [" ".join(chance.choice(WORDS) for _ in range(12)) for _ in range(2000)]
    lines += ["".join(chance.choice(letters) for _ in range(20)) for _ in range(500)]
    folder.mkdir(parents=True, exist_ok=True)
    sentencepiece.SentencePieceTrainer.train(  # pyright: ignore[reportAttributeAccessIssue]
        sentence_iterator=iter(lines),
        model_prefix=str(folder / "spm"),
        vocab_size=400,
        model_type="unigram",
        pad_id=0,
        bos_id=1,
        eos_id=2,
        unk_id=3,
        pad_piece="[PAD]",
        bos_piece="[CLS]",
        eos_piece="[SEP]",
        unk_piece="[UNK]",
        hard_vocab_limit=False,
        minloglevel=2,
        num_threads=1,
    )
    (folder / "spm.vocab").unlink()
    tokenizer = {"do_lower_case": False, "vocab_type": "spm"}  # as published
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    (folder / "config.json").write_text(json.dumps({"model_type": "deberta-v2"} | SWITCHES | encoder))
    return folder


def build_pairrm(folder: Path, base: Path, limits: dict[str, int], spread: float) -> Path:
    """Write a checkpoint in the form of llm-blender/PairRM; config and tokenizer of its encoder lie in `base`."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    settings = {"ranker_type": "pairranker", "model_type": "deberta", "model_name": "microsoft/deberta-v3-large"}
    (folder / "config.json").write_text(json.dumps(settings | limits | {"n_tasks": 1, "drop_out": 0.05, "fp16": True}))
    save_file(random_weights(base, spread), folder / "model.safetensors")
    return folder


def random_weights(base: Path, spread: float) -> dict[str, Any]:
    """Draw the weights of encoder and head, normal with standard deviation `spread`."""
    import torch
    from transformers import AutoConfig, DebertaV2Model

    torch.manual_seed(0)
    settings: Any = AutoConfig.from_pretrained(base, trust_remote_code=False)
    encoder = DebertaV2Model(settings)
    width = encoder.config.hidden_size
    weights = {f"pretrained_model.{name}": value for name, value in encoder.state_dict().items()}
    weights |= {"head_layer.1.weight": torch.empty(width, 2 * width), "head_layer.1.bias": torch.zeros(width)}
    weights |= {"head_layer.4.weight": torch.empty(1, width), "head_layer.4.bias": torch.zeros(1)}
    for value in weights.values():
        if value.dim() > 1:
            torch.nn.init.normal_(value, std=spread)
    return {name: value.contiguous() for name, value in weights.items()}
