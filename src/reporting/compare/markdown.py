"""compare.md: the sentences and tables of the page."""

from __future__ import annotations

from collections.abc import Sequence

from src.reporting.compare import tables
from src.reporting.compare.benchmarks import NOTE, contrasts, contrasts_table, results_table
from src.reporting.compare.costs import Cost, Shared
from src.reporting.compare.headline import NOTHING, LeftOut, headline
from src.reporting.compare.page import UNREAD, cautions, unread
from src.reporting.compare.plots import Section
from src.reporting.compare.points import Comparison
from src.reporting.compare.significance import Difference
from src.reporting.compare.tables import Table
from src.reporting.tables import frame, literal, markdown


def write_markdown(
    found: Comparison,
    differences: Sequence[Difference],
    costs: Sequence[Cost],
    shared: Sequence[Shared],
    plots: Sequence[Section],
    left_out: LeftOut = NOTHING,
) -> str:
    parts = [
        f"# {literal(found.title)}\n",
        *(f"{literal(line)}\n" for line in [*headline(found, differences), *cautions(found, left_out)]),
        _part("Results", tables.results(found)),
        _part(UNREAD, unread(left_out.damaged)),
        _part("Over seeds", tables.over_seeds(found)),
        _part("Do neighbours differ?", tables.significance(differences)),
        _part("Benchmarks", results_table(found)),
        _part("Do neighbours differ on benchmarks?", contrasts_table(contrasts(found)), NOTE),
        f"## Costs\n\n{literal(tables.cost_sentence(found, costs))} In hours of one device:\n",
        as_markdown(tables.cost(found, costs)),
        _part("What was shared", tables.shared(shared)),
        "## Plots\n",
        *(
            f"![{literal(picture.caption)}](plots/{picture.name}.png)\n"
            for section in plots
            for picture in section.pictures
        ),
    ]
    return "\n".join(part for part in parts if part)


def _part(title: str, table: Table, note: str = "") -> str:
    told = f"{literal(note)}\n\n" if note else ""
    return f"## {title}\n\n{told}{as_markdown(table)}" if table.rows else ""


def as_markdown(table: Table) -> str:
    rows = [[literal(cell.text) for cell in row] for row in table.rows]
    return markdown(frame([literal(heading) for heading in table.headings], rows))
