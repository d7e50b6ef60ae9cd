"""Run one contender of the ranking benchmark: rank some prompts, and print how long it took as a line of JSON."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from src.ranking.batching import Scorer, Texts, Work


class Counting:
    """A scorer that is already loaded, and that counts the tokens it computes."""

    def __init__(self, scorer: Any) -> None:
        self.scorer, self.computed, self.needed = scorer, 0, 0

    def __call__(self, items: list[Texts]) -> list[float]:
        tokens = sum(len(text) for item in items for text in item)
        self.needed += tokens
        self.computed += max(tokens, self.scorer.row_tokens)
        return self.scorer(items)

    def opened(self, work: Work) -> Scorer:
        return self


def main(name: str, folder: Path, first: int, last: int) -> None:
    job = json.loads((folder / "job.json").read_text())
    prompts = job["prompts"][first:last]
    if name.startswith("ours_"):
        made = _ours(name.removeprefix("ours_"), folder, job["device"], prompts)
    else:
        made = _blender(int(name.removeprefix("blender")), folder, job, prompts)
    print(json.dumps(made))


def _ours(precision: str, folder: Path, device: Any, prompts: list[dict[str, Any]]) -> dict[str, Any]:
    from src.ranking.pairrm import Comparisons, PairRMTokens, rank_natively

    attention, budget = ("flex", 16384) if device == "cuda" else ("segments", 2048)
    work = Work(device=device, attention=attention, batch_tokens=budget, workers=1, save_seconds=30.0)
    places = folder / "checkpoint", folder / "base"
    scorer = Counting(Comparisons(*places, precision, work))  # pyright: ignore[reportArgumentType]
    tokens = PairRMTokens(*places)

    def rank(some: list[dict[str, Any]]) -> list[Any]:
        rows: list[Any] = [
            {"prompt_id": str(number), "responses": [{"text": text} for text in one["answers"]]}
            for number, one in enumerate(some)
        ]
        with tempfile.TemporaryDirectory() as place:
            found = rank_natively(rows, [one["prompt"] for one in some], tokens, scorer.opened, work, Path(place))
        leads = [np.nan_to_num(np.array(row["logits"])) for row in found]
        return [(matrix - matrix.T).mean(1).tolist() for matrix in leads]

    rank(_warm_up(prompts))
    scorer.computed = scorer.needed = 0
    start = time.perf_counter()
    scores = rank(prompts)
    seconds = time.perf_counter() - start
    counts = {"tokens": scorer.computed, "needed": scorer.needed}
    return {"seconds": seconds, "scores": scores, "matrix_tflops": matrix_tflops(precision, device)} | counts


def matrix_tflops(precision: str, device: Any) -> float:
    """Measure the speed of a large matrix product of the encoder's sizes: the limit of the arithmetic."""
    import torch

    a = torch.randn(2048, 1024, device=device).to(getattr(torch, precision))
    weight = torch.randn(4096, 1024, device=device).to(getattr(torch, precision))
    times = []
    for _ in range(12):
        start = time.perf_counter()
        torch.nn.functional.linear(a, weight).sum().item()
        times.append(time.perf_counter() - start)
    return 2 * a.shape[0] * weight.numel() / min(times) / 1e12


def _blender(batch_size: int, folder: Path, job: dict[str, Any], prompts: list[dict[str, Any]]) -> dict[str, Any]:
    from src.kernel.processes import keep_memory
    from src.ranking.blender import load_blender

    if job["blender"]["keeps_memory"]:
        keep_memory()
    blender = load_blender(folder / "checkpoint", folder / "base", job["blender"]["precision"], job["device"])

    def rank(some: list[dict[str, Any]]) -> Any:
        asked, answers = [one["prompt"] for one in some], [one["answers"] for one in some]
        return blender.rank(asked, answers, return_scores=True, batch_size=batch_size, disable_tqdm=True)

    rank(_warm_up(prompts))
    tokens = {"tokens": 0, "needed": 0}

    def count(model: Any, args: Any, fields: dict[str, Any]) -> None:
        tokens["tokens"] += fields["input_ids"].numel()
        tokens["needed"] += int(fields["attention_mask"].sum())

    blender.ranker.pretrained_model.register_forward_pre_hook(count, with_kwargs=True)
    start = time.perf_counter()
    scores = rank(prompts)
    return {"seconds": time.perf_counter() - start, "scores": scores.tolist()} | tokens


def _warm_up(prompts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return two answers to the first prompt: ranking them touches memory and chooses kernels."""
    return [prompts[0] | {"answers": prompts[0]["answers"][:2]}]


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
