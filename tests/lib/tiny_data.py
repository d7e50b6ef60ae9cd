"""Data sets of a few prompts, and what a stage makes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from src import records
from src.artifact import Node
from src.data.prompts import Prompts
from src.data.stage import OwnParts

Made = tuple[list[str], dict[str, int]]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def lines(file: Path, *prompts: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    return file


def own(path: Path | str, **more: Any) -> OwnParts:
    """`data=local`, with everything that can be said of it."""
    usual: dict[str, Any] = {
        **dict.fromkeys(["split", "subset", "revision", "rows", "prompt", "messages", "held_out_path"]),
        **dict.fromkeys(["held_out_split", "held_out_rows", "prompts_per_iteration"]),
        **{"parts": 3, "split_seed": 0, "held_out_share": 0.25, "held_out_prompts": 1},
    }
    return OwnParts(**usual | {"path": str(path)} | more)


def made(stage: Prompts, folder: Path) -> Made:
    """What is asked, and the metrics."""
    out = folder / "made" / Node("x", stage).key
    out.mkdir(parents=True)
    stage(out=out)
    rows = records.read_rows(out, records.PROMPTS)
    return [row["messages"][-1]["content"] for row in rows], json.loads((out / "metrics.json").read_text())


def key(stage: Prompts) -> str:
    return Node("x", stage).key
