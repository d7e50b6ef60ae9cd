"""The generation benchmark, whole and small"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.generation_worker import _done

ROOT = Path(__file__).parents[2]


@pytest.mark.full
def test_every_contender_answers_all_and_the_last_line_is_the_result(llama: Path) -> None:
    words = "--prompts 3 --K 2 --rounds 2 --batch 16 --max-new-tokens 6 --dtype float32"
    done = subprocess.run(
        [sys.executable, "-m", "bench.generation", "--model", str(llama), *words.split()],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    *turns, last = done.stdout.splitlines()
    assert [turn.split(": ")[1].split()[0] for turn in turns] == ["ours", "generate"] * 2
    found = json.loads(last)
    assert found["speed_ratio"] == pytest.approx(found["ours_tokens_per_s"] / found["generate_tokens_per_s"], rel=0.01)
    for name in ("ours", "generate"):
        assert len(found[f"{name}_seconds"]) == 2
        assert 0 < found[f"{name}_tokens_an_answer"] <= 6
        assert 0 <= found[f"{name}_ended"] <= 1


def test_a_token_counts_up_to_the_end_of_its_answer() -> None:
    """2 ends an answer; what stands behind is padding, that of the row that filled its batch is none."""
    assert _done([[5, 2, 2, 2], [5, 6, 7, 8], [2, 5, 5, 2]], {2}) == (3, 2 + 4 + 1, 2)
