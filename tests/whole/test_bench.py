"""The benchmarks, whole and small: their last line is their result; and the parts of them that can be told apart."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up_run import ranking, responses

from bench.controls import best_of, win_matrices
from bench.generation_worker import _done
from src.kernel.config import UserError
from src.kernel.rows import RANKING, RESPONSES, write_rows
from src.pairing.win_probability import expit

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


TERMS = {"relevance": [0.5, 0.25, 0.0, 0.0], "echo": [0.0, 0.1, 0.0, 0.0]}


def test_controls_read_the_two_policies_of_each_run_and_leave_the_judged_answer_out(tmp_path: Path) -> None:
    """The best of three is the first, whoever is left out, but where it is the first itself."""
    scores, runs = [2.0, 1.0, 0.0, 1.0], [tmp_path / "0", tmp_path / "1"]
    for place, answers, k in (("ranking", "responses", 4), ("win_matrix/joint_ranking", "win_matrix/joint_answers", 2)):
        for run in runs:
            (ranked := run / "artifacts/it1" / place).mkdir(parents=True)
            (answered := run / "artifacts/it1" / answers).mkdir(parents=True)
            write_rows(answered, [responses(i, "why?", "because", k) for i in range(3)], RESPONSES)
            told = {"ranker": {"_target_": "Mine", "tau": 0.5, "weights": {"relevance": 1.0, "echo": 2.0}}}
            (ranked / "record.json").write_text(json.dumps({"config": told}))
            terms = [{"name": name, "values": values[:k]} for name, values in TERMS.items()]
            new = {"scores": scores[:k], "truncated": [False] * k, "terms": terms}
            write_rows(ranked, [ranking(i) | new for i in range(3)], RANKING)
    wins = expit(np.array([1.0 - 2.0, 2.0 - 1.0, 2.0 - 0.0, 2.0 - 1.0])).mean()
    ((_, text),) = best_of(runs, runs)
    assert text == f"{wins:.3f} [{wins:.3f}, {wins:.3f}]"
    numbers = dict(win_matrices(runs))
    assert numbers["win rate by Mine, tau 1"].startswith("0.269") and numbers["likelihood (nats per token)"].startswith(
        "– → –"
    )
    assert numbers["relevance"].startswith("0.500") and "difference -0.250" in numbers["relevance"]
    for name, less in (("relevance", -0.5), ("echo", -0.4)):  # by which the second is ahead in points: (.25 - .5) / .5
        assert numbers[f"win rate, had the judge no term `{name}`"].startswith(f"{expit(np.array(-1.0 - less)):.3f}")
    assert numbers["hard win rate, ties 1/2"].startswith("0.000")
    other = {"config": {"ranker": {"_target_": "Other"}}}
    (runs[1] / "artifacts/it1/win_matrix/joint_ranking/record.json").write_text(json.dumps(other))
    with pytest.raises(UserError, match="another ranker"):
        dict(win_matrices(runs))
