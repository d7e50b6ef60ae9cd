"""docs/published.md: every published number that this repository knows, from src/published.yaml.

`make golden` rewrites it.
"""

from __future__ import annotations

from src.card.markdown import literal
from src.published import Published, Table, cited, others, published
from src.report.benchmarks import published_rows
from src.report.tables import markdown

HEAD = """# Published numbers

Written by `make golden` from `src/published.yaml`; reports and cards show the same tables with what was measured here
beside them. Win rates and averages are percentages; LC is length-controlled; characters are the mean length of an
answer. A dash was not published.
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
