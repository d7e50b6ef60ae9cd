"""Start policies that are no whole checkpoint or cannot be trained here, and rankers that are none."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from bad_inputs import Given, Setting
from spoiled_models import (
    Change,
    cut,
    holding,
    nan,
    narrowed,
    renamed,
    saying,
    short_of_a_shard,
    weighing,
    without,
)


def spoiled(change: Change, key: str = "model.repo") -> Given:
    """The model that the key names is a copy of the tiny one with a mistake."""

    def given(setting: Setting) -> list[str]:
        folder = Path(shutil.copytree(setting.model, setting.at / "model"))
        change(folder)
        return [f"{key}={folder}"]

    return given


def offline(setting: Setting) -> None:
    """As HF_HUB_OFFLINE=1 has it when the library is imported; rows must not wait for a network."""
    setting.patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def lacking(name: str) -> Change:
    def change(tensors: dict[str, Any]) -> None:
        del tensors[name]

    return weighing(change)


def reward(change: Change, labels: int = 1) -> Given:
    """A reward model with the tokenizer of the tiny policy, and no padding token."""

    def given(setting: Setting) -> list[str]:
        import torch
        from transformers import AutoConfig, AutoModelForSequenceClassification

        torch.manual_seed(0)
        settings = AutoConfig.from_pretrained(setting.model, num_labels=labels)
        AutoModelForSequenceClassification.from_config(settings).save_pretrained(setting.at / "reward")
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copy(setting.model / name, setting.at / "reward" / name)
        change(setting.at / "reward")
        return [f"ranker.checkpoint.repo={setting.at / 'reward'}"]

    return given


def untouched(folder: Path) -> None: ...


STOPS = "generation_config.json"
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}
POLICIES: dict[str, Change] = {
    "no config.json": without("config.json"),
    "a pickle of weights": renamed("pytorch_model.bin"),
    "a shard that is not there": short_of_a_shard,
    "weights that are cut off": cut,
    "a weight that is not there": lacking("model.layers.1.mlp.down_proj.weight"),
    "a weight that is no number": nan("model.norm.weight"),
    "no tokenizer": without("tokenizer*"),
    "a tokenizer with more tokens than the model has": narrowed,
    "no chat template": without("chat_template.jinja"),
    "a chat template that leaves out the chat": holding("chat_template.jinja", "hello"),
    "no token that ends an answer": saying(STOPS, eos_token_id=None),
    "an architecture that cannot be trained here": saying(model_type="gpt2", architectures=["GPT2LMHeadModel"]),
    "a model that runs Python files of its own": saying(
        model_type="mine", auto_map={"AutoConfig": "mine.C", "AutoModelForCausalLM": "mine.M"}
    ),
    "dropout of attention": saying(attention_dropout=0.1),
    "positions that depend on a neighbour": saying(rope_parameters=DYNAMIC),
}
MODELS: dict[str, Given] = {
    **{what: spoiled(change) for what, change in POLICIES.items()},
    "a model that is not there, and no hub": offline,
    "a path to no folder": offline,
    "a reward model that gives NaN": reward(nan("score.weight")),
    "a frozen model that gives NaN": spoiled(nan("model.norm.weight"), "ranker.frozen_model.repo"),
    "a language model in place of a reward model": lambda setting: [f"ranker.checkpoint.repo={setting.model}"],
    "a reward model without its head": reward(lacking("score.weight")),
    "a reward model of two labels": reward(untouched, 2),
    "a reward model that runs Python files of its own": reward(
        saying(auto_map={"AutoModelForSequenceClassification": "mine.M"})
    ),
}
