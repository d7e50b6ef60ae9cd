"""Panels of a W&B report or workspace, by section; metrics are those of `metrics.jsonl` and of tracking.

W&B has no heat map of runs: its scatter plot with a colour for the third value is one where the first two are a grid.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from wandb_workspaces.reports.v2.interface import (
        Config,
        LinePlot,
        Panel,
        ParallelCoordinatesPlotColumn,
        ScatterPlot,
    )

STEP, ITERATION = "train/total_step", "iteration"
WIN = "win_rate"
COLUMNS = ("eta", "lr", "K", "beta", "method", "model", "seed", "ranker", "estimator", "hardware", "iter")
"""Of the config of a W&B run, at its top."""
NUMBERS = ("eta", "lr", "K", "beta")
LOGARITHMIC = ("eta", "lr", "beta")
CURVES = {
    "Loss / (η²/2) or the method's own unit": ["train/loss_scaled"],
    "Log-ratios to the reference (nats)": ["train/chosen_logratio", "train/rejected_logratio"],
    "Reward margin": ["train/reward_margin"],
    "Chosen above rejected": ["train/reward_accuracy"],
    "KL estimate (nats)": ["train/kl_estimate"],
    "Learning rate": ["train/learning_rate"],
}
EVALUATIONS = {
    "Win rate over the base": [f"evaluation/win_over_base{end}" for end in ("", "_low", "_high")],
    "Win rate over the previous policy": [f"evaluation/win_over_previous{end}" for end in ("", "_low", "_high")],
    "The base over itself": ["evaluation/null_win"],
    "Answer length (tokens)": ["evaluation/tokens", "evaluation/base_tokens"],
    "KL to the base (nats/token)": ["divergence/kl_per_token"],
    "Checks kept": ["evaluation/seen_accuracy", "evaluation/unseen_accuracy"],
}
RANKINGS = {
    "Win probabilities of the pairs": ["pairs/chosen_win", "pairs/rejected_win"],
    "Near ties": ["pairs/near_ties"],
    "Intransitive triads": ["ranking/intransitive_triads"],
    "Correlation of score and length": ["ranking/length_correlation"],
}
SUMMARY = (WIN, "tokens", "kl_per_token", "best_win_rate", "win_rate_over_previous", "reward_margin")
TABLES = {"rank": "samples/training", "evaluate": "samples/held_out"}
"""Family whose runs have it -> table."""
PLOTS = ("win_rate", "quality", "win_probabilities", "training", "lengths", "matrices")
"""Pictures of a run's own report."""
MOST_NUMBERS = 12
"""Panels of a benchmark."""
COLOURS = ((0, "#440154"), (50, "#21918c"), (100, "#fde725"))
"""Percent of the range -> colour; viridis, which the colour-blind and a grey print can read."""


def load_library() -> None:
    """Its import warns of its own use of pydantic, which is nobody's here to mend."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import wandb_workspaces.reports.v2
        import wandb_workspaces.workspaces  # noqa: F401


class Section(NamedTuple):
    name: str
    family: str
    """Whose runs it shows."""
    about: str
    panels: list[Panel]


Benchmarks = Mapping[str, Sequence[list[str]]]
"""Name -> of each number to show its key, and those of its interval."""


def sections(varied: Sequence[str], benchmarks: Benchmarks | None = None) -> list[Section]:
    """`varied`: columns in which the runs differ; `benchmarks`: those of any run."""
    load_library()
    return [
        Section("Sweep", "evaluate", "The last iteration of each run on held-out prompts.", sweep_panels(varied)),
        Section(
            "Iterations",
            "evaluate",
            "Mean win probability on held-out prompts with its interval, and what it can hide.",
            [line(title, ITERATION, metrics) for title, metrics in EVALUATIONS.items()],
        ),
        *(benchmark(name, numbers) for name, numbers in (benchmarks or {}).items() if numbers),
        Section(
            "Training",
            "train",
            "Every optimiser step, all iterations behind each other.",
            [line(title, STEP, metrics) for title, metrics in CURVES.items()],
        ),
        Section(
            "Ranking",
            "rank",
            "What was preferred, and what the ranker is like.",
            [line(title, ITERATION, metrics) for title, metrics in RANKINGS.items()],
        ),
        Section("Samples: training", "rank", "Prompts with their answers, and the pair that was taken.", table("rank")),
        Section("Samples: held out", "evaluate", "The new policy's answer beside the old ones.", table("evaluate")),
        Section("Reports of the runs", "evaluate", "Their pictures.", pictures()),
    ]


def benchmark(name: str, numbers: Sequence[list[str]]) -> Section:
    """It has W&B runs of its own."""
    panels: list[Panel] = [
        line(keys[0].replace("_", " "), ITERATION, [f"{name}/{key}" for key in keys]) for keys in numbers[:MOST_NUMBERS]
    ]
    some = f" The first {MOST_NUMBERS} of {len(numbers)} numbers." if len(numbers) > MOST_NUMBERS else ""
    about = f"By iteration, 0 being the start policy, with intervals where there are any.{some}"
    return Section(f"Benchmark: {name}", name, about, panels)


def line(title: str, x: str, metrics: list[str]) -> LinePlot:
    from wandb_workspaces.reports.v2.interface import LinePlot

    return LinePlot(title=title, x=x, y=[*metrics], title_x="step" if x == STEP else x, max_runs_to_show=100)


def sweep_panels(varied: Sequence[str]) -> list[Panel]:
    from wandb_workspaces.reports.v2.interface import Layout, ParallelCoordinatesPlot, ParameterImportancePlot

    columns = [name for name in COLUMNS if name in varied]
    numbers = [name for name in columns if name in NUMBERS]
    maps = [heat_map(*pair) for pair in combinations(numbers, 2)]
    curves = [] if maps else [scatter(f"Win rate by {name}", config(name), WIN, name) for name in numbers]
    wide = ParallelCoordinatesPlot(
        title="Settings and win rate",
        columns=[*map(_column, columns), *map(_result, ("tokens", "kl_per_token", WIN))],
        layout=Layout(w=24, h=10),
    )
    return [
        wide,
        *maps,
        *curves,
        scatter("Win rate and length", "tokens", WIN),
        scatter("Win rate and KL", "kl_per_token", WIN),
        ParameterImportancePlot(with_respect_to=WIN),
    ]


def heat_map(x: str, y: str) -> ScatterPlot:
    from wandb_workspaces.reports.v2.interface import GradientPoint, ScatterPlot

    return ScatterPlot(
        title=f"Win rate by {x} and {y}",
        x=config(x),
        y=config(y),
        z=WIN,
        log_x=x in LOGARITHMIC,
        log_y=y in LOGARITHMIC,
        gradient=[GradientPoint(color=colour, offset=offset) for offset, colour in COLOURS],
    )


def scatter(title: str, x: Config | str, y: str, name: str = "") -> ScatterPlot:
    from wandb_workspaces.reports.v2.interface import ScatterPlot

    return ScatterPlot(title=title, x=x, y=y, log_x=name in LOGARITHMIC)


def config(name: str) -> Config:
    from wandb_workspaces.reports.v2.interface import Config

    return Config(name)


def _column(name: str) -> ParallelCoordinatesPlotColumn:
    from wandb_workspaces.reports.v2.interface import ParallelCoordinatesPlotColumn

    return ParallelCoordinatesPlotColumn(metric=config(name), display_name=name, log=name in LOGARITHMIC)


def _result(name: str) -> ParallelCoordinatesPlotColumn:
    from wandb_workspaces.reports.v2.interface import ParallelCoordinatesPlotColumn

    return ParallelCoordinatesPlotColumn(metric=name)


def table(family: str) -> list[Panel]:
    from wandb_workspaces.reports.v2.interface import Layout, WeavePanelSummaryTable

    return [WeavePanelSummaryTable(table_name=TABLES[family], layout=Layout(w=24, h=14))]


def pictures() -> list[Panel]:
    from wandb_workspaces.reports.v2.interface import Layout, MediaBrowser

    keys = [f"plots/{name}" for name in PLOTS]
    return [MediaBrowser(title="Plots", media_keys=keys, num_columns=2, layout=Layout(w=24, h=16))]
