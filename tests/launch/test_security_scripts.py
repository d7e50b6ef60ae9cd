"""What a config says of a cluster stays the words that it is: job scripts run none of it but the site's own `setup`.

Overrides, the longest way in, are in tests/launch/test_slurm_script.py: any words arrive as they were given.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest
from conftest import inputs
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from slurm_scripts import NASTY, SAYS, TEXT, arrays_of, jobs_of, options, points_of, said, told_of, with_fields
from tiny_run import typed
from toy_graph import toy_task

from src.children import srun
from src.pipeline import Run
from src.slurm.script import script

LAW = settings(max_examples=inputs(25, 200), suppress_health_check=[HealthCheck.function_scoped_fixture])
WORD = TEXT.filter(bool)
KEYS = ("partition", "account", "qos", "constraint", "gpu", "modules")
BREAKS = ["\n", "\r", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029"]
"""What Python, or a terminal, takes for the end of a line."""


@pytest.fixture(scope="module")
def run() -> Run:
    return typed("launcher=slurm")


@LAW
@given(prefix=st.lists(WORD, max_size=3), python=WORD, scratch=TEXT.filter(lambda text: text.strip("\0")))
@example(prefix=[word for word in NASTY if word], python="$(touch x)", scratch="`touch x`\n#SBATCH --qos=mine")
def test_prefix_python_and_scratch_are_words(
    prefix: list[str], python: str, scratch: str, run: Run, tmp_path: Path
) -> None:
    """`said` sees to it that nothing was written and nothing complained."""
    (array,) = arrays_of(toy_task("it1-training", 0))
    jobs = jobs_of(run, prefix=prefix, python=python, scratch=scratch)
    text = script(array, told_of(array), points_of(run, ["a=1"]), jobs)
    assert said(text, tmp_path, None)[: len(prefix) + 3] == [*prefix, python, "-m", "src.main"]
    assert options(text) == options(script(array, told_of(array), points_of(run, ["a=1"]), jobs_of(run, python="x")))


@pytest.mark.parametrize("mark", [*BREAKS, " ", "'", '"', "`", "$(x)", ";", "\\", "#", "%j", "<", ">", "!", "{a,b}"])
@pytest.mark.parametrize("key", KEYS)
def test_an_option_is_a_word_or_refused(key: str, mark: str, run: Run) -> None:
    """A line's end would begin another `#SBATCH`, or the script."""
    value = f"a{mark}touch x"
    for text in (value, f"a{mark}", f"{mark}a"):
        with pytest.raises(ValidationError, match=f"{key}[\\s\\S]*should match pattern"):
            with_fields(jobs_of(run).site, **{key: [text] if key == "modules" else text})


@LAW
@given(words=st.lists(TEXT, min_size=1, max_size=4))
@example(words=NASTY)
def test_words_go_through_srun_as_they_are(words: list[str], tmp_path: Path) -> None:
    """srun starts `bash -c <line>` as each task; here bash does."""
    (stub := tmp_path / "says").write_text(f"#!/usr/bin/env bash\n{SAYS}")
    stub.chmod(0o755)
    *_, bash, dash_c, line = srun(2, 1, shlex.join([str(stub), *words]))
    assert (bash, dash_c) == ("bash", "-c")
    done = subprocess.run([bash, dash_c, line], cwd=tmp_path, capture_output=True, check=True, env=dict(os.environ))
    assert done.stdout.decode().split("\0")[:-1] == words and done.stderr == b""
    assert [path.name for path in tmp_path.iterdir()] == ["says"]


@pytest.mark.parametrize("mark", BREAKS)
def test_a_break_of_a_line_in_a_word_begins_no_option(mark: str, run: Run, tmp_path: Path) -> None:
    word = f"a=1{mark}#SBATCH --account=other{mark}touch x"
    (array,) = arrays_of(toy_task("it1-training", 0))
    text = script(array, told_of(array), points_of(run, [word]), jobs_of(run))
    head = text.partition("\nset -eu\n")[0]
    assert "other" not in head and said(text, tmp_path, None)[3] == word
