"""The benchmarks, whole and small: their last line is their result; and the parts of them that can be told apart."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.generation_worker import _done

ROOT = Path(__file__).parents[2]


def result(name: str, words: str) -> dict[str, Any]:
    command = [sys.executable, "-m", f"bench.{name}", *words.split()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=500)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.full
def test_the_trainer_benchmark_ends_with_its_result() -> None:
    words = "--model tiny --pairs 2 --max-length 96 --row-tokens 128 --steps 1 --blocks 1 --peak-tflops 1"
    numbers = result("trainer", f"{words} --contenders ours")
    assert numbers["ours_pairs_per_s"] > 0 and numbers["ours_peak_gb"] > 0 and 0 < numbers["ours_mfu"] < 1
    assert len(numbers["ours_seconds"]) == 1


@pytest.mark.full
def test_the_ranking_benchmark_compares_the_same_scores() -> None:
    """On the small shape, whose scores both give in fp32."""
    numbers = result("ranking", "--shapes tiny --prompts 1 --rounds 1 --batch-sizes 1 --ours float32")
    assert numbers["speed_ratio"] == pytest.approx(numbers["ours_per_s"] / numbers["blender_best_per_s"])
    assert numbers["score_difference_to_blender1"] < 1e-3 * max(numbers["score_spread"], 1e-3)


@pytest.mark.full
def test_the_generation_benchmark_ends_with_its_result(llama: Path) -> None:
    words = "--prompts 2 --K 2 --rounds 1 --batch 16 --max-new-tokens 6 --dtype float32"
    numbers = result("generation", f"--model {llama} {words}")
    for name in ("ours", "generate"):
        assert numbers[f"{name}_tokens_per_s"] > 0 and 0 < numbers[f"{name}_tokens_an_answer"] <= 6


def test_a_token_counts_up_to_the_end_of_its_answer() -> None:
    """2 ends an answer; what stands behind is padding, that of the row that filled its batch is none."""
    assert _done([[5, 2, 2, 2], [5, 6, 7, 8], [2, 5, 5, 2]], {2}) == (3, 2 + 4 + 1, 2)
