"""A comparison as a report at W&B, of exactly these runs, by their ids."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any, NamedTuple

from src.kernel.config import UserError
from src.reporting.compare.points import Comparison
from src.reporting.compare.settings import legible
from src.reporting.wandb import experiment_of, has_key, run_id

if TYPE_CHECKING:
    from wandb_workspaces.reports.v2.interface import Panel, Report

ABOUT = "Made by `compare`, which replaces this report when it is called for the same runs= again."
LONGEST_TITLE = 128
STEP, ITERATION, WIN = "train/total_step", "iteration", "win_rate"
COLUMNS = ("eta", "lr", "K", "beta", "method", "model", "seed", "ranker", "estimator", "hardware", "iter")
"""Of the config of a W&B run, at its top."""
NUMBERS, LOGARITHMIC = ("eta", "lr", "K", "beta"), ("eta", "lr", "beta")
SUMMARY = (WIN, "tokens", "kl_per_token", "best_win_rate", "win_rate_over_previous")
TABLES = {"rank": "samples/training", "evaluate": "samples/held_out"}
"""Family whose runs have it -> table."""
LINES = {
    "evaluate": (
        "evaluation/win_over_base evaluation/win_over_base_low evaluation/win_over_base_high",
        "evaluation/win_over_previous evaluation/win_over_previous_low evaluation/win_over_previous_high",
        *("evaluation/null_win", "evaluation/tokens evaluation/base_tokens", "divergence/kl_per_token"),
        "evaluation/seen_accuracy evaluation/unseen_accuracy",
    ),
    "train": (
        *("train/loss_scaled", "train/chosen_logratio train/rejected_logratio", "train/reward_margin"),
        *("train/reward_accuracy", "train/kl_estimate", "train/learning_rate"),
    ),
    "rank": (
        *("pairs/chosen_win pairs/rejected_win", "pairs/near_ties"),
        *("ranking/intransitive_triads", "ranking/length_correlation"),
    ),
}
"""Family -> the metrics of each panel."""
MOST_NUMBERS = 12
"""Panels of a benchmark."""
COLOURS = ((0, "#440154"), (50, "#21918c"), (100, "#fde725"))
"""Percent of the range of win rates -> colour: viridis."""


class Section(NamedTuple):
    title: str
    family: str
    """Whose W&B runs it shows."""
    panels: list[Panel]


def load_library() -> Any:
    """Imports W&B's library of reports, which warns of its own use of pydantic."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import wandb_workspaces.reports.v2.interface

    return wandb_workspaces.reports.v2.interface


def sections(varied: Sequence[str], benchmarks: dict[str, list[str]]) -> list[Section]:
    """Returns the sections of a report on runs that differ in these columns of their config."""
    wr = load_library()

    def lines(metrics: Iterable[str], x: str = ITERATION) -> list[Panel]:
        panels = ((each.split(" "), each.split(" ")[0].partition("/")[2].replace("_", " ")) for each in metrics)
        return [wr.LinePlot(title=title, x=x, y=y, title_x=x, max_runs_to_show=100) for y, title in panels]

    def table(family: str) -> list[Panel]:
        return [wr.WeavePanelSummaryTable(table_name=TABLES[family], layout=wr.Layout(w=24, h=14))]

    return [
        Section("Sweep", "evaluate", _sweep(varied)),
        Section("Iterations", "evaluate", lines(LINES["evaluate"])),
        *(Section(f"Benchmark: {name}", name, lines(numbers[:MOST_NUMBERS])) for name, numbers in benchmarks.items()),
        Section("Training", "train", lines(LINES["train"], STEP)),
        Section("Ranking", "rank", lines(LINES["rank"])),
        Section("Samples: training", "rank", table("rank")),
        Section("Samples: held out", "evaluate", table("evaluate")),
    ]


def _sweep(varied: Sequence[str]) -> list[Panel]:
    """Draws settings against win rates. W&B has no heat map of runs: a scatter plot on a grid with colours is one."""
    wr = load_library()
    columns = [name for name in COLUMNS if name in varied]
    numbers = [name for name in columns if name in NUMBERS]

    def axis(name: str) -> Any:
        return wr.Config(name) if name in COLUMNS else name

    def scatter(x: str, y: str, **more: Any) -> Panel:
        title = f"Win rate by {x} and {y}" if more else f"{y} by {x}"
        return wr.ScatterPlot(title=title, x=axis(x), y=axis(y), log_x=x in LOGARITHMIC, log_y=y in LOGARITHMIC, **more)

    gradient = [wr.GradientPoint(color=colour, offset=offset) for offset, colour in COLOURS]
    maps = [scatter(x, y, z=WIN, gradient=gradient) for x, y in combinations(numbers, 2)]
    uprights = [
        wr.ParallelCoordinatesPlotColumn(metric=axis(name), display_name=name, log=name in LOGARITHMIC)
        for name in (*columns, "tokens", "kl_per_token", WIN)
    ]
    return [
        wr.ParallelCoordinatesPlot(title="Settings and win rate", columns=uprights, layout=wr.Layout(w=24, h=10)),
        *(maps or [scatter(name, WIN) for name in numbers]),
        *(scatter(name, WIN) for name in ("tokens", "kl_per_token")),
        wr.ParameterImportancePlot(with_respect_to=WIN),
    ]


def report(comparison: Comparison, place: str = "") -> Report:
    """Builds the report; `place` is `entity/project` or a project, empty: where the runs are mirrored."""
    wr = load_library()
    entity, _, project = place.rpartition("/")
    entity = entity or next((value for run in comparison.runs if (value := run.configured("tracking.entity"))), "")
    project = project or next((value for run in comparison.runs if (value := run.configured("tracking.project"))), "")
    names = [comparison.names[axis] for axis in comparison.varied.axes]
    varied = [name for name in names if name in COLUMNS]
    blocks: list[Any] = [wr.TableOfContents(), wr.H2("What was run")]
    if names:
        blocks.append(wr.P(f"The runs differ in {', '.join(names)}."))
    if commands := "\n".join(dict.fromkeys(legible(run.command) for run in comparison.runs if run.command)):
        blocks.append(wr.CodeBlock(commands, language="markdown"))
    benchmarks, title = _benchmarks(comparison), comparison.title[:LONGEST_TITLE]
    for section in sections(varied, benchmarks):
        columns = SUMMARY
        if section.family in benchmarks:
            columns = [metrics.split(" ")[0] for metrics in benchmarks[section.family]]
        ids = ", ".join(
            repr(
                run_id(run.path, section.family, experiment_of({name: one.key for name, one in run.artifacts.items()}))
            )
            for run in comparison.runs
        )
        runs = wr.Runset(
            name=f"{section.family}: {title}"[:LONGEST_TITLE],
            filters=f"Metric('ID') in [{ids}]",
            pinned_columns=["run:displayName", *(f"config:{name}.value" for name in varied)],
            visible_columns=[f"summary:{name}" for name in columns],
        )
        grid = wr.PanelGrid(runsets=[runs], panels=[*section.panels])
        blocks += [wr.H2(section.title), grid]
    about = f"{ABOUT} {_mark(comparison)}"
    return wr.Report(project=str(project or "iterpref"), entity=str(entity), title=title, description=about,
                     blocks=blocks, width="fluid")  # fmt: skip


def _benchmarks(comparison: Comparison) -> dict[str, list[str]]:
    """Returns by benchmark, for each number that a run shows, its metric and those of its interval."""
    metrics: dict[str, dict[str, None]] = {}
    for scores in (scores for run in comparison.runs for scores in run.benchmarks):
        for key in scores.measures:
            ends = ("", "_low", "_high") if scores.has_interval(key) else ("",)
            names = " ".join(f"{scores.benchmark}/{key}{end}" for end in ends)
            metrics.setdefault(scores.benchmark, {})[names] = None
    return {name: list(numbers) for name, numbers in sorted(metrics.items())}


def _mark(comparison: Comparison) -> str:
    """By it, and not by its title, a report is found again."""
    return f"[compare {comparison.identity}]"


def publish(comparison: Comparison, place: str) -> str:
    """Saves the report in place of the one that the same `runs=` made before, whatever its title; returns its address.

    Raises UserError where that cannot be done.
    """
    if not has_key():
        raise UserError("report: not logged in to W&B; `wandb login` or WANDB_API_KEY=…, then the same command")
    try:
        import wandb

        api = wandb.Api()
        made = report(comparison, place)
        made.entity = made.entity or api.default_entity or ""
        for known in api.reports(f"{made.entity}/{made.project}"):
            if _mark(comparison) in (known.description or ""):
                made.id = known.id
        made.save()
    except Exception as error:  # of the network, the server, or W&B's own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"report: W&B says {reason}") from error
    print(f"report: {made.url}")
    return str(made.url)
