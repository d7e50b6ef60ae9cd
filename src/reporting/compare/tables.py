"""The tables of a comparison, whose cells are text, and compare.csv in full precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from src.reporting.compare.points import RUN, SEED, Comparison, shown, symbol
from src.reporting.compare.read import USUAL, WIN, Artifact, Table, Value
from src.reporting.compare.significance import Difference
from src.reporting.tables import DASH, cell, frame, literal, markdown, number

ALWAYS = ("model.name", "method.name", "method.eta", "train.lr", "sampling.K", SEED)
"""Settings that every row of the CSV has, varied or not."""
FAMILIES = {"own_responses": "generate", "responses": "generate", "ranking": "rank", "pairs": "rank",
            "reference": "train", "policy": "train"}  # fmt: skip
"""Stage of an iteration -> the column of its costs."""


def results(comparison: Comparison) -> Table:
    """Make a row a run and iteration."""
    axes = comparison.varied.axes
    heads = ["point", *(symbol(comparison.names[axis]) for axis in axes), "iteration", "win rate over base",
             "over previous", "tokens", "KL per token", "finished", "null", "state"]  # fmt: skip
    rows = []
    for point, run, step in comparison.rows:
        numbers, settings = step.numbers if step else {}, run.settings | {RUN: run.name}
        rows.append([
            point.number,
            *(shown(settings.get(axis)) for axis in axes),
            step.iteration if step else DASH,
            interval(numbers, WIN),
            interval(numbers, "win_over_previous"),
            number(numbers.get("tokens"), 1),
            number(numbers.get("kl_per_token"), 4),
            number(numbers.get("finished"), 3),
            interval(numbers, "null_win"),
            run.state,
        ])  # fmt: skip
    table = frame(heads, rows)
    return table.drop(columns="state") if (table["state"] == "finished").all() else table


def over_seeds(comparison: Comparison) -> Table:
    """Make a row a point and iteration: the mean over its seeds; no row where seeds do not vary."""
    heads = ["point", *(symbol(comparison.names[axis]) for axis in comparison.axes), "iteration", "seeds",
             "win rate over base", "tokens", "KL per token"]  # fmt: skip
    rows = []
    for point in comparison.points if comparison.seeded else ():
        for t in point.iterations:
            win, seeds = point.win(t), len(point.steps(t))
            assert win
            rate = f"{win.mean:.3f} ± {win.half:.3f}" if seeds > 1 else f"{win.mean:.3f}"
            tokens, kl = number(point.mean(t, "tokens"), 1), number(point.mean(t, "kl_per_token"), 4)
            rows.append([point.number, *map(shown, point.values.values()), t, seeds, rate, tokens, kl])
    return frame(heads, rows)


def differences(entries: Sequence[Difference]) -> Table:
    """Make a row a pair of neighbours."""
    rows = []
    for each in entries:
        mean, p, corrected, number_of, verdict = DASH, DASH, DASH, each.over, each.reason
        if each.paired:
            mean, low, high = (f"{value:+.3f}" for value in each.paired[:3])
            mean, number_of = f"{mean} [{low}, {high}]", f"{each.paired.number} {each.over}"
            p, corrected = (
                DASH if v is None else "< 0.0001" if v < 1e-4 else f"{v:.4f}" for v in (each.paired.p, each.holm)
            )
            verdict = "differs" if each.differs else "no difference shown"
        rows.append([each.benchmark, each.step, each.where, mean, p, corrected, number_of, verdict])
    heads = ["benchmark", "from → to", "where", "difference", "p", "p, corrected", "paired by", "verdict"]
    table = frame(heads, rows)
    return table if table["benchmark"].any() else table.drop(columns="benchmark")


def benchmarks(comparison: Comparison) -> Table:
    """Make a row a run, iteration and number of a benchmark, with its interval."""
    rows = [
        [
            point.number,
            run.name,
            scores.benchmark,
            scores.iteration,
            key.replace("_", " "),
            cell(scores.numbers, key, 3),
        ]
        for point in comparison.points
        for run in point.runs
        for scores in run.benchmarks
        for key in scores.measures
    ]
    return frame(["point", "run", "benchmark", "iteration", "measure", "value"], rows)


def _family(artifact: Artifact) -> str:
    """Name the column of its costs: what an iteration has beside its training, and all else, is evaluation."""
    stage = artifact.place.stage
    if not artifact.place.iteration or artifact.place.benchmark:
        return "evaluate"
    return "generate" if stage.startswith("outside_") else FAMILIES.get(stage, "evaluate")


def costs(comparison: Comparison) -> Table:
    """Sum the seconds of a device by run folder: by family of stages, in all, and of what other runs use too."""
    table: Table = pd.DataFrame(
        [
            (str(run.path), artifact.id, _family(artifact), artifact.seconds)
            for run in comparison.runs
            for artifact in run.artifacts.values()
        ],
        columns=["run", "id", "family", "seconds"],
    ).drop_duplicates(["run", "id"])
    seconds = table.pivot_table("seconds", "run", "family", "sum", fill_value=0.0).reindex(
        columns=["generate", "rank", "train", "evaluate"], fill_value=0.0
    )
    shared = table[table.duplicated("id", keep=False)].groupby("run")["seconds"].sum()
    seconds["all"], seconds["shared"] = seconds.sum(axis=1), shared.reindex(seconds.index, fill_value=0.0)
    seconds.attrs["spent"] = float(table.drop_duplicates("id")["seconds"].sum())
    return seconds.reindex([str(run.path) for run in comparison.runs], fill_value=0.0)


def cost_table(comparison: Comparison) -> Table:
    """Make a row a run, in hours of a device."""
    table = costs(comparison).map(hours)
    table.insert(0, "point", [point.number for point in comparison.points for _ in point.runs])
    table.insert(1, "run", [run.name for run in comparison.runs])
    table.insert(2, "device", [run.device for run in comparison.runs])
    return table.rename(columns={"shared": "of it shared"})


def cost_sentence(comparison: Comparison) -> str:
    table = costs(comparison)
    spent, apart = table.attrs["spent"], table["all"].sum()
    device = "/".join(sorted({run.device for run in comparison.runs}))
    saved = f"; without a shared store it would have been {hours(apart)}" if apart > spent else ""
    return f"All runs together took {hours(spent)} {device}-hours{saved}."


def lineage(comparison: Comparison) -> dict[str, Table]:
    """Say of each run which artifact was made from which."""
    tables = {}
    for run in comparison.runs:
        names = {artifact.id: artifact.name for artifact in reversed(run.artifacts.values())}
        rows = [
            [
                each.name,
                each.id,
                ", ".join(names.get(p, p) for p in each.parents) or DASH,
                f"{each.record['seconds']:.1f}",
            ]
            for each in run.artifacts.values()
        ]
        tables[run.name] = frame(["artifact", "key", "made from", "seconds"], rows)
    return tables


# Text ----------------------------------------------------------------------------------------------------------------


def interval(numbers: Mapping[str, float], name: str) -> str:
    """Write a mean ± half of its interval."""
    if f"{name}_high" not in numbers:
        return DASH
    return f"{numbers[name]:.3f} ± {(numbers[f'{name}_high'] - numbers[f'{name}_low']) / 2:.3f}"


def hours(seconds: float) -> str:
    return f"{seconds / 3600:.0f}" if seconds >= 360_000 else f"{seconds / 3600:.3g}"


def of_words(table: Table) -> list[bool]:
    """Say of each column whether it has words, which begin at the left; numbers end at the right."""
    return [not table[column].astype(str).str.fullmatch(rf"([<≥] )?[-+]?\.?\d.*|{DASH}").all() for column in table]


def as_markdown(table: Table) -> str:
    texts = table.astype(str).map(literal)
    return markdown(texts.set_axis([literal(name) for name in table.columns], axis=1))


def as_csv(comparison: Comparison) -> str:
    """Write a row a run and iteration, 0 being a start policy with benchmarks; one for a run that has none."""
    varied = comparison.varied
    keys = dict.fromkeys([*ALWAYS, *varied.axes, *varied.bound])
    rows: list[dict[str, Any]] = []
    for point in comparison.points:
        for run in point.runs:
            settings: dict[str, Value] = {USUAL.get(key, key): run.settings.get(key) for key in keys if key != RUN}
            by_iteration: dict[int | None, dict[str, float]] = {} if run.steps or run.benchmarks else {None: {}}
            for each in (*run.steps, *run.benchmarks):
                prefix = f"{each.benchmark}/" if each.benchmark else ""
                numbers = {f"{prefix}{name}": value for name, value in each.numbers.items()}
                by_iteration.setdefault(each.iteration, {}).update(numbers)
            for t, numbers in sorted(by_iteration.items(), key=lambda item: item[0] or 0):
                head = {"run": run.name, "point": point.number, **settings, "iteration": t, "state": run.state}
                rows.append(head | numbers)
    return pd.DataFrame(rows, dtype=object).to_csv(index=False, lineterminator="\n")
