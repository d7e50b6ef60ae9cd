"""What a command prints: nothing of others steers the terminal, no key is shown, and a stream that fails is no bug."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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
