"""`report.md`, its pictures and the closing lines of a run, all read from its artifacts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import jinja2
import numpy as np

from src.data.checks import collapse_warnings
from src.evaluation.results import Result
from src.evaluation.win_matrix import WinMatrix
from src.experiment.run import Run
from src.generation.stage import spelling_warnings
from src.kernel.artifact import Node
from src.kernel.disk import sync, sync_tree, write_atomic
from src.kernel.record import read_record
from src.kernel.rows import METRICS, last_user_message, read_metrics
from src.kernel.store import Store
from src.pairing.win_probability import Estimator, saturation_warnings
from src.reporting.gather import Story, gather
from src.reporting.plots import draw_all, draw_published
from src.reporting.published import (
    comparable_results,
    measured,
    measured_tables,
    policy_title,
    published,
    published_tables,
)
from src.reporting.tables import FOR_TEMPLATES, PAIRS, PROGRESS, QUALITY, RANKING, cell, literal, table_of, terminal
from src.reporting.win_matrix_picture import draw_win_matrix

TEMPLATE = Path(__file__).with_name("report.md.jinja")
PLOTS = "plots"
SAMPLES = 3


def write_report(run: Run, nodes: Sequence[Node], store: Store, folder: Path) -> None:
    """Writes `report.md`, `plots/*.png` and `summary.txt` into the run folder."""
    plots, records = folder / PLOTS, [read_record(store.path(node)) for node in nodes]
    results, known = comparable_results(run, nodes, store), published().get(run.experiment or "")
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
        published_picture=known and draw_published(known, results, run.iter, plots / "published.png"),
        command=(folder / "command.txt").read_text(errors="replace"),
        commits=sorted({record["commit"] for record in records}),
        versions=sorted({f"{name} {version}" for record in records for name, version in record["versions"].items()}),
        **FOR_TEMPLATES,
    )
    write_atomic(folder / "summary.txt", summary.encode(errors="replace"))
    if plots.is_dir():
        sync_tree(plots)
    sync(folder)
    write_atomic(folder / "report.md", report.encode(errors="replace"))  # last: it says that the rest is there


def _untrained(run: Run) -> tuple[str, dict[str, object]]:
    """Returns the closing lines, and what the template shows; `model.repo` may be any checkpoint."""
    places = (getattr(run.model, key, None) for key in ("repo", "package"))
    place = str(next(filter(None, places), run.model.name))
    start = f"Nothing was trained. The start policy, called {run.model.name}, is"
    return f"{start} {place}.\n", {"headline": f"{start} {literal(place)}."}


def _trained(run: Run, nodes: Sequence[Node], store: Store, plots: Path) -> tuple[str, dict[str, object]]:
    """Draws the pictures of the iterations; returns the closing lines, and what the template shows."""
    story = gather(nodes, store, run.iter)
    draw_all(story, run.estimator, plots)
    headline = _headline(story)
    progress = table_of(story.numbers.rename(index={"base": "base (null: other seeds)"}), PROGRESS)
    quality = table_of(story.numbers, QUALITY)
    context = {
        "story": story,
        "headline": headline,
        "progress": progress,
        "quality": quality,
        "ranking": table_of(story.ranking, RANKING),
        "pairs": table_of(story.pairs, PAIRS),
        "training_samples": _training_samples(story, run.estimator),
        "held_out_samples": [
            (last_user_message(after), *(row["responses"][0]["text"] for row in (before, after)))
            for before, after in zip(story.held_out[0][:SAMPLES], story.held_out[-1], strict=False)
        ],
    }
    return terminal("Progress", progress) + terminal("Quality", quality) + f"{headline}\n", context


def _headline(story: Story) -> str:
    last = story.numbers.iloc[-1]
    verdict = "beats" if last["win_over_base_low"] > 0.5 else "does not beat"
    sound = last["null_win_low"] <= 0.5 <= last["null_win_high"]
    return (
        f"Iteration {len(story.steps)} {verdict} the base on {last['prompts']:.0f} held-out prompts: "
        f"win rate {cell(last, 'win_over_base', 3)}. "
        f"The null, {cell(last, 'null_win', 3)}, {'contains' if sound else 'does NOT contain'} 0.5."
    )


def _training_samples(story: Story, estimator: Estimator) -> Iterator[tuple[str, list[tuple[float, str, str]]]]:
    """Yields a training prompt and its answers, the one that wins most first."""
    for row, ranking in zip(story.last_sampled[:SAMPLES], story.last_ranking, strict=False):
        wins = estimator.win_rates(estimator.matrix(ranking))
        answers = []
        for k in np.argsort(-wins, kind="stable"):
            answer = row["responses"][int(k)]
            source = "" if answer["source"] == "policy" else f", {answer['source']}"
            answers.append((wins[k], f"answer {k + 1}, {answer['finish_reason']}{source}", answer["text"]))
        yield last_user_message(row), answers


def _draw_win_matrices(run: Run, results: Sequence[Result], plots: Path) -> dict[str, str]:
    """Draws the win matrices among the results; returns their captions by the name of the picture."""
    captions = {}
    for one in results:
        if isinstance(one.benchmark, WinMatrix):
            plots.mkdir(exist_ok=True)
            name = f"{one.name}_{one.policy}_matrix.png"
            judge = (one.benchmark.ranker or run.ranker).name
            draw_win_matrix(one.numbers, judge, run.confidence, plots / name)
            captions[name] = f"{one.benchmark.title}, {policy_title(one.policy)}"
    return captions


def _warnings(nodes: Sequence[Node], store: Store) -> list[str]:
    """Collects what artifacts warn of, the artifact's name in front."""
    lines = []
    for node in nodes:
        if node.stage.kind in ("outside", "responses", "pairs") and (store.path(node) / METRICS).exists():
            metrics = read_metrics(store.path(node))
            of_node = collapse_warnings(metrics) + spelling_warnings(metrics) + saturation_warnings(metrics)
            lines += [f"{node.name}: {line}" for line in of_node]
    return lines
