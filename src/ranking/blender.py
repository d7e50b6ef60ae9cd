"""llm-blender under today's transformers: the one place that knows what it lacks.

* It imports a constant that transformers 5 removed, and its collator calls a tokenizer method that is gone.
* It imports vLLM where that is installed, for a use we have none of: half a minute, and other threads. It is hidden.
* transformers 5 builds DeBERTa's tokenizer without the character map of its sentencepiece model: other token ids for
  ligatures, fractions, full-width letters. The normaliser of 4.57 is put back.
* Its loader fetches the base model's pickled weights, which the ranker's own replace; here nothing is unpickled.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from src.kernel.config import Device, UserError
from src.kernel.faults import explain
from src.modeling.policy import first_line, read_settings

MAX_SOURCE, MAX_CANDIDATE = 1224, 412
"""Tokens; of the checkpoint form that does not say."""
_EMBEDDINGS = "pretrained_model.embeddings.word_embeddings.weight"
_BUFFERS = ("position_ids",)


def load_blender(checkpoint: Path, base: Path | None, dtype: torch.dtype, device: Device) -> Any:
    """Loads an `llm_blender.Blender` with its ranker, in evaluation mode.

    `checkpoint` is the form of `llm-blender/PairRM` (then `base` has config and tokenizer of its encoder) or of
    `llm-blender/PairRM-hf`. Raises UserError for any other.
    """
    blender_class, ranker_config, _, reranker_class = _llm_blender()
    settings = _settings(checkpoint, base, ranker_config)
    collator = load_collator(checkpoint, base)
    weights = _weights(checkpoint)
    encoder = _encoder(checkpoint if base is None else base, weights[_EMBEDDINGS].shape[0], len(collator.tokenizer))
    reranker = reranker_class(encoder, settings, collator.tokenizer)
    try:
        lost = reranker.load_state_dict(weights, strict=False)
    except RuntimeError:  # of other shapes
        raise UserError(f"ranker.base: {base or checkpoint} is not the encoder that {checkpoint} was made of") from None
    wrong = [key for key in (*lost.missing_keys, *lost.unexpected_keys) if not key.endswith(_BUFFERS)]
    if wrong:
        raise UserError(f"{checkpoint}: not the weights of a PairRM: {wrong[0]} and {len(wrong) - 1} more do not fit")
    settings.device = device
    logging.disable(logging.WARNING)  # it warns that no ranker was given to its constructor
    try:
        blender = blender_class()
    finally:
        logging.disable(logging.NOTSET)
    blender.ranker_config, blender.ranker_collator = settings, collator
    blender.ranker = reranker.to(dtype).to(device).eval()
    return blender


def load_collator(checkpoint: Path, base: Path | None) -> Any:
    """Makes llm-blender's collator: the tokenizer with its prefixes, and the limits of source and candidates."""
    _, ranker_config, collator_class, _ = _llm_blender()
    settings = _settings(checkpoint, base, ranker_config)
    tokenizer = load_pairrm_tokenizer(checkpoint if base is None else base)
    collator = collator_class(settings.source_maxlength, tokenizer, settings.candidate_maxlength)
    _check_ids(checkpoint, tokenizer)
    return collator


def rank_matrix(blender: Any, source: str, candidates: list[str]) -> Float[np.ndarray, "k k"]:
    """Returns all directed logits of `blender.rank` for one prompt (batch size 1, as the public code has it)."""
    seen: list[Any] = []
    predict = blender.ranker._full_predict

    def recorded(**batch: Any) -> Any:
        seen.append(predict(**batch))
        return seen[-1]

    blender.ranker._full_predict = recorded
    try:
        blender.rank([source], [candidates], return_scores=True, batch_size=1, disable_tqdm=True)
    finally:
        blender.ranker._full_predict = predict
    return seen[0]["logits"][0].float().cpu().numpy()


def load_pairrm_tokenizer(folder: Path) -> Any:
    """Loads the tokenizer of a DeBERTa folder, with the token ids of transformers 4.57."""
    from transformers import AutoTokenizer

    with _refusing(f"{folder}: no tokenizer that can be loaded"):
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    with _refusing(f"{folder / 'spm.model'}: no sentencepiece model"):
        _restore_character_map(tokenizer, folder / "spm.model")
    tokenizer.batch_encode_plus = tokenizer.__call__
    return tokenizer


@contextmanager
def _refusing(what: str) -> Iterator[None]:
    """Turns whatever a library raises for files that somebody else wrote into a UserError of one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if explain(error) and not isinstance(error, FileNotFoundError):
            raise
        raise UserError(f"{what}: {first_line(error)}; is it whole?") from error


def _restore_character_map(tokenizer: Any, model: Path) -> None:
    from sentencepiece import sentencepiece_model_pb2 as protobuf
    from tokenizers import Regex, normalizers

    if not model.is_file():
        why = "without the sentencepiece model token ids would silently differ"
        raise UserError(f"{model}: missing; {why}; bring it too")
    proto = protobuf.ModelProto()  # pyright: ignore[reportAttributeAccessIssue]
    proto.ParseFromString(model.read_bytes())
    parts: list[Any] = [normalizers.Lowercase()] if tokenizer.do_lower_case else []
    parts.append(normalizers.Strip())
    if proto.normalizer_spec.precompiled_charsmap:
        parts.append(normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap))
    parts.append(normalizers.Replace(Regex(" {2,}"), " "))
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence(parts)


def _llm_blender() -> tuple[Any, Any, Any, Any]:
    """Imports llm-blender's classes with the constant that it expects of transformers, and without vLLM."""
    from huggingface_hub.constants import HF_HUB_CACHE
    from transformers.utils import hub

    vllm, lacking = sys.modules.get("vllm"), not hasattr(hub, "TRANSFORMERS_CACHE")
    sys.modules["vllm"] = None  # pyright: ignore[reportArgumentType]
    if lacking:
        hub.TRANSFORMERS_CACHE = HF_HUB_CACHE  # pyright: ignore[reportAttributeAccessIssue]
    try:
        from llm_blender.blender.blender import Blender
        from llm_blender.pair_ranker.collator import CrossCompareCollator
        from llm_blender.pair_ranker.config import RankerConfig
        from llm_blender.pair_ranker.ranker import CrossCompareReranker
    finally:
        del sys.modules["vllm"]
        if vllm is not None:
            sys.modules["vllm"] = vllm
        if lacking:
            del hub.TRANSFORMERS_CACHE  # pyright: ignore[reportAttributeAccessIssue]
    return Blender, RankerConfig, CrossCompareCollator, CrossCompareReranker


def _settings(checkpoint: Path, base: Path | None, ranker_config: Any) -> Any:
    raw = read_settings(checkpoint)
    published = raw.get("ranker_type") == "pairranker" and str(raw.get("model_type")).startswith("deberta")
    if published and base is None:
        raise UserError(
            f"ranker.base: {checkpoint} needs config and tokenizer of its encoder; base=null is for PairRM-hf"
        )
    hf_form = raw.get("model_type") == "deberta-v2" and "source_prefix_id" in raw
    if published or hf_form:
        return ranker_config(ranker_type="pairranker", model_type="deberta", **_numbers(checkpoint, raw))
    what = "neither of llm-blender/PairRM nor of llm-blender/PairRM-hf"
    raise UserError(f"{checkpoint / 'config.json'}: {what}; bring one of them")


def _numbers(checkpoint: Path, raw: dict[str, Any]) -> dict[str, int | float]:
    """Takes the settings that llm-blender's own config wants. Raises UserError for what is no number."""
    usual = {"n_tasks": 1, "source_maxlength": MAX_SOURCE, "candidate_maxlength": MAX_CANDIDATE}
    numbers = {name: raw.get(name) or value for name, value in usual.items()} | {"drop_out": raw.get("drop_out") or 0.0}
    for name, value in numbers.items():
        kinds, least, most = ((int, float), 0, 1) if name == "drop_out" else ((int,), 1, 2**31 - 1)
        if type(value) not in kinds or not least <= value <= most:
            raise UserError(f"{checkpoint / 'config.json'}: {name} is {value!r:.60}; is it whole?")
    return numbers


def _check_ids(checkpoint: Path, tokenizer: Any) -> None:
    """Compares ids with those that the -hf form says its prefixes had in training."""
    raw = read_settings(checkpoint)
    for name in ("source_prefix_id", "cand1_prefix_id", "cand2_prefix_id", "cand_prefix_id"):
        if raw.get(name, getattr(tokenizer, name)) != getattr(tokenizer, name):
            own = getattr(tokenizer, name)
            raise UserError(
                f"{checkpoint}: its config has {name} {raw[name]}, the tokenizer {own}; bring both from one place"
            )


def _weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    file = checkpoint / "model.safetensors"
    with _refusing(f"{file}: not readable"):
        weights = load_file(file)
    if _EMBEDDINGS not in weights or weights[_EMBEDDINGS].dim() != 2:
        raise UserError(f"{file}: not the weights of a PairRM: {_EMBEDDINGS} is missing, or no matrix")
    return weights


def _encoder(folder: Path, rows: int, tokens: int) -> Any:
    from transformers import AutoConfig, AutoModel

    if rows < tokens:
        raise UserError(f"{folder}: the tokenizer has {tokens} tokens, the checkpoint embeds {rows}")
    with _refusing(f"ranker.base: {folder}: no config that can be loaded"):
        settings = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        settings.vocab_size = rows
        encoder: Any = AutoModel.from_config(settings, dtype=torch.float32, trust_remote_code=False)
    encoder.config.out_hidden_state_size = encoder.config.hidden_size  # as llm-blender's own loader does
    return encoder
