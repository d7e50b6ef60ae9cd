"""Is vLLM the same model as transformers has? Greedy answers and log-probabilities, side by side, in fp32.

    python -m bench.parity engine@hardware.engine=vllm experiment=gemma2_9b_it_sppo    # words as of src.main

Both are given the same held-out prompts and the start policy. transformers goes through them one at a time with eager
attention: slow, plain, and nothing of our own fast paths in it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from src.experiment.graph import START
from src.experiment.point import Point
from src.generation.engine import Engine, Request
from src.kernel.config import UserError
from src.kernel.processes import run_in_processes
from src.kernel.rows import PROMPTS, read_rows
from src.kernel.store import Store
from src.launch.compose import points_of
from src.launch.mistakes import exit_code

MOST_PROMPTS, MOST_TOKENS = 16, 64
LIMIT = 1e-3
"""Mean |Δlogp| in nats. In fp32 engines are within 1e-5; a soft-cap left out moves a hundred times the limit."""


def main(words: list[str]) -> int:
    """Compare the engine of each point that the words ask for; return the exit code."""
    try:
        return max(map(print_parity, points_of(words)))
    except BaseException as error:
        return exit_code(error, words, bool(os.environ.get("HYDRA_FULL_ERROR")))


def print_parity(point: Point) -> int:
    """Print how `hardware.engine` compares; return the exit code. Makes prompts and start policy if missing."""
    from src.modeling.policy import load_tokenizer, render

    run, store, nodes = point.run, Store(point.run.store), {node.name: node for node in point.nodes}
    run.hardware.engine.check_installed()
    rows, policy = read_rows(store.make(nodes["held_out/prompts"]), PROMPTS), store.make(nodes[START]).resolve()
    tokenizer, most = load_tokenizer(policy), min(MOST_TOKENS, run.sampling.max_new_tokens)
    chats = [(row, render(tokenizer, row["messages"])) for row in rows]
    longest = run.sampling.max_prompt_tokens
    short = [(row, ids) for row, ids in chats if len(ids) <= longest][:MOST_PROMPTS]
    requests = [Request(row["prompt_id"], 0, ids, 0) for row, ids in short]
    if not requests:
        raise UserError(f"sampling.max_prompt_tokens: all held-out prompts are longer than {longest}; raise it")
    engine: Any = run.hardware.engine
    if hasattr(engine, "dtype"):
        engine = dataclasses.replace(engine, dtype="float32")  # in bf16 noise can hide a doubled BOS
    with TemporaryDirectory() as folder:  # a process of its own, whose end gives the device back
        file = Path(folder) / "answers.json"
        job = partial(_write_greedy, engine, policy, requests, most, file)
        run_in_processes(job, "parity", 1, engine.device, engine.devices_each, Path(folder), lambda: None)
        theirs = json.loads(file.read_text())
    print("\n".join(compared(theirs, requests, policy, engine.device, most)))
    return 0


def _write_greedy(
    engine: Engine, policy: Path, requests: list[Request], most: int, file: Path, number: int, count: int
) -> None:
    file.write_text(json.dumps(engine.greedy(policy, requests, most)))


def compared(
    theirs: list[tuple[list[int], list[float]]], requests: list[Request], policy: Path, device: Any, most: int
) -> list[str]:
    """Return lines for an engine's greedy answers and their log-probabilities beside those of transformers."""
    import torch

    from src.modeling.policy import load_policy, load_tokenizer, stop_ids

    model: Any = load_policy(policy, "float32", device, "eager")
    stops, bos = stop_ids(policy), load_tokenizer(policy).bos_token_id
    gaps: list[float] = []
    equal = 0
    for request, (answer, logps) in zip(requests, theirs, strict=True):
        prompt = request.token_ids
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + answer], device=device)).logits[0, len(prompt) - 1 : -1].float()
        plain = logits.log_softmax(-1)[range(len(answer)), answer].tolist()
        gaps += [abs(a - b) for a, b in zip(logps, plain, strict=True)]
        whole = len(answer) == most or answer[-1] in stops
        equal += whole and logits.argmax(-1).tolist() == answer  # token by token its own greedy answer
    mean = sum(gaps) / len(gaps)
    lines = [f"mean |Δlogp| {mean:.2g} nats over {len(gaps)} answer tokens"]
    lines.append(f"greedy answers equal: {equal} of {len(requests)}")
    if not mean <= LIMIT:
        causes = "a soft-cap left out (Gemma-2), a doubled BOS, another chat template, other weights"
        lines.append(f"warning: mean |Δlogp| is over {LIMIT:.2g}; usual causes: {causes}")
    if doubled := sum(bos is not None and request.token_ids[:2] == [bos, bos] for request in requests):
        lines.append(f"warning: {doubled} of {len(requests)} prompts begin with more than one BOS")
    return lines


if __name__ == "__main__":
    from bench.parity import main  # the other process imports what it is to do from there

    sys.exit(main(sys.argv[1:]))
