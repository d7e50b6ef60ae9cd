"""The tables of a comparison: as text for the page, Markdown and the terminal, and as CSV in full precision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from src.reporting.compare.artifacts import Numbers
from src.reporting.compare.points import Comparison, Row
from src.reporting.compare.read import WIN, RunFolder
from src.reporting.compare.settings import COPY, SEED, USUAL, Value, shown, symbol
from src.reporting.compare.significance import Difference
from src.reporting.tables import literal

Table = Any
"""A pandas DataFrame, whose types pyright cannot follow."""
ALWAYS = ("model.name", "method.name", "method.eta", "train.lr", "sampling.K", SEED)
"""Settings that every row of the CSV has, varied or not."""
FAMILIES = ("generate", "rank", "train", "evaluate", "prepare")
STAGES = {
    "own_responses": "generate",
    "responses": "generate",
    "ranking": "rank",
    "pairs": "rank",
    "reference": "train",
    "policy": "train",
    "prompts": "prepare",
}
"""Stage of an iteration -> family; what an iteration has beside them is its evaluation."""


def results(comparison: Comparison) -> Table:
    """Has a row a run and iteration."""
    axes = comparison.varied.axes
    heads = ["point", *(symbol(comparison.names[axis]) for axis in axes), "iteration", "win rate over base",
             "over previous", "tokens", "KL per token", "finished", "null"]  # fmt: skip
    rows = []
    for row in comparison.rows:
        numbers = row.step.numbers if row.step else {}
        rows.append([
            str(row.point.number),
            *(shown(row.values[axis]) for axis in axes),
            number(row.iteration or None, 0),
            interval(numbers, WIN),
            interval(numbers, "win_over_previous"),
            number(numbers.get("tokens"), 1),
            number(numbers.get("kl_per_token"), 4),
            number(numbers.get("finished"), 3),
            interval(numbers, "null_win"),
        ])  # fmt: skip
    table: Table = pd.DataFrame(rows, columns=heads)
    if any(run.state != "finished" for run in comparison.runs):
        table["state"] = [row.run.state for row in comparison.rows]
    return table


def over_seeds(comparison: Comparison) -> Table:
    """Has a row a point and iteration: the mean over its seeds; empty where seeds do not vary."""
    heads = ["point", *(symbol(comparison.names[axis]) for axis in comparison.axes), "iteration", "seeds",
             "win rate over base", "tokens", "KL per token"]  # fmt: skip
    rows = []
    for point in comparison.points if comparison.seeded else ():
        for t in point.iterations:
            win, seeds = point.win(t), len(point.steps(t))
            rate = "–" if win is None else f"{win.mean:.3f} ± {win.half:.3f}" if seeds > 1 else f"{win.mean:.3f}"
            tokens, kl = number(point.mean(t, "tokens"), 1), number(point.mean(t, "kl_per_token"), 4)
            rows.append([str(point.number), *map(shown, point.values.values()), str(t), str(seeds), rate, tokens, kl])
    return pd.DataFrame(rows, columns=heads)


def differences(entries: Sequence[Difference]) -> Table:
    """Has a row a pair of neighbours; `benchmark` is empty for differences of win rates."""
    rows = []
    for each in entries:
        mean, p, corrected, number_of = "–", "–", "–", each.over
        if each.paired:
            digits = ".3f" if each.over != "items" else ".4g"
            mean, low, high = (format(value, f"+{digits}") for value in each.paired[:3])
            mean = f"{mean} [{low}, {high}]"
            p, corrected = probability(each.paired.p), probability(each.holm)
            number_of = f"{each.paired.number} {each.over}"
        verdict = "differs" if each.differs else "no difference shown" if each.paired else each.reason
        rows.append([each.benchmark, each.step, each.where, mean, p, corrected, number_of, verdict])
    heads = ["benchmark", "from → to", "where", "difference", "p", "p, corrected", "paired by", "verdict"]
    table: Table = pd.DataFrame(rows, columns=heads)
    return table if any(table["benchmark"]) else table.drop(columns="benchmark")


def benchmarks(comparison: Comparison) -> Table:
    """Has a row a run, iteration and number of a benchmark, with its interval."""
    rows = []
    for point in comparison.points:
        for run in point.runs:
            for scores in run.benchmarks:
                for key in scores.measures:
                    value = f"{scores.numbers[key]:.4g}"
                    if scores.has_interval(key):
                        value += f" [{scores.numbers[f'{key}_low']:.4g}, {scores.numbers[f'{key}_high']:.4g}]"
                    items = number(scores.numbers.get("items"), 0)
                    where = [str(point.number), run.name, scores.benchmark, str(scores.iteration)]
                    rows.append([*where, key.replace("_", " "), value, items])
    return pd.DataFrame(rows, columns=["point", "run", "benchmark", "iteration", "measure", "value", "items"])


# Costs ---------------------------------------------------------------------------------------------------------------


def family(name: str) -> str:
    """Sorts an artifact into a family of stages by its name."""
    head, _, stage = name.partition("/")
    if head in ("base", "null") and stage != "policy":
        return "evaluate"
    if not head.startswith("it"):
        return "prepare"
    return "generate" if stage.startswith("outside_") else STAGES.get(stage, "evaluate")


def artifacts(comparison: Comparison) -> Table:
    """Has a row a run and artifact, with its seconds of one device and the number of runs that use it."""
    rows = [
        (number, artifact.name, artifact.kind, artifact.id, family(artifact.name), artifact.device_seconds)
        for number, run in enumerate(comparison.runs)
        for artifact in run.artifacts.values()
    ]
    table: Table = pd.DataFrame(rows, columns=["run", "name", "kind", "id", "family", "seconds"])
    table = table.drop_duplicates(["run", "id"], keep="last")
    return table.assign(users=table.groupby("id")["run"].transform("size"))


def costs(comparison: Comparison) -> Table:
    """Has a row a run, in seconds of one device.

    own: what no other run here uses; shared: what others use too, each in full; part: that divided by the runs that
    use it; alone: had the run shared nothing.
    """
    table, runs = artifacts(comparison), range(len(comparison.runs))
    by_family = table.pivot_table("seconds", "run", "family", "sum").reindex(index=runs, columns=[*FAMILIES])
    table["own"] = table["seconds"].where(table["users"] == 1, 0.0)
    table["shared"] = table["seconds"] - table["own"]
    table["part"] = table["shared"] / table["users"]
    sums = table.groupby("run")[["own", "shared", "part"]].sum().reindex(runs)
    costs = by_family.join(sums).fillna(0.0)
    return costs.assign(alone=costs["own"] + costs["shared"])


def spent(comparison: Comparison) -> float:
    """Adds up the seconds of a device of all artifacts, each once."""
    return float(artifacts(comparison).drop_duplicates("id")["seconds"].sum())


def _resumed(run: RunFolder) -> bool:
    return any(artifact.record.resumed for artifact in run.artifacts.values())


def cost_table(comparison: Comparison) -> Table:
    """Has a row a run, in hours of a device."""
    seconds = costs(comparison)
    seconds.insert(seconds.columns.get_loc("alone"), "own + part", seconds["own"] + seconds["part"])
    table = seconds.map(hours)
    least = ["≥ " if _resumed(run) else "" for run in comparison.runs]
    for total in ("own + part", "alone"):
        table[total] = [f"{prefix}{value}" for prefix, value in zip(least, table[total], strict=True)]
    points = {run.path: point.number for point in comparison.points for run in point.runs}
    table.insert(0, "point", [str(points[run.path]) for run in comparison.runs])
    table.insert(1, "run", [run.name for run in comparison.runs])
    table.insert(2, "device", [run.device for run in comparison.runs])
    return table


def cost_sentence(comparison: Comparison) -> str:
    apart, together = costs(comparison)["alone"].sum(), spent(comparison)
    device = "/".join(sorted({run.device for run in comparison.runs}))
    saved = f"; apart they would have taken {hours(apart)}, so sharing saved {hours(apart - together)}"
    sentence = f"All runs together took {hours(together)} {device}-hours{saved if apart > together else ''}."
    if any(map(_resumed, comparison.runs)):
        sentence += " At least: some artifacts went on after a stop, and their records have the time since then alone."
    return sentence


def shared(comparison: Comparison) -> Table:
    """Has a row a name of artifacts that several runs use, in hours of a device, what was saved most first."""
    table = artifacts(comparison)
    table = table[table["users"] > 1].drop_duplicates(["name", "kind", "id"])
    table["saved"] = table["seconds"] * (table["users"] - 1)
    columns = {"artifacts": ("id", "size"), "runs": ("users", "sum"), "spent": ("seconds", "sum")}
    sums = table.groupby(["name", "kind"], as_index=False).agg(**columns, saved=("saved", "sum"))
    sums = sums.sort_values(["saved", "name"], ascending=[False, True])
    sums[["spent", "saved"]] = sums[["spent", "saved"]].map(hours)
    return sums.rename(columns={"name": "artifact", "runs": "runs that use them"}).astype(str)


# Text ----------------------------------------------------------------------------------------------------------------


def number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def interval(numbers: Numbers, name: str) -> str:
    """Writes a mean ± half of its interval."""
    if not {name, f"{name}_low", f"{name}_high"} <= numbers.keys():
        return "–"
    half = (numbers[f"{name}_high"] - numbers[f"{name}_low"]) / 2
    return f"{numbers[name]:.3f} ± {half:.3f}"


def probability(p: float | None) -> str:
    return "–" if p is None else "< 0.0001" if p < 0.0001 else f"{p:.4f}"


def hours(seconds: float) -> str:
    value = seconds / 3600
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}" if value >= 0.0995 else f"{value:.4f}" if value else "0"


def of_words(table: Table) -> list[bool]:
    """Says of each column whether it has words, which begin at the left; numbers end at the right."""
    numeric = (table.iloc[:, i].str.fullmatch(r"([<≥] )?[-+]?\.?\d.*|–") for i in range(table.shape[1]))
    return [not column.all() for column in numeric]


def as_markdown(table: Table) -> str:
    escaped = table.map(literal).set_axis([literal(name) for name in table.columns], axis=1)
    return _drawn(escaped, "pipe")


def as_terminal(table: Table) -> str:
    return _drawn(table, "rounded_outline")


def _drawn(table: Table, style: str) -> str:
    align = ["left" if words else "right" for words in of_words(table)]
    return table.to_markdown(index=False, tablefmt=style, disable_numparse=True, colalign=align)


# CSV -----------------------------------------------------------------------------------------------------------------


def as_csv(comparison: Comparison) -> str:
    """Has a row a run and iteration, 0 being a start policy with benchmarks; one for a run that has none, or that
    cannot be read. `…_s` are seconds of a device.
    """
    varied = comparison.varied
    keys = [*ALWAYS, *(key for key in (*varied.axes, *varied.bound) if key not in ALWAYS)]
    one_a_run: dict[Any, Row] = {row.run.path: row for row in comparison.rows}
    entries = [(row, t, numbers) for row in one_a_run.values() for t, numbers in _by_iteration(row.run)]
    names = sorted({name for _, _, numbers in entries for name in numbers}, key=lambda name: ("/" in name, name))
    prices = {run.path: row for run, row in zip(comparison.runs, costs(comparison).to_dict("records"), strict=True)}
    rows: list[list[Value]] = []
    for row, t, numbers in entries:
        settings = row.run.settings | {COPY: row.values.get(COPY)}
        trained, price = row.run.artifacts.get(f"it{t}/policy"), prices[row.run.path]
        rows.append([
            row.run.name, row.point.number, *(settings.get(key) for key in keys), t, row.run.state,
            *(numbers.get(name) for name in names),
            trained.device_seconds if trained else None, price["own"], price["shared"], price["part"],
        ])  # fmt: skip
    heads = ["run", "point", *(USUAL.get(key, key) for key in keys), "iteration", "state", *names,
             "train_s", "run_own_s", "run_shared_s", "run_part_of_shared_s"]  # fmt: skip
    for run in comparison.damaged:
        reason = {"run": run.name, "state": f"damaged: {run.reason}"}
        rows.append([reason.get(head) for head in heads])
    safe = [[no_formula(value) for value in row] for row in rows]
    return pd.DataFrame(safe, columns=heads, dtype=object).to_csv(index=False, lineterminator="\n")


def no_formula(value: Value) -> Value:
    """Keeps a spreadsheet from running what the name of somebody's model says."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def _by_iteration(run: RunFolder) -> list[tuple[int | None, Numbers]]:
    """Returns the numbers of each iteration; those of a benchmark are called `<benchmark>/<number>`."""
    numbers = {step.iteration: dict(step.numbers) for step in run.steps}
    for scores in run.benchmarks:
        own = {f"{scores.benchmark}/{key}": value for key, value in scores.numbers.items()}
        numbers[scores.iteration] = numbers.get(scores.iteration, {}) | own
    return sorted(numbers.items()) or [(None, {})]
