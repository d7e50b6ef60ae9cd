"""What W&B shows beside the rows of metrics.jsonl: columns of runs, tables of sample answers, lineage.

Columns of the config: eta, beta, lr, K, iter, method, model, seed, experiment, variant, ranker, estimator, hardware and
commit, whatever the method; and every value of the composed config under its dotted key.

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

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from src.evaluation.held_out import EVALUATION
from src.experiment.secret_words import NAMED
from src.kernel.artifact import Node
from src.kernel.record import CARD, RECORD, git_commit, read_record
from src.kernel.rows import RANKING, RESPONSES, ROWS, Row, last_user_message
from src.kernel.store import Store
from src.pairing.win_probability import Estimator

if TYPE_CHECKING:
    from src.experiment.point import Point
    from src.experiment.run import Run

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
TRAINING, HELD_OUT = "samples/training", "samples/held_out"
"""Keys of the tables of sample answers."""
PROMPTS = 8
"""Prompts in a table: the first ones of an iteration."""
CHARACTERS = 2000
"""Characters of a text in a table."""
LONGEST_CARD = 100_000
"""Characters of an artifact's description."""
COPIED = (RECORD, "metrics.json")
"""Files of an artifact that are uploaded; all others stay where they are, and W&B is told where."""

# Columns ------------------------------------------------------------------------------------------------------------


def eta(run: Run) -> float:
    """Return the method's eta, or 1 / beta where it has none of its own."""
    return getattr(run.method, "eta", None) or 1 / run.method.beta


def config_of(point: Point) -> dict[str, Any]:
    """Collect the columns of a run's config: flat, for W&B would give a column columns of its own."""
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
    """Yield every value under its dotted key, but for texts whose key sounds like a secret."""
    for key, inner in value.items():
        if isinstance(inner, list) and any(isinstance(item, dict | list) for item in inner):
            inner = dict(enumerate(inner))
        if isinstance(inner, dict):
            yield from _flat(inner, f"{path}{key}.")
        elif not (isinstance(inner, str) and NAMED.search(str(key))):
            yield f"{path}{key}", str(inner) if isinstance(inner, Path) else inner


def summary_of(rows: Sequence[Row]) -> dict[str, Any]:
    """Compute the columns of the summary that the rows of a family have numbers for."""
    summary = {name: row[key] for row in rows for name, key in _EVALUATED.items() if row.get(key) is not None}
    wins = [(row["evaluation/win_over_base"], row["iteration"]) for row in rows if "evaluation/win_over_base" in row]
    if wins:
        best, iteration = max(wins, key=lambda win: (win[0], -win[1]))
        summary |= {"best_win_rate": best, "best_iteration": iteration}
    steps = [row for row in rows if "train/step" in row]
    last = [step for step in steps if step["iteration"] == steps[-1]["iteration"]]
    for name, key in _TRAINED.items():
        if late := [step[key] for step in last[-max(1, len(last) // 4) :] if key in step]:
            summary[name] = sum(late) / len(late)
    if losses := [step["train/loss_scaled"] for step in last if "train/loss_scaled" in step]:
        summary["lowest_loss"] = min(losses)
    return summary


# Sample answers -----------------------------------------------------------------------------------------------------


def samples_of(node: Node, nodes: Iterable[Node], store: Store, estimator: Estimator) -> dict[str, list[Row]]:
    """Read the table that goes into the row of an artifact; none where what it shows is gone or damaged.

    It is under one key in each iteration, in the row of the pairs or of the evaluation: it is logged with it, once.
    """
    t, stage = node.place.iteration, node.place.stage
    if t is None or node.place.benchmark or stage not in ("pairs", "evaluation"):
        return {}
    paths = {other.name: store.path(other) for other in nodes}
    try:
        return {TRAINING: _training(t, paths, estimator)} if stage == "pairs" else {HELD_OUT: _held_out(t, paths)}
    except (OSError, pa.ArrowException, LookupError):
        return {}


def _training(t: int, paths: dict[str, Path], estimator: Estimator) -> list[Row]:
    """Show each prompt with its answers, who beats whom, and the pair of the widest margin that it gave."""
    answered = _first(paths[f"it{t}/responses"], RESPONSES)
    ids = [row["prompt_id"] for row in answered]
    rankings = {row["prompt_id"]: row for row in _of_prompts(paths[f"it{t}/ranking"], RANKING.names, ids)}
    names = ["prompt_id", "chosen_index", "rejected_index", "chosen_win", "rejected_win", "chosen_beats_rejected"]
    pairs = _of_prompts(paths[f"it{t}/pairs"], names, ids)
    widest = {row["prompt_id"]: row for row in sorted(pairs, key=lambda p: p["chosen_win"] - p["rejected_win"])}
    most = max(len(row["responses"]) for row in answered)
    table: list[Row] = []
    for row in answered:
        matrix = estimator.matrix(rankings[row["prompt_id"]])
        wins = estimator.win_rates(matrix).tolist()
        texts = [cut(answer["text"]) for answer in row["responses"]]
        cells: Row = {"iteration": t, "prompt_id": row["prompt_id"], "prompt": cut(last_user_message(row))}
        for k in range(most):
            cells[f"answer {k + 1}"] = texts[k] if k < len(texts) else None
            cells[f"P(answer {k + 1} beats the policy)"] = wins[k] if k < len(texts) else None
        cells["matrix"] = "\n".join(" ".join(f"{value:.2f}" for value in line) for line in matrix)
        pair = widest.get(row["prompt_id"])
        cells["chosen"] = texts[pair["chosen_index"]] if pair else None
        cells["rejected"] = texts[pair["rejected_index"]] if pair else None
        cells["P(chosen beats the policy)"] = pair["chosen_win"] if pair else None
        cells["P(rejected beats the policy)"] = pair["rejected_win"] if pair else None
        cells["P(chosen beats rejected)"] = pair["chosen_beats_rejected"] if pair else None
        table.append(cells)
    return table


def _held_out(t: int, paths: dict[str, Path]) -> list[Row]:
    """Show the same prompts each iteration, answered by the start model, the policy before and the new one."""
    before = f"it{t - 1}" if t > 1 else "base"
    new, base, old = (_first(paths[f"{name}/answers"], RESPONSES) for name in (f"it{t}", "base", before))
    ids = [row["prompt_id"] for row in new]
    wins = {row["prompt_id"]: row for row in _of_prompts(paths[f"it{t}/evaluation"], EVALUATION.names, ids)}
    return [
        {
            "iteration": t,
            "prompt_id": row["prompt_id"],
            "prompt": cut(last_user_message(row)),
            "answer of the base": cut(base[i]["responses"][0]["text"]),
            "answer of the previous policy": cut(old[i]["responses"][0]["text"]),
            "answer of the new policy": cut(row["responses"][0]["text"]),
            "P(new beats base)": wins[row["prompt_id"]]["win_over_base"],
            "P(new beats previous)": wins[row["prompt_id"]]["win_over_previous"],
        }
        for i, row in enumerate(new)
    ]


def _first(folder: Path, schema: pa.Schema) -> list[Row]:
    """Read the first rows, without reading the others."""
    with pq.ParquetFile(folder / ROWS) as file:
        batch = next(file.iter_batches(PROMPTS, columns=schema.names), None)
    return batch.to_pylist() if batch else []


def _of_prompts(folder: Path, names: list[str], ids: list[str]) -> list[Row]:
    """Read some columns of the rows of these prompts."""
    return pq.read_table(folder / ROWS, columns=names, filters=[("prompt_id", "in", ids)]).to_pylist()


def cut(text: str) -> str:
    """Shorten a text, and say by how much."""
    left_out = len(text) - CHARACTERS
    return text if left_out <= 0 else f"{text[:CHARACTERS]} … [{left_out} more characters]"


def as_logged(row: Row) -> dict[str, Any]:
    """Turn samples into W&B's tables, and counts over [0, 1] into its histograms."""
    import wandb

    def one(key: str, value: Any) -> Any:
        if key in (TRAINING, HELD_OUT):
            return wandb.Table(columns=list(value[0]) if value else [], data=[list(cells.values()) for cells in value])
        if key.endswith("_histogram"):
            return wandb.Histogram(np_histogram=(np.array(value), np.linspace(0, 1, len(value) + 1)))
        return value

    return {key: one(key, value) for key, value in row.items()}


# Lineage ------------------------------------------------------------------------------------------------------------


def log_made(run: Any, nodes: Iterable[Node], store: Store) -> None:
    """Log every finished artifact of a family as an output of its W&B run.

    An artifact is at W&B what it is in the store: its kind is name and type, its key is an alias. What a sweep shares
    has one digest, whoever logs it, so it is one version at W&B, and logging it again adds nothing.
    """
    for node in _made(nodes, store):
        run.log_artifact(_artifact(node, store), aliases=["latest", node.key])


def log_used(run: Any, nodes: Iterable[Node], store: Store) -> None:
    """Log what the finished artifacts of a family were made from, but for what the W&B run itself made.

    Called when all families have logged what they made: W&B takes an artifact for an output of the first run only.
    """
    made = _made(nodes, store)
    keys = {node.key for node in made}
    used = {parent.key: parent for node in made for parent in node.inputs if parent.key not in keys}
    for node in used.values():
        if store.has(node):
            run.use_artifact(_artifact(node, store), aliases=["latest", node.key])


def _made(nodes: Iterable[Node], store: Store) -> list[Node]:
    """Prompts and start policies, which read nothing, are nobody's output."""
    return [node for node in nodes if node.inputs and store.has(node)]


def _artifact(node: Node, store: Store) -> Any:
    """Describe an artifact to W&B; big files are references that nobody reads.

    The model card is its description: as a file it would change the digest whenever a run writes it anew.
    """
    import wandb

    folder = store.path(node).resolve()
    record, card = read_record(folder), folder / CARD
    metadata = {
        "key": node.key,
        "name": node.name.partition("/")[2] or node.name,  # `it2/pairs` of one run is `it1/pairs` of none
        "bytes": sum(file["bytes"] for file in record["files"].values()),
        "inputs": [f"{parent.stage.kind}:{parent.key}" for parent in node.inputs],
    } | {name: record.get(name) for name in ("rows", "config", "versions", "commit")}
    described = card.is_file() and CARD not in record["files"]
    text = card.read_text(errors="replace")[:LONGEST_CARD] if described else None
    artifact = wandb.Artifact(node.stage.kind, node.stage.kind, description=text, metadata=metadata)
    for name in sorted({RECORD, *record["files"]}):
        if name in COPIED:
            artifact.add_file(str(folder / name), name=name, policy="immutable", skip_cache=True)
        else:
            artifact.add_reference((folder / name).as_uri(), name=name, checksum=False)
    return artifact
