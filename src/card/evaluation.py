"""What was measured of a policy, and beside it what is published of the system that it reproduces."""

from __future__ import annotations

from src.card.facts import Facts
from src.card.markdown import literal
from src.card.metadata import Measured, measured
from src.card.published import Table, published
from src.report.tables import markdown, number

NOT_MEASURED = "not measured"


def evaluation(facts: Facts) -> str:
    """Numbers of this run, named for what they are."""
    found, run = measured(facts), facts.run
    if not found:
        return "This policy is not evaluated yet.\n"
    table = markdown(("measured", "value", f"{run.benchmark.confidence:.0%} interval", "prompts"), [*map(_row, found)])
    return (
        f"{table}\nA win probability is that under the run's own ranker, {literal(run.ranker.name)}, whose verdicts "
        "the policy was trained on: the mean over held-out prompts, one answer each; intervals are paired by prompt. "
        "It is not comparable with a win rate of AlpacaEval 2, MT-Bench or Arena-Hard, which others judge. The null "
        "tells how far from .5 chance alone leads.\n"
    )


def published_results(facts: Facts) -> str:
    """Published tables, with a row of this policy under each."""
    name = facts.run.experiment
    if name is None:
        return "This run reproduces no published system. AlpacaEval 2, MT-Bench and Arena-Hard: not measured.\n"
    known = published().get(name)
    if known is None or not known.tables:
        of = f" of {known.system}" if known else ""
        return f"Nothing published{of} is known here. AlpacaEval 2, MT-Bench and Arena-Hard: not measured.\n"
    return "\n".join([f"Of {known.system}, as published:\n", *(_published(table, facts.t) for table in known.tables)])


def _row(one: Measured) -> tuple[str, ...]:
    interval = f"[{one.interval[0]:.3f}, {one.interval[1]:.3f}]" if one.interval else ""
    return one.measure.text, number(one.value, one.measure.digits), interval, str(one.prompts)


def _published(table: Table, t: int) -> str:
    note = f"; {table.note}" if table.note else ""
    rows = [(_policy(policy), *map(_value, values)) for policy, values in table.policies.items()]
    here = (f"**here, iteration {t}**", *[NOT_MEASURED] * len(table.measures))
    return f"{table.benchmark} ({table.source}{note}):\n\n" + markdown(("policy", *table.measures), [*rows, here])


def _policy(policy: str | int) -> str:
    return "start policy" if policy == "base" else f"iteration {policy}"


def _value(value: float | None) -> str:
    return "–" if value is None else f"{value:g}" if value >= 1000 else f"{value:.2f}"
