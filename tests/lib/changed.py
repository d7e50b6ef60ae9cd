"""Prints the test files that what has changed since a commit concerns. Run: python tests/lib/changed.py [COMMIT]

A test is concerned that changed itself, or that names a changed module of src or of the tests' helpers; the tests of
configs are, where conf/, sweeps/ or docs/ changed.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from places import ROOT, TESTS

CONFIGURED = {"experiment", "launch", "kernel", "methods", "pairing"}
"""Folders of tests that read configs and pages."""


def changed(since: str) -> list[Path]:
    commands = [["git", "diff", "--name-only", since], ["git", "ls-files", "--others", "--exclude-standard"]]
    lines = [subprocess.check_output(command, cwd=ROOT, text=True).splitlines() for command in commands]
    return [Path(line) for some in lines for line in some]


def concerned(files: list[Path]) -> set[Path]:
    tests = {path: path.read_text() for path in TESTS.rglob("test_*.py")}
    chosen = {path for path in tests if path.relative_to(ROOT) in files}
    for file in files:
        if file.name == "conftest.py":
            return set(tests)
        if file.parts[0] in {"conf", "sweeps", "slurm", "docs"} or file.suffix in {".md", ".txt", ".toml"}:
            chosen |= {path for path in tests if path.parent.name in CONFIGURED}
        elif file.parts[:2] == ("tests", "golden"):
            chosen |= {path for path, text in tests.items() if "golden" in text}
        elif file.suffix in {".py", ".jinja"} and not file.name.startswith("test_"):  # card.md.jinja is of card.py
            name = file.name.partition(".")[0]
            module = ".".join([*file.parent.parts, name]) if file.parts[0] == "src" else name
            package, _, name = module.rpartition(".")
            asked = rf"\b{re.escape(module)}\b" + (rf"|from {re.escape(package)} import.*\b{name}\b" if package else "")
            chosen |= {path for path, text in tests.items() if re.search(asked, text)}
        elif file.parts[0] == "src":
            chosen |= {path for path in tests if path.parent.name == file.parts[1]}
    return chosen


if __name__ == "__main__":
    print(*sorted(path.relative_to(ROOT) for path in concerned(changed((sys.argv[1:] or ["HEAD"])[0]))))
