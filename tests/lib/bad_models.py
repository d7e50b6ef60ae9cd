"""Ways to spoil a tiny checkpoint: start policies that are no whole model or cannot be trained, and rankers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bad_inputs import HI, Arrange, Setting, lines, patched

Change = Callable[[Path], Any]
"""Spoils the checkpoint in a folder."""
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
WEIGHTS, TEMPLATE = "model.safetensors", "chat_template.jinja"


def without(name: str) -> Change:
    return lambda folder: [path.unlink() for path in folder.glob(name)]


def saying(name: str = "config.json", **values: Any) -> Change:
    """Change settings of a JSON file; None takes one out."""

    def change(folder: Path) -> None:
        settings = json.loads((folder / name).read_text()) | values
        (folder / name).write_text(json.dumps({key: value for key, value in settings.items() if value is not None}))

    return change


def weighing(change_all: Callable[[dict[str, Any]], Any]) -> Change:
    """Change the weights, which are arrange by name."""

    def change(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        tensors = load_file(folder / WEIGHTS)
        change_all(tensors)
        save_file(tensors, folder / WEIGHTS, {"format": "pt"})

    return change


def nan(name: str) -> Change:
    """Make one number of one weight NaN."""
    return weighing(lambda tensors: tensors[name].view(-1)[3:4].fill_(float("nan")))


def lacking(name: str) -> Change:
    return weighing(lambda tensors: tensors.pop(name))


def cut(folder: Path) -> None:
    """Keep half of the file of weights."""
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[: (folder / WEIGHTS).stat().st_size // 2])


def narrowed(folder: Path) -> None:
    """Leave fewer embeddings than the tokenizer has tokens."""

    def change(tensors: dict[str, Any]) -> None:
        for name in {"model.embed_tokens.weight", "lm_head.weight"} & tensors.keys():
            tensors[name] = tensors[name][:300].contiguous()

    weighing(change)(folder)
    saying(vocab_size=300)(folder)


def short_of_a_shard(folder: Path) -> None:
    """Write the weights in several files, of which the second is not there."""
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder, max_shard_size="40KB")
    (folder / "model-00002-of-00004.safetensors").unlink()


def strict(folder: Path) -> None:
    """Give it a template that refuses a system turn, as Gemma's does; the first prompts have one."""
    refusal = "{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    turn = "{{ '<|im_start|>' + m['role'] + m['content'] + '<|im_end|>' }}"
    (folder / TEMPLATE).write_text("{% for m in messages %}" + refusal + turn + "{% endfor %}")
    chat = {"messages": [{"role": "system", "content": "be brief"}, HI]}
    (folder.parent / "part0.jsonl").write_bytes(lines(chat))


def spoiled(change: Change, key: str = "model.repo") -> Arrange:
    """The model that the key names is a copy of the tiny one with a mistake."""

    def arrange(setting: Setting) -> list[str]:
        folder = Path(shutil.copytree(setting.model, setting.at / "model"))
        change(folder)
        return [f"{key}={folder}"]

    return arrange


def reward(change: Change, labels: int = 1) -> Arrange:
    """The ranker is a reward model with a mistake, the tokenizer of the tiny policy and no padding token."""

    def arrange(setting: Setting) -> list[str]:
        import torch
        from transformers import AutoConfig, AutoModelForSequenceClassification

        torch.manual_seed(0)
        settings = AutoConfig.from_pretrained(setting.model, num_labels=labels, max_position_embeddings=4096)
        folder = Path(shutil.copytree(setting.model, setting.at / "reward"))
        AutoModelForSequenceClassification.from_config(settings).save_pretrained(folder)
        change(folder)
        return [f"ranker.checkpoint.repo={folder}"]

    return arrange


DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}
POLICIES: dict[str, Change] = {
    "a system turn that the template refuses": strict,
    "no config.json": without("config.json"),
    "a pickle of weights": lambda folder: (folder / WEIGHTS).rename(folder / "pytorch_model.bin"),
    "weights that are half fetched": lambda folder: (folder / WEIGHTS).rename(folder / f"{WEIGHTS}.incomplete"),
    "a shard that is not there": short_of_a_shard,
    "weights that are cut off": cut,
    "weights of no bytes": lambda folder: (folder / WEIGHTS).write_bytes(b""),
    "a pointer of Git LFS in place of weights": lambda folder: (folder / WEIGHTS).write_text(LFS),
    "a weight that is not there": lacking("model.layers.1.mlp.down_proj.weight"),
    "a weight that is no number": nan("model.norm.weight"),
    "no tokenizer": without("tokenizer*"),
    "a tokenizer with more tokens than the model has": narrowed,
    "no chat template": without(TEMPLATE),
    "a chat template that leaves out the chat": lambda folder: (folder / TEMPLATE).write_text("hello"),
    "no token that ends an answer": saying("generation_config.json", eos_token_id=None),
    "an architecture that cannot be trained here": saying(model_type="gpt2", architectures=["GPT2LMHeadModel"]),
    "dropout of attention": saying(attention_dropout=0.1),
    "positions that depend on a neighbour": saying(rope_parameters=DYNAMIC),
}
OFFLINE = patched("huggingface_hub.constants.HF_HUB_OFFLINE", True)
"""Rows must not wait for a network."""
MODELS: dict[str, Arrange] = {
    **{what: spoiled(change) for what, change in POLICIES.items()},
    "a model that is not there, and no hub": OFFLINE,
    "a path to no folder": OFFLINE,
    "an address of the hub that is none": lambda setting: setting.patch.setenv("HF_ENDPOINT", "ftp://x"),
    "a reward model that gives NaN": reward(nan("score.weight")),
    "a frozen model that gives NaN": spoiled(nan("model.norm.weight"), "ranker.frozen_model.repo"),
    "a language model in place of a reward model": lambda setting: [f"ranker.checkpoint.repo={setting.model}"],
    "a reward model without its head": reward(lacking("score.weight")),
    "a reward model that reads less than it is given": reward(lambda folder: None),
    "a reward model of two labels": reward(lambda folder: None, 2),
    "a reward model that runs Python files of its own": reward(
        saying(auto_map={"AutoModelForSequenceClassification": "mine.M"})
    ),
}
