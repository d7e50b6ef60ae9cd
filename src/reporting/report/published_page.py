"""docs/published.md: every published number that this repository knows, from src/reporting/published.yaml.

`make golden` rewrites it.
"""

from __future__ import annotations

from src.reporting.card.markdown import literal
from src.reporting.published import Published, Table, cited, others, published
from src.reporting.report.benchmarks import published_rows
from src.reporting.report.tables import markdown

HEAD = """# Published numbers

Written by `make golden` from `src/reporting/published.yaml`; reports and cards show the same tables
with what was measured here beside them. Win rates and averages are percentages; LC is length-controlled; characters are
the mean length of an answer. A dash was not published.
"""


def page() -> str:
    experiments = [_system(f"`experiment={name}`: {literal(one.system)}", one) for name, one in published().items()]
    rest = [_system(literal(one.system), one) for one in others().values()]
    return "\n".join(
        [HEAD, "## Experiments of this repository\n", *experiments, "## Other systems and ablations\n", *rest]
    )


def _system(title: str, known: Published) -> str:
    tables = "\n".join(map(_table, known.tables)) or "Nothing published is known here.\n"
    return f"### {title}\n\n{tables}"


def _table(table: Table) -> str:
    return f"{table.title} ({literal(cited(table))}):\n\n{markdown(('policy', *table.measures), published_rows(table))}"
