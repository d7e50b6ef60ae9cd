"""Tables of reports and cards: DataFrames whose cells are text, shown as Markdown or in a terminal."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from src.kernel.secret_words import scrubbed

DASH = "–"
"""Stands for a number that is not known."""
_SIGNS = re.compile(r"[\\`*_\[\]<>#|~&$]")


class Column(NamedTuple):
    title: str
    key: str
    """The name in metrics.json; several names with `/` between them share a cell."""
    digits: int


PROGRESS = (
    Column("win rate over base", "win_over_base", 3),
    Column("hard", "hard_win_over_base", 3),
    Column("at equal length", "lc_win_over_base", 3),
    Column("win rate over previous", "win_over_previous", 3),
    Column("mean tokens", "tokens", 1),
    Column("KL to base (nats/token)", "divergence_kl_per_token", 4),
    Column("loss / unit", "loss_scaled", 4),
    Column("log-ratio chosen", "chosen_logratio", 2),
    Column("log-ratio rejected", "rejected_logratio", 2),
)
QUALITY = (
    Column("checks kept, trained kinds", "seen_accuracy", 3),
    Column("checks kept, unseen kinds", "unseen_accuracy", 3),
    Column("relevance", "relevance", 3),
    Column("PMI", "pmi", 3),
    Column("words", "words", 3),
    Column("finished", "finished", 3),
    Column("repetition", "repetition", 3),
    Column("copied from prompt", "echo", 3),
    Column("empty", "empty", 3),
)
SECOND = (
    Column("win rate over base", "second_win_over_base", 3),
    Column("hard", "second_hard_win_over_base", 3),
    Column("at equal length", "second_lc_win_over_base", 3),
    Column("checks kept, unseen kinds", "unseen_accuracy", 3),
    Column("relevance", "second_relevance", 3),
    Column("log-likelihood (nats/token)", "second_likelihood", 3),
    Column("repetition", "repetition", 3),
    Column("finished", "finished", 3),
)
RANKING = (
    Column("answers", "answers", 0),
    Column("cut off: answers / prompts", "truncated_answers/truncated_prompts", 0),
    Column("identical", "identical_answers", 0),
    Column("intransitive triads", "intransitive_triads", 3),
    Column("position bias (logits)", "position_bias", 3),
    Column("its absolute value", "position_bias_abs", 3),
    Column("winner depends on order", "first_place_flips", 3),
    Column("correlation with length", "length_correlation", 3),
    Column("malformed verdicts", "malformed_verdicts", 0),
)
PAIRS = (
    Column("pairs", "pairs", 0),
    Column("left out: identical / margin / length", "identical_left_out/margin_left_out/length_left_out", 0),
    Column("prompts without a pair", "prompts_without_pair", 0),
    Column("P(chosen beats policy)", "chosen_win", 3),
    Column("P(rejected beats policy)", "rejected_win", 3),
    Column("P(chosen beats rejected)", "chosen_beats_rejected", 3),
    Column("tokens chosen", "chosen_tokens", 1),
    Column("tokens rejected", "rejected_tokens", 1),
    Column("near ties", "near_ties", 3),
    Column("loss / unit expected at step 0", "expected_loss_unit", 4),
)


def table_of(numbers: pd.DataFrame, columns: Sequence[Column]) -> pd.DataFrame:
    """Pick the columns and write their numbers; the index becomes the column `policy`."""
    rows = [[policy, *(cell(row, one.key, one.digits) for one in columns)] for policy, row in numbers.iterrows()]
    return frame(["policy", *(one.title for one in columns)], rows)


def frame(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> pd.DataFrame:
    """Make a table of cells that are text already."""
    return pd.DataFrame(rows, columns=pd.Index(headings), dtype=object)


def cell(numbers: Mapping[Any, Any] | pd.Series, key: str, digits: int) -> str:
    """Write a value, and its interval where `<key>_low` and `<key>_high` are beside it."""
    if "/" in key:
        return " / ".join(number(numbers.get(one), digits) for one in key.split("/"))
    value, low, high = (number(numbers.get(f"{key}{end}"), digits) for end in ("", "_low", "_high"))
    return value if DASH in (value, low, high) else f"{value} [{low}, {high}]"


def number(value: float | None, digits: int) -> str:
    """Write a number, or a dash for one that is not known."""
    return DASH if value is None or pd.isna(value) else f"{value:.{digits}f}"


def markdown(table: pd.DataFrame) -> str:
    """Write the cells as they are: what others wrote must have gone through `literal`."""
    heading, *rows = (f"| {' | '.join(map(str, row))} |" for row in (table.columns, *table.to_numpy()))
    return "\n".join([heading, "|" + "---|" * len(table.columns), *rows, ""])


def terminal(title: str, table: pd.DataFrame) -> str:
    """Draw the table for a terminal; one of policies stands upright, with one column per policy."""
    upright = "policy" in table.columns
    table = table.set_index("policy").T if upright else table
    drawn = table.to_markdown(tablefmt="rounded_outline", disable_numparse=True, stralign="right", index=upright)
    return f"{title}\n{drawn}\n"


def literal(text: str) -> str:
    """Escape text by others, so that it marks nothing up in a sentence or the cell of a table, and is one line."""
    return _SIGNS.sub(r"\\\g<0>", " ⏎ ".join(text.strip().splitlines())) or "(empty)"


def fenced(text: str) -> str:
    """Make a block of code that no line of `text` can end."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}text\n{text.strip()}\n{fence}\n"


FOR_TEMPLATES = {"literal": literal, "fenced": fenced, "scrubbed": scrubbed, "markdown": markdown}
"""Functions that the templates of reports and cards call."""
