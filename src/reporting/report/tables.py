"""The tables of a report: what was won, what it cost, and the pairs it came from."""

from __future__ import annotations

import math

from src.reporting.report.gather import Iteration, Story

PROGRESS = (
    "policy",
    "win rate over base",
    "win rate over previous",
    "mean tokens",
    "KL to base (nats/token)",
    "loss / unit",
    "log-ratio chosen",
    "log-ratio rejected",
)
QUALITY = (
    "policy",
    "checks kept, trained kinds",
    "checks kept, unseen kinds",
    "relevance",
    "PMI",
    "words",
    "finished",
    "repetition",
    "copied from prompt",
    "empty",
)
_QUALITY_KEYS = (
    "seen_accuracy",
    "unseen_accuracy",
    "relevance",
    "pmi",
    "words",
    "finished",
    "repetition",
    "echo",
    "empty",
)

PAIRS = (
    "iteration",
    "pairs",
    "left out: identical / margin / length",
    "prompts without a pair",
    "P(chosen beats policy)",
    "P(rejected beats policy)",
    "P(chosen beats rejected)",
    "tokens chosen",
    "tokens rejected",
    "near ties",
    "loss / unit expected at step 0",
)
_PAIR_KEYS = (
    ("chosen_win", 3),
    ("rejected_win", 3),
    ("chosen_beats_rejected", 3),
    ("chosen_tokens", 1),
    ("rejected_tokens", 1),
    ("near_ties", 3),
    ("expected_loss_unit", 4),
)

RANKING = (
    "iteration",
    "answers",
    "cut off: answers / prompts",
    "identical",
    "intransitive triads",
    "position bias (logits)",
    "its absolute value",
    "winner depends on order",
    "correlation with length",
    "malformed verdicts",
)
_RANKING_KEYS = (
    "intransitive_triads",
    "position_bias",
    "position_bias_abs",
    "first_place_flips",
    "length_correlation",
)

Cells = list[tuple[str, ...]]


def progress_rows(story: Story) -> Cells:
    """One row a policy, the base (with the null) first."""
    first = story.iterations[0].evaluation
    base = (
        "base (null: other seeds)",
        interval(first, "null_win"),
        "",
        number(first["base_tokens"], 1),
        "0",
        "",
        "",
        "",
    )
    return [base, *(_progress(iteration) for iteration in story.iterations)]


def _progress(iteration: Iteration) -> tuple[str, ...]:
    return (
        f"iteration {iteration.t}",
        interval(iteration.evaluation, "win_over_base"),
        interval(iteration.evaluation, "win_over_previous"),
        number(iteration.evaluation["tokens"], 1),
        number(iteration.divergence["kl_per_token"], 4),
        number(iteration.final("loss_scaled"), 4),
        number(iteration.final("chosen_logratio"), 2),
        number(iteration.final("rejected_logratio"), 2),
    )


def quality_rows(story: Story) -> Cells:
    """One row a policy: measures that a hacked win rate would betray."""
    first = story.iterations[0].evaluation
    base = ("base", *(number(first[f"base_{key}"], 3) for key in _QUALITY_KEYS))
    return [base] + [
        (f"iteration {it.t}", *(number(it.evaluation[key], 3) for key in _QUALITY_KEYS)) for it in story.iterations
    ]


def pair_rows(story: Story) -> Cells:
    """One row an iteration: means over the pairs trained on."""
    return [
        (
            str(it.t),
            str(it.pairs["pairs"]),
            " / ".join(str(it.pairs[f"{reason}_left_out"]) for reason in ("identical", "margin", "length")),
            str(it.pairs["prompts_without_pair"]),
            *(number(it.pairs[key], digits) for key, digits in _PAIR_KEYS),
        )
        for it in story.iterations
    ]


def ranking_rows(story: Story) -> Cells:
    """One row an iteration: what src/ranking/stage.py says of its ranking."""
    return [(str(it.t), *_ranking(it.ranking_metrics)) for it in story.iterations]


def _ranking(metrics: dict[str, float | None]) -> tuple[str, ...]:
    return (
        str(metrics["answers"]),
        f"{metrics['truncated_answers']} / {metrics['truncated_prompts']}",
        str(metrics["identical_answers"]),
        *(number(metrics[key], 3) for key in _RANKING_KEYS),
        number(metrics["malformed_verdicts"], 0),
    )


def interval(metrics: dict[str, float], name: str) -> str:
    return f"{metrics[name]:.3f} [{metrics[name + '_low']:.3f}, {metrics[name + '_high']:.3f}]"


def number(value: float | None, digits: int) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def markdown(headings: tuple[str, ...], rows: Cells) -> str:
    lines = ["| " + " | ".join(headings) + " |", "|" + "---|" * len(headings)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows]) + "\n"


def terminal(title: str, headings: tuple[str, ...], rows: Cells) -> str:
    """The same table for a terminal."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "policy" else "right")
    for row in rows:
        table.add_row(*row)
    console = Console(width=130, force_terminal=False)
    with console.capture() as captured:
        console.print(table)
    return captured.get()
