"""Every command in the documentation can be typed: overrides compose into a Run, targets of make exist."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from tiny_run import ROOT, composed

from src.compare import command as comparison
from src.main import OF_FOLDERS, VERBS, build
from src.score import GIVEN, Scoring, take_given
from src.tracking.sync import Asked

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(r"(?:python3? -m src\.[\w.]+|make)(?= |$)(?: [^\s`#]+)*")
"""Up to the end of the line, a comment, or the closing quote of code."""
MOST_POINTS = 50


class Quoted(NamedTuple):
    page: str
    command: str


def code(text: str) -> list[str]:
    """Lines of fenced blocks, and inline code."""
    fenced = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"^```\w*\n.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    return [line for block in fenced for line in re.sub(r"\s*\\\n\s*", " ", block).splitlines()] + inline


def commands(text: str) -> list[str]:
    """`<what you choose>` stands for a word, so such a line is no command yet."""
    lines = [line.strip().removeprefix("$ ") for line in code(text) if "<" not in line]
    return [match.group() for line in lines if (match := COMMAND.match(line))]


def quoted() -> list[Quoted]:
    pages = [page for page in PAGES if page.exists()]
    return list(dict.fromkeys(Quoted(page.name, words) for page in pages for words in commands(page.read_text())))


MAIN = [q for q in quoted() if "-m src.main" in q.command]
MAKE = [q for q in quoted() if q.command.split()[0] == "make"]


def points(overrides: list[str]) -> list[list[str]]:
    """The overrides of every point of a sweep; one point where nothing is swept."""
    found: list[list[str]] = [[]]
    for override in OverridesParser.create().parse_overrides(overrides):
        if override.is_interval_sweep():
            value: Any = override.value()
            values = [f"{override.get_key_element()}={value.start}"]
        elif override.is_sweep_override():
            values = [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
        else:
            values = [override.input_line or ""]
        found = [[*point, value] for point in found for value in values]
    return found


def test_the_readme_is_there_and_shows_the_commands_of_a_new_user() -> None:
    shown = {q.command for q in quoted() if q.page == "README.md"}
    assert {"make run", "make test", "python -m src.main method=sppo iter=3"} <= shown
    assert any(command.startswith("python -m src.main plan") for command in shown)


def test_commands_are_found_in_blocks_and_between_quotes() -> None:
    page = (
        "Say `make x` or `the makefile`.\n```bash\n$ python -m src.main a=1 \\\n  b='c d'  # why\nmake\nmakefile\n```\n"
    )
    assert commands(page) == ["python -m src.main a=1 b='c d'", "make", "make x"]


@pytest.mark.full
@pytest.mark.parametrize("entry", MAIN, ids=lambda q: f"{q.page}: {q.command}")
def test_every_command_of_the_documentation_makes_a_run(entry: Quoted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    words = shlex.split(entry.command)[3:]
    verb = words.pop(0) if words and words[0] in VERBS else "run"
    if verb in OF_FOLDERS:
        known = comparison.WORDS if verb == "compare" else Asked._fields
        assert {word.partition("=")[0] for word in words} <= set(known)
        return
    if verb == "score":
        given = take_given(words)
        assert set(given) <= set(GIVEN) and isinstance(next(iter(build(composed(*words)).benchmark.values())), Scoring)
        return
    flags = [word for word in words if word.startswith("-")]
    assert set(flags) <= {"-m", "--multirun", "--cfg"} | ({"--yes"} if verb == "clean" else set())
    overrides = [word for word in words if not word.startswith("-") and word != "job"]
    combinations = points(overrides)
    assert len(combinations) == 1 or "-m" in flags or "--multirun" in flags, "a sweep needs -m"
    for point in combinations[:MOST_POINTS]:
        assert build(composed(*point)).nodes()


def targets() -> set[str]:
    return set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.parametrize("entry", MAKE, ids=lambda q: f"{q.page}: {q.command}")
def test_every_target_of_the_documentation_exists(entry: Quoted) -> None:
    words = shlex.split(entry.command)[1:]
    assert [word for word in words if "=" not in word and word not in targets()] == []
    variables = set(re.findall(r"^([A-Z_]+) [?:]?=", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {word.split("=")[0] for word in words if "=" in word} <= variables


def test_every_target_explains_itself_and_is_no_file() -> None:
    makefile = (ROOT / "Makefile").read_text()
    (phony,) = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    explained = set(re.findall(r"^([a-z-]+):[^#\n]*## \S", makefile, re.MULTILINE))
    assert set(phony.split()) == targets() == explained


def test_every_file_the_documentation_names_exists() -> None:
    """Paths in code quotes that start with a folder of this repository, patterns and folders included.

    But for files whose content a page gives (tests/experiment/test_adding.py)."""
    for page in PAGES:
        for word in re.findall(r"`((?:src|tests|conf|docs)/[\w./*-]+)`(?!:\n\n```)", page.read_text()):
            assert list(ROOT.glob(word.rstrip("/"))), f"{page.name} names {word}"


def tree(page: str) -> list[str]:
    """What has a line with a comment."""
    return re.findall(r"^((?:src|conf|tests|docs|bench)/[\w./-]*) {2,}\S", (ROOT / page).read_text(), re.MULTILINE)


def test_every_module_is_in_the_tree() -> None:
    modules = [path for path in (ROOT / "src").rglob("*.py") if path.name != "__init__.py"]
    listed = tree("docs/tree.md")
    assert sorted(name for name in listed if name.endswith(".py")) == sorted(str(m.relative_to(ROOT)) for m in modules)
    assert all((ROOT / name).exists() for name in listed)


def test_every_folder_is_in_the_tree_of_the_readme() -> None:
    folders = [f"{path.relative_to(ROOT)}/" for path in (ROOT / "src").iterdir() if (path / "__init__.py").exists()]
    listed = tree("README.md")
    assert set(folders) <= set(listed) and all((ROOT / name).exists() for name in listed)


def test_the_readme_is_read_in_one_go() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.full
def test_the_pictures_of_job_arrays_are_what_the_planner_plans(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "docs/img/slurm_graph.py", str(tmp_path)], cwd=ROOT, check=True)
    for name in ("slurm_graph.png", "slurm_failure.png"):
        assert (tmp_path / name).read_bytes() == (ROOT / "docs/img" / name).read_bytes(), name
