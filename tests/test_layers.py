"""A folder of src/ imports only from the folders before it, and no import goes round in a circle.

Imports of every kind count: at the top, in functions, and under TYPE_CHECKING.
"""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from places import ROOT

SRC = ROOT / "src"
ABOVE = {
    **{"kernel": "", "modeling": "kernel", "data": "kernel modeling", "methods": "kernel modeling"},
    **{"pairing": "kernel modeling data", "generation": "kernel modeling data"},
    **{"ranking": "kernel modeling data pairing", "training": "kernel modeling methods"},
    "evaluation": "kernel modeling data pairing generation ranking",
    "experiment": "kernel modeling data methods pairing generation ranking training evaluation",
    "reporting": "kernel modeling data methods pairing generation ranking training evaluation experiment",
    "launch": "kernel modeling data methods pairing generation ranking training evaluation experiment reporting",
    "main": "kernel launch",
}
"""The folders that each may import from, beside itself."""


def module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


FILES = {module(path): path for path in SRC.rglob("*.py") if path.stat().st_size}


def imports(name: str) -> set[str]:
    """Return the modules of src that a module imports, anywhere in its text."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(FILES[name].read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names & (FILES.keys() - {name})


ARROWS = {name: imports(name) for name in FILES}


def test_imports_go_one_way() -> None:
    wrong = sorted(
        f"{name} imports {other}"
        for name, others in ARROWS.items()
        for other in others
        if (here := name.split(".")[1]) != (there := other.split(".")[1]) and there not in ABOVE[here].split()
    )
    assert wrong == []


def test_no_import_goes_round() -> None:
    try:
        TopologicalSorter(ARROWS).prepare()
    except CycleError as error:
        raise AssertionError(" → ".join(error.args[1])) from None


def test_every_folder_has_its_place_and_no_file_is_long() -> None:
    assert {path.stem for path in SRC.iterdir() if path.name not in ("__pycache__", "__init__.py")} == ABOVE.keys()
    assert [name for name, path in FILES.items() if len(path.read_text().splitlines()) > 300] == []
