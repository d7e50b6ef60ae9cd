"""What the documentation says holds: its commands compose, its links lead somewhere, its figures are those of files."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_run import ROOT, composed, points_of

from src.experiment.graph import nodes_of
from src.launch.compose import build
from src.launch.score import FILES, Scoring, split_words
from src.launch.verbs import OF_FOLDERS, VERBS
from src.reporting.compare import command as comparison
from src.reporting.published import published

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(r"(?:python3? -m src\.[\w.]+|make)(?= |$)(?: [^\s`#]+)*")
"""A command, up to the end of the line, a comment, or the closing quote of code."""
MAKEFILE = (ROOT / "Makefile").read_text()


def code(text: str) -> list[str]:
    """Return the lines of fenced blocks, and inline code."""
    fenced = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"^```\w*\n.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    return [line for block in fenced for line in re.sub(r"\s*\\\n\s*", " ", block).splitlines()] + inline


def commands(text: str) -> list[str]:
    """Return the commands of a page; `<what you choose>` stands for a word, so such a line is none yet."""
    lines = [line.strip().removeprefix("$ ") for line in code(text) if "<" not in line]
    return [match.group() for line in lines if (match := COMMAND.match(line))]


QUOTED = list(dict.fromkeys(words for page in PAGES for words in commands(page.read_text())))
MAINS = [command for command in QUOTED if "-m src.main" in command]


@pytest.mark.parametrize("command", MAINS)
def test_a_command_of_the_documentation_would_be_carried_out(command: str) -> None:
    """Of a sweep, its first point."""
    words = shlex.split(command)[3:]
    verb = words.pop(0) if words and words[0] in VERBS else "run"
    if verb in OF_FOLDERS:
        known = comparison.WORDS if verb == "compare" else ["runs"]
        assert {word.partition("=")[0] for word in words} <= set(known)
        return
    if verb == "score":
        given, words = split_words(words)
        assert set(given) <= set(FILES) and isinstance(next(iter(build(composed(*words)).benchmark.values())), Scoring)
        return
    flags = [word for word in words if word.startswith("-")]
    assert set(flags) <= {"-m", "--multirun", "--cfg"} | ({"--yes"} if verb == "clean" else set())
    words = [word for word in words if not word.startswith("-") and word != "job"]
    first = [word if "[" in word else word.partition(",")[0] for word in words]
    assert first == words or "-m" in flags or "--multirun" in flags, "a sweep needs -m"
    assert nodes_of(build(composed(*first)))


SUCH_AS = re.compile(r"^( *)(\w+):(?: .*# .*such as (\{.*?\}|\[.*?\]|[^ ;,]+))?", re.MULTILINE)
"""A key of a YAML file, how deep it stands, and the value that its comment recommends."""
CHOSEN = {"answers": "+answers@data.answers.mine", "engine": "engine@hardware.engine", "config": ""}


def test_a_value_that_a_comment_of_the_config_recommends_is_taken() -> None:
    for file in (*(ROOT / "conf").glob("[!s]*/*.yaml"), ROOT / "conf" / "config.yaml"):
        group = file.parent.name if file.stem != "config" else "config"
        chosen, above = CHOSEN.get(group, group), list[str]()
        place = f"benchmark.{file.stem}" if group == "benchmark" else chosen.rpartition("@")[2]
        for indent, key, value in SUCH_AS.findall(file.read_text()):
            above[len(indent) // 2 :] = [key]
            if value:
                words = [f"{chosen}={file.stem}"] if chosen else ["only=it1/responses"]
                name = ".".join(filter(None, [place, *above]))
                assert points_of("pairing=wpo_v2", *words, f"{name}={value.rstrip(':')}"), name


def test_commands_of_the_documentation_are_found() -> None:
    assert "python -m src.main method=sppo iter=3" in MAINS and len(MAINS) > 50


def test_every_target_of_the_documentation_exists_and_explains_itself() -> None:
    targets = set(re.findall(r"^([a-z][\w-]*):", MAKEFILE, re.MULTILINE))
    variables = set(re.findall(r"^([A-Z_]+) [?:]?=", MAKEFILE, re.MULTILINE))
    (phony,) = re.findall(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)
    assert set(phony.split()) == targets == set(re.findall(r"^([a-z-]+):[^#\n]*## \S", MAKEFILE, re.MULTILINE))
    words = [word for command in QUOTED if command.startswith("make") for word in shlex.split(command)[1:]]
    assert "run" in words and {word for word in words if "=" not in word} <= targets
    assert {word.partition("=")[0] for word in words if "=" in word} <= variables


def test_every_file_the_documentation_names_exists_and_every_folder_of_the_source_is_in_its_tree() -> None:
    """Files whose content a page gives are no such files (tests/experiment/test_adding.py)."""
    quoted, in_tree = r"`((?:src|tests|conf|docs)/[\w./*-]+)`(?!:\n\n```)", r"^(\w+/[\w./-]*) {2,}\S"
    tree = re.findall(in_tree, (ROOT / "README.md").read_text(), re.MULTILINE)
    named = [(page.name, word) for page in PAGES for word in re.findall(quoted, page.read_text())]
    missing = [(page, word) for page, word in [*named, *(("tree", word) for word in tree)] if not list(ROOT.glob(word))]
    assert missing == [] and len(named) > 20
    assert {f"src/{file.parent.name}/" for file in ROOT.glob("src/*/*.py")} <= set(tree)


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
