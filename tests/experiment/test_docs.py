"""What the documentation says holds: its commands compose, its links lead somewhere, its figures are those of files."""

from __future__ import annotations

import functools
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from tiny_run import ROOT, composed

from src.experiment.graph import nodes_of
from src.kernel.artifact import Node
from src.launch.compose import build
from src.launch.score import GIVEN, Scoring, split_words
from src.launch.verbs import OF_FOLDERS, VERBS
from src.reporting.compare import command as comparison
from src.reporting.published import published

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(r"(?:python3? -m src\.[\w.]+|make)(?= |$)(?: [^\s`#]+)*")
"""Up to the end of the line, a comment, or the closing quote of code."""
MAKEFILE = (ROOT / "Makefile").read_text()


def code(text: str) -> list[str]:
    """Lines of fenced blocks, and inline code."""
    fenced = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"^```\w*\n.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    return [line for block in fenced for line in re.sub(r"\s*\\\n\s*", " ", block).splitlines()] + inline


def commands(text: str) -> list[str]:
    """`<what you choose>` stands for a word, so such a line is no command yet."""
    lines = [line.strip().removeprefix("$ ") for line in code(text) if "<" not in line]
    return [match.group() for line in lines if (match := COMMAND.match(line))]


QUOTED = list(dict.fromkeys(words for page in PAGES for words in commands(page.read_text())))


def points(overrides: list[str], most: int) -> tuple[bool, list[list[str]]]:
    """Whether anything is swept, and the overrides of so many points, each value once."""
    found = []
    for override in OverridesParser.create().parse_overrides(overrides):
        key, value = override.get_key_element(), override.value()
        if override.is_interval_sweep():
            found.append([f"{key}={value.start}"])  # type: ignore[union-attr]
        elif override.is_sweep_override():
            found.append([f"{key}={one}" for one in override.sweep_string_iterator()])
        else:
            found.append([override.input_line or ""])
    longest = max(map(len, found), default=1)
    return longest > 1, [[values[n % len(values)] for values in found] for n in range(min(most, longest))]


@functools.cache
def nodes(*words: str) -> list[Node]:
    return nodes_of(build(composed(*words)))


def check(command: str, most: int) -> None:
    """It would be carried out."""
    words = shlex.split(command)[3:]
    verb = words.pop(0) if words and words[0] in VERBS else "run"
    if verb in OF_FOLDERS:
        known = comparison.WORDS if verb == "compare" else ["runs"]
        assert {word.partition("=")[0] for word in words} <= set(known)
        return
    if verb == "score":
        given, words = split_words(words)
        assert set(given) <= set(GIVEN) and isinstance(next(iter(build(composed(*words)).benchmark.values())), Scoring)
        return
    flags = [word for word in words if word.startswith("-")]
    assert set(flags) <= {"-m", "--multirun", "--cfg"} | ({"--yes"} if verb == "clean" else set())
    swept, found = points([word for word in words if not word.startswith("-") and word != "job"], most)
    assert not swept or "-m" in flags or "--multirun" in flags, "a sweep needs -m"
    for point in found:
        assert nodes(*sorted(point))


@pytest.mark.parametrize("most", [1, pytest.param(50, marks=pytest.mark.full)])
def test_every_command_of_the_documentation_makes_a_run(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """`most`: points of a sweep."""
    monkeypatch.chdir(ROOT)
    mains = [command for command in QUOTED if "-m src.main" in command]
    assert {"python -m src.main method=sppo iter=3"} < set(mains) and len(mains) > 50
    failed: dict[str, Any] = {}
    for command in mains:
        try:
            check(command, most)
        except Exception as error:
            failed[command] = error
    assert failed == {}


def test_every_target_of_the_documentation_exists_and_explains_itself() -> None:
    targets = set(re.findall(r"^([a-z][\w-]*):", MAKEFILE, re.MULTILINE))
    variables = set(re.findall(r"^([A-Z_]+) [?:]?=", MAKEFILE, re.MULTILINE))
    (phony,) = re.findall(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)
    assert set(phony.split()) == targets == set(re.findall(r"^([a-z-]+):[^#\n]*## \S", MAKEFILE, re.MULTILINE))
    words = [word for command in QUOTED if command.startswith("make") for word in shlex.split(command)[1:]]
    assert "run" in words and {word for word in words if "=" not in word} <= targets
    assert {word.partition("=")[0] for word in words if "=" in word} <= variables


def test_every_file_the_documentation_names_exists_and_every_folder_of_the_source_is_in_its_tree() -> None:
    """But for files whose content a page gives (tests/experiment/test_adding.py)."""
    named = [
        (page.name, word)
        for page in PAGES
        for word in re.findall(r"`((?:src|tests|conf|docs)/[\w./*-]+)`(?!:\n\n```)", page.read_text())
    ]
    tree = re.findall(
        r"^((?:src|conf|tests|docs|bench)/[\w./-]*) {2,}\S", (ROOT / "README.md").read_text(), re.MULTILINE
    )
    named += [("the tree", word) for word in tree]
    assert [(page, word) for page, word in named if not list(ROOT.glob(word.rstrip("/")))] == []
    folders = {f"src/{path.name}/" for path in (ROOT / "src").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders <= set(tree)


def anchors(page: Path) -> set[str]:
    """The names that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_link_of_the_documentation_leads_somewhere() -> None:
    broken = []
    for page in [*PAGES, ROOT / "tests" / "README.md"]:
        for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text()):
            name, _, anchor = link.partition("#")
            target = page.parent / name if name else page
            if not target.exists() or (anchor and anchor not in anchors(target)):
                broken.append((page.name, link))
    assert broken == []


def test_published_numbers_of_the_documentation_are_those_of_their_file() -> None:
    """In the tables of README and docs/experiments.md: the length-controlled win rates of each system."""
    quoted = {}
    for page in (ROOT / "README.md", ROOT / "docs" / "experiments.md"):
        for row in re.findall(r"^\|.*\|$", page.read_text(), re.MULTILINE):
            names = [name for name in re.findall(r"`(\w+)`", row) if name in published()]
            if names and (numbers := [float(number) for number in re.findall(r"\b\d\d\.\d\d\b", row)]):
                quoted[page.name, names[0]] = numbers
    assert len(quoted) == 10
    for (page, name), numbers in quoted.items():
        policies = published()[name].tables[0].policies
        assert numbers == [policies[t][0] for t in policies if t != "base"], (page, name)


@pytest.mark.full
def test_the_pictures_of_job_arrays_are_what_the_planner_plans(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "docs/img/slurm_graph.py", str(tmp_path)], cwd=ROOT, check=True)
    for name in ("slurm_graph.png", "slurm_failure.png"):
        assert (tmp_path / name).read_bytes() == (ROOT / "docs/img" / name).read_bytes(), name
