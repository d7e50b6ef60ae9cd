"""A comparison as a report at W&B, of exactly these runs, by their ids."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from itertools import combinations
from typing import TYPE_CHECKING, Any

from src.kernel.config import UserError
from src.kernel.processes import legible
from src.reporting.compare.points import Comparison
from src.reporting.wandb import STEP, experiment_of, has_key, reason_of, run_id

if TYPE_CHECKING:
    from wandb_workspaces.reports.v2.interface import Report

LONGEST_TITLE = 128
WIN = "win_rate"
LOGARITHMIC = ("eta", "lr")
NUMBERS = (*LOGARITHMIC, "K")
COLUMNS = (*NUMBERS, "method", "model", "seed", "ranker", "estimator")
"""Columns at the top of the config of a W&B run."""
SUMMARY = (WIN, "tokens", "kl_per_token", "best_win_rate", "lc_win_rate", "win_rate_over_previous")
TABLES = {"rank": "samples/training", "evaluate": "samples/held_out"}
"""Family whose runs have it -> table."""
LINES = {
    "evaluate": (
        "evaluation/win_over_base evaluation/win_over_base_low evaluation/win_over_base_high",
        "evaluation/win_over_previous",
        "evaluation/tokens",
        "divergence/kl_per_token",
    ),
    "train": ("train/loss_scaled", "train/chosen_logratio train/rejected_logratio", "train/reward_margin"),
    "rank": ("pairs/chosen_win pairs/rejected_win", "ranking/length_correlation"),
}
"""Family -> the metrics of each panel."""


def report(comparison: Comparison, place: str) -> Report:
    """Build the report; `place` is `entity/project` or a project."""
    with warnings.catch_warnings():  # the library warns of its own use of pydantic
        warnings.simplefilter("ignore", DeprecationWarning)
        import wandb_workspaces.reports.v2.interface as wr

    names = [comparison.names[axis] for axis in comparison.varied.axes]
    varied = [name for name in names if name in COLUMNS]
    commands = "\n".join(dict.fromkeys(legible(run.command) for run in comparison.runs))
    blocks: list[Any] = [wr.H2("What was run"), wr.P(f"The runs differ in {', '.join(names)}."),
                         wr.CodeBlock(commands, language="markdown")]  # fmt: skip

    def section(title: str, family: str, panels: list[Any]) -> None:
        """Add panels on the W&B runs of a family."""
        keys = [(run.path, {name: one.key for name, one in run.artifacts.items()}) for run in comparison.runs]
        ids = ", ".join(repr(run_id(path, family, experiment_of(named))) for path, named in keys)
        runs = wr.Runset(
            name=f"{family}: {comparison.title}"[:LONGEST_TITLE],
            filters=f"Metric('ID') in [{ids}]",
            pinned_columns=["run:displayName", *(f"config:{name}.value" for name in varied)],
            visible_columns=[f"summary:{name}" for name in SUMMARY],
        )
        blocks.extend([wr.H2(title), wr.PanelGrid(runsets=[runs], panels=panels)])

    def lines(metrics: Iterable[str], x: str = "iteration") -> list[Any]:
        panels = []
        for names in metrics:
            y: list[Any] = names.split(" ")
            title = y[0].partition("/")[2].replace("_", " ")
            panels.append(wr.LinePlot(title=title, x=x, y=y, title_x=x, max_runs_to_show=100))
        return panels

    def scatter(x: str, y: str, **more: Any) -> Any:
        """Draw settings; W&B has no heat map of runs: a scatter plot on a grid with colours is one."""
        ends = [wr.Config(name) if name in COLUMNS else name for name in (x, y)]
        log = [name in LOGARITHMIC for name in (x, y)]
        return wr.ScatterPlot(title=f"Win rate by {x} and {y}" if more else f"{y} by {x}",
                              x=ends[0], y=ends[1], log_x=log[0], log_y=log[1], **more)  # fmt: skip

    colours = ((0, "#440154"), (50, "#21918c"), (100, "#fde725"))  # percent of the range of win rates: viridis
    gradient = [wr.GradientPoint(color=colour, offset=offset) for offset, colour in colours]
    numbers = [name for name in varied if name in NUMBERS]
    maps = [scatter(x, y, z=WIN, gradient=gradient) for x, y in combinations(numbers, 2)]
    section("Sweep", "evaluate", [*maps, *(scatter(name, WIN) for name in (*numbers, "tokens", "kl_per_token"))])
    section("Iterations", "evaluate", lines(LINES["evaluate"]))
    scores = [scores for run in comparison.runs for scores in run.benchmarks]
    for benchmark in sorted({each.benchmark for each in scores}):
        measures = [key for each in scores if each.benchmark == benchmark for key in each.measures]
        section(f"Benchmark: {benchmark}", benchmark, lines(f"{benchmark}/{key}" for key in dict.fromkeys(measures)))
    section("Training", "train", lines(LINES["train"], STEP))
    section("Ranking", "rank", lines(LINES["rank"]))
    for family, table in TABLES.items():
        section(f"Samples: {table}", family, [wr.WeavePanelSummaryTable(table_name=table)])
    entity, _, project = place.rpartition("/")
    about = f"Made by `compare`, which replaces this report for the same runs=. {_mark(comparison)}"
    return wr.Report(project=project, entity=entity, title=comparison.title[:LONGEST_TITLE], description=about,
                     blocks=blocks, width="fluid")  # fmt: skip


def _mark(comparison: Comparison) -> str:
    """Return the words of the description by which a report is found again, whatever its title."""
    return f"[compare {comparison.identity}]"


def publish(comparison: Comparison, place: str) -> None:
    """Save the report in place of the one that the same `runs=` made before.

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
        raise UserError(f"report: W&B says {reason_of(error)}") from error
    print(f"report: {made.url}")
