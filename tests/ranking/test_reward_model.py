"""Reward models: a score of its own chat template, whatever is scored beside it; foreign code runs on request only."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from judge_server import row
from rehearsal_models import build_armorm
from transformers import AutoModelForSequenceClassification, AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from src.kernel.config import UserError
from src.kernel.rows import Row
from src.modeling.checkpoints import Checkpoint, CheckpointWithCode
from src.modeling.policy import render
from src.ranking.batching import Work
from src.ranking.reward_model import RewardModel

ROWS = [row("what is it", ["a word", "", "you and me and him"]), row("why", ["for that", "a word"])]


@pytest.fixture(scope="module")
def plain(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with one label beside the tokenizer of the tiny policy; its padding token is also what ends a turn."""
    torch.manual_seed(0)
    folder, pad = tmp_path_factory.mktemp("reward"), AutoTokenizer.from_pretrained(llama).eos_token_id
    shape: Any = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    model: Any = LlamaForSequenceClassification(LlamaConfig(num_labels=1, pad_token_id=pad, vocab_size=402, **shape))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(llama / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def with_code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of ArmoRM's kind: Python files of its own, found through `auto_map`."""
    folder = tmp_path_factory.mktemp("armorm")
    build_armorm(folder)
    return folder


def rank(folder: Path, rows: list[Row], work: Path, batch_tokens: int = 64, **changes: Any) -> list[Row]:
    options = Work(device="cpu", attention="segments", batch_tokens=batch_tokens, workers=1, save_seconds=1.0)
    usual = {"output": "logits", "max_tokens": 512, "trust_remote_code": False, "precision": "float32", "work": options}
    stage = Checkpoint(name="tiny", repo=str(folder), revision="main")
    return RewardModel(**{"name": "tiny", "checkpoint": stage, **usual, **changes}).rank(rows, (folder,), work)


@pytest.mark.parametrize(("kind", "output"), [("plain", "logits"), ("with_code", "score")])
def test_a_score_is_the_models_own_of_the_whole_chat(
    kind: str, output: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Whatever it is batched with, and though the padding token would also be found at the end of a turn.

    Slow and obvious: the chat in the model's own template, as text, then as tokens, then the model itself.
    """
    folder, trusted = request.getfixturevalue(kind), kind == "with_code"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    options: dict[str, Any] = {"dtype": torch.float32, "trust_remote_code": trusted}
    model = AutoModelForSequenceClassification.from_pretrained(folder, **options).eval()

    def score(one: Row, text: str) -> float:
        chat = tokenizer.apply_chat_template([*one["messages"], {"role": "assistant", "content": text}], tokenize=False)
        ids = torch.tensor([tokenizer(chat, add_special_tokens=False)["input_ids"]])
        with torch.no_grad():
            return model(ids)[output].item()

    for tokens, rows in ((1, ROWS), (40, ROWS[::-1]), (100_000, ROWS)):
        options = {"batch_tokens": tokens, "output": output, "trust_remote_code": trusted}
        for one, ranked in zip(rows, rank(folder, rows, tmp_path / f"{tokens}", **options), strict=True):
            expected = [score(one, answer["text"]) for answer in one["responses"]]
            assert ranked["scores"] == pytest.approx(expected, abs=1e-4), tokens
            assert (ranked["logits"], ranked["truncated"]) == (None, [False] * len(expected))


def test_what_is_cut_off_is_told(plain: Path, tmp_path: Path) -> None:
    rows = [row("what", ["a", "a " * 400]), row("you and me " * 20, ["a"])]
    limit = len(render(AutoTokenizer.from_pretrained(plain), rows[1]["messages"]))
    ranked = rank(plain, rows, tmp_path, max_tokens=limit)
    assert [one["truncated"] for one in ranked] == [[False, True], [True]]
    assert [one["prompt_truncated"] for one in ranked] == [False, True]


def test_foreign_code_comes_and_runs_on_request_only(with_code: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="ranker.trust_remote_code: tiny runs Python files of its own"):
        rank(with_code, ROWS, tmp_path, output="score")
    place = {"name": "tiny", "repo": str(with_code), "revision": "main"}
    for name, stage in {"plain": Checkpoint(**place), "trusted": CheckpointWithCode(trusted=True, **place)}.items():
        (tmp_path / name).mkdir()
        stage(out=tmp_path / name)
        assert (tmp_path / name / "modeling_custom.py").exists() == (name == "trusted")
