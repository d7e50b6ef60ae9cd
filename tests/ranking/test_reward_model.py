"""Reward models: a score of its own chat template, whatever is scored beside it; foreign code runs on request only."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from places import LIB
from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from src.kernel.config import UserError
from src.kernel.rows import Row
from src.modeling.checkpoints import Checkpoint, CheckpointWithCode
from src.modeling.policy import render
from src.ranking.batching import Work
from src.ranking.reward_model import RewardModel, supply_missing_names

WORK = Work(device="cpu", attention="segments", batch_tokens=64, workers=1, save_seconds=1.0)
SHAPE: Any = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=402)


def save(folder: Path, llama: Path, model: Any) -> Path:
    """The model beside the tokenizer of the tiny policy."""
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(llama / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def plain(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LlamaForSequenceClassification with one label; its padding token is also what ends a turn."""
    torch.manual_seed(0)
    pad = AutoTokenizer.from_pretrained(llama).eos_token_id
    model = LlamaForSequenceClassification(LlamaConfig(num_labels=1, pad_token_id=pad, **SHAPE))
    return save(tmp_path_factory.mktemp("reward"), llama, model)


@pytest.fixture(scope="module")
def with_code(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of ArmoRM's kind: Python files of its own, found through `auto_map`."""
    folder = tmp_path_factory.mktemp("armorm")
    supply_missing_names()
    from armorm_like import RewardsWithGate

    torch.manual_seed(0)
    gate = AutoTokenizer.from_pretrained(llama).convert_tokens_to_ids("<|im_end|>")
    save(folder, llama, RewardsWithGate(LlamaConfig(num_objectives=3, gate_token_id=gate, **SHAPE)))
    shutil.copy(LIB / "armorm_like.py", folder / "modeling_custom.py")
    settings = json.loads((folder / "config.json").read_text())
    settings["auto_map"] = {"AutoModelForSequenceClassification": "modeling_custom.RewardsWithGate"}
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


def ranker(folder: Path, **changes: Any) -> RewardModel:
    plain = {"output": "logits", "max_tokens": 512, "trust_remote_code": False, "precision": "float32", "work": WORK}
    made = Checkpoint(name="tiny", repo=str(folder), revision="main")
    return RewardModel(**{"name": "tiny", "checkpoint": made, **plain, **changes})


def row(question: str, answers: list[str]) -> Row:
    chat = [{"role": "user", "content": question}]
    return {"prompt_id": question, "messages": chat, "responses": [{"text": text} for text in answers]}


ROWS = [row("what is it", ["a word", "", "you and me and him"]), row("why", ["for that", "a word"])]


def chat_ids(folder: Path, one: Row, k: int) -> torch.Tensor:
    """Slow and obvious: the whole chat in the model's own template, as text, then as tokens."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    chat = [*one["messages"], {"role": "assistant", "content": one["responses"][k]["text"]}]
    text = tokenizer.apply_chat_template(chat, tokenize=False)
    return torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])


def test_a_score_is_the_models_logit_of_the_whole_chat(plain: Path, tmp_path: Path) -> None:
    """Whatever it is batched with, and though the padding token would also be found at the end of a turn."""
    model = LlamaForSequenceClassification.from_pretrained(plain).eval()
    for tokens, rows in ((1, ROWS), (40, ROWS[::-1]), (100_000, ROWS)):
        work = Work(**{**vars(WORK), "batch_tokens": tokens})
        scored = ranker(plain, work=work).rank(rows, (plain,), tmp_path / f"{tokens}")
        for one, found in zip(rows, scored, strict=True):
            with torch.no_grad():
                expected = [model(chat_ids(plain, one, k)).logits.item() for k in range(len(one["responses"]))]
            assert found["scores"] == pytest.approx(expected, abs=1e-4), tokens
            assert (found["logits"], found["truncated"]) == (None, [False] * len(expected))


def test_what_is_cut_off_is_told(plain: Path, tmp_path: Path) -> None:
    rows = [row("what", ["a", "a " * 400]), row("you and me " * 20, ["a"])]
    limit = len(render(AutoTokenizer.from_pretrained(plain), rows[1]["messages"]))
    ranked = ranker(plain, max_tokens=limit).rank(rows, (plain,), tmp_path)
    assert [one["truncated"] for one in ranked] == [[False, True], [True]]
    assert [one["prompt_truncated"] for one in ranked] == [False, True]


def test_armorm_gives_its_score_output(with_code: Path, tmp_path: Path) -> None:
    """By hand: the model itself, whose gate is read at the last mark of a turn, on the whole chat."""
    found = ranker(with_code, output="score", trust_remote_code=True).rank(ROWS, (with_code,), tmp_path)
    from armorm_like import RewardsWithGate

    model = RewardsWithGate.from_pretrained(with_code).eval()
    for one, scored in zip(ROWS, found, strict=True):
        with torch.no_grad():
            expected = [model(chat_ids(with_code, one, k)).score.item() for k in range(len(one["responses"]))]
        assert scored["scores"] == pytest.approx(expected, abs=1e-4)


def test_foreign_code_comes_and_runs_on_request_only(with_code: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="ranker.trust_remote_code: tiny runs Python files of its own"):
        ranker(with_code, output="score").rank(ROWS, (with_code,), tmp_path)
    place = {"name": "tiny", "repo": str(with_code), "revision": "main"}
    for name, stage in {"plain": Checkpoint(**place), "trusted": CheckpointWithCode(trusted=True, **place)}.items():
        (tmp_path / name).mkdir()
        stage(out=tmp_path / name)
        assert (tmp_path / name / "modeling_custom.py").exists() == (name == "trusted")
