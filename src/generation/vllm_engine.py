"""The vLLM engine: a process of its own, a request per answer, the prompt of an answer shared through the cache.

n requests and not one with n answers: vLLM would seed answer k with seed + k, while here a seed belongs to its answer
alone, whichever others are asked with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

from pydantic import Field, PositiveFloat, PositiveInt

from src.generation.engine import Answer, Made, Measurer, Request, Sampler, Sampling, Sequence, shape_of
from src.generation.vllm_loading import KEY, clear_errors, load_vllm, not_installed
from src.kernel.config import Device, Free, UserError, config
from src.modeling.policy import Precision, stop_ids

COLDEST = 0.01
"""The temperature that vLLM takes instead of any lower one."""
QUEUED = 2
"""Requests handed over, in multiples of `max_sequences`: none waits, and memory does not grow with the prompts."""
STEP_TOKENS = 8192
"""Tokens of a step on CPUs."""
MEASURED_TOKENS = 1024
"""Tokens of a step: their logits over the whole vocabulary are in memory at once, which vLLM's plan does not count."""


@config
class VllmEngine:
    apart: ClassVar[bool] = True

    dtype: Precision
    """Of weights, products and cache."""
    device: Free[Device]
    tensor_parallel: Free[PositiveInt]
    """Devices that hold one copy of the model together; copies are `hardware.generation.workers`."""
    memory_share: Free[Annotated[float, Field(gt=0, le=1)]]
    """Of a device's memory (cpu: of the machine's): weights, and what is left for the cache."""
    cache_gb: Free[PositiveFloat | None]
    """GiB of keys and values; null: what `memory_share` leaves."""
    max_sequences: Free[PositiveInt]
    """Answers sampled side by side."""
    enforce_eager: Free[bool]
    """No compilation and no CUDA graphs: a quick start, slower answers."""

    @property
    def source(self) -> str:
        return "policy"

    @property
    def devices_each(self) -> int:
        return self.tensor_parallel

    def arguments(self) -> dict[str, Any]:
        """Returns what these settings are to vLLM's EngineArgs."""
        return {
            "dtype": self.dtype,
            "max_num_seqs": self.max_sequences,
            "tensor_parallel_size": self.tensor_parallel,
            "gpu_memory_utilization": self.memory_share,
            "kv_cache_memory_bytes": None if self.cache_gb is None else int(self.cache_gb * 2**30),
            "enforce_eager": self.enforce_eager,
        }

    def check_installed(self, key: str) -> None:
        if find_spec("vllm") is None:
            raise not_installed(key, "no such package")

    def open(self, policy: Path, sampling: Sampling) -> Sampler:
        if 0 < sampling.temperature < COLDEST:
            raise UserError(f"sampling.temperature: {sampling.temperature}; vLLM would take {COLDEST}; 0 is greedy")
        return VllmSampler(self, policy, sampling)

    def measure(self, policy: Path, longest: int) -> Measurer:
        return VllmMeasurer(self, policy, longest)


class Cell(NamedTuple):
    request: Request
    k: int
    seed: int


class VllmSampler:
    def __init__(self, engine: VllmEngine, policy: Path, sampling: Sampling) -> None:
        from src.modeling.policy import load_tokenizer

        self.tokenizer = load_tokenizer(policy)
        self.stops = stop_ids(policy)
        self.sampling = sampling
        self.queued = QUEUED * engine.max_sequences
        longest = sampling.max_prompt_tokens + sampling.max_new_tokens
        advice = "lower sampling.max_prompt_tokens or max_new_tokens"
        arguments = engine.arguments()
        if engine.device == "cpu":
            # No prompt is cut into steps: vLLM 0.32 turns a seed's generator back after such a step, which CPU
            # generators refuse ("CPU Generator does not use offset").
            arguments |= {"enable_chunked_prefill": False, "max_num_batched_tokens": max(longest, STEP_TOKENS)}
        self.llm = load_vllm(policy, engine.device, longest, advice, **arguments)
        self.cached_tokens: dict[tuple[str, int], int] = {}
        """Of the prompt of each answer: how many were not computed again."""

    def answers(self, requests: list[Request]) -> Iterator[Made]:
        """Asks the answers to one prompt one after the other, so that its keys and values are still there."""
        cells = (Cell(request, k, seed) for request in requests for k, seed in request.seeds.items())
        running: dict[str, Cell] = {}
        try:
            while True:
                for cell in islice(cells, self.queued - len(running)):
                    running[self._ask(cell)] = cell
                if not running:
                    return
                with clear_errors():
                    outputs = self.llm.step()
                for output in outputs:
                    if output.finished:
                        yield self._made(running.pop(output.request_id), output)
        finally:
            self.llm.abort_request(list(running))

    def _ask(self, cell: Cell) -> str:
        from vllm import SamplingParams  # pyright: ignore[reportMissingImports]

        name = f"{cell.request.prompt_id}/{cell.k}"
        params = SamplingParams(
            seed=cell.seed,
            temperature=self.sampling.temperature,
            top_p=self.sampling.top_p,
            max_tokens=self.sampling.max_new_tokens,
            ignore_eos=True,  # the stop ids are all that ends an answer, not what the tokenizer calls EOS
            stop_token_ids=sorted(self.stops),
            **_shaping(self.sampling),
            **_final_ids(),
        )
        _add(self.llm, name, cell.request.token_ids, params)
        return name

    def _made(self, cell: Cell, output: Any) -> Made:
        (completion,) = output.outputs
        ids, reason = [int(token) for token in completion.token_ids], completion.finish_reason
        if reason not in ("stop", "length"):
            raise UserError(f"{KEY}: vLLM ended an answer to {cell.request.prompt_id} with {reason!r}")
        self.cached_tokens[cell.request.prompt_id, cell.k] = output.num_cached_tokens or 0
        text = self.tokenizer.decode(ids[:-1] if reason == "stop" else ids, skip_special_tokens=True)
        return Made(cell.request.prompt_id, cell.k, Answer(str(text), ids, reason))


class VllmMeasurer:
    def __init__(self, engine: VllmEngine, policy: Path, longest: int) -> None:
        self.llm = load_vllm(
            policy,
            engine.device,
            longest + 1,  # vLLM samples one token after what it is asked about
            "lower sampling.max_prompt_tokens or max_new_tokens",
            **engine.arguments()
            | {
                "max_num_seqs": min(engine.max_sequences, MEASURED_TOKENS),
                "max_num_batched_tokens": MEASURED_TOKENS,
                "hf_overrides": {"head_dtype": "float32"},  # bf16 logits near 16 lie 1/8 apart
            },
        )

    def logps(self, sequences: list[Sequence]) -> list[list[float]]:
        """Returns vLLM's prompt log-probabilities: of the plain log-softmax, whatever is sampled with."""
        from vllm import SamplingParams  # pyright: ignore[reportMissingImports]

        params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0, **_final_ids())
        for number, (prompt, answer) in enumerate(sequences):
            _add(self.llm, str(number), prompt + answer, params)
        logps: dict[int, list[float]] = {}
        with clear_errors():
            while self.llm.has_unfinished_requests():
                for output in self.llm.step():
                    (prompt, answer), number = sequences[int(output.request_id)], int(output.request_id)
                    logprobs = output.prompt_logprobs[len(prompt) :]
                    logps[number] = [at[token].logprob for at, token in zip(logprobs, answer, strict=True)]
        return [logps[number] for number in range(len(sequences))]


def _shaping(sampling: Sampling) -> dict[str, Any]:
    """Returns the parameters of a request, in vLLM's own order and meaning; those left out are off."""
    shape = shape_of(sampling)
    penalties = {"presence_penalty": shape.presence, "frequency_penalty": shape.frequency}
    return (penalties if shape.penalised else {}) | ({} if shape.top_k is None else {"top_k": shape.top_k})


def _final_ids() -> dict[str, Any]:
    """Returns parameters of a request that ask for ids, not text, and for nothing before the end."""
    from vllm.sampling_params import RequestOutputKind  # pyright: ignore[reportMissingImports]

    return {"detokenize": False, "output_kind": RequestOutputKind.FINAL_ONLY}


def _add(llm: Any, name: str, token_ids: list[int], params: Any) -> None:
    from vllm.inputs import tokens_input  # pyright: ignore[reportMissingImports]

    with clear_errors():
        llm.add_request(name, tokens_input(token_ids), params)
