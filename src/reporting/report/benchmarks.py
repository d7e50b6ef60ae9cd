"""Benchmarks in a report or a card: what was measured, and beside it what is published."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from src.evaluation.benchmark import Measure, Result, of_table
from src.evaluation.win_matrix import WinMatrix
from src.experiment.run import Run
from src.reporting.published import Published, Table, cited, published
from src.reporting.report.tables import markdown, number, terminal
from src.reporting.report.win_matrix_picture import draw_win_matrix

NOT_MEASURED = "not measured"
NOT_COMPARABLE = "not comparable"
"""Measured, and otherwise than what is published: the table of what was measured says how."""
PICTURE = "published.png"


def benchmarks(run: Run, found: Sequence[Result], plots: Path) -> list[str]:
    """Parts of a report: what benchmarks measured, and what is published of the experiment, drawn into `plots`."""
    note = (
        f"In brackets: {run.held_out.confidence:.0%} intervals over the items, of each policy by itself. Whether two "
        "policies differ is told by `compare`, which pairs them by item.\n"
    )
    parts = ["## Benchmarks\n", measured_tables(found), note, *_pictures(run, found, plots)] if found else []
    known = published().get(run.experiment or "")
    if known is None or not known.tables:
        return parts
    from src.reporting.report.published_plot import draw_published

    policies = ["base", *(f"it{t}" for t in range(1, run.iter + 1))]
    parts += ["## Published beside ours\n", published_tables(known, found, policies)]
    drawn = draw_published(known, found, run.iter, plots / PICTURE)
    return parts + ([f"![Published numbers by iteration, and ours]({plots.name}/{PICTURE})\n"] if drawn else [])


def _pictures(run: Run, found: Sequence[Result], plots: Path) -> list[str]:
    """Draws each win matrix into `plots`, where W&B finds it too."""
    shown = []
    for one in found:
        if isinstance(one.benchmark, WinMatrix):
            plots.mkdir(exist_ok=True)
            name = f"{one.name}_{one.policy}_matrix.png"
            judge = (one.benchmark.ranker or run.ranker).name
            draw_win_matrix(one.numbers, judge, run.held_out.confidence, plots / name)
            shown.append(f"![{one.benchmark.title}, {policy_title(one.policy)}]({plots.name}/{name})\n")
    return shown


def measured_summary(found: Sequence[Result]) -> str:
    """The tables of `measured_tables` for a terminal."""
    names = dict.fromkeys(one.name for one in found)
    return "".join(terminal(*_table([one for one in found if one.name == name])) for name in names)


def measured_tables(found: Sequence[Result]) -> str:
    """A table a benchmark, a row a policy; empty where nothing was measured."""
    names = dict.fromkeys(one.name for one in found)
    return "\n".join(_measured([one for one in found if one.name == name]) for name in names)


def published_tables(known: Published, found: Sequence[Result], policies: Iterable[str]) -> str:
    """Every published table, with a row of each of our `policies` (`base`, `it1`, …) under it."""
    ours = list(policies)
    return "\n".join(
        [f"Of {known.system}, as published:\n", *(_published(table, found, ours) for table in known.tables)]
    )


def policy_title(policy: str) -> str:
    return "start policy" if policy == "base" else f"iteration {policy.removeprefix('it')}"


def cell(one: Result, measure: Measure) -> str:
    """The value with its interval."""
    value, interval = one.numbers.get(measure.key), one.interval(measure)
    if value is None:
        return NOT_MEASURED
    spread = f" [{number(interval[0], measure.digits)}, {number(interval[1], measure.digits)}]" if interval else ""
    return number(value, measure.digits) + spread


def _measured(found: Sequence[Result]) -> str:
    title, headings, rows = _table(found)
    return f"{title} (`benchmark.{found[0].name}`):\n\n" + markdown(headings, rows)


def _table(found: Sequence[Result]) -> tuple[str, tuple[str, ...], list[tuple[str, ...]]]:
    """Of one benchmark: title, headings, a row a policy."""
    first = found[0]
    best = f", best of {first.best_of}" if first.best_of else ""
    reasons = _reasons(found)
    some = f" — not comparable with published numbers: {', '.join(reasons)}" if reasons else ""
    measures = first.benchmark.measures
    rows = [(policy_title(one.policy), *(cell(one, measure) for measure in measures), str(one.items)) for one in found]
    return f"{first.benchmark.title}{best}{some}", ("policy", *(m.title for m in measures), "items"), rows


def _reasons(found: Sequence[Result]) -> list[str]:
    """Why they are not comparable; of some of them alone, with their names."""
    told: dict[str, list[str]] = {}
    for one in found:
        if one.departs:
            told.setdefault(one.departs, []).append(policy_title(one.policy))
    return [why if len(own) == len(found) else f"{why} ({', '.join(own)})" for why, own in told.items()]


def _published(table: Table, found: Sequence[Result], policies: Sequence[str]) -> str:
    rows = published_rows(table)
    here = [(f"**here, {policy_title(policy)}**", *_ours(table, found, policy)) for policy in policies]
    return f"{table.title} ({cited(table)}):\n\n" + markdown(("policy", *table.measures), rows + here)


def _ours(table: Table, found: Sequence[Result], policy: str) -> list[str]:
    one = of_table(found, policy, table.benchmark, table.best_of)
    if one is None:
        own = [each for each in found if each.policy == policy]
        return [lacking(own, table.benchmark, table.best_of)] * len(table.measures)
    digits = {measure.title: measure.digits for measure in one.benchmark.measures}
    values = {title: one.said(title) for title in table.measures}
    return [NOT_MEASURED if value is None else plain(value, digits[title]) for title, value in values.items()]


def lacking(found: Sequence[Result], benchmark: str, best_of: int | None) -> str:
    """Why there is no number of ours to hold against published ones."""
    otherwise = any(one.benchmark.title == benchmark and one.best_of == best_of for one in found)
    return NOT_COMPARABLE if otherwise else NOT_MEASURED


def published_rows(table: Table) -> list[tuple[str, ...]]:
    """A row a policy, with as many digits as were published."""
    known = [value for values in table.policies.values() for value in values if value is not None and value < 1000]
    digits = max((len(repr(value).partition(".")[2]) for value in known), default=0)
    return [
        (policy_title("base" if policy == "base" else f"it{policy}"), *(plain(value, digits) for value in values))
        for policy, values in table.policies.items()
    ]


def plain(value: float | None, digits: int = 2) -> str:
    """As tables of published numbers show it: 1855, 24.79, or a dash."""
    return "–" if value is None else f"{value:.0f}" if value >= 1000 else f"{value:.{digits}f}"
