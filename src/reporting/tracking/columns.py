"""What the table of runs in W&B shows: names, tags, and columns that are there whatever the method.

Columns of the config: eta, beta, lr, K, iter, method, model, seed, experiment, variant, ranker, estimator, hardware and
commit; every value of the composed config under its dotted key.

Columns of the summary, of the last iteration that has them, beside the last value of each metric:
win_rate, win_rate_low, win_rate_high   mean win probability over the start model on held-out prompts, its interval
win_rate_over_previous, …_low, …_high   the same over the policy of the iteration before
best_win_rate, best_iteration           the highest win_rate so far, and whose it is
null_win                                the start model over itself with other seeds: how far from 1/2 chance leads
tokens                                  mean length of held-out answers
checks_kept, unseen_checks_kept         share of checkable instructions kept, of kinds trained on and never trained on
kl_per_token, kl_per_answer             KL of the policy from the start model on held-out prompts, nats
loss, reward_margin, reward_accuracy    means over the last quarter of the iteration's steps; the loss in its own unit
lowest_loss                             the lowest of a step of the iteration, in that unit
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.experiment.secret_words import NAMED
from src.kernel.config import REHEARSAL
from src.kernel.record import git_commit
from src.kernel.rows import Row

if TYPE_CHECKING:
    from src.experiment.point import Point
    from src.experiment.run import Run

TAG = 64
"""Characters that W&B lets a tag have."""
NAME = 128
"""Of a name or a group."""
_EVALUATED = {
    "win_rate": "evaluation/win_over_base",
    "win_rate_low": "evaluation/win_over_base_low",
    "win_rate_high": "evaluation/win_over_base_high",
    "win_rate_over_previous": "evaluation/win_over_previous",
    "win_rate_over_previous_low": "evaluation/win_over_previous_low",
    "win_rate_over_previous_high": "evaluation/win_over_previous_high",
    "null_win": "evaluation/null_win",
    "tokens": "evaluation/tokens",
    "checks_kept": "evaluation/seen_accuracy",
    "unseen_checks_kept": "evaluation/unseen_accuracy",
    "kl_per_token": "divergence/kl_per_token",
    "kl_per_answer": "divergence/kl_per_answer",
}
_TRAINED = {
    "loss": "train/loss_scaled",
    "reward_margin": "train/reward_margin",
    "reward_accuracy": "train/reward_accuracy",
}


def name_of(run: Run) -> str:
    """Such as `gemma2_9b_it sppo it2 η=1000 lr=5e-7 K=5`."""
    words = [REHEARSAL] if run.rehearsed else []
    words += [run.model.name, run.method.name, f"it{run.iter}", f"η={short(eta(run))}", f"lr={short(run.train.lr)}"]
    words += [f"K={run.sampling.K}", *([f"s{run.seed}"] if run.seed else [])]
    return " ".join(words)[:NAME]


def tags_of(run: Run, sweep: str | None) -> list[str]:
    told = (
        REHEARSAL if run.rehearsed else None,
        run.method.name,
        run.model.name,
        run.experiment,
        run.variant,
        sweep,
        f"it{run.iter}",
    )
    return list(dict.fromkeys(tag[:TAG] for tag in told if tag))


def group_of(point: Point, chosen: str | None) -> tuple[str, str | None]:
    """What runs that belong together share, and the sweep, if there is one."""
    from src.experiment import sweep_note

    sweep = sweep_note.group_of(point.folder)
    return (chosen or sweep or point.run.experiment or point.folder.name)[:NAME], sweep


def eta(run: Run) -> float:
    """1 / beta where the method has none of its own."""
    return getattr(run.method, "eta", None) or 1 / run.method.beta


def short(value: float) -> str:
    """5e-07 is 5e-7."""
    return re.sub(r"e([+-])0*", lambda found: "e" + found[1].replace("+", ""), f"{value:g}")


def config_of(point: Point) -> dict[str, Any]:
    """Flat: no column has columns of its own."""
    run = point.run
    settings = {key: value for key, value in point.container.items() if not key.startswith("_")}
    return dict(_flat(settings)) | {
        "eta": eta(run),
        "beta": run.method.beta,
        "lr": run.train.lr,
        "K": run.sampling.K,
        "iter": run.iter,
        "method": run.method.name,
        "model": run.model.name,
        "seed": run.seed,
        "experiment": run.experiment,
        "variant": run.variant,
        "ranker": run.ranker.name,
        "estimator": run.estimator.kind,
        "hardware": run.hardware.name,
        "commit": git_commit(),
    }


def _flat(value: dict[Any, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, inner in value.items():
        if isinstance(inner, list) and any(isinstance(item, dict | list) for item in inner):
            inner = dict(enumerate(inner))
        if isinstance(inner, dict):
            yield from _flat(inner, f"{path}{key}.")
        elif not (isinstance(inner, str) and NAMED.search(str(key))):
            yield f"{path}{key}", str(inner) if isinstance(inner, Path) else inner


def summary_of(rows: Iterable[Row]) -> dict[str, Any]:
    """The columns of the summary that the rows of a family have numbers for."""
    rows = list(rows)
    found = {name: row[key] for row in rows for name, key in _EVALUATED.items() if row.get(key) is not None}
    wins = [(row["evaluation/win_over_base"], row["iteration"]) for row in rows if "evaluation/win_over_base" in row]
    if wins:
        best, iteration = max(wins, key=lambda win: (win[0], -win[1]))
        found |= {"best_win_rate": best, "best_iteration": iteration}
    return found | _trained([row for row in rows if "train/step" in row])


def _trained(steps: list[Row]) -> dict[str, float]:
    if not steps:
        return {}
    last = [step for step in steps if step["iteration"] == steps[-1]["iteration"]]
    late = last[-max(1, len(last) // 4) :]
    found = {name: [step[key] for step in late if key in step] for name, key in _TRAINED.items()}
    losses = [step["train/loss_scaled"] for step in last if "train/loss_scaled" in step]
    lowest = {"lowest_loss": min(losses)} if losses else {}
    return {name: sum(values) / len(values) for name, values in found.items() if values} | lowest
