"""The openai engine against real servers: vLLM where it is installed, and `transformers serve`, both on this CPU."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import servers
from answer_server import engine, from_group
from hydra.utils import instantiate
from tiny_generation import THREE, generated
from vllm_results import STOPS, build, plain_greedy

from src.generation.engine import Sampling
from src.kernel.config import UserError
from src.modeling.policy import load_tokenizer, render, text_ids

pytestmark = [pytest.mark.full, pytest.mark.timeout(2 * servers.START_S)]

CONTEXT = 256


@pytest.fixture(autouse=True)
def local(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def made(asked: Any, policy: Path, place: Path, **sampling: Any) -> list[dict[str, Any]]:
    """Return all answers to the questions."""
    usual = {"K": 2, "temperature": 1.0, "top_p": 1.0, "max_new_tokens": 24, "max_prompt_tokens": 200}
    rows = generated(asked, policy, place, sampling=Sampling(**usual | sampling))
    return [answer for row in rows for answer in row["responses"]]


@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vllm is not installed")
def test_vllm_gives_back_the_ids_that_it_sampled(llama: Path, tmp_path: Path) -> None:
    """Greedily those of transformers; by seed the same ones again, others for other seeds; EOS where it was drawn.

    It says which checkpoint it serves, and what is too long.
    """
    folder = build(tmp_path / "0123456789abcdef0123", "mistral")
    words = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), "--host", "127.0.0.1"]
    words += ["--port", "{port}", "--served-model-name", "policy", "--dtype", "float32", "--enforce-eager"]
    words += ["--max-model-len", str(CONTEXT)]
    # Threads bound to cores wait for each other's turn where other tests use these cores.
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1"}
    with servers.start(words, environment) as url:
        asked = engine(f"{url}/v1", "ask=tokens", "endpoint.timeout_s=120.0")
        greedy = made(asked, folder, tmp_path / "greedy", K=1, temperature=0.0)
        first, again = (made(asked, folder, tmp_path / name, max_new_tokens=100) for name in ("first", "again"))
        with pytest.raises(UserError, match="hardware.engine.source: .*0123456789abcdef0123, .*llama"):
            made(asked, llama, tmp_path / "other")
        with pytest.raises(UserError, match=r"prompt \w{16}, answer \d: .*400: .*"):
            made(asked, folder, tmp_path / "long", max_new_tokens=CONTEXT + 1)
    tokenizer = load_tokenizer(folder)
    prompts = [render(tokenizer, [{"role": "user", "content": question}]) for question in THREE]
    assert [answer["token_ids"] for answer in greedy] == [plain_greedy(folder, ids, 24)[0] for ids in prompts]
    assert first == again and len({tuple(answer["token_ids"]) for answer in first}) == len(first) == 6
    for answer in first:
        ids, ended = answer["token_ids"], answer["finish_reason"] == "stop"
        assert [place for place, token in enumerate(ids) if token in STOPS] == ([len(ids) - 1] if ended else [])
        assert ended or len(ids) == 100
        assert answer["text"] == tokenizer.decode(ids[:-1] if ended else ids, skip_special_tokens=True)


def test_transformers_serve_answers_chats(tmp_path: Path) -> None:
    """SmolLM2 by its messages; the folder it says it serves is the policy's."""
    (folder := tmp_path / "0123456789abcdef0123").mkdir()
    instantiate(from_group("model", "smollm2_135m_instruct"))(out=folder)
    words = [str(Path(sys.executable).with_name("transformers")), "serve", str(folder), "--device", "cpu"]
    words += ["--dtype", "float32", "--host", "127.0.0.1", "--port", "{port}"]
    with servers.start(words) as url:
        asked = engine(f"{url}/v1", "ask=chat", f"endpoint.model={folder}", "endpoint.timeout_s=120.0")
        found = made(asked, folder, tmp_path / "made", K=1, temperature=0.5)
    tokenizer = load_tokenizer(folder)
    for answer in found:
        ended = answer["finish_reason"] == "stop"
        assert answer["source"] == "policy" and answer["text"].strip()
        assert answer["token_ids"] == text_ids(tokenizer, answer["text"]) + [tokenizer.eos_token_id] * ended
