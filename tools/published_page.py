"""Write docs/published.md: every published number that this repository knows. `make golden` runs it."""

from __future__ import annotations

from src.reporting.published import Table, others, policy_title, published, source_of
from src.reporting.tables import DASH, frame, literal, markdown

HEAD = """# Published numbers

Look here for the number to compare yours with. The report and the model card of an experiment show the same numbers,
with what you measured below them:

```
python -m src.main iter=3 experiment=mistral_7b_pairrm_sppo benchmark=alpaca_eval
```

`make golden` writes this page from `src/reporting/published.yaml`. Win rates and averages are percentages.
LC means length-controlled. Characters are the mean length of an answer. A dash was not published.
For `gemma2_9b_it_dpo_hb` nothing is published. Numbers in brackets name the [sources](#sources).
"""
POLICIES: tuple[int | str, ...] = ("base", 1, 2, 3)


def page() -> str:
    systems = {f"`{name}`": one.tables for name, one in published().items()}
    systems |= {literal(one.system): one.tables for one in others().values()}
    by_title: dict[str, list[tuple[str, Table]]] = {}
    for system, tables in systems.items():
        for table in tables:
            by_title.setdefault(table.title, []).append((system, table))
    sources = list(dict.fromkeys(_source(table) for tables in systems.values() for table in tables))
    sections = [_section(title, tables, sources) for title, tables in by_title.items()]
    numbered = "".join(f"{number}. {source}\n" for number, source in enumerate(sources, 1))
    return "\n".join([HEAD, *sections, "## Sources\n", numbered])


def _section(title: str, tables: list[tuple[str, Table]], sources: list[str]) -> str:
    """Write the tables of a benchmark as one: a row a system, or a row a policy where there are many measures."""
    measures = max((table.measures for _, table in tables), key=len)
    rows: list[list[str]] = []
    for system, table in tables:
        cited = f"{source_of(table).kind} [{sources.index(_source(table)) + 1}]"
        if len(measures) > 3:
            rows += [[system, cited, _title(policy), *_numbers(table, policy)] for policy in table.policies]
        else:
            rows.append([system, cited, *(" / ".join(_numbers(table, policy)) for policy in POLICIES)])
    columns = ["policy", *measures] if len(measures) > 3 else [_title(policy) for policy in POLICIES]
    cells = "" if len(measures) > 3 or measures == [title] else f"Each cell: {' / '.join(measures)}.\n\n"
    return f"## {title}\n\n{cells}{markdown(frame(['system', 'source', *columns], rows))}"


def _title(policy: int | str) -> str:
    return policy_title("base" if policy == "base" else f"it{policy}")


def _source(table: Table) -> str:
    source = source_of(table)
    date = "date unknown" if source.date == "unknown" else source.date
    return literal(", ".join(filter(None, (source.cite, date, table.note))))


def _numbers(table: Table, policy: int | str) -> list[str]:
    """Write the numbers of a policy with the digits that its table was published with."""
    known = [value for values in table.policies.values() for value in values if value is not None and value < 1000]
    digits = max(len(repr(value).partition(".")[2]) for value in known)
    values = table.policies.get(policy, [None])  # pyright: ignore
    return [DASH if value is None else f"{value:.{0 if value >= 1000 else digits}f}" for value in values]
