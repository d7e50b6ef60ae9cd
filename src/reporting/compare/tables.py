"""The tables of a comparison, whose cells are text, and compare.csv in full precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from src.evaluation.statistics import mean_interval
from src.reporting.compare.points import COLUMNS, RUN, SEED, Comparison, short, symbol
from src.reporting.compare.read import SECOND, USUAL, WIN, Artifact, Table
from src.reporting.compare.significance import Difference
from src.reporting.tables import DASH, cell, frame, literal, markdown, number

ALWAYS = ("model.name", "method.name", "method.eta", "train.lr", "sampling.K", SEED)
"""Settings that every row of the CSV has, varied or not."""
FAMILIES = {"own_responses": "generate", "responses": "generate", "ranking": "rank", "pairs": "rank",
            "reference": "train", "policy": "train"}  # fmt: skip
"""Stage of an iteration -> the column of its costs."""


def results(comparison: Comparison) -> Table:
    """Return one row per run and iteration."""
    axes = comparison.varied.axes
    heads = ["point", *(symbol(comparison.names[axis]) for axis in axes), *COLUMNS]
    rows = []
    for point, run, step in comparison.rows:
        numbers, settings = step.numbers if step else {}, run.settings | {RUN: run.name}
        row = [point.number, *(short(settings.get(axis)) for axis in axes), step.iteration if step else DASH]
        row += [interval(numbers, WIN), *(number(numbers.get(f"{kind}_{WIN}"), 3) for kind in ("hard", "lc"))]
        row += [interval(numbers, f"{SECOND}{WIN}"), interval(numbers, "win_over_previous")]
        row += [number(numbers.get("tokens"), 1), interval(numbers, "kl_per_token", 4)]
        rows.append([*row, number(numbers.get("finished"), 3), interval(numbers, "null_win"), run.state])
    return _without_idle(frame(heads, rows))


def _without_idle(table: Table) -> Table:
    """Leave out columns that say nothing."""
    idle = {"state": "finished", "by the second judge": DASH}
    return table.drop(columns=[head for head, value in idle.items() if head in table and {*table[head]} == {value}])


def over_seeds(comparison: Comparison) -> Table:
    """Return one row per point and iteration: the mean over its seeds; no row where seeds do not vary."""
    heads = ["point", *(symbol(comparison.names[axis]) for axis in comparison.axes), "iteration", "seeds",
             "win rate over base", "by the second judge", "tokens", "KL per token"]  # fmt: skip
    rows = []
    for point in comparison.points if comparison.seeded else ():
        for t in point.iterations:
            seeds, wins = len(point.steps(t)), [point.win(t), point.win(t, second=True)]
            rates = [f"{win.mean:.3f}" + f" ± {win.half:.3f}" * (seeds > 1) if win else DASH for win in wins]
            kls = np.array([step.numbers.get("kl_per_token", np.nan) for step in point.steps(t)])
            low, high = mean_interval(kls, point.runs[0].confidence)
            kl = number(kls.mean(), 4) + f" ± {(high - low) / 2:.4f}" * (seeds > 1 and high > low)
            tokens = number(point.mean(t, "tokens"), 1)
            rows.append([point.number, *map(short, point.values.values()), t, seeds, *rates, tokens, kl])
    return _without_idle(frame(heads, rows))


def differences(entries: Sequence[Difference]) -> Table:
    """Return one row per pair of neighbours."""
    rows = []
    for each in entries:
        row = [each.benchmark, each.pair.step, each.where]
        if each.paired:
            mean, low, high = (f"{value:+.3f}" for value in each.paired[:3])
            ps = ["< 0.0001" if p < 1e-4 else f"{p:.4f}" for p in (each.paired.p, each.holm or 0.0)]
            verdict = "differs" if each.differs else "no difference shown"
            row += [f"{mean} [{low}, {high}]", *ps, f"{each.paired.number} {each.over}", verdict]
        else:
            row += [DASH, DASH, DASH, each.over, each.reason]
        rows.append(row)
    heads = ["benchmark", "from → to", "where", "difference", "p", "p, corrected", "paired by", "verdict"]
    table = frame(heads, rows)
    return table if any(table["benchmark"]) else table.drop(columns="benchmark")


def benchmarks(comparison: Comparison) -> Table:
    """Return one row per run, iteration and number of a benchmark, with its interval."""
    rows = [
        [point.number, run.name, one.title, one.iteration, key.replace("_", " "), cell(one.numbers, key, 3)]
        for point in comparison.points
        for run in point.runs
        for one in run.benchmarks
        for key in one.measures
    ]
    return frame(["point", "run", "benchmark", "iteration", "measure", "value"], rows)


def costs(comparison: Comparison) -> tuple[Table, str]:
    """Return one row per run, in hours of a device by family of stages, and a sentence on the sum."""
    rows = [
        (point.number, str(run.path), run.name, run.device, each.id, _family(each), each.seconds / 3600)
        for point in comparison.points
        for run in point.runs
        for each in run.artifacts.values()
    ]
    run = ["point", "path", "run", "device"]
    table: Table = pd.DataFrame(rows, columns=[*run, "id", "family", "hours"]).drop_duplicates(["path", "id"])
    table["family"] = pd.Categorical(table["family"], ["generate", "rank", "train", "evaluate"])
    hours = table.pivot_table("hours", run, "family", "sum", sort=False, observed=False)
    hours["all"] = hours.sum(axis=1)
    spent, unshared = table.drop_duplicates("id")["hours"].sum(), hours["all"].sum()
    sentence = f"All runs together took {_hours(spent)} {'/'.join(sorted(set(table['device'])))}-hours"
    sentence += f"; without a shared store it would have been {_hours(unshared)}." if unshared > spent else "."
    return hours.map(_hours).reset_index().drop(columns="path"), sentence


def _family(artifact: Artifact) -> str:
    """Name the column of its costs: what an iteration has beside its training, and all else, is evaluation."""
    stage = artifact.place.stage
    if not artifact.place.iteration or artifact.place.benchmark:
        return "evaluate"
    return "generate" if stage.startswith("outside_") else FAMILIES.get(stage, "evaluate")


def _hours(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


# Text ----------------------------------------------------------------------------------------------------------------


def interval(numbers: Mapping[str, float], name: str, digits: int = 3) -> str:
    """Write a mean ± half of its interval."""
    if f"{name}_high" not in numbers:
        return DASH
    half = (numbers[f"{name}_high"] - numbers[f"{name}_low"]) / 2
    return f"{numbers[name]:.{digits}f} ± {half:.{digits}f}"


def text_columns(table: Table) -> list[bool]:
    """Return for each column whether it has text, which is aligned left; numbers are aligned right."""
    return [not table[column].astype(str).str.fullmatch(rf"([<≥] )?[-+]?\.?\d.*|{DASH}").all() for column in table]


def as_markdown(table: Table) -> str:
    return markdown(table.astype(str).map(literal).rename(columns=literal))


def as_csv(comparison: Comparison) -> str:
    """Write one row per run and iteration, 0 being a start policy with benchmarks; one for a run that has none."""
    keys = dict.fromkeys([*ALWAYS, *comparison.varied.axes, *comparison.varied.bound])
    rows: list[dict[str, Any]] = []
    for point in comparison.points:
        for run in point.runs:
            head: dict[str, Any] = {"run": run.name, "point": point.number}
            head |= {USUAL.get(key, key): run.settings.get(key) for key in keys if key != RUN}
            measured = [*run.steps, *run.benchmarks]
            for t in sorted({each.iteration for each in measured}) or [None]:
                row = head | {"iteration": t, "state": run.state}
                for each in measured:
                    prefix = f"{each.benchmark}/" if each.benchmark else ""
                    if each.iteration == t:
                        row |= {f"{prefix}{name}": value for name, value in each.numbers.items()}
                rows.append(row)
    return pd.DataFrame(rows, dtype=object).to_csv(index=False, lineterminator="\n")
