"""`report.md`, its pictures and the closing lines of a run, all read from the artifacts."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from src.experiment.run import Run
from src.kernel.artifact import Node
from src.kernel.disk import sync, sync_tree, write_atomic
from src.kernel.record import read_record
from src.kernel.rows import Row, last_user_message
from src.kernel.store import Store
from src.pairing.win_probability import Estimator
from src.reporting.card.markdown import literal
from src.reporting.report import tables
from src.reporting.report.benchmarks import benchmarks, measured_summary
from src.reporting.report.gather import Iteration, Story, gather
from src.reporting.report.matrices import draw_matrices
from src.reporting.report.plots import PLOTS, draw_all
from src.reporting.report.stand_in import comparable_results
from src.reporting.report.warnings import warnings

SAMPLES = 3
REHEARSED = "A rehearsal: its models are tiny and random, and its numbers mean nothing.\n"


def write_report(run: Run, nodes: list[Node], store: Store, folder: Path) -> None:
    """Write `report.md`, `plots/*.png` and `summary.txt` into the run folder."""
    found = comparable_results(run, nodes, store)
    trained, summary = _trained(run, nodes, store, folder) if run.iter else _untrained(run)
    warned = warnings(nodes, store)
    parts = [
        f"# {folder.name}\n",
        *([REHEARSED] if run.rehearsed else []),
        *trained[:1],
        *_warned(warned),
        *trained[1:],
        *benchmarks(run, found, folder / PLOTS),
        "## Where it comes from\n",
        _provenance(folder, nodes, store),
    ]
    said = "".join(f"warning: {line}\n" for line in warned)
    write_atomic(folder / "summary.txt", (summary + measured_summary(found) + said).encode())
    if (folder / PLOTS).is_dir():
        sync_tree(folder / PLOTS)
    sync(folder)
    write_atomic(folder / "report.md", "\n".join(parts).encode())  # last: it says that the rest is there


def _warned(lines: list[str]) -> list[str]:
    """A part of the report, where there is something to warn of."""
    return ["**Warnings**\n\n" + "".join(f"* {literal(line)}\n" for line in lines)] if lines else []


def _untrained(run: Run) -> tuple[list[str], str]:
    """Which policy it is, whatever its name: `model.repo` may be any checkpoint."""
    places = (getattr(run.model, key, None) for key in ("repo", "package"))
    place = next((str(place) for place in places if place), run.model.name)
    start = f"Nothing was trained. The start policy, called {run.model.name}, is "
    return [f"{start}{literal(place)}.\n"], f"{start}{place}.\n"


def _trained(run: Run, nodes: list[Node], store: Store, folder: Path) -> tuple[list[str], str]:
    """Parts of the report that tell of iterations, and the closing lines."""
    story = gather(nodes, store, run.iter)
    captions = draw_all(story, folder / PLOTS)
    matrices = draw_matrices(story, run.estimator, folder)
    parts = [
        _headline(story) + "\n",
        "## Progress\n",
        tables.markdown(tables.PROGRESS, tables.progress_rows(story)),
        "Win rates are mean win probabilities under the run's own ranker on held-out prompts, with their "
        f"{run.held_out.confidence:.0%} interval, paired by prompt. The null is the base against itself with other "
        "sampling seeds. Loss and log-ratios are means over the last quarter of an iteration's steps; the KL is over "
        f"{story.iterations[-1].divergence['prompts']} held-out prompts.\n",
        *(f"![{caption}]({PLOTS}/{name})\n" for name, caption in captions.items() if name == "win_rate.png"),
        "## What a hacked win rate would betray\n",
        tables.markdown(tables.QUALITY, tables.quality_rows(story)),
        *(f"![{caption}]({PLOTS}/{name})\n" for name, caption in captions.items() if name != "win_rate.png"),
        "## The ranking\n",
        tables.markdown(tables.RANKING, tables.ranking_rows(story)),
        "The position bias is what being shown first is worth; a ranker that scores each answer by itself has none.\n",
        f"![Win probabilities among the answers to sample prompts]({PLOTS}/{matrices})\n",
        "## The pairs\n",
        tables.markdown(tables.PAIRS, tables.pair_rows(story)),
        "A near tie is a win probability between 0.475 and 0.525, of two answers of different text.\n",
        "## Samples\n",
        "Before an answer to a training prompt: P(it beats the policy), by the estimator that made the pairs.\n",
        *_samples(story, run.estimator),
    ]
    return parts, _summary(story)


def _headline(story: Story) -> str:
    last = story.iterations[-1]
    metrics = last.evaluation
    verdict = "beats" if metrics["win_over_base_low"] > 0.5 else "does not beat"
    sound = metrics["null_win_low"] <= 0.5 <= metrics["null_win_high"]
    return (
        f"Iteration {last.t} {verdict} the base on {metrics['prompts']} held-out prompts: "
        f"win rate {tables.interval(metrics, 'win_over_base')}. "
        f"The null, {tables.interval(metrics, 'null_win')}, {'contains' if sound else 'does NOT contain'} 0.5."
    )


def _summary(story: Story) -> str:
    return (
        tables.terminal("Progress", tables.PROGRESS, tables.progress_rows(story))
        + tables.terminal("Quality", tables.QUALITY, tables.quality_rows(story))
        + _headline(story)
        + "\n"
    )


def _samples(story: Story, estimator: Estimator) -> list[str]:
    last = story.iterations[-1]
    return [_candidates(last, i, estimator) for i in range(min(SAMPLES, len(last.sampled)))] + [
        _before_after(story.base_held_out[i], last.held_out[i]) for i in range(min(SAMPLES, len(last.held_out)))
    ]


def _candidates(iteration: Iteration, index: int, estimator: Estimator) -> str:
    """A training prompt with all K answers and P(answer beats the policy)."""
    row = iteration.sampled[index]
    wins = estimator.win_rates(estimator.matrix(iteration.ranking[index]))
    lines = [f"**Training prompt, iteration {iteration.t}:** {_inline(last_user_message(row))}\n"]
    for k in np.argsort(-wins, kind="stable"):
        answer = row["responses"][int(k)]
        given = "" if answer["source"] == "policy" else f", {_inline(answer['source'])}"
        lines.append(f"* {wins[k]:.2f} (answer {k + 1}, {answer['finish_reason']}{given}) {_inline(answer['text'])}")
    return "\n".join(lines) + "\n"


def _before_after(before: Row, after: Row) -> str:
    return (
        f"**Held-out prompt:** {_inline(last_user_message(after))}\n\n"
        f"* base: {_inline(before['responses'][0]['text'])}\n* new: {_inline(after['responses'][0]['text'])}\n"
    )


def _inline(text: str) -> str:
    """Model text as one line of literal text: line breaks shown, no Markdown or HTML of its own."""
    shown = " ⏎ ".join(line for line in text.strip().splitlines()) or "(empty)"
    for sign in "\\`*_[]<>#|~&":
        shown = shown.replace(sign, "\\" + sign)
    return shown


def _provenance(folder: Path, nodes: list[Node], store: Store) -> str:
    """What the records say: artifacts of a shared store may come from other commits than the last command."""
    made = [read_record(store.path(node)) for node in nodes]
    packages = ", ".join(
        sorted({f"{name} {version}" for record in made for name, version in record["versions"].items()})
    )
    commits = ", ".join(sorted({record["commit"] for record in made}))
    command = (folder / "command.txt").read_text().strip()
    keys = tables.markdown(("artifact", "key"), [(node.name, f"`{node.stage.kind}/{node.key}`") for node in nodes])
    return f"`{command}` from artifacts made at commit {commits}; {packages}.\n\n{keys}"
