"""Compare our trainer with TRL's DPOTrainer: the same weights, pairs, loss, optimiser and precision, step beside step.

    make bench-trainer                                         # SmolLM2-135M on this machine's CPU
    python -m bench.trainer --model mistral-7b --device cuda --max-length 2048 --row-tokens 8192 --peak-tflops 989 \\
        --pairs 64 --micro-pairs 4 --activation-checkpointing  # a published shape with random weights on an H200

Contenders take turns: a block of steps each, in a process that has the machine and its memory to itself, then the next
block. The last line is one JSON object: medians of all measured steps, and the highest peak; null, and exit code 1, for
a contender that died.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

from bench.shapes import SHAPES, build, config_of, flops

ROOT = Path(__file__).parents[1]
CONTENDERS = ("ours", "trl", "trl_by_pair", "no_packing", "no_sharing", "no_chunking", "no_cached_reference")


Steps = list[dict[str, float]]


class Worker:
    """One contender in its own process; a context manager that ends it."""

    def __init__(self, name: str, job: Path) -> None:
        self.name, self.log = name, job.with_name(f"{name}.log")
        with self.log.open("wb") as log:
            command = [sys.executable, "-m", "bench.worker", name, str(job)]
            self.process = subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
            )

    def __enter__(self) -> Worker:
        self._receive()
        return self

    def __exit__(self, *_: object) -> None:
        with self.process:  # closes its pipes
            self.process.kill()

    def step(self) -> dict[str, float]:
        """Take one optimiser step, and return its figures."""
        assert self.process.stdin
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return self._receive()

    def _receive(self) -> dict[str, float]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            said = self.log.read_text(errors="replace")[-3000:]
            raise RuntimeError(f"bench: {self.name} ended with {code} (-9: out of memory?): {said}")
        return json.loads(line)


def main(words: list[str] | None = None) -> dict[str, Any]:
    options = _options(words)
    with tempfile.TemporaryDirectory() as folder:
        options.folder = folder
        job = Path(folder) / "job.json"
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as elsewhere:  # what it loads is gone with it
            try:
                job.write_text(json.dumps(elsewhere.submit(prepare, options).result()))
            except ValueError as refused:
                raise SystemExit(str(refused)) from None
        steps = _measure(options, job)
        found = _summary(options, json.loads(job.read_text()), steps)
    print(json.dumps(found), flush=True)
    if len(steps) < len(options.contenders):
        raise SystemExit(1)
    return found


def prepare(options: argparse.Namespace) -> dict[str, Any]:
    """Prepare the job of every contender: settings, and pairs with their reference log-probabilities."""
    import torch
    from transformers import AutoTokenizer

    from bench.pairs import load
    from src.modeling.logps import answer_logps, make_scorer
    from src.modeling.packing import Group, pack, row_multiple
    from src.training.memory import Shape

    if options.model == "smollm2":
        options.model = str(_smollm2(Path(options.folder) / "smollm2"))
    steps = options.warmup + options.steps
    tokenizer = None
    if options.model not in SHAPES:
        tokenizer = AutoTokenizer.from_pretrained(options.model, trust_remote_code=False)
    pairs = load(
        steps * options.pairs, options.max_length, options.data, tokenizer, config_of(options.model)["vocab_size"]
    )
    attention = "flex" if options.device == "cuda" else "segments"
    multiple = row_multiple(attention, 2 * options.max_length)
    model, rows = make_scorer(build(options.model, options.device)), []
    for pair in pairs:
        with torch.no_grad(), torch.autocast(options.device, torch.bfloat16, enabled=options.precision == "bfloat16"):
            packed = pack([Group(pair.prompt, [pair.chosen, pair.rejected])], multiple).to(options.device)
            chosen, rejected = answer_logps(model, packed, attention=attention).logp.tolist()
        rows.append(
            {
                "prompt_token_ids": pair.prompt,
                "chosen_token_ids": pair.chosen,
                "rejected_token_ids": pair.rejected,
                "ref_chosen_logp": chosen,
                "ref_rejected_logp": rejected,
                "chosen_win": 1.0,
                "rejected_win": 0.0,
                "chosen_beats_rejected": 1.0,
            }
        )
    shape = Shape.from_config(config_of(options.model))
    measured = [pairs[i : i + options.pairs] for i in range(options.warmup * options.pairs, len(pairs), options.pairs)]
    work = {
        "tokens": median(sum(len(part) for pair in step for part in pair) for step in measured),
        "flops": median(flops(shape, [Group(p, answers) for p, *answers in step]) for step in measured),
    }
    return {**vars(options), **work, "data": str(options.data), "steps": steps, "lr": 5e-7, "rows": rows}


def _smollm2(folder: Path) -> Path:
    """Write the embedded model as a checkpoint folder."""
    from hydra import compose, initialize_config_dir
    from hydra.utils import instantiate

    with initialize_config_dir(str(ROOT / "conf" / "model"), version_base="1.3"):
        stage = instantiate(compose("smollm2_135m_instruct"))
    folder.mkdir()
    stage(out=folder)
    return folder


def _measure(options: argparse.Namespace, job: Path) -> dict[str, Steps]:
    """Take all steps of every contender, the warm-up of each block first. One that dies is left out with a message."""
    found: dict[str, Steps] = {name: [] for name in options.contenders}
    for block in range(options.blocks):
        for name in list(found):
            try:
                found[name] += _block(options, f"block {block + 1}", name, job)
            except RuntimeError as death:
                print(death, file=sys.stderr, flush=True)
                del found[name]
    return found


def _block(options: argparse.Namespace, label: str, name: str, job: Path) -> Steps:
    made: Steps = []
    with Worker(name, job) as worker:
        for number in range(options.warmup + options.steps):
            figures = worker.step() | {"measured": float(number >= options.warmup)}
            made.append(figures)
            told = " ".join(f"{key} {value:.6g}" for key, value in figures.items())
            print(f"{label} step {number + 1} {name}: {told}", flush=True)
    return made


def _summary(options: argparse.Namespace, job: dict[str, Any], steps: dict[str, Steps]) -> dict[str, Any]:
    """Return the figures. Tokens and operations are what the pairs of a step need, the same for every contender."""
    named = ("model", "device", "precision", "pairs", "micro_pairs", "max_length", "row_tokens", "steps", "blocks")
    found: dict[str, Any] = {key: getattr(options, key) for key in named} | {"tokens_a_step": job["tokens"]}
    for name in [name for name in options.contenders if name not in steps]:
        found |= {f"{name}_pairs_per_s": None, f"{name}_peak_gb": None}
    for name, made in steps.items():
        measured = [step["seconds"] for step in made if step["measured"]]
        seconds = median(measured)
        found[f"{name}_pairs_per_s"] = options.pairs / seconds
        found[f"{name}_tokens_per_s"] = job["tokens"] / seconds
        if options.peak_tflops:
            found[f"{name}_mfu"] = job["flops"] / seconds / (options.peak_tflops * 1e12)
        found[f"{name}_peak_gb"] = max(step["peak_gb"] for step in made)
        found[f"{name}_seconds"] = [round(s, 2) for s in measured]
    for peer in [name for name in ("trl", "trl_by_pair") if {name, "ours"} <= set(options.contenders)]:
        end = peer.removeprefix("trl")
        if not {peer, "ours"} <= steps.keys():
            found |= {f"speed_ratio{end}": None, f"memory_ratio{end}": None}
            continue
        found[f"speed_ratio{end}"] = found["ours_pairs_per_s"] / found[f"{peer}_pairs_per_s"]
        found[f"memory_ratio{end}"] = found["ours_peak_gb"] / found[f"{peer}_peak_gb"]
        # TRL does not halve the loss.
        both = zip(steps["ours"], steps[peer], strict=True)
        found[f"loss_difference{end}"] = max(abs(2 * a["loss"] / b["loss"] - 1) for a, b in both)
    return found


def _options(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", default="smollm2", help="smollm2, a checkpoint folder, tiny, mistral-7b or gemma-2-9b"
    )
    parser.add_argument("--data", type=Path, help="JSON lines with prompt, chosen, rejected; else random tokens")
    parser.add_argument("--contenders", nargs="+", default=["ours", "trl"], choices=CONTENDERS)
    parser.add_argument("--pairs", type=int, default=8, help="pairs of an optimiser step")
    parser.add_argument("--micro-pairs", type=int, help="pairs of a forward pass of TRL; default: all")
    parser.add_argument("--max-length", type=int, default=1024, help="tokens of prompt and answer")
    parser.add_argument("--row-tokens", type=int, default=1024, help="tokens of our packed rows")
    parser.add_argument(
        "--head-chunk", type=int, default=512, help="our answer tokens that go through the head at a time"
    )
    parser.add_argument("--blocks", type=int, default=2, help="turns of each contender")
    parser.add_argument("--steps", type=int, default=3, help="steps measured in a block, after its warm-up")
    parser.add_argument("--warmup", type=int, default=1, help="steps of a warm-up")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), help="default: bfloat16 on cuda, else float32")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--peak-tflops", type=float, help="peak of the device, for the utilisation")
    parser.add_argument("--activation-checkpointing", action="store_true")
    options = parser.parse_args(words)
    options.micro_pairs = options.micro_pairs or options.pairs
    options.precision = options.precision or ("bfloat16" if options.device == "cuda" else "float32")
    if options.data and not options.data.is_file():
        parser.error(f"--data {options.data}: no such file")
    if options.data and options.model in SHAPES:
        parser.error(f"--data: {options.model} has no tokenizer; its pairs are random tokens of real lengths")
    if options.pairs % options.micro_pairs:
        parser.error(f"--pairs {options.pairs} is no multiple of --micro-pairs {options.micro_pairs}")
    return options


if __name__ == "__main__":
    os.environ.setdefault("WANDB_MODE", "disabled")
    main()
