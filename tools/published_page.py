"""docs/published.md: every published number that this repository knows. `make golden` rewrites it."""

from __future__ import annotations

from collections.abc import Mapping

from src.reporting.published import Published, others, published, published_table
from src.reporting.tables import literal

HEAD = """# Published numbers

Written by `make golden` from `src/reporting/published.yaml`; reports and cards show the same tables
with what was measured here beside them. Win rates and averages are percentages; LC is length-controlled; characters are
the mean length of an answer. A dash was not published.
"""


def page() -> str:
    ours = {f"`experiment={name}`: {literal(one.system)}": one for name, one in published().items()}
    rest = {literal(one.system): one for one in others().values()}
    parts = [HEAD, "## Experiments of this repository\n", *_systems(ours), "## Other systems and ablations\n"]
    return "\n".join([*parts, *_systems(rest)])


def _systems(systems: Mapping[str, Published]) -> list[str]:
    nothing = "Nothing published is known here.\n"
    return [
        f"### {title}\n\n" + ("\n".join(map(published_table, one.tables)) or nothing) for title, one in systems.items()
    ]
