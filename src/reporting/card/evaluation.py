"""What was measured of a policy, and beside it what is published of the system that it reproduces."""

from __future__ import annotations

from collections.abc import Sequence

from src.reporting.card.facts import Facts, label
from src.reporting.card.markdown import literal
from src.reporting.card.metadata import Measured, measured
from src.reporting.published import published
from src.reporting.report.benchmarks import measured_tables, published_tables
from src.reporting.report.tables import markdown, number

OTHERS = ("AlpacaEval 2", "MT-Bench", "Arena-Hard")


def evaluation(facts: Facts) -> str:
    """Numbers of this run, named for what they are."""
    return _held_out(facts) + (f"\n{measured_tables(facts.results)}" if facts.results else "")


def published_results(facts: Facts) -> str:
    """Published tables, with a row of this policy under each."""
    name = facts.run.experiment
    measured_too = {one.benchmark.title for one in facts.results}
    missing = [title for title in OTHERS if title not in measured_too]
    unmeasured = f" {_listed(missing)}: not measured." if missing else ""
    if name is None:
        return f"This run reproduces no published system.{unmeasured}\n"
    known = published().get(name)
    if known is None or not known.tables:
        of = f" of {known.system}" if known else ""
        return f"Nothing published{of} is known here.{unmeasured}\n"
    return published_tables(known, facts.results, [label(facts.t)])


def _held_out(facts: Facts) -> str:
    found, run = measured(facts), facts.run
    if not found:
        return "This policy is not evaluated yet.\n" if not facts.results else ""
    table = markdown(("measured", "value", f"{run.held_out.confidence:.0%} interval", "prompts"), [*map(_row, found)])
    return (
        f"{table}\nA win probability is that under the run's own ranker, {literal(run.ranker.name)}, whose verdicts "
        "the policy was trained on: the mean over held-out prompts, one answer each; intervals are paired by prompt. "
        f"It is not comparable with a win rate of {_listed(OTHERS)}, which others judge. The null "
        "tells how far from .5 chance alone leads.\n"
    )


def _listed(titles: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(titles[:-1]), titles[-1])))


def _row(one: Measured) -> tuple[str, ...]:
    interval = f"[{one.interval[0]:.3f}, {one.interval[1]:.3f}]" if one.interval else ""
    return one.measure.text, number(one.value, one.measure.digits), interval, str(one.prompts)
