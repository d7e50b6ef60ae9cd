"""Write docs/published.md: every published number that this repository knows. `make golden` runs it."""

from __future__ import annotations

from src.reporting.published import Table, digits_of, others, plain, policy_title, published, source_of
from src.reporting.tables import frame, literal, markdown

HEAD = """# Published numbers

Look here for the number to compare yours with. The report and the model card of an experiment show the same numbers,
with what you measured below them:

```
python -m src.main iter=3 experiment=mistral_7b_pairrm_sppo benchmark=alpaca_eval
```

`make golden` writes this page from `src/reporting/published.yaml`. Win rates and averages are percentages.
LC means length-controlled. Characters are the mean length of an answer. A dash was not published.
A cell of AlpacaEval 2 is LC win rate / win rate / characters, as far as they were published. The win rate under PairRM
is over SPPO's iteration 3. For `gemma2_9b_it_dpo_hb` nothing is published. Brackets name the [sources](#sources).
"""
POLICIES: tuple[int | str, ...] = ("base", 1, 2, 3)
WIDE = 3
"""Up to so many measures share a cell; a table of more has one row per policy."""


def page() -> str:
    systems = {f"`{name}`": one.tables for name, one in published().items()}
    systems |= {literal(one.system): one.tables for one in others().values()}
    sources = list(dict.fromkeys(_source(table) for tables in systems.values() for table in tables))
    narrow: list[list[str]] = []
    wide: dict[str, list[list[str]]] = {}
    heads: dict[str, list[str]] = {}
    for system, tables in systems.items():
        for table in tables:
            cited = f"{source_of(table).kind} [{sources.index(_source(table)) + 1}]"
            if len(table.measures) > WIDE:
                heads[table.title] = ["system", "source", "policy", *table.measures]
                rows = wide.setdefault(table.title, [])
                rows += [[system, cited, _title(policy), *_numbers(table, policy)] for policy in table.policies]
            else:
                cells = [" / ".join(_numbers(table, policy)) for policy in POLICIES]
                narrow.append([table.title, system, cited, *cells])
    narrow.sort(key=lambda row: row[0])
    scores = markdown(frame(["benchmark", "system", "source", *map(_title, POLICIES)], narrow))
    parts = [f"## {title}\n\n{markdown(frame(heads[title], rows))}" for title, rows in wide.items()]
    numbered = "".join(f"{number}. {source}\n" for number, source in enumerate(sources, 1))
    return "\n".join([HEAD, f"## Win rates and scores\n\n{scores}", *parts, "## Sources\n", numbered])


def _title(policy: int | str) -> str:
    return policy_title("base" if policy == "base" else f"it{policy}")


def _source(table: Table) -> str:
    source = source_of(table)
    date = "date unknown" if source.date == "unknown" else source.date
    return literal(", ".join(filter(None, (source.cite, date, table.note))))


def _numbers(table: Table, policy: int | str) -> list[str]:
    """Write the numbers of a policy with the digits that its table was published with."""
    values = table.policies.get(policy, [None])  # pyright: ignore
    return [plain(value, digits_of(table)) for value in values]
