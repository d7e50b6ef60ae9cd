"""The rest of what W&B shows: families, names, columns, tables of sample answers, lineage.

Columns of the config: eta, beta, lr, K, method, model, ranker, estimator, hardware and commit, whatever the method; and
every value of the composed config under its dotted key, such as iter and seed.

Columns of the summary are those of SUMMARY, of the last iteration that has them, and best_win_rate, the highest
win_rate of any iteration; beside the last value of each metric.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from src.evaluation.held_out import EVALUATION
from src.experiment.point import Point
from src.experiment.run import Run
from src.kernel.artifact import Node
from src.kernel.config import REHEARSAL, leaves
from src.kernel.processes import legible
from src.kernel.record import RECORD, git_commit, read_record
from src.kernel.rows import PAIRS, RANKING, RESPONSES, ROWS, Row, last_user_message, read_metrics
from src.kernel.secret_words import NAMED
from src.kernel.store import Store
from src.pairing.win_probability import Estimator

FAMILIES = ("generate", "rank", "train", "evaluate")
TRIAL = "trial"
"""All families: a trial of a W&B sweep is one W&B run, whose id the agent has set."""
LONGEST = 64
"""Characters that W&B lets a tag have; a name and a group may have twice as many."""
SUMMARY = {"win_rate": "evaluation/win_over_base", "win_rate_low": "evaluation/win_over_base_low",
           "win_rate_high": "evaluation/win_over_base_high", "hard_win_rate": "evaluation/hard_win_over_base",
           "lc_win_rate": "evaluation/lc_win_over_base", "second_win_rate": "second_evaluation/win_over_base",
           "win_rate_over_previous": "evaluation/win_over_previous", "null_win": "evaluation/null_win",
           "tokens": "evaluation/tokens", "kl_per_token": "divergence/kl_per_token"}  # fmt: skip
"""Column -> metric. A win rate is the mean win probability on held-out prompts, lc at equal length; KL in nats."""
TRAINING, HELD_OUT = "samples/training", "samples/held_out"
"""Keys of the tables of sample answers."""
PROMPTS = 8
"""Prompts in a table: the first ones of an iteration."""
CHARACTERS = 2000
"""Characters of a text in a table."""


def family_of(node: Node) -> str | None:
    """Name the family of an artifact; None for what comes before all iterations.

    A benchmark is a family of its own: it may be asked for after iterations that come later.
    """
    if node.place.iteration is None:
        return None
    if "WANDB_SWEEP_ID" in os.environ:
        return TRIAL
    jobs = {"setup": "generate", "generation": "generate", "ranking": "rank", "reference": "train", "training": "train"}
    return node.place.benchmark or ("rank" if node.place.stage == "pairs" else jobs.get(node.job, "evaluate"))


def name_of(run: Run) -> str:
    """Name the W&B runs of a run, such as `gemma2_9b_it sppo it2 η=1000 lr=5e-07 K=5 s0`."""
    settings = f"η={eta(run):g} lr={run.train.lr:g} K={run.sampling.K} s{run.seed}"
    rehearsal = f"{REHEARSAL} " if run.rehearsed else ""
    return f"{rehearsal}{run.model.name} {run.method.name} it{run.iter} {settings}"[: 2 * LONGEST]


def eta(run: Run) -> float:
    """Return the method's eta, or 1 / beta where it has none of its own."""
    return getattr(run.method, "eta", None) or 1 / run.method.beta


def config_of(point: Point) -> dict[str, Any]:
    """Collect the columns of a run's config, but for texts whose key sounds like a secret.

    They are flat, for W&B would give a column columns of its own.
    """
    run, columns = point.run, dict[str, Any]()
    for key, value in leaves(point.container, whole=True):
        secret = isinstance(value, str) and NAMED.search(key.rpartition(".")[2])
        if not secret and not key.startswith("_"):
            columns[key] = str(value) if isinstance(value, Path) else value
    columns |= {"eta": eta(run), "beta": run.method.beta, "lr": run.train.lr, "K": run.sampling.K}
    columns |= {"method": run.method.name, "model": run.model.name, "ranker": run.ranker.name}
    return columns | {"estimator": run.estimator.kind, "hardware": run.hardware.name, "commit": git_commit()}


def summary_of(rows: Sequence[Row]) -> dict[str, Any]:
    """Compute the columns of the summary that the rows of a family have numbers for."""
    summary = {name: row[key] for row in rows for name, key in SUMMARY.items() if row.get(key) is not None}
    if wins := [row[SUMMARY["win_rate"]] for row in rows if SUMMARY["win_rate"] in row]:
        summary["best_win_rate"] = max(wins)
    return summary


# Sample answers -----------------------------------------------------------------------------------------------------


def samples_of(node: Node, nodes: Iterable[Node], store: Store, estimator: Estimator) -> dict[str, list[Row]]:
    """Read the table that goes into the row of an artifact; none where what it shows is gone.

    It is under one key in each iteration, in the row of the pairs or of the evaluation: it is logged with it, once.
    """
    t, benchmark, stage = node.place.iteration, node.place.benchmark, node.place.stage
    paths = {other.name: store.path(other) for other in nodes}
    try:
        if t and stage == "pairs":
            return {TRAINING: _training(t, paths, estimator)}
        if t and stage == "evaluation" and not benchmark:
            return {HELD_OUT: _held_out(t, paths)}
    except (OSError, LookupError):
        pass
    return {}


def _training(t: int, paths: dict[str, Path], estimator: Estimator) -> list[Row]:
    """Show every answer to the first prompts, how often it beats the policy, and the pair of the widest margin."""
    answered = _first(paths[f"it{t}/responses"])
    estimator = replace(estimator, tau=read_metrics(paths[f"it{t}/pairs"])["tau"])
    ids = [row["prompt_id"] for row in answered]
    rankings = {row["prompt_id"]: row for row in _of_prompts(paths[f"it{t}/ranking"], RANKING.names, ids)}
    pairs = _of_prompts(paths[f"it{t}/pairs"], PAIRS.names, ids)
    pairs.sort(key=lambda pair: pair["chosen_win"] - pair["rejected_win"])
    widest = {pair["prompt_id"]: pair for pair in pairs}
    table: list[Row] = []
    for row in answered:
        pair = widest.get(row["prompt_id"], {})
        sides = {pair.get("chosen_index"): "chosen", pair.get("rejected_index"): "rejected"}
        wins = estimator.win_rates(estimator.matrix(rankings[row["prompt_id"]])).tolist()
        for k, (answer, win) in enumerate(zip(row["responses"], wins, strict=True)):
            texts = {"prompt": last_user_message(row)[:CHARACTERS], "answer": answer["text"][:CHARACTERS]}
            table.append({"iteration": t, **texts, "P(it beats the policy)": win, "pair": sides.get(k, "")})
    return table


def _held_out(t: int, paths: dict[str, Path]) -> list[Row]:
    """Show the same prompts each iteration, answered by the start model and by the new policy."""
    before, after = (_first(paths[f"{name}/answers"]) for name in ("base", f"it{t}"))
    ids = [row["prompt_id"] for row in after]
    wins = {row["prompt_id"]: row for row in _of_prompts(paths[f"it{t}/evaluation"], EVALUATION.names, ids)}
    table: list[Row] = []
    for base, new in zip(before, after, strict=True):
        old, now = (row["responses"][0]["text"][:CHARACTERS] for row in (base, new))
        texts = {
            "prompt": last_user_message(new)[:CHARACTERS],
            "answer of the base": old,
            "answer of the new policy": now,
        }
        table.append({"iteration": t, **texts, "P(new beats base)": wins[new["prompt_id"]]["win_over_base"]})
    return table


def _first(folder: Path) -> list[Row]:
    """Read the answers to the first prompts, without reading the others."""
    with pq.ParquetFile(folder / ROWS) as file:
        return next(file.iter_batches(PROMPTS, columns=RESPONSES.names)).to_pylist()


def _of_prompts(folder: Path, names: list[str], ids: list[str]) -> list[Row]:
    """Read some columns of the rows of these prompts."""
    return pq.read_table(folder / ROWS, columns=names, filters=[("prompt_id", "in", ids)]).to_pylist()


def as_logged(row: Row) -> dict[str, Any]:
    """Turn samples into W&B's tables, and counts over [0, 1] into its histograms."""
    import wandb

    logged = dict[str, Any](row)
    for key, value in row.items():
        if key in (TRAINING, HELD_OUT):
            rows = [[legible(cell) if isinstance(cell, str) else cell for cell in cells.values()] for cells in value]
            logged[key] = wandb.Table(columns=[*value[0]], data=list[Any](rows))
        elif key.endswith("_histogram"):
            logged[key] = wandb.Histogram(np_histogram=(np.array(value), np.linspace(0, 1, len(value) + 1)))
    return logged


# Lineage ------------------------------------------------------------------------------------------------------------


def log_made(run: Any, nodes: Iterable[Node], store: Store) -> None:
    """Log every finished artifact of a family as an output of its W&B run; what reads nothing is nobody's.

    An artifact is at W&B what it is in the store: its kind is name and type, its key is an alias. What a sweep shares
    has one digest, whoever logs it, so it is one version at W&B, and logging it again adds nothing.
    """
    for node in nodes:
        if node.inputs and store.has(node):
            run.log_artifact(_artifact(node, store), aliases=["latest", node.key])


def log_used(run: Any, nodes: Sequence[Node], store: Store) -> None:
    """Log what the finished artifacts of a family were made from, but for what the family itself made."""
    made = {node.key for node in nodes if node.inputs}
    used = {parent.key: parent for node in nodes if store.has(node) for parent in node.inputs}
    for key, node in used.items():
        if key not in made and store.has(node):
            run.use_artifact(_artifact(node, store), aliases=["latest", node.key])


def _artifact(node: Node, store: Store) -> Any:
    """Describe an artifact to W&B: its record and its numbers, and where the rest of it lies, which nobody reads."""
    import wandb

    folder = store.path(node).resolve()
    record = read_record(folder)
    metadata = {"key": node.key, "inputs": [f"{parent.stage.kind}:{parent.key}" for parent in node.inputs]}
    metadata |= {name: record.get(name) for name in ("config", "versions", "commit")}
    artifact = wandb.Artifact(node.stage.kind, node.stage.kind, metadata=metadata)
    for name in sorted({RECORD, *record["files"]}):  # not the card, which a run may write anew
        if name in (RECORD, "metrics.json"):
            artifact.add_file(str(folder / name), name=name, policy="immutable", skip_cache=True)
        else:
            artifact.add_reference((folder / name).as_uri(), name=name, checksum=False)
    return artifact
