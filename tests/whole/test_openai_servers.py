"""The openai engine against real servers: vLLM where it is installed, and `transformers serve`, both on this CPU."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import servers
from answer_server import engine
from conftest import CHATML, build_tokenizer
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from tiny_generation import THREE, generated
from tiny_run import ROOT

from src.config import UserError
from src.generation.contract import Sampling
from src.generation.encoding import text_ids
from src.model import load_policy, load_tokenizer

pytestmark = [pytest.mark.full, pytest.mark.timeout(2 * servers.START_S)]

NEW, CONTEXT = 24, 256
NO_VLLM = importlib.util.find_spec("vllm") is None


class Served(NamedTuple):
    url: str
    folder: Path


@pytest.fixture(autouse=True)
def local(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture(scope="module")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A tiny Llama whose heads are as wide as vLLM wants them."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    folder = tmp_path_factory.mktemp("served") / "0123456789abcdef0123"
    folder.mkdir()
    build_tokenizer(folder, CHATML, "<|im_start|>", "<|im_end|>")
    tokenizer = load_tokenizer(folder)
    shape = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "head_dim": 64}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": CONTEXT}
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    torch.manual_seed(0)
    settings = AutoConfig.for_model("llama", vocab_size=len(tokenizer), **shape, **heads, **ids)
    model = AutoModelForCausalLM.from_config(settings).float()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    # Were these obeyed, the likeliest token would always be drawn.
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, do_sample=True, top_k=1)
    model.save_pretrained(folder)
    words = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), "--host", "127.0.0.1"]
    words += ["--port", "{port}", "--served-model-name", "policy", "--dtype", "float32", "--enforce-eager"]
    words += ["--max-model-len", str(CONTEXT)]
    # Threads bound to cores wait for each other's turn where other tests use these cores.
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1"}
    with servers.start(words, environment) as url:
        yield Served(f"{url}/v1", folder)


def made(asked: Any, policy: Path, place: Path, **sampling: Any) -> list[dict[str, Any]]:
    """All answers to the questions."""
    usual = {"K": 2, "temperature": 1.0, "top_p": 1.0, "max_new_tokens": NEW, "max_prompt_tokens": 200}
    rows = generated(asked, policy, place, sampling=Sampling(**usual | sampling))
    return [answer for row in rows for answer in row["responses"]]


@pytest.mark.skipif(NO_VLLM, reason="vllm is not installed")
def test_vllm_gives_back_the_ids_that_it_sampled(vllm: Served, tmp_path: Path) -> None:
    """Greedily those of transformers; by seed the same ones again, others for other seeds; EOS where it was drawn."""
    asked = engine(vllm.url, "ask=tokens")
    greedy = made(asked, vllm.folder, tmp_path / "greedy", K=1, temperature=0.0)
    assert [answer["token_ids"] for answer in greedy] == [_greedy(vllm.folder, q) for q in THREE]
    first = made(asked, vllm.folder, tmp_path / "first", max_new_tokens=100)
    assert first == made(asked, vllm.folder, tmp_path / "again", max_new_tokens=100)
    assert len({tuple(answer["token_ids"]) for answer in first}) == len(first) == 6
    tokenizer = load_tokenizer(vllm.folder)
    for answer in first:
        ids, ended = answer["token_ids"], answer["finish_reason"] == "stop"
        assert (ids[-1] == tokenizer.eos_token_id) == ended and tokenizer.eos_token_id not in ids[:-1]
        assert len(ids) == 100 or ended
        assert answer["text"] == tokenizer.decode(ids[:-1] if ended else ids, skip_special_tokens=True)
    assert {answer["finish_reason"] for answer in first} == {"stop", "length"}


def _greedy(folder: Path, question: str) -> list[int]:
    import torch

    from src.model import render

    model: Any = load_policy(folder, "float32", "cpu")
    ids = render(load_tokenizer(folder), [{"role": "user", "content": question}])
    with torch.inference_mode():
        found = model.generate(torch.tensor([ids]), do_sample=False, top_k=None, max_new_tokens=NEW)
    return found[0, len(ids) :].tolist()


@pytest.mark.skipif(NO_VLLM, reason="vllm is not installed")
def test_vllm_says_which_checkpoint_it_serves_and_what_is_too_long(vllm: Served, llama: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="hardware.engine.source: .*0123456789abcdef0123, and the policy is .*llama"):
        made(engine(vllm.url, "ask=tokens"), llama, tmp_path / "other")
    with pytest.raises(UserError, match=r"prompt \w{16}, answer \d: .* refuses it \(400: .*"):
        made(engine(vllm.url, "ask=tokens"), vllm.folder, tmp_path / "long", max_new_tokens=CONTEXT + 1)


@pytest.mark.skipif(NO_VLLM, reason="vllm is not installed")
def test_a_chat_with_vllm_is_the_same_text_in_the_same_tokens(vllm: Served, tmp_path: Path) -> None:
    """The served template is the policy's, so the likeliest answer is; bytes of half a character at its end are not.

    Its ids may spell the same text otherwise.
    """
    chat = made(engine(vllm.url, "ask=chat"), vllm.folder, tmp_path / "chat", K=1, temperature=0.0)
    tokens = made(engine(vllm.url, "ask=tokens"), vllm.folder, tmp_path / "tokens", K=1, temperature=0.0)
    assert [a["text"].rstrip("\ufffd") for a in chat] == [a["text"].rstrip("\ufffd") for a in tokens]


def test_transformers_serve_answers_chats(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """SmolLM2 by its messages; the folder it says it serves is the policy's."""
    (folder := tmp_path / "0123456789abcdef0123").mkdir()
    with initialize_config_dir(str(ROOT / "conf" / "model"), version_base="1.3"):
        instantiate(compose("smollm2_135m_instruct"))(out=folder)
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
    assert " 3 answers, 0 retries, " in capsys.readouterr().out
