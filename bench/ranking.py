"""Compare our PairRM with llm-blender's own `rank`: the same random weights, prompts, answers (K = 5) and tokenizer.

    make bench-ranking                            # the shape of DeBERTa-v3-large, then a tiny one, on the CPU
    python -m bench.ranking --device cuda         # on a GPU, where llm-blender halves the model

Contenders take turns on the same prompts, each in a process that has the machine to itself. llm-blender runs as
published: fp32 on CPUs, fp16 on GPUs, at batch size 1 (the public SPPO code) and at larger ones. Ours runs in fp32 and
bf16 (fp16 on GPUs). Lengths are those of real prompts and answers (bench/ultrafeedback_lengths.json). The last line is
one JSON object: `speed_ratio` is ours in its faster precision against llm-blender's best batch size,
`ours_float32_ratio` in the same precision; `share_of_padding_free_limit` the share of the tokens we compute that are
needed; `..._share_of_matrix_speed` our speed beside what a large matrix product reaches, were there nothing else to do.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from bench.pairrm_shapes import SHAPES
from bench.pairs import LENGTHS

ROOT = Path(__file__).parents[1]
K = 5
COMPARISONS = K * (K - 1)


def main(words: list[str] | None = None) -> None:
    options = _options(words)
    found: dict[str, Any] = {"device": options.device, "prompts": options.prompts, "K": K, "rounds": options.rounds}
    for shape in options.shapes:
        with tempfile.TemporaryDirectory() as folder:
            prefix = "" if shape == options.shapes[0] else f"{shape}_"
            figures = _measure(shape, options, Path(folder))
            found |= {"shape": shape} if not prefix else {}
            found |= {f"{prefix}{key}": value for key, value in figures.items()}
    print(json.dumps(found))


def _measure(shape: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    from bench.pairrm_shapes import build

    build(shape, folder)
    job = folder / "job.json"
    prompts = prompts_of_real_lengths(options.prompts * options.rounds)
    helped = {"precision": options.blender_precision, "keeps_memory": options.blender_keeps_memory}
    job.write_text(json.dumps({"device": options.device, "prompts": prompts, "blender": helped}))
    contenders = [*options.ours, *(f"blender{size}" for size in options.batch_sizes)]
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    matrices: dict[str, list[Any]] = {name: [] for name in contenders}
    counts: dict[str, dict[str, float]] = {name: {} for name in contenders}
    for turn in range(options.rounds):
        for name in contenders:
            made = _turn(name, folder, turn * options.prompts, (turn + 1) * options.prompts)
            seconds[name].append(made["seconds"])
            matrices[name] += made["scores"]
            said = f"{made['seconds']:.1f} s, {options.prompts * COMPARISONS / made['seconds']:.3f} comparisons/s"
            print(f"{shape}, round {turn + 1}: {name} {said}", flush=True)
            for key in ("tokens", "needed", "matrix_tflops"):
                counts[name][key] = counts[name].get(key, 0) + made.get(key, 0) / options.rounds
    return _figures(options, SHAPES[shape], counts, seconds, matrices)


def _turn(name: str, folder: Path, first: int, last: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "bench.ranking_worker", name, str(folder), str(first), str(last)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _figures(
    options: argparse.Namespace,
    shape: dict[str, Any],
    counts: dict[str, dict[str, float]],
    seconds: dict[str, list[float]],
    scores: dict[str, list[Any]],
) -> dict[str, Any]:
    speed = {name: options.prompts * COMPARISONS / median(times) for name, times in seconds.items()}
    blender = {name: speed[name] for name in speed if name.startswith("blender")}
    best, fastest = max(blender, key=blender.__getitem__), max(options.ours, key=speed.__getitem__)
    work, comparisons = counts[fastest], options.prompts * COMPARISONS
    length = work["needed"] / comparisons
    limits = {name: counts[name]["matrix_tflops"] * 1e12 / operations(shape, length) for name in options.ours}
    exact = np.array(scores[options.ours[0]])
    return {
        "ours_per_s": speed[fastest],
        "ours_precision": fastest.removeprefix("ours_"),
        "blender_batch1_per_s": speed["blender1"],
        "blender_best_per_s": speed[best],
        "blender_precision": options.blender_precision,
        "blender_keeps_memory": options.blender_keeps_memory,
        "blender_best_batch": int(best.removeprefix("blender")),
        "speed_ratio": speed[fastest] / speed[best],
        "share_of_padding_free_limit": work["needed"] / work["tokens"],
        **{f"{name}_per_s": speed[name] for name in options.ours},
        **{f"{name}_ratio": speed[name] / speed[best] for name in options.ours},
        **{f"{name}_share_of_matrix_speed": speed[name] / limits[name] for name in options.ours},
        **{f"{name}_tokens_computed_per_needed": counts[name]["tokens"] / counts[name]["needed"] for name in blender},
        **{f"{name}_per_s": value for name, value in blender.items()},
        "tokens_a_comparison": length,
        "score_difference_to_blender1": float(np.abs(exact - np.array(scores["blender1"])).max()),
        "score_difference_of_precision": float(np.abs(exact - np.array(scores[fastest])).max()),
        "score_spread": float(exact.std()),
        "seconds": {name: [round(s, 2) for s in times] for name, times in seconds.items()},
    }


def operations(shape: dict[str, Any], length: float) -> float:
    """Count the operations of a comparison of `length` tokens: linear layers, attention, products with positions."""
    width, buckets = shape["hidden_size"], 2 * shape["position_buckets"]
    linear = 2 * length * width * (4 * width + 2 * shape["intermediate_size"])
    attention = 2 * length * width * (2 * length + 2 * buckets)
    return shape["num_hidden_layers"] * (linear + attention)


def prompts_of_real_lengths(count: int) -> list[dict[str, Any]]:
    """Draw random words, one token each, as many as real prompts and answers have; rows at even quantiles of length.

    Answers beyond the two of a row vary those.
    """
    chance = random.Random(0)
    rows = sorted(json.loads(LENGTHS.read_text()), key=sum)
    picked = [rows[int((n + 0.5) / count * len(rows))] for n in range(count)]
    chance.shuffle(picked)
    found = []
    for prompt, chosen, rejected in picked:
        lengths = [chosen, rejected] + [
            max(1, round(chance.choice((chosen, rejected)) * chance.lognormvariate(0, 0.25))) for _ in range(K - 2)
        ]
        answers = [_words(n, chance) for n in lengths]
        found.append({"prompt": _words(prompt, chance), "answers": answers})
    return found


def _words(count: int, chance: random.Random) -> str:
    from bench.pairrm_shapes import WORDS

    return " ".join(chance.choice(WORDS) for _ in range(count))


def _options(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["large", "tiny"], choices=("large", "tiny"))
    parser.add_argument("--prompts", type=int, help="prompts of five answers in a turn; default: 2, on cuda 32")
    parser.add_argument("--rounds", type=int, default=2, help="turns of each contender")
    parser.add_argument(
        "--batch-sizes", type=int, nargs="+", help="llm-blender's, in prompts; default: 1 2, on cuda 1 2 4 8 16 32"
    )
    parser.add_argument("--ours", nargs="+", default=None, help="precisions of ours, the exact one first")
    parser.add_argument("--blender-precision", help="instead of llm-blender's own: float32, on cuda float16")
    parser.add_argument(
        "--blender-keeps-memory", action="store_true", help="give llm-blender our settings of malloc too"
    )
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    options = parser.parse_args(words)
    names = options.ours or (["float32", "bfloat16"] if options.device == "cpu" else ["float32", "float16"])
    on_cpu = options.device == "cpu"
    options.blender_precision = options.blender_precision or ("float32" if on_cpu else "float16")
    options.prompts = options.prompts or (2 if on_cpu else 32)
    options.batch_sizes = options.batch_sizes or ([1, 2] if on_cpu else [1, 2, 4, 8, 16, 32])
    options.ours = [f"ours_{name}" for name in names]
    if 1 not in options.batch_sizes:
        parser.error("--batch-sizes: 1, the public code's, must be among them")
    if max(options.batch_sizes) > options.prompts:
        parser.error(f"--batch-sizes: {max(options.batch_sizes)} prompts per batch, but --prompts is {options.prompts}")
    return options


if __name__ == "__main__":
    main()
