"""A tiny PairRM as a ranker, and rows for it to rank."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_pairrm import build_pairrm, build_pairrm_hf, build_vocabulary

from bench.pairrm_shapes import WORDS
from src.checkpoints import Checkpoint, Vocabulary
from src.ranking.pairrm import PairRM
from src.ranking.work import Work
from src.records import Row

SOME = Work(device="cpu", attention="segments", batch_tokens=256, workers=1, nodes=1, save_seconds=1.0)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_vocabulary(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def checkpoint(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_pairrm(tmp_path_factory.mktemp("pairrm"), base)


@pytest.fixture(scope="module")
def hf(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_pairrm_hf(tmp_path_factory.mktemp("hf"), base)


def ranker(checkpoint: Path, base: Path | None, **changes: Any) -> PairRM:
    made = Checkpoint(name="tiny", repo=str(checkpoint), revision="main")
    vocabulary = Vocabulary(name="base", repo=str(base), revision="main") if base else None
    plain: dict[str, Any] = {"backend": "native", "prompt_format": "bare", "precision": "float32", "work": SOME}
    return PairRM(
        **{"name": "tiny", "checkpoint": made, "base": vocabulary, "template_model": made, **plain, **changes}
    )


def row(prompt: str, answers: list[str], prompt_id: str | None = None) -> Row:
    responses = [{"text": text, "token_ids": [1] * len(text.split())} for text in answers]
    return {
        "prompt_id": prompt if prompt_id is None else prompt_id,
        "messages": [{"role": "user", "content": prompt}],
        "responses": responses,
    }


def words(chance: random.Random, least: int, most: int) -> str:
    return " ".join(chance.choice(WORDS) for _ in range(chance.randint(least, most)))


def some_rows(seed: int, prompts: int = 5) -> list[Row]:
    """Two to five answers, empty ones and ones beyond every limit among them."""
    chance = random.Random(seed)
    return [
        row(words(chance, 1, 60), [words(chance, 0, 45) for _ in range(chance.randint(2, 5))]) for _ in range(prompts)
    ]


def logits(rows: list[Row]) -> list[np.ndarray]:
    return [np.array(one["logits"]) for one in rows]


Rank = Callable[..., list[Row]]


@pytest.fixture
def rank(checkpoint: Path, base: Path, tmp_path: Path) -> Rank:
    """Rank rows, in a folder of its own for each call unless `place` names one."""
    count = iter(range(1000))

    def go(rows: list[Row], place: Path | None = None, form: Path | None = None, **changes: Any) -> list[Row]:
        place = place or tmp_path / f"work{next(count)}"
        place.mkdir(exist_ok=True)
        folders = (checkpoint, base) if form is None else (form,)
        return ranker(folders[0], base if form is None else None, **changes).rank(rows, folders, place)

    return go
