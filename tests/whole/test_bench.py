"""The trainer benchmark, whole and small: the contenders it names train the same loss, its last line is its result."""

from __future__ import annotations

import json
import random
import string
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench import trainer
from bench.growth import row
from bench.pairs import load
from bench.shapes import SHAPES, build
from bench.trainer import CONTENDERS
from src.training.memory import Shape

ROOT = Path(__file__).parents[2]


SMALL = [
    "--model",
    "tiny",
    "--pairs",
    "4",
    "--micro-pairs",
    "2",
    "--max-length",
    "96",
    "--row-tokens",
    "128",
    "--steps",
    "2",
    "--peak-tflops",
    "1",
]


def told(out: str, contenders: tuple[str, ...]) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Losses of every contender, warm-ups included, and the last line."""
    *steps, last = out.splitlines()
    said = {name: [line for line in steps if f" {name}: " in line] for name in contenders}
    losses = {name: [float(line.split("loss ")[1].split()[0]) for line in lines] for name, lines in said.items()}
    return losses, json.loads(last)


@pytest.mark.full
def test_every_contender_makes_its_steps_and_all_have_the_same_loss() -> None:
    """TRL's loss is twice ours; the parts taken out of ours change what is computed, not what comes out."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.trainer", *SMALL, "--blocks=1", "--contenders", *CONTENDERS],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=500,
    )
    losses, found = told(done.stdout, CONTENDERS)
    for key in ("ours_pairs_per_s", "trl_pairs_per_s", "speed_ratio", "ours_peak_gb", "trl_peak_gb", "memory_ratio"):
        assert found[key] > 0
    assert found["speed_ratio"] == pytest.approx(found["ours_pairs_per_s"] / found["trl_pairs_per_s"])
    ratio = found["ours_tokens_per_s"] / found["ours_pairs_per_s"]
    assert 3 <= ratio <= 3 * 96 and found["trl_tokens_per_s"] / found["trl_pairs_per_s"] == pytest.approx(ratio)
    assert 0 < found["ours_mfu"] < 1
    assert found["loss_difference"] < 1e-3 and found["loss_difference_by_pair"] < 1e-3
    for name, values in losses.items():
        assert len(values) == 3
        twice = 2 if name.startswith("trl") else 1
        assert [value / twice for value in values] == pytest.approx(losses["ours"], rel=1e-3), name
    assert len(set(losses["ours"])) == 3, "nothing was trained"


@pytest.mark.full
def test_a_contender_that_died_is_null_and_said_and_blocks_of_another_are_the_same_steps(
    monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """As TRL on a small machine; the others are measured all the same."""
    start = trainer.Worker

    def refuse(name: str, job: Path) -> Any:
        if name == "trl":
            raise RuntimeError("bench: trl ended with -9")
        return start(name, job)

    monkeypatch.setattr(trainer, "Worker", refuse)
    with pytest.raises(SystemExit) as ended:
        trainer.main([*SMALL, "--blocks=2"])
    said = capsys.readouterr()
    losses, found = told(said.out, ("ours",))
    assert ended.value.code == 1 and "bench: trl ended with -9" in said.err
    nulls = {"trl_pairs_per_s", "trl_peak_gb", "speed_ratio", "memory_ratio"}
    assert {key for key, value in found.items() if value is None and key.startswith(("trl", "speed", "mem"))} == nulls
    assert found["ours_pairs_per_s"] > 0
    assert len(losses["ours"]) == 2 * (1 + 2) and losses["ours"][:3] == losses["ours"][3:]
    assert len(found["ours_seconds"]) == 2 * 2, "warm-ups are not measured"


def test_mistaken_data_is_one_line(tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(SystemExit) as ended:
        trainer.main(["--data", str(tmp_path / "none.jsonl")])
    assert ended.value.code == 2 and "none.jsonl: no such file" in capsys.readouterr().err


def test_a_row_of_the_growth_table_has_a_dash_for_a_contender_that_died() -> None:
    found = {"tokens_a_step": 1000.4, "ours_pairs_per_s": 0.8, "trl_pairs_per_s": 0.25, "trl_by_pair_pairs_per_s": None}
    cells = row(4, 512, found | {"ours_peak_gb": 1.0, "trl_peak_gb": 2.25, "trl_by_pair_peak_gb": None})
    assert cells == ["4", "512", "1000", "5.0 s, 1.0 GB", "16.0 s, 2.2 GB", "—"]


def test_pairs_are_real_where_a_file_is_given_and_have_real_lengths_elsewhere(tmp_path: Path) -> None:
    pairs = load(40, 512, None, None, 300)
    assert len(pairs) == 40
    for pair in pairs:
        assert 1 <= len(pair.prompt) <= 256 and min(len(pair.chosen), len(pair.rejected)) >= 1
        assert max(len(pair.prompt) + len(answer) for answer in pair[1:]) <= 512
        assert all(3 <= token < 300 for part in pair for token in part)
    chance = random.Random(0)
    rows = [{side: "".join(chance.choices(string.ascii_lowercase, k=20)) for side in ("prompt", "chosen", "rejected")}]
    (tmp_path / "rows.jsonl").write_text(json.dumps(rows[0]) + "\n")
    (real,) = load(1, 512, tmp_path / "rows.jsonl", Characters(), 300)
    assert ["".join(map(chr, part)) for part in real] == [
        f"<user>{rows[0]['prompt']}<assistant>",
        f"{rows[0]['chosen']}<end>",
        f"{rows[0]['rejected']}<end>",
    ]


class Characters:
    """A tokenizer of characters with a chat template."""

    def apply_chat_template(self, messages: list[dict[str, str]], tokenize: bool, **options: bool) -> str:
        ends = {"user": "", "assistant": "<end>"}
        text = "".join(f"<{m['role']}>{m['content']}{ends[m['role']]}" for m in messages)
        return text + ("<assistant>" if options.get("add_generation_prompt") else "")

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": [ord(c) for c in text]}


def test_too_few_pairs_are_said(tmp_path: Path) -> None:
    row = {"prompt": "a" * 500, "chosen": "b", "rejected": "c"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match="1 pairs of up to 512 tokens are wanted, 0 are there"):
        load(1, 512, tmp_path / "rows.jsonl", Characters(), 300)
    assert len(load(600, 512, None, None, 300)) == 600, "random pairs never end"


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_are_those_of_transformers(name: str) -> None:
    """On the meta device: no memory is taken."""
    model = build(name, "meta")
    shape = Shape.from_config(model.config.to_dict())
    assert shape == Shape.from_config({"model_type": "llama"} | SHAPES[name])
    assert shape.weights == pytest.approx(model.num_parameters(), rel=0.01)


@pytest.mark.full
def test_the_ranking_benchmark_compares_the_same_scores_and_says_what_it_computed() -> None:
    """On the small shape, whose scores both give in fp32; batches of two prompts have padding, ours has none."""
    words = "--shapes tiny --prompts 2 --rounds 1 --batch-sizes 1 2"
    done = subprocess.run(
        [sys.executable, "-m", "bench.ranking", *words.split()],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=500,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["speed_ratio"] == pytest.approx(found["ours_per_s"] / found["blender_best_per_s"])
    assert found["ours_per_s"] == max(found["ours_float32_per_s"], found["ours_bfloat16_per_s"])
    assert found["blender_best_per_s"] == max(found["blender1_per_s"], found["blender2_per_s"])
    assert found["share_of_padding_free_limit"] == 1.0
    assert found["blender1_tokens_computed_per_needed"] == 1.0 < found["blender2_tokens_computed_per_needed"]
    assert found["score_difference_to_blender1"] < 1e-3 * max(found["score_spread"], 1e-3)
