"""`only=` one artifact, `part=` a share of its cells: what tasks of a job array are started with.

Run: python -m pytest -q tests/test_only.py
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_run import PROMPTS, K, call, tiny

from src.artifact import Store
from src.cells import CELLS


def made(place: Path) -> list[str]:
    """Kinds of the artifacts in the store, one a letter each."""
    return sorted(path.parent.name for path in Store(place / "store").artifacts())


def cells(place: Path) -> list[str]:
    lines = [
        line for path in (place / "store" / f".{CELLS}").glob("*/*.jsonl") for line in path.read_text().split("\n")
    ]
    return sorted(json.loads(line)[0] for line in lines if line)


def test_only_makes_one_artifact_and_what_it_needs(llama: Path, tmp_path: Path) -> None:
    words = tiny(llama, tmp_path, "iter=2")
    assert call(*words, "only=it1/responses") == 0
    assert made(tmp_path) == ["policy", "prompts", "responses"]
    assert not (tmp_path / "runs").exists()


def test_tasks_of_an_array_make_a_share_each_and_the_run_only_what_is_missing(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = tiny(llama, tmp_path, "iter=1")
    for part in ("1/3", "3/3", "3/3"):  # the second task failed, the third was requeued
        assert call(*words, "only=it1/responses", f"part={part}") == 0
    assert "all 3 answers are there" in capsys.readouterr().out
    assert made(tmp_path) == ["policy", "prompts"]
    shares = cells(tmp_path)
    assert len(shares) == len(set(shares)) == K * 3, "4 prompts in shares of 2, 1 and 1"
    assert call(*words, "only=it1/responses") == 0
    every = cells(tmp_path)
    assert len(every) == len(set(every)) == K * PROMPTS
    capsys.readouterr()
    assert call(*words, "only=it1/responses", "part=2/3") == 0
    assert "only: " in capsys.readouterr().out, "the artifact is there, so there is nothing to share"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["only=it9/pairs"], "only: no artifact is called it9/pairs; there are held_out/prompts, base/policy"),
        (["only=it1/pairs", "part=1/2"], "part: it1/pairs is made as a whole"),
        (["part=1/2"], "part: says a share of what `only` names"),
        (["only=it1/responses", "part=3/2"], "part: 3/2 is beyond the last one"),
        (["only=it1/responses", "part=0/2"], "part: "),
        (["only=it1/responses", "part=2"], "part: "),
    ],
)
def test_what_cannot_be_made_so_is_refused_in_one_line(
    words: list[str], said: str, llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*tiny(llama, tmp_path, "iter=1"), *words) == 2
    shown = capsys.readouterr().err
    assert f"error: {said}" in shown and "Traceback" not in shown
    assert not (tmp_path / "store").exists()
