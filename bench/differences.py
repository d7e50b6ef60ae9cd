"""Measure what paper, public code and model card of SPPO and WPO disagree about: the tables of docs/differences.md.

    python -m bench.differences                            # seconds: what needs neither a model nor data
    python -m bench.differences --small-model --data FILE  # all of it, minutes; JSON lines of prompt, chosen, rejected

Everything is seeded. Settings are those of conf/experiment, rules and schedules those of src.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import re
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import numpy as np
import torch
from hydra import compose, initialize_config_dir

from src.experiment.run import Run
from src.kernel.processes import tidy_output
from src.launch.compose import build
from src.modeling.policy import load_tokenizer, render
from src.pairing.rules import Candidates
from src.pairing.win_probability import intransitive_triads, lead
from src.training.recipe import Lengths
from src.training.stage import Train
from src.training.trainer import PairTrainer, arguments_of

ROOT = Path(__file__).parents[1]
PAIRS = 19766
"""Steps of the first published iteration."""
SPREADS, NOISE = (0.5, 1.013, 2.0), 0.5
"""Spread in logits of answers' qualities, and of each comparison's noise. 1.013 gives P_w .721 under `pairwise`."""
NORMS = {1: 1e6, 2: 1e6, 20: 1e6, 21: 1e5, 22: 1e6}
"""Norms of the gradients of the steps that are shown; all others have 1e6."""
Ids = list[int]


class Table(NamedTuple):
    title: str
    head: list[str]
    rows: list[list[str]]

    def __str__(self) -> str:
        lines = [self.head, ["---"] * len(self.head), *self.rows]
        return f"**{self.title}**\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


@cache
def run_of(*overrides: str) -> Run:
    """Compose the Run of `python -m src.main *overrides`."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"), contextlib.chdir(ROOT):
        return build(compose("config", list(overrides)))


def sppo(variant: str, *more: str) -> Run:
    return run_of("experiment=mistral_7b_pairrm_sppo", f"+variant={variant}", *more)


def wpo(rule: str) -> Run:
    return run_of("experiment=gemma2_9b_it_wpo_hb", f"pairing={rule}")


def fixed(number: float, digits: int = 3, sign: str = "") -> str:
    """Write a number without a zero before the point."""
    return re.sub(r"^([+-]?)0\.", r"\1.", f"{number:{sign}.{digits}f}")


# Without a model ---------------------------------------------------------------------------------------------------


def estimators() -> Table:
    more = {
        "`score`, both orders averaged": sppo("code", "estimator.tau=2"),
        "`pairwise`, without itself": sppo("paper", "estimator.include_self=false"),
        "`two_answers`": sppo("paper", "estimator=two_answers"),
    }
    rows = []
    for spread in SPREADS:
        both = {"`pairwise` (paper)": sppo("paper"), "`score` (code)": sppo("code")}
        for name, run in (both | (more if spread == SPREADS[1] else {})).items():
            rows.append([fixed(spread), name, *_reading(run, directed(spread))])
    head = ["spread", "reading", "mean P_w", "mean P_l", "targets, nats", "cyclic triads", "same pair by win rates"]
    return Table("Estimators", head, rows)


@cache
def directed(spread: float, prompts: int = 4000, k: int = 5) -> np.ndarray:
    """Draw C_ij = q_i - q_j + noise, (prompt, K, K): qualities q of this spread, noise of its own in each order."""
    chance = np.random.default_rng(0)
    quality, noise = chance.normal(0, spread, (prompts, k)), chance.normal(0, NOISE, (prompts, k, k))
    return quality[:, :, None] - quality[:, None, :] + noise


def _reading(run: Run, logits: np.ndarray) -> list[str]:
    """Return means over the prompts, best against worst by mean logits, and how often win rates choose the same."""
    wins, cyclic, same = [], 0, 0
    for one in logits:
        ranking = {"scores": None, "logits": one}
        matrix = run.estimator.matrix(ranking)
        place, other = ((v.argmax(), v.argmin()) for v in (lead(ranking).mean(1), run.estimator.win_rates(matrix)))
        pair = run.estimator.of_pair(matrix, *map(int, place))
        wins.append((pair["chosen_win"], pair["rejected_win"]))
        cyclic += intransitive_triads(matrix - 0.5)[0]
        same += place == other
    chosen, rejected = np.mean(wins, axis=0)
    targets = " / ".join(f"{(p - 0.5) / run.method.beta:+.0f}" for p in (chosen, rejected))
    return [fixed(chosen), fixed(rejected), targets, fixed(cyclic / (10 * len(logits))), fixed(same / len(logits))]


def rules() -> Table:
    """Pair six answers with random points 1 to 6 and lengths 1 to 400, with ties and without."""
    chance, rest, rows = np.random.default_rng(0), np.random.default_rng(1), []
    whole = [(chance.integers(1, 7, 6), chance.integers(1, 401, 6), chance.permutation(6)) for _ in range(4000)]
    untied = [(points + rest.random(6), *other) for points, *other in whole]
    first = [wpo("wpo_v1").pairing.rule.pairs(_candidates(*each)) for each in whole]
    asked = {
        "`wpo_v1`": ("wpo_v1", whole),
        "`wpo_v2`": ("wpo_v2", whole),
        "`wpo_v2`, no ties": ("wpo_v2", untied),
    }
    for name, (rule, draws) in asked.items():
        pairs = [wpo(rule).pairing.rule.pairs(_candidates(*each)) for each in draws]
        made = [(each, *pair) for each, found in zip(draws, pairs, strict=True) for pair in found]
        gap = mean(float(points[w] - points[r]) for (points, _, _), w, r in made)
        longer = mean(int(tokens[w] - tokens[r]) for (_, tokens, _), w, r in made)
        same = mean(one == other for one, other in zip(first, pairs, strict=True) if one)
        rows.append([name, fixed(1 - len(made) / len(draws)), fixed(gap, 2), fixed(longer, 1, "+"), fixed(same)])
    head = ["rule", "prompts without a pair", "points apart", "chosen longer by, tokens", "same pair as `wpo_v1`"]
    return Table("Pair rules", head, rows)


def _candidates(points: np.ndarray, tokens: np.ndarray, lots: np.ndarray) -> Candidates:
    scores = [float(p) for p in points]
    return Candidates(scores, scores, [True] * 6, [""] * 6, tokens.tolist(), lots.tolist(), lots.tolist())


def schedules() -> Table:
    rows = []
    for horizon in (18, 6, 1):
        *rates, after = learning_rates(horizon)
        shown = (max(rates), mean(rates), rates[-1], after)
        rows.append([str(horizon), *map(short, shown), str(rates.index(max(rates)) + 1)])
    head = ["horizon, epochs", "highest rate", "mean", "last step's", "the next would be", "highest at step"]
    return Table("Learning rates of one epoch", head, rows)


def short(number: float) -> str:
    """Write .0000005 as 5.00e-7."""
    digits, power = f"{number:.2e}".split("e")
    return f"{digits}e{int(power)}" if number else "0"


def learning_rates(horizon: int) -> list[float]:
    """Return the rate of every step of the epoch that is trained and of the one after, from the trainer's scheduler."""
    trainer, rates = _trainer(horizon), []
    scheduler = trainer.create_scheduler(0)
    for _ in range(trainer.horizon // horizon + 1):
        rates.append(scheduler.get_last_lr()[0])
        trainer.optimizer.step()
        scheduler.step()
    return rates


def _trainer(horizon: int) -> Any:
    """Make the trainer of the code's recipe around a thousand weights."""
    run, folder = sppo("code", "hardware=cpu", "ranker.precision=float32"), Path(tempfile.gettempdir())
    recipe = dataclasses.replace(run.train, schedule_epochs=horizon)
    stage = Train(method=run.method, recipe=recipe, devices=run.hardware.devices, seed=run.seed)
    weights: Any = torch.nn.Linear(1000, 1, bias=False)
    rows: Any = [{}] * PAIRS
    arguments = arguments_of(stage.recipe, stage.devices, stage.seed, folder)
    trainer = PairTrainer(weights, arguments, train_dataset=rows)
    trainer.set_up(stage.method, stage.recipe, stage.devices)
    trainer.create_optimizer()
    return trainer


def clipping() -> Table:
    plain, clipped = _updates(None), _updates(1.0)
    rows = [
        [str(step), short(norm), short(plain[step]), short(clipped[step]), fixed(clipped[step] / plain[step], 2)]
        for step, norm in NORMS.items()
    ]
    head = ["step", "norm of the gradient", "moved, not clipped", "moved, clipped at 1", "ratio"]
    return Table("Clipping", head, rows)


def _updates(limit: float | None) -> dict[int, float]:
    """Map each step to how far random gradients move a thousand weights under the recipe's optimiser."""
    trainer, chance, moved = _trainer(1), torch.Generator().manual_seed(0), {}
    weight: Any = trainer.model.weight
    for step in range(1, max(NORMS) + 1):
        gradient = torch.randn(weight.shape, generator=chance)
        weight.grad = gradient / gradient.norm() * NORMS.get(step, 1e6)
        if limit is not None:
            torch.nn.utils.clip_grad_norm_(weight, limit)
        before = weight.detach().clone()
        trainer.optimizer.step()
        moved[step] = float((weight.detach() - before).norm())
    return moved


# With data ---------------------------------------------------------------------------------------------------------


class Told(NamedTuple):
    """A prompt and answers to it, as token ids."""

    prompt: Ids
    answers: list[Ids]


def truncation(data: Path, tokenizer: Any) -> Table:
    pairs, runs = list(told(data, tokenizer)), [sppo("paper"), sppo("code"), wpo("wpo_v2")]
    limits = [run.train.lengths for run in runs]
    limits.append(dataclasses.replace(limits[-1], truncation="joint"))
    head = ["limits", "pairs cut", "prompts cut", "answers cut", "prompt tokens lost", "answer tokens lost"]
    return Table(f"Truncation, {len(pairs)} pairs", head, [_cut(lengths, pairs) for lengths in limits])


def nones(data: Path) -> Table:
    """Count the prompts that the public code would cut, and the share of their characters that it would lose."""
    prompts = [json.loads(line)["prompt"] for line in data.read_text().splitlines()]
    lost = [1 - prompt.index("None") / len(prompt) for prompt in prompts if "None" in prompt]
    row = [str(len(prompts)), str(len(lost)), fixed(mean(lost)) if lost else "—"]
    return Table("The word None", ["prompts", "with it", "mean share lost of these"], [row])


def told(data: Path, tokenizer: Any) -> Iterator[Told]:
    """Read chosen and rejected of every row of a file, each with its EOS."""
    for row in map(json.loads, data.read_text().splitlines()):
        ids = [tokenizer(row[side], add_special_tokens=False)["input_ids"] for side in ("chosen", "rejected")]
        asked = render(tokenizer, [{"role": "user", "content": row["prompt"]}])
        yield Told(asked, [[*answer, tokenizer.eos_token_id] for answer in ids])


def _cut(lengths: Lengths, pairs: list[Told]) -> list[str]:
    before = np.array([[len(prompt), *map(len, answers)] for prompt, answers in pairs])
    lost = before - np.array([[*map(len, lengths.fit(prompt, *answers))] for prompt, answers in pairs])
    counts = (lost.any(1).sum(), (lost[:, 0] > 0).sum(), (lost[:, 1:] > 0).sum())
    shares = (lost[:, 0].sum() / before[:, 0].sum(), lost[:, 1:].sum() / before[:, 1:].sum())
    limits = f"{lengths.max_prompt} of {lengths.max_total}, `{lengths.truncation}`"
    return [limits, *map(str, counts), *map(fixed, shares)]


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="JSON lines with prompt, chosen, rejected")
    parser.add_argument(
        "--small-model", action="store_true", help="also sample with SmolLM2-135M-Instruct; needs --data"
    )
    options = parser.parse_args(words)
    if options.small_model and not options.data:
        parser.error("--small-model takes --data")
    tidy_output()
    for table in _tables(options.data, options.small_model):
        print(table, flush=True)


def _tables(data: Path | None, small_model: bool) -> Iterator[Table]:
    yield from (estimators(), rules(), schedules(), clipping())
    if data is None:
        return
    with tempfile.TemporaryDirectory() as folder:
        run_of().model(out=(policy := Path(folder)))
        yield from (truncation(data, load_tokenizer(policy)), nones(data))
        if small_model:
            from bench import differences_small_model

            yield from differences_small_model.tables(policy, data)


if __name__ == "__main__":
    main()
