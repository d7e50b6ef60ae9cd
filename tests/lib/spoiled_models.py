"""Ways to spoil a folder with a tiny checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Change = Callable[[Path], None]
WEIGHTS = "model.safetensors"


def without(*names: str) -> Change:
    """Files are not there."""

    def change(folder: Path) -> None:
        for path in [path for name in names for path in folder.glob(name)]:
            path.unlink()

    return change


def holding(name: str, text: str | None) -> Change:
    """A file says this; None: it is not there."""

    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        if text is not None:
            (folder / name).write_text(text)

    return change


def saying(name: str = "config.json", **values: Any) -> Change:
    """Settings of a JSON file; None takes one out."""

    def change(folder: Path) -> None:
        found = json.loads((folder / name).read_text()) | values
        (folder / name).write_text(json.dumps({key: value for key, value in found.items() if value is not None}))

    return change


def weighing(change_all: Callable[[dict[str, Any]], None]) -> Change:
    """Weights by name are changed."""

    def change(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        tensors = load_file(folder / WEIGHTS)
        change_all(tensors)
        save_file(tensors, folder / WEIGHTS, {"format": "pt"})

    return change


def nan(name: str) -> Change:
    """One number of one weight is none."""

    def change(tensors: dict[str, Any]) -> None:
        tensors[name].view(-1)[3] = float("nan")

    return weighing(change)


def cut(folder: Path) -> None:
    """Half of the weights."""
    file = folder / WEIGHTS
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def narrowed(folder: Path) -> None:
    """Fewer embeddings than the tokenizer has tokens."""

    def change(tensors: dict[str, Any]) -> None:
        for name in {"model.embed_tokens.weight", "lm_head.weight"} & tensors.keys():
            tensors[name] = tensors[name][:300].contiguous()

    weighing(change)(folder)
    saying(vocab_size=300)(folder)


def short_of_a_shard(folder: Path) -> None:
    """Several files of weights, of which the second is not there."""
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder, max_shard_size="40KB")
    (folder / WEIGHTS).unlink(missing_ok=True)
    (folder / "model-00002-of-00004.safetensors").unlink()


def renamed(name: str) -> Change:
    """The weights are called otherwise."""
    return lambda folder: (folder / WEIGHTS).rename(folder / name) and None


def several(*changes: Change) -> Change:
    def change(folder: Path) -> None:
        for one in changes:
            one(folder)

    return change
