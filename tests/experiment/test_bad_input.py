"""Every mistake of tests/bad_inputs.md gives one line, with its exit code, and nothing is written or lost."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from bad_inputs import DATA, FINE, ODD_PROMPTS, PLACES, Bad, Setting, sections
from bad_models import MODELS
from tiny_run import call, folders, tiny

from src.experiment.run_folder import LINKS
from src.kernel.record import RECORD, damage
from src.kernel.rows import PROMPTS, RESPONSES, read_rows
from src.kernel.store import Store
from src.launch.verbs import VERBS

SECTIONS = sections()
ARRANGED = DATA | MODELS | PLACES
"""Mistakes that need more than words of the command."""
COMMAND = "The command and its config"
Capture = pytest.CaptureFixture[str]


def test_the_page_has_what_is_arranged_here_once_and_no_other() -> None:
    rows = [row.what for bad, _ in SECTIONS.values() for row in bad]
    assert len(rows) == len(set(rows)) >= 120 and ARRANGED.keys() <= set(rows)
    assert [what for _, fine in SECTIONS.values() for what in fine] == list(ODD_PROMPTS | FINE)


def files(at: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(at.rglob("*")) if path.is_file()}


def in_store(at: Path) -> tuple[set[Path], set[Path]]:
    """Return the artifacts, and what is begun of others."""
    folders = {path for path in (at / "store").glob("[!.]*/*") if path.is_dir()}
    made = {path for path in folders if path.name.isalnum() and (path / RECORD).is_file()}
    return made, folders - made


def run(llama: Path, at: Path, words: list[str]) -> list[str]:
    """Return the words of the tiny run, with its own ranker where `words` have none."""
    return tiny(llama, at, *words, ranker=[] if any(word.startswith("ranker=") for word in words) else None)


@contextmanager
def placed(at: Path, llama: Path) -> Iterator[Setting]:
    """Make an empty folder; undo afterwards what a row arranges."""
    at.mkdir()
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        yield Setting(at, llama, patch, stack)


def broken_laws(row: Bad, lead: list[str], setting: Setting, capsys: Capture) -> list[str]:
    """Return what is wrong with the line for the mistake, and with what the command leaves."""
    at, verb = setting.at, lead or [word for word in row.words[:1] if word in VERBS]
    arranged = ARRANGED[row.what](setting) if row.what in ARRANGED else None
    words = [*(arranged or []), *row.words[len(verb) - len(lead) :]]
    words = [*verb, *folders(at), *words] if verb else run(setting.model, at, words)
    before, (made_before, begun_before) = files(at), in_store(at)
    capsys.readouterr()
    code = call(*words)
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if "error: " in line]
    after, (made, begun) = files(at), in_store(at)
    made, begun = made - made_before, begun - begun_before
    places = () if verb else (*(at / "store").glob(".*"), *made, *begun, at / "runs")
    new = {path for path in after.keys() - before.keys() if not any(map(path.is_relative_to, places))}
    laws = {
        f"one line tells it: {err[-1000:]}": len(lines) == 1 and row.matches(lines[0].removeprefix("error: ")),
        f"it stands last and alone: {err[-1000:]}": err.splitlines()[-1:] == lines,
        f"no traceback: {(out + err)[-1000:]}": "Traceback" not in out + err,
        f"code {row.code}, not {code}": code == row.code,
        "nothing is lost": {path: after.get(path) for path in before} == before,
        f"nothing strange is written: {new}": not new,
        f"kept: {made}": sorted(path.parent.name for path in made) == row.made and not any(map(damage, made)),
        f"begun: {begun}": [path.parent.name for path in begun] == row.begun,
    }
    return [f"{row.what}: {law}" for law, holds in laws.items() if not holds]


@pytest.mark.parametrize("title", SECTIONS)
def test_a_mistake_is_one_line(title: str, llama: Path, tmp_path: Path, capsys: Capture) -> None:
    broken = []
    for number, row in enumerate(SECTIONS[title][0]):
        with placed(tmp_path / str(number), llama) as setting:
            broken += broken_laws(row, ["plan"] if title == COMMAND else [], setting, capsys)
    assert broken == []


def test_a_command_shows_where_a_mistake_rose_when_asked(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends with the same line and code as without HYDRA_FULL_ERROR."""
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    for words in (["method.etta=3"], ["plan", "method.etta=3"], ["verify"]):
        assert call(*words, *folders(tmp_path)) == 2, words
        first, *_, last = capsys.readouterr().err.splitlines()
        assert first == "Traceback (most recent call last):" and last.startswith("error: "), words


def test_what_is_no_mistake_works(llama: Path, tmp_path: Path) -> None:
    for number, (what, (words, arrange)) in enumerate(FINE.items()):
        with placed(tmp_path / str(number), llama) as setting:
            assert call(*run(llama, setting.at, [*(arrange(setting) or []), *words.split()])) == 0, what
            made = list(Store(setting.at / "store").artifacts())
            assert made and all(damage(path) == [] for path in made)


@pytest.mark.full
def test_odd_prompts_come_back_as_they_were(llama: Path, tmp_path: Path) -> None:
    """Through a whole iteration: sampled, ranked, trained on, evaluated; but for what is too long."""
    texts = list(ODD_PROMPTS.values())
    for name in ("part0.jsonl", "held_out.jsonl"):
        held_out = "" if name == "part0.jsonl" else "held out: "
        (tmp_path / name).write_text("".join(json.dumps({"prompt": held_out + text}) + "\n" for text in texts))
    counts = [f"data.{key}={len(texts)}" for key in ("prompts_per_iteration", "held_out_prompts")]
    assert call(*run(llama, tmp_path, ["iter=1", *counts])) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    asked = read_rows(folder / LINKS / "it1/prompts", PROMPTS)
    assert [row["messages"] for row in asked] == [[{"role": "user", "content": text}] for text in texts]
    answered = read_rows(folder / LINKS / "it1/responses", RESPONSES)
    short = [text for text in texts if len(text) < 1000]
    assert [row["messages"][0]["content"] for row in answered] == short and len(short) == len(texts) - 1
