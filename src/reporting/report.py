"""`report.md`, its pictures and the closing lines of a run, all read from its artifacts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd

from src.data.checks import collapse_warnings
from src.data.prompts import Prompts
from src.evaluation.results import Result
from src.evaluation.win_matrix import WinMatrix
from src.experiment.run import Run
from src.kernel.artifact import Node
from src.kernel.disk import sync, sync_tree, write_atomic
from src.kernel.processes import legible
from src.kernel.record import read_record
from src.kernel.rows import METRICS, PAIRS, RANKING, RESPONSES, Row, last_user_message, read_metrics, read_rows
from src.kernel.store import Store
from src.pairing.win_probability import Estimator, saturation_warnings
from src.reporting import tables
from src.reporting.plots import draw_all, draw_win_matrix
from src.reporting.published import measured, measured_tables, policy_title, published, published_tables, results_of
from src.reporting.tables import FOR_TEMPLATES, cell, literal, table_of, terminal

TEMPLATE = Path(__file__).with_name("report.md.jinja")
PLOTS = "plots"
SAMPLES = 3
FINAL = ["loss_scaled", "chosen_logratio", "rejected_logratio"]
"""Metrics of the training of which a report shows the mean over the last quarter of the steps."""


def write_report(run: Run, nodes: Sequence[Node], store: Store, folder: Path) -> None:
    """Write `report.md`, `plots/*.png` and `summary.txt` into the run folder."""
    plots, records = folder / PLOTS, [read_record(store.path(node)) for node in nodes]
    results, known = results_of(run, nodes, store), published().get(run.experiment or "")
    policies = ["base", *(f"it{t}" for t in range(1, run.iter + 1))]
    warnings = _warnings(nodes, store)
    summary, context = _trained(run, nodes, store, plots) if run.iter else _untrained(run)
    summary += "".join(terminal(title, numbers) for title, numbers in measured(results).values())
    summary += "".join(f"warning: {line}\n" for line in warnings)
    template = jinja2.Template(TEMPLATE.read_text(), trim_blocks=True, keep_trailing_newline=True)
    report = template.render(
        context,
        title=folder.name,
        run=run,
        nodes=nodes,
        confidence=f"{run.held_out.confidence:.0%}",
        warnings=warnings,
        benchmarks=measured_tables(results),
        pictures=_draw_win_matrices(run, results, plots),
        published=published_tables(known, results, policies) if known and known.tables else "",
        command=(folder / "command.txt").read_text(errors="replace"),
        commits=sorted({record["commit"] for record in records}),
        versions=sorted({f"{name} {version}" for record in records for name, version in record["versions"].items()}),
        **FOR_TEMPLATES,
    )
    write_atomic(folder / "summary.txt", legible(summary).encode())
    if plots.is_dir():
        sync_tree(plots)
    sync(folder)
    write_atomic(folder / "report.md", legible(report).encode())  # last: it says that the rest is there


def _untrained(run: Run) -> tuple[str, dict[str, Any]]:
    """Return the closing lines, and what the template shows; `model.repo` may be any checkpoint."""
    start = f"Nothing was trained. The start policy, called {run.model.name}, is"
    return f"{start} {_place(run)}.\n", {"headline": f"{start} {literal(_place(run))}."}


def _place(run: Run) -> str:
    return str(getattr(run.model, "repo", None) or run.model.id or run.model.name)


def _trained(run: Run, nodes: Sequence[Node], store: Store, plots: Path) -> tuple[str, dict[str, Any]]:
    """Draw the pictures of the iterations; return the closing lines, and what the template shows."""
    paths = {node.name: store.path(node) for node in nodes}
    every = [f"it{t}" for t in range(1, run.iter + 1)]

    def metrics(name: str) -> pd.DataFrame:
        rows = [read_metrics(paths[f"{it}/{name}"]) for it in every]
        return pd.DataFrame(rows, index=[f"iteration {t}" for t in range(1, run.iter + 1)])

    steps = [pd.read_json(paths[f"{it}/policy"] / "metrics.jsonl", lines=True) for it in every]
    final = [frame[FINAL].tail(max(1, len(frame) // 4)).mean() for frame in steps]
    numbers = metrics("evaluation").join(metrics("divergence").add_prefix("divergence_"))
    if run.held_out.second:
        numbers = numbers.join(metrics("second_evaluation").add_prefix("second_"))
    numbers = numbers.join(pd.DataFrame(final, index=numbers.index))
    first = numbers.iloc[0]  # whose evaluation has the answers of the base too
    base = {re.sub("^(second_)?base_", r"\1", str(key)): value for key, value in first.items()
            if re.match("(second_)?base_", str(key))}  # fmt: skip
    base |= {str(key).replace("null_win", "win_over_base"): first[key] for key in numbers if "null_win" in str(key)}
    numbers = pd.concat([pd.DataFrame([base | {"divergence_kl_per_token": 0.0}], index=["base"]), numbers])

    pairs = [read_rows(paths[f"{it}/pairs"], PAIRS) for it in every]
    sampled, ranked = (read_rows(paths[f"{every[-1]}/{name}"], schema)[:SAMPLES] for name, schema in
                       (("responses", RESPONSES), ("ranking", RANKING)))  # fmt: skip
    before, after = (read_rows(paths[f"{name}/answers"], RESPONSES)[:SAMPLES] for name in ("base", every[-1]))
    draw_all(numbers, steps, pairs, plots, run.judge.name)
    headline = _headline(run, numbers)
    progress = table_of(numbers.rename(index={"base": "base (null: other seeds)"}), tables.PROGRESS)
    quality = table_of(numbers, tables.QUALITY)
    second = table_of(numbers, tables.SECOND) if run.held_out.second else None
    shown = {"Progress": progress, "Quality": quality} | ({"Second judge": second} if second is not None else {})
    return "".join(terminal(*each) for each in shown.items()) + f"{headline}\n", {
        "trained": True,
        "place": _place(run),
        "sources": dict.fromkeys(node.stage.part.source.label for node in nodes if isinstance(node.stage, Prompts)),
        "headline": headline,
        "judge": run.verdict_of(),
        "second": second,
        "tau": numbers["tau"].iloc[-1],
        "progress": progress,
        "quality": quality,
        "divergence_prompts": int(numbers["divergence_prompts"].iloc[-1]),
        "ranking": table_of(metrics("ranking"), tables.RANKING),
        "pairs": table_of(metrics("pairs"), tables.PAIRS),
        "training_samples": _training_samples(
            sampled, ranked, replace(run.estimator, tau=metrics("pairs")["tau"].iloc[-1])
        ),
        "held_out_samples": [
            (last_user_message(new), *(row["responses"][0]["text"] for row in (old, new)))
            for old, new in zip(before, after, strict=True)
        ],
    }


def _headline(run: Run, numbers: pd.DataFrame) -> str:
    last = numbers.iloc[-1]
    verdict = "beats" if last["win_over_base_low"] > 0.5 else "does not beat"
    sound = last["null_win_low"] <= 0.5 <= last["null_win_high"]
    second = run.held_out.second and f"By {run.verdict_of('second_')}: {cell(last, 'second_win_over_base', 3)}. "
    return (
        f"Iteration {len(numbers) - 1} {verdict} the base on {last['prompts']:.0f} held-out prompts, "
        f"by {run.verdict_of()}: win rate {cell(last, 'win_over_base', 3)}. {second or ''}"
        f"The interval of the null, {cell(last, 'null_win', 3)}, {'contains' if sound else 'does NOT contain'} 0.5."
    )


def _training_samples(
    sampled: Sequence[Row], ranked: Sequence[Row], estimator: Estimator
) -> Iterator[tuple[str, list[tuple[float, str, str]]]]:
    """Yield each training prompt with its answers, the one that wins most first."""
    for row, ranking in zip(sampled, ranked, strict=True):
        wins = estimator.win_rates(estimator.matrix(ranking))
        answers = []
        for k in np.argsort(-wins, kind="stable"):
            answer = row["responses"][int(k)]
            source = "" if answer["source"] == "policy" else f", {answer['source']}"
            answers.append((wins[k], f"answer {k + 1}, {answer['finish_reason']}{source}", answer["text"]))
        yield last_user_message(row), answers


def _draw_win_matrices(run: Run, results: Sequence[Result], plots: Path) -> dict[str, str]:
    """Draw the win matrices among the results; return their captions by the name of the picture."""
    captions = {}
    for one in results:
        if isinstance(one.benchmark, WinMatrix):
            name = f"{one.name}_{one.policy}_matrix.png"
            draw_win_matrix(one.numbers, (one.benchmark.ranker or run.judge).name, plots / name)
            captions[name] = f"{one.benchmark.title}, {policy_title(one.policy)}"
    return captions


def _warnings(nodes: Sequence[Node], store: Store) -> list[str]:
    """Return the warnings of all artifacts, the artifact's name in front."""
    lines = []
    for node in nodes:
        if node.stage.kind in ("outside", "responses", "pairs") and (store.path(node) / METRICS).exists():
            metrics = read_metrics(store.path(node))
            lines += [f"{node.name}: {line}" for line in collapse_warnings(metrics) + saturation_warnings(metrics)]
    return lines
