"""Checkpoints of others that fuzzing changes: what is read of them before they are loaded, and rankers' models."""

from __future__ import annotations

import json
import shutil
import struct
import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from fuzz_files import text, whole
from fuzz_store import policy, tiny
from fuzzing import MILD, Target
from test_card_start import THEIRS
from tiny_training import train_stage

from src.card import start
from src.card.start import start_card
from src.checkpoints import Checkpoint
from src.config import UserError
from src.early import check_early
from src.generation.vllm_loading import _check_longest, check_soft_caps
from src.ranking.reward_model import RewardModel, _Opener, _Scores
from src.ranking.work import Work
from src.whole_checkpoint import refuse_broken

WORK = Work(device="cpu", attention="segments", batch_tokens=64, workers=1, nodes=1, save_seconds=1.0)
LARGEST = 10**7
"""Weights of a model that is tried."""


def early(folder: Path) -> object:
    """As before the first answer of a run that trains: the start policy is there, the training is not."""
    given, wanted = SimpleNamespace(stage=None, inputs=()), SimpleNamespace(stage=train_stage(), inputs=())
    store: Any = SimpleNamespace(has=lambda node: node is given, path=lambda _: folder)
    nodes: Any = [given, wanted]
    return check_early(nodes, nodes[0], store)


# As published -------------------------------------------------------------------------------------------------------


def safetensors(file: Path, names: tuple[str, ...]) -> None:
    head = {name: {"dtype": "F32", "shape": [2], "data_offsets": [8 * n, 8 * n + 8]} for n, name in enumerate(names)}
    data = json.dumps({"__metadata__": {"format": "pt"}} | head).encode()
    file.write_bytes(struct.pack("<Q", len(data)) + data + bytes(8 * len(names)))


def shards(folder: Path) -> None:
    whole("config.json", {"model_type": "llama"})(folder)
    safetensors(folder / "model-1.safetensors", ("a", "b"))
    safetensors(folder / "model-2.safetensors", ("c",))
    named = {"a": "model-1.safetensors", "b": "model-1.safetensors", "c": "model-2.safetensors"}
    whole("model.safetensors.index.json", {"metadata": {"total_size": 24}, "weight_map": named})(folder)


def card(folder: Path) -> object:
    """That of a start policy, before ours; what cannot be read of it is left out."""
    from huggingface_hub import EvalResult

    ours = EvalResult("text-generation", "ifeval", "IFEval", "leaderboard_ifeval", 41.25, dataset_args={"items": 541})
    model = SimpleNamespace(repo=str(folder), name="m", id="me/m")
    stand_ins = {"stands_in": lambda _: "", "_measured": lambda _: "", "benchmark_results": lambda _: [ours]}
    told: Any = SimpleNamespace(run=SimpleNamespace(model=model))
    with mock.patch.multiple(start, **stand_ins):
        text, count = start_card(told)
    assert text.startswith("---\n") and count
    return text.encode("utf-8", "surrogatepass")


# vLLM ---------------------------------------------------------------------------------------------------------------


def capped(folder: Path) -> None:
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    caps = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
    whole("config.json", {"max_position_embeddings": 512, "rope_parameters": rope} | caps)(folder)


def for_vllm(folder: Path) -> object:
    _check_longest(folder, 100, "ask for less")
    told = [{"attention": {"layers.0": 50.0, "layers.1": 50.0}, "logits": [30.0]}]
    return check_soft_caps(folder, SimpleNamespace(collective_rpc=lambda _: told))


# Rankers ------------------------------------------------------------------------------------------------------------


@cache
def scoring() -> Path:
    """A reward model beside the tokenizer of the tiny policy."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

    folder = Path(shutil.copytree(tiny(), tempfile.mkdtemp(), dirs_exist_ok=True))
    (folder / "generation_config.json").unlink()
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_labels": 1}
    pad = AutoTokenizer.from_pretrained(folder).eos_token_id
    settings = LlamaConfig(pad_token_id=pad, vocab_size=402, num_attention_heads=4, **sizes)
    LlamaForSequenceClassification(settings).save_pretrained(folder)
    return folder


def scored(folder: Path, load: bool) -> object:
    ranker = RewardModel(
        name="r",
        checkpoint=Checkpoint(name="r", repo=str(folder), revision="main"),
        output="logits",
        max_tokens=64,
        trust_remote_code=False,
        precision="float32",
        work=WORK,
    )
    ranker.check_models((folder,))
    refuse_large(folder / "config.json")
    return _Scores(_Opener(folder, "logits", False, "float32"), WORK) if load else None


def refuse_large(file: Path) -> None:
    """What is left out has the sizes of a real model."""
    told = json.loads(file.read_bytes())
    sizes = [told.get(name, 10**9) for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size")]
    product = sizes[0] * (sizes[1] * sizes[2] + sizes[3]) if all(isinstance(size, int) for size in sizes) else 0
    if product > LARGEST:
        raise UserError(f"{file}: too large to be tried")


@cache
def pairrm() -> Path:
    """`llm-blender/PairRM`, and the folder `base` of its encoder."""
    from tiny_pairrm import build_pairrm, build_vocabulary

    folder = Path(tempfile.mkdtemp())
    return build_pairrm(folder, build_vocabulary(folder / "base"))


@cache
def pairrm_hf() -> Path:
    from tiny_pairrm import build_pairrm_hf

    return build_pairrm_hf(Path(tempfile.mkdtemp()), pairrm() / "base")


def blended(folder: Path) -> object:
    import torch

    from src.ranking.blender import load_blender

    base = folder / "base" if (folder / "base").exists() else None
    refuse_large((base or folder) / "config.json") if _is_json((base or folder) / "config.json") else None
    return load_blender(folder, base, torch.float32, "cpu")


def _is_json(file: Path) -> bool:
    try:
        return isinstance(json.loads(file.read_bytes()), dict)
    except (ValueError, RecursionError):
        return False


def copied(made: Callable[[], Path]) -> Callable[[Path], None]:
    return lambda folder: shutil.copytree(made(), folder, dirs_exist_ok=True) and None


def _target(name: str, make: Callable[[Path], None], read: Callable[[Path], object], changed: str, cost: int) -> Target:
    return Target(name, make, read, ("model:", "ranker."), changed, odd=MILD, cost=cost, slow=True)


TARGETS = [
    _target("config.json of a start policy", policy, early, "config.json", 5),
    Target("a published checkpoint", shards, lambda folder: refuse_broken(sorted(folder.iterdir()))),
    Target("README.md of a checkpoint", text("README.md", THEIRS), card, cost=2),
    Target("config.json for vLLM", capped, for_vllm),
    _target("config.json of a reward model", copied(scoring), partial(scored, load=False), "config.json", 5),
    _target("a reward model", copied(scoring), partial(scored, load=True), "*.*s*", 20),
    _target("config.json of PairRM", copied(pairrm), blended, "config.json", 20),
    _target("config.json of PairRM-hf", copied(pairrm_hf), blended, "config.json", 20),
    _target("tokenizer of PairRM", copied(pairrm), blended, "*.model", 20),
    _target("weights of PairRM", copied(pairrm), blended, "*.safetensors", 20),
]
