"""The benchmarks, whole and small: their last line is their result; and the parts of them that can be told apart."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench import trainer
from bench.generation_worker import _done
from bench.pairs import load
from bench.shapes import SHAPES, build
from src.training.memory import Shape

ROOT = Path(__file__).parents[2]


def result(name: str, words: str) -> dict[str, Any]:
    command = [sys.executable, "-m", f"bench.{name}", *words.split()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=500)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.full
def test_the_trainer_benchmark_ends_with_its_result() -> None:
    words = "--model tiny --pairs 2 --max-length 96 --row-tokens 128 --steps 1 --blocks 1 --peak-tflops 1"
    found = result("trainer", f"{words} --contenders ours")
    assert found["ours_pairs_per_s"] > 0 and found["ours_peak_gb"] > 0 and 0 < found["ours_mfu"] < 1
    assert len(found["ours_seconds"]) == 1


@pytest.mark.full
def test_the_ranking_benchmark_compares_the_same_scores() -> None:
    """On the small shape, whose scores both give in fp32."""
    found = result("ranking", "--shapes tiny --prompts 1 --rounds 1 --batch-sizes 1 --ours float32")
    assert found["speed_ratio"] == pytest.approx(found["ours_per_s"] / found["blender_best_per_s"])
    assert found["score_difference_to_blender1"] < 1e-3 * max(found["score_spread"], 1e-3)


@pytest.mark.full
def test_the_generation_benchmark_ends_with_its_result(llama: Path) -> None:
    words = "--prompts 2 --K 2 --rounds 1 --batch 16 --max-new-tokens 6 --dtype float32"
    found = result("generation", f"--model {llama} {words}")
    for name in ("ours", "generate"):
        assert found[f"{name}_tokens_per_s"] > 0 and 0 < found[f"{name}_tokens_an_answer"] <= 6


def test_a_token_counts_up_to_the_end_of_its_answer() -> None:
    """2 ends an answer; what stands behind is padding, that of the row that filled its batch is none."""
    assert _done([[5, 2, 2, 2], [5, 6, 7, 8], [2, 5, 5, 2]], {2}) == (3, 2 + 4 + 1, 2)


def test_pairs_have_real_lengths_within_the_limits_and_mistakes_are_said(tmp_path: Path, capsys: Any) -> None:
    pairs = load(600, 512, None, None, 300)
    assert len(pairs) == 600, "random pairs never end"
    for pair in pairs:
        assert 1 <= len(pair.prompt) <= 256 and min(len(pair.chosen), len(pair.rejected)) >= 1
        assert max(len(pair.prompt) + len(answer) for answer in pair[1:]) <= 512
        assert all(3 <= token < 300 for part in pair for token in part)
    with pytest.raises(SystemExit):
        trainer.main(["--data", str(tmp_path / "none.jsonl")])
    assert "none.jsonl" in capsys.readouterr().err


def test_shapes_are_those_of_transformers() -> None:
    """On the meta device: no memory is taken."""
    for name in SHAPES:
        model = build(name, "meta")
        shape = Shape.from_config(model.config.to_dict())
        assert shape == Shape.from_config({"model_type": "llama"} | SHAPES[name]), name
        assert shape.weights == pytest.approx(model.num_parameters(), rel=0.01), name
