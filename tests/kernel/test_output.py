"""What a command prints: nothing of others steers the terminal, no key is shown, and a stream that fails is no bug.

Ctrl-C ends it at any moment with at most one line, and so does a start that cannot work.
"""

from __future__ import annotations

import contextlib
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
from canaries import CANARIES, plant
from tiny_run import ROOT, call, folders

from src.kernel.processes import legible

EVIL = "\x1b]0;mine\x07\x9b\u202e\u2066\u2028\x08"


def test_an_error_that_quotes_text_is_shown_escaped_and_without_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The key is in a file, whose words are quoted."""
    plant(monkeypatch)
    file = tmp_path / f"{CANARIES['OPENAI_API_KEY']}{EVIL}.jsonl"
    file.write_text("broken\n")
    for refusal in ("src.launch.verbs.refuse_words", "src.launch.compose.refuse_settings"):
        monkeypatch.setattr(refusal, lambda words: None)
    assert call("plan", f"data.held_out_file='{file}'", *folders(tmp_path)) == 2
    text = capsys.readouterr().err
    assert "\\x1b" in text and "\\u202e" in text and legible(text) == text
    assert CANARIES["OPENAI_API_KEY"] not in text


@pytest.mark.parametrize("redirection, code", [(">/dev/full", 3), (">&-", 0), ("2>&-", 0), ("| :", 141)])
def test_a_stream_that_takes_nothing_ends_in_order(redirection: str, code: int, tmp_path: Path) -> None:
    words = " ".join(["plan", "iter=1", *folders(tmp_path)])
    script = f'set -o pipefail; "$0" -m src.main {words} {redirection}'
    done = subprocess.run(["bash", "-c", script, sys.executable], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == code and "Traceback" not in done.stderr, done.stderr
    assert not list(tmp_path.iterdir())


# Ctrl-C -------------------------------------------------------------------------------------------------------------

KILLED = -signal.SIGINT
"""The system ends the process; a shell says 130."""
STOPS = [
    ("plan", "src.kernel.processes.quiet_libraries", "", KILLED),
    *(("plan", f"src.{place}", "", 130) for place in ("kernel.processes.tidy_output", "launch.verbs.print_plan")),
    ("plan", "src.launch.verbs.print_plan", "src.launch.mistakes.exit_code", KILLED),
    ("plan method.etta=1", "src.launch.mistakes.one_line", "", 130),
    ("status launcher=slurm", "src.launch.slurm.launcher.print_status", "", 130),
    ("compare", "src.reporting.compare.command.compare", "", 130),
]


def ctrl_c(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGINT)


def ended(words: str, output: Path, **effects: Callable[..., object]) -> int:
    """Carry out a command in which some functions, named with __ for dots, do something else; return how it ended."""
    if not (child := os.fork()):
        code = 1
        try:
            sys.stdout = sys.stderr = output.open("w", buffering=1)
            signal.signal(signal.SIGINT, signal.default_int_handler)  # pytest may run in a background
            sys.argv[1:] = words.split()
            with contextlib.ExitStack() as stack:
                for place, effect in effects.items():
                    stack.enter_context(mock.patch(place.replace("__", "."), side_effect=effect))
                runpy.run_module("src.main", run_name="__main__", alter_sys=True)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("words, place, again, code", STOPS)
def test_ctrl_c_is_no_traceback(words: str, place: str, again: str, code: int, tmp_path: Path) -> None:
    """It comes when the command calls the first place, among the imports or later, and once more at the second."""
    places = {name.replace(".", "__"): ctrl_c for name in (place, again) if name}
    assert ended(words, tmp_path / "output", **places) == code
    assert len((tmp_path / "output").read_text().splitlines()) <= 1


class Collected:
    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_that_comes_while_garbage_is_collected_is_not_lost(tmp_path: Path) -> None:
    """Python prints what is raised there and goes on."""

    def collect(*_: object) -> None:
        Collected()
        signal.pause()  # until it comes again

    assert ended("plan", tmp_path / "output", src__launch__verbs__print_plan=collect) == 128 + signal.SIGTERM
    assert (tmp_path / "output").read_text().startswith("stopped by SIGTERM; ")


# The start ----------------------------------------------------------------------------------------------------------

STARTS = dict.fromkeys(("hydra", "src.launch.verbs", "version_info"), "-m src.main plan") | {"-": "src/main.py plan"}
"""What is missing or too old -> how the command is started."""


@pytest.mark.parametrize("broken", STARTS)
def test_a_start_that_cannot_work_says_so_in_one_line(broken: str, tmp_path: Path) -> None:
    """A mistake of our own keeps its traceback."""
    line = "sys.version_info = (3, 9)" if broken == "version_info" else f"sys.modules[{broken!r}] = None"
    (tmp_path / "sitecustomize.py").write_text(f"import sys; {line}\n")
    words, env = [sys.executable, *STARTS[broken].split()], os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True)
    first, *more = done.stderr.splitlines()
    told = done.returncode == 2 and not more and first.startswith("error: ") and "make install" in first
    assert first.startswith("Traceback") if broken.startswith("src.") else told


def test_libraries_are_quiet_whatever_imports_them_first() -> None:
    script = "import atexit, runpy; atexit.register(lambda: print('quiet:', __import__('tqdm').tqdm(()).disable));"
    words = [sys.executable, "-c", f"{script} runpy.run_module('src.main', run_name='__main__')", "--hydra-help"]
    env = {name: value for name, value in os.environ.items() if name != "TQDM_DISABLE"}
    assert subprocess.check_output(words, cwd=ROOT, env=env, text=True).endswith("quiet: True\n")
