"""llm-blender under today's transformers: the one place that knows what it lacks.

* It imports a constant that transformers 5 removed, and its collator calls a tokenizer method that is gone.
* It imports vLLM where that is installed, which we do not use: half a minute, and other threads. It is hidden.
* transformers 5 builds DeBERTa's tokenizer without the character map of its sentencepiece model: other token ids for
  ligatures, fractions, full-width letters. The normaliser of 4.57 is put back.
* Its loader fetches the base model's pickled weights, which the ranker's own replace; here nothing is unpickled.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.kernel.config import Device, UserError
from src.modeling.policy import loading, read_settings

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float

MAX_SOURCE, MAX_CANDIDATE = 1224, 412
"""Token limits for a checkpoint that names none."""


def load_blender(checkpoint: Path, base: Path, precision: str, device: Device) -> Any:
    """Load an `llm_blender.Blender` with its ranker, in evaluation mode.

    `checkpoint` is of the form of `llm-blender/PairRM`, and `base` has config and tokenizer of its encoder. Raises
    UserError for any other.
    """
    import torch
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoModel

    blender_class, _, _, reranker_class = _llm_blender()
    with loading(checkpoint, "PairRM"):
        settings, collator = _settings(checkpoint), load_collator(checkpoint, base)
        weights = load_file(checkpoint / "model.safetensors")
        shape = AutoConfig.from_pretrained(base, local_files_only=True, trust_remote_code=False)
        shape.vocab_size = len(weights["pretrained_model.embeddings.word_embeddings.weight"])
        encoder: Any = AutoModel.from_config(shape, dtype=torch.float32, trust_remote_code=False)
        encoder.config.out_hidden_state_size = encoder.config.hidden_size  # as llm-blender's own loader does
        reranker = reranker_class(encoder, settings, collator.tokenizer)
        lost = reranker.load_state_dict(weights, strict=False)
    wrong = [key for key in (*lost.missing_keys, *lost.unexpected_keys) if not key.endswith("position_ids")]
    if wrong:
        raise UserError(f"{checkpoint}: not the weights of a PairRM: {wrong[0]} and {len(wrong) - 1} more do not fit")
    settings.device = device
    logging.disable(logging.WARNING)  # it warns that no ranker was given to its constructor
    try:
        blender = blender_class()
    finally:
        logging.disable(logging.NOTSET)
    blender.ranker_config, blender.ranker_collator = settings, collator
    blender.ranker = reranker.to(getattr(torch, precision)).to(device).eval()
    return blender


def load_collator(checkpoint: Path, base: Path) -> Any:
    """Make llm-blender's collator: the tokenizer with its prefixes, and the limits of source and candidates."""
    settings, tokenizer = _settings(checkpoint), load_pairrm_tokenizer(base)
    with loading(checkpoint, "PairRM"):
        return _llm_blender()[2](settings.source_maxlength, tokenizer, settings.candidate_maxlength)


def load_pairrm_tokenizer(folder: Path) -> Any:
    """Load the tokenizer of a DeBERTa folder, with the token ids of transformers 4.57."""
    from sentencepiece import sentencepiece_model_pb2 as protobuf
    from tokenizers import Regex, normalizers
    from transformers import AutoTokenizer

    model = folder / "spm.model"
    if not model.is_file():
        why = "without the sentencepiece model token ids would silently differ"
        raise UserError(f"{model}: missing; {why}; bring it too")
    with loading(folder, "PairRM"):
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        proto = protobuf.ModelProto()  # pyright: ignore[reportAttributeAccessIssue]
        proto.ParseFromString(model.read_bytes())
    parts: list[Any] = [normalizers.Lowercase()] if tokenizer.do_lower_case else []
    parts.append(normalizers.Strip())
    if proto.normalizer_spec.precompiled_charsmap:
        parts.append(normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap))
    parts.append(normalizers.Replace(Regex(" {2,}"), " "))
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence(parts)
    tokenizer.batch_encode_plus = tokenizer.__call__
    return tokenizer


def rank_matrix(blender: Any, source: str, candidates: list[str]) -> Float[np.ndarray, "k k"]:
    """Return all directed logits of `blender.rank` for one prompt (batch size 1, as the public code has it)."""
    predictions: list[Any] = []
    predict = blender.ranker._full_predict

    def recorded(**batch: Any) -> Any:
        predictions.append(predict(**batch))
        return predictions[-1]

    blender.ranker._full_predict = recorded
    try:
        blender.rank([source], [candidates], return_scores=True, batch_size=1, disable_tqdm=True)
    finally:
        blender.ranker._full_predict = predict
    return predictions[0]["logits"][0].float().cpu().numpy()


def _settings(checkpoint: Path) -> Any:
    """Return llm-blender's config of a checkpoint. Raises UserError for one of another form."""
    settings = read_settings(checkpoint)
    if settings.get("ranker_type") != "pairranker" or not str(settings.get("model_type")).startswith("deberta"):
        raise UserError(f"{checkpoint / 'config.json'}: not of the form of llm-blender/PairRM; bring that one")
    usual = {"n_tasks": 1, "source_maxlength": MAX_SOURCE, "candidate_maxlength": MAX_CANDIDATE, "drop_out": 0.0}
    numbers = {name: settings.get(name, value) for name, value in usual.items()}
    return _llm_blender()[1](ranker_type="pairranker", model_type="deberta", **numbers)


def _llm_blender() -> tuple[Any, Any, Any, Any]:
    """Import llm-blender's classes with the constant that it expects of transformers, and without vLLM."""
    from huggingface_hub.constants import HF_HUB_CACHE
    from transformers.utils import hub

    hub.TRANSFORMERS_CACHE = HF_HUB_CACHE  # pyright: ignore[reportAttributeAccessIssue]
    vllm = sys.modules.get("vllm")
    sys.modules["vllm"] = None  # pyright: ignore[reportArgumentType]
    try:
        from llm_blender.blender.blender import Blender
        from llm_blender.pair_ranker.collator import CrossCompareCollator
        from llm_blender.pair_ranker.config import RankerConfig
        from llm_blender.pair_ranker.ranker import CrossCompareReranker
    finally:
        del sys.modules["vllm"]
        if vllm is not None:
            sys.modules["vllm"] = vllm
    return Blender, RankerConfig, CrossCompareCollator, CrossCompareReranker
