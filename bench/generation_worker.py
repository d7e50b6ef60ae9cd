"""Run one contender of the generation benchmark: answer the prompts, and print how long it took as a line of JSON."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from src.generation.engine import Answer, Engine, Request, Sampling
from src.generation.stage import cell_seed

PROMPTS = Path(__file__).parents[1] / "src" / "data" / "embedded" / "part1.jsonl"


class Done(NamedTuple):
    answers: int
    tokens: int
    ended: int


def main(name: str, job: dict[str, Any]) -> None:
    from src.kernel.processes import keep_memory, tidy_output

    tidy_output()
    if job["device"] == "cpu":
        keep_memory()
    answer = {"generate": _generate, "continuous": _continuous}.get(name, _engine)(name, job)
    requests = _requests(job)
    answer(requests[: job["K"]])
    start = time.perf_counter()
    done = answer(requests)
    print(json.dumps(done._asdict() | {"seconds": time.perf_counter() - start}))


def _requests(job: dict[str, Any]) -> list[Request]:
    """Return the requests, longest prompt first."""
    from src.modeling.policy import load_tokenizer, render

    tokenizer = load_tokenizer(Path(job["model"]))
    chats = [json.loads(line)["messages"] for line in PROMPTS.read_text().splitlines()[: job["prompts"]]]
    requests = [
        Request(str(n), k, render(tokenizer, chat), cell_seed(0, str(n), k))
        for n, chat in enumerate(chats)
        for k in range(job["K"])
    ]
    return sorted(requests, key=lambda request: -len(request.token_ids))


def _engine(name: str, job: dict[str, Any]) -> Callable[[list[Request]], Done]:
    """Return a function that samples with our engine, or with vLLM behind the same interface."""
    sampling = Sampling(
        K=job["K"],
        temperature=job["temperature"],
        top_p=job["top_p"],
        max_new_tokens=job["max_new_tokens"],
        max_prompt_tokens=1024,
    )
    opened = _named(name, job).open(Path(job["model"]), sampling)

    def answer(requests: list[Request]) -> Done:
        made: list[Answer] = []
        opened(requests, lambda _, one: made.append(one))
        tokens = sum(len(one["token_ids"]) for one in made)
        return Done(len(made), tokens, sum(one["finish_reason"] == "stop" for one in made))

    return answer


def _named(name: str, job: dict[str, Any]) -> Engine:
    """Make the engine that the configs name."""
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    settings: Any = OmegaConf.load(Path(__file__).parents[1] / "conf" / "engine" / f"{_CONFIGS[name]}.yaml")
    settings["device"], settings["dtype"] = job["device"], job["dtype"]
    if "batch_answers" in settings:
        settings["batch_answers"] = job["batch"]
    return instantiate(settings)


_CONFIGS = {"ours": "transformers", "vllm": "vllm"}


def _generate(name: str, job: dict[str, Any]) -> Callable[[list[Request]], Done]:
    """Return a function that samples in fixed batches, padded on the left, until the last row of each has ended."""
    import torch

    model, stops, config = _plain(job)

    def answer(requests: list[Request]) -> Done:
        rows = [request.token_ids for request in requests]
        found: list[list[int]] = []
        torch.manual_seed(0)
        for start in range(0, len(rows), job["batch"]):
            batch = rows[start : start + job["batch"]]
            width = max(map(len, batch))
            ids = torch.tensor([[config.pad_token_id] * (width - len(row)) + row for row in batch])
            mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in batch])
            made = model.generate(ids.to(model.device), attention_mask=mask.to(model.device), generation_config=config)
            found += made[:, width:].tolist()
        return _done(found, stops)

    return answer


def _continuous(name: str, job: dict[str, Any]) -> Callable[[list[Request]], Done]:
    """Return a function that samples with `generate_batch`, with room for as many answers as the others have."""
    from transformers.generation.configuration_utils import ContinuousBatchingConfig

    model, stops, config = _plain(job)
    page = 32

    def answer(requests: list[Request]) -> Done:
        rows = [request.token_ids for request in requests]
        pages = job["batch"] * (-(-(max(map(len, rows)) + job["max_new_tokens"]) // page) + 1)
        room = ContinuousBatchingConfig(num_blocks=pages, page_size=page, max_batch_tokens=256, seed=0)
        made = model.generate_batch(inputs=rows, generation_config=config, continuous_batching_config=room)
        return _done([one.generated_tokens for one in made.values()], stops)

    return answer


def _plain(job: dict[str, Any]) -> tuple[Any, set[int], Any]:
    from transformers import GenerationConfig

    from src.modeling.policy import load_policy, stop_ids

    model: Any = load_policy(Path(job["model"]), job["dtype"], job["device"])
    stops = stop_ids(Path(job["model"]))
    config = GenerationConfig(
        do_sample=True,
        temperature=job["temperature"],
        top_p=job["top_p"],
        top_k=0,
        max_new_tokens=job["max_new_tokens"],
        eos_token_id=sorted(stops),
        pad_token_id=min(stops),
    )
    return model, stops, config


def _done(found: list[list[int]], stops: set[int]) -> Done:
    """Count tokens up to the first end of each answer; the rest is padding."""
    ends = [next((n + 1 for n, token in enumerate(row) if token in stops), None) for row in found]
    tokens = sum(len(row) if end is None else end for row, end in zip(found, ends, strict=True))
    return Done(len(found), tokens, sum(end is not None for end in ends))


if __name__ == "__main__":
    main(sys.argv[1], json.loads(Path(sys.argv[2]).read_text()))
