"""The tables of a comparison: as cells for the page, Markdown and the terminal, and as CSV in full precision."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import NamedTuple

from src.reporting.compare.artifacts import Numbers
from src.reporting.compare.costs import Cost, Shared, spent
from src.reporting.compare.gather import WIN, Damaged, Folder
from src.reporting.compare.points import Comparison, Row
from src.reporting.compare.significance import Difference
from src.reporting.compare.varied import COPY, SEED, USUAL, Value, shown, sign

ALWAYS = ("model.name", "method.name", "method.eta", "train.lr", "sampling.K", SEED)
"""Settings that every row of the CSV has, varied or not."""


class Cell(NamedTuple):
    text: str
    sort: Value = None
    """None: by the text."""


class Table(NamedTuple):
    headings: list[str]
    rows: list[list[Cell]]
    points: list[int]
    """Of each row, the point whose marks it shows; 0: none."""


def results(found: Comparison) -> Table:
    """A row a run and iteration."""
    axes = found.varied.axes
    heads = ["point", *(sign(found.names.get(axis, axis)) for axis in axes), "iteration", "win rate over base",
             "over previous", "tokens", "KL per token", "finished", "null"]  # fmt: skip
    stated = any(run.state != "finished" for run in found.runs)
    rows = [_result(row, axes) + [Cell(row.run.state)] * stated for row in found.rows]
    return Table(heads + ["state"] * stated, rows, [row.point.number for row in found.rows])


def _result(row: Row, axes: list[str]) -> list[Cell]:
    numbers = row.step.numbers if row.step else {}
    return [
        number(row.point.number, 0),
        *(Cell(shown(row.values[axis]), row.values[axis]) for axis in axes),
        number(row.iteration or None, 0),
        interval(numbers, WIN),
        interval(numbers, "win_over_previous"),
        number(numbers.get("tokens"), 1),
        number(numbers.get("kl_per_token"), 4),
        number(numbers.get("finished"), 3),
        interval(numbers, "null_win"),
    ]


def over_seeds(found: Comparison) -> Table:
    """A row a point and iteration: mean over its seeds; empty where seeds do not vary."""
    heads = ["point", *(sign(found.names[axis]) for axis in found.axes), "iteration", "seeds", "win rate over base",
             "tokens", "KL per token"]  # fmt: skip
    rows: list[list[Cell]] = []
    points: list[int] = []
    for point in found.points if found.seeded else ():
        for t in point.iterations:
            win, seeds = point.win(t), len(point.steps(t))
            told = f"{win.mean:.3f} ± {win.half:.3f}" if win and seeds > 1 else f"{win.mean:.3f}" if win else "–"
            rows.append([
                number(point.number, 0),
                *(Cell(shown(value), value) for value in point.values.values()),
                number(t, 0),
                number(seeds, 0),
                Cell(told, win.mean if win else None),
                number(point.mean(t, "tokens"), 1),
                number(point.mean(t, "kl_per_token"), 4),
            ])  # fmt: skip
            points.append(point.number)
    return Table(heads, rows, points)


def significance(differences: Sequence[Difference]) -> Table:
    heads = ["from → to", "where", "difference of win rates", "p", "p, corrected", "paired by", "verdict"]
    rows: list[list[Cell]] = []
    for d in differences:
        told, p, corrected, paired = Cell("–"), Cell("–"), Cell("–"), Cell(d.over)
        if d.paired:
            told = Cell(f"{d.paired.mean:+.3f} [{d.paired.low:+.3f}, {d.paired.high:+.3f}]", d.paired.mean)
            p, corrected = probability(d.paired.p), probability(d.holm)
            paired = Cell(f"{d.paired.number} {d.over}", d.paired.number)
        verdict = "differs" if d.differs else "no difference shown" if d.paired else d.reason
        rows.append([Cell(d.step), Cell(d.rest), told, p, corrected, paired, Cell(verdict)])
    return Table(heads, rows, [d.points[1].number for d in differences])


def cost(found: Comparison, costs: Sequence[Cost]) -> Table:
    """Hours of a device by run, and what all were together."""
    families = list(costs[0].by_family)
    heads = ["point", "run", "device", *families, "own", "shared", "part", "own + part", "alone"]
    owner = {id(run): point.number for point in found.points for run in point.runs}
    rows = [
        [
            number(owner[id(each.run)], 0),
            Cell(each.run.name),
            Cell(each.run.device),
            *(hours(each.by_family[name]) for name in families),
            *(hours(value) for value in (each.own, each.shared, each.part)),
            hours(each.own + each.part, each.at_least),
            hours(each.alone, each.at_least),
        ]
        for each in costs
    ]
    return Table(heads, rows, [owner[id(each.run)] for each in costs])


def cost_sentence(found: Comparison, costs: Sequence[Cost]) -> str:
    apart, together = sum(each.alone for each in costs), spent(found)
    device = "/".join(sorted({each.run.device for each in costs}))
    saved = f"; apart they would have taken {_hours(apart)}, so sharing saved {_hours(apart - together)}"
    shared = saved if apart > together else ""
    least = " At least: some artifacts went on after a stop, and their records have the time since then alone."
    return f"All runs together took {_hours(together)} {device}-hours{shared}." + least * any(c.at_least for c in costs)


def shared(rows: Sequence[Shared]) -> Table:
    heads = ["artifact", "kind", "artifacts", "runs that use them", "spent", "saved"]
    return Table(
        heads,
        [
            [Cell(row.name), Cell(row.kind), number(row.artifacts, 0), number(row.runs, 0), hours(row.seconds),
             hours(row.saved)]
            for row in rows
        ],
        [0] * len(rows),
    )  # fmt: skip


def number(value: float | None, digits: int) -> Cell:
    return Cell("–") if value is None else Cell(f"{value:.{digits}f}", value)


def interval(numbers: dict[str, float], name: str) -> Cell:
    """Mean ± half of its interval."""
    if not {name, f"{name}_low", f"{name}_high"} <= numbers.keys():
        return Cell("–")
    half = (numbers[f"{name}_high"] - numbers[f"{name}_low"]) / 2
    return Cell(f"{numbers[name]:.3f} ± {half:.3f}", numbers[name])


def probability(p: float | None) -> Cell:
    if p is None:
        return Cell("–")
    return Cell("< 0.0001" if p < 0.0001 else f"{p:.4f}", p)


def hours(seconds: float, at_least: bool = False) -> Cell:
    return Cell("≥ " * at_least + _hours(seconds), seconds)


def _hours(seconds: float) -> str:
    value = seconds / 3600
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}" if value >= 0.0995 else f"{value:.4f}" if value else "0"


def _plain(value: Value) -> Value:
    """Text that a spreadsheet takes for no formula: it would run what the name of somebody's model says."""
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return f"'{value}"
    return "" if value is None else value


def as_csv(found: Comparison, costs: Sequence[Cost], damaged: Sequence[Damaged] = ()) -> str:
    """A row a run and iteration, 0 being a start policy with benchmarks; one for a run that has none, or that cannot be
    read.

    `…_s`: seconds of a device.
    """
    keys = [*ALWAYS, *(key for key in (*found.varied.axes, *found.varied.bound) if key not in ALWAYS)]
    entries = [(row, t, numbers) for row in _row_a_run(found) for t, numbers in _by_iteration(row.run)]
    names = sorted({name for _, _, numbers in entries for name in numbers}, key=lambda name: ("/" in name, name))
    head = [*(USUAL.get(key, key) for key in keys), "iteration", "state", *names]
    price = {id(each.run): [each.own, each.shared, each.part] for each in costs}
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    head = ["run", "point", *head, "train_s", "run_own_s", "run_shared_s", "run_part_of_shared_s"]
    writer.writerow(head)
    for row, t, numbers in entries:
        settings = row.run.settings | {COPY: row.values.get(COPY)}
        trained = row.run.artifacts.get(f"it{t}/policy")
        values: list[Value] = [row.run.name, row.point.number, *(settings.get(key) for key in keys)]
        values += [t, row.run.state, *(numbers.get(name) for name in names)]
        values += [trained.device_seconds if trained else None, *price[id(row.run)]]
        writer.writerow(map(_plain, values))
    for run in damaged:
        told = {"run": run.name, "state": f"damaged: {run.reason}"}
        writer.writerow([_plain(told.get(name)) for name in head])
    return out.getvalue()


def _row_a_run(found: Comparison) -> list[Row]:
    return list({id(row.run): row for row in found.rows}.values())


def _by_iteration(run: Folder) -> list[tuple[int | None, Numbers]]:
    """Its numbers; those of a benchmark are called `<benchmark>/<number>`."""
    numbers = {step.iteration: dict(step.numbers) for step in run.steps}
    for one in run.benchmarks:
        own = {f"{one.name}/{key}": value for key, value in one.numbers.items()}
        numbers[one.iteration] = numbers.get(one.iteration, {}) | own
    return sorted(numbers.items()) or [(None, {})]
