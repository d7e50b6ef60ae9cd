"""Every mistake of the tables is told in one line, with its exit code, and nothing is written or lost.

Run: python -m pytest -q tests/experiment/test_bad_input.py; the page docs/bad_input.md: make golden
"""

from __future__ import annotations

import json
import os
import re
import shlex
from contextlib import ExitStack
from pathlib import Path

import pytest
from answer_server import answering
from bad_benchmarks import BENCHMARKS
from bad_configs import CONFIGS
from bad_data import DATA
from bad_endpoints import ASKED, ENDPOINTS, impatient
from bad_inputs import Bad, Fine, Setting, Table, page
from bad_models import MODELS
from bad_rankers import RANKERS
from bad_slurm import SLURM
from bad_stores import STORES
from judge_server import Step
from tiny_run import ROOT, call, folders, tiny

from src import records
from src.links import LINKS
from src.main import OF_FOLDERS, VERBS
from src.provenance import RECORD, damage
from src.store import Store

PAGE = ROOT / "docs" / "bad_input.md"
TABLES: list[Table] = [CONFIGS, DATA, MODELS, RANKERS, ENDPOINTS, BENCHMARKS, STORES, SLURM]
ROWS = [row for table in TABLES for row in table.rows]
FINE = [row for table in TABLES for row in table.fine]
ALONE = [row for row in FINE if row.prompt is None]
TOLD = [row for row in FINE if row.prompt is not None]


def files(at: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(at.rglob("*")) if path.is_file()}


OF_STORE = re.compile(r"\.locks/[^/]+|\.store\.json|\.cells/[^/]+/[^/]+|([a-z_]+)/[0-9a-f]{20}(\.partial[^/]*)?/.+")
OF_RUN = re.compile(r"[^/]+/(config\.yaml|command\.txt|\.lock(\.beat)?|metrics\.jsonl|artifacts/.+)")


def in_store(at: Path) -> tuple[list[Path], list[Path]]:
    """New artifacts, and what is begun of others."""
    folders = [path for path in sorted((at / "store").glob("[!.]*/*")) if path.is_dir()]
    made = [path for path in folders if path.name.isalnum() and (path / RECORD).is_file()]
    return made, [path for path in folders if path not in made]


def strange(new: set[Path], at: Path, row: Bad) -> list[Path]:
    """Of new files, those that the row does not account for."""

    def known(path: Path) -> bool:
        if path.is_relative_to(at / "runs"):
            return bool(OF_RUN.fullmatch(path.relative_to(at / "runs").as_posix()))
        found = path.is_relative_to(at / "store") and OF_STORE.fullmatch(path.relative_to(at / "store").as_posix())
        return bool(found) and found[1] in (None, *(row.begun if found[2] else row.made))

    return sorted(path for path in new if not (row.verb in ("", "run") and known(path)))


def run(llama: Path, at: Path, words: list[str]) -> list[str]:
    """The tiny run, with its own ranker where the words have none."""
    return tiny(llama, at, *words, ranker=[] if any(word.startswith("ranker=") for word in words) else None)


@pytest.mark.full
@pytest.mark.parametrize("row", ROWS, ids=[row.what for row in ROWS])
def test_a_mistake_is_one_line(
    row: Bad,
    llama: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with ExitStack() as stack:
        more = row.given(Setting(tmp_path, llama, monkeypatch, stack)) if row.given else None
        words = [*(more or []), *shlex.split(row.words)]
        words = run(llama, tmp_path, words) if row.verb == "run" else [*row.verb.split(), *folders(tmp_path), *words]
        before, stood = files(tmp_path), in_store(tmp_path)
        code = call(*words)
    said, shown = capsys.readouterr()
    lines = [line.rpartition("\r")[2] for line in shown.splitlines() if "error: " in line]
    assert "Traceback" not in said + shown
    assert len(lines) == 1 and lines[0].startswith("error: "), shown
    assert row.matches(lines[0].removeprefix("error: ")), lines[0]
    assert code == row.code
    after = files(tmp_path)
    assert {path: after.get(path) for path in before} == before
    assert strange(after.keys() - before.keys(), tmp_path, row) == []
    made, begun = (sorted(set(new) - set(old)) for new, old in zip(in_store(tmp_path), stood, strict=True))
    assert sorted(path.parent.name for path in made) == sorted(row.made)
    assert all(damage(path) == [] for path in made)
    assert [path.parent.name for path in begun] == list(row.begun)


MISTAKEN = {"score": "benchmark=alpaca_eval", "verify": "", "clean": "", "status": "", "cancel": "", "retry": ""}
"""Words that are a mistake behind a verb; of any other verb its first ones."""


@pytest.mark.full
@pytest.mark.parametrize("verb", ["", *VERBS])
def test_every_verb_shows_where_a_mistake_rose_when_asked(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And ends with the same line and code; without `debug=true` there is nothing else."""
    of_folders = verb in OF_FOLDERS
    words = [*verb.split(), *MISTAKEN.get(verb, "runs=nowhere" if of_folders else "method.etta=3").split()]
    words = words if of_folders else [*words, *folders(tmp_path)]
    assert call(*words) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ") and line.count("\n") == 1
    assert call(*words, "debug=true") == 2
    shown = capsys.readouterr().err
    assert shown.startswith("Traceback (most recent call last):\n") and shown.endswith(line)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.full
@pytest.mark.parametrize("row", ALONE, ids=[row.what for row in ALONE])
def test_what_is_no_mistake_works(row: Fine, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ExitStack() as stack:
        more = row.given(Setting(tmp_path, llama, monkeypatch, stack)) if row.given else None
        assert call(*run(llama, tmp_path, [*(more or []), *shlex.split(row.words)])) == 0
    made = list(Store(tmp_path / "store").artifacts())
    assert made and all(damage(path) == [] for path in made)


@pytest.mark.full
def test_odd_prompts_come_back_as_they_were(llama: Path, tmp_path: Path) -> None:
    """Through a whole iteration: sampled, ranked, trained on, evaluated; but for what is too long."""
    texts = [str(row.prompt) for row in TOLD]
    for name in ("part0.jsonl", "held_out.jsonl"):
        held_out = "" if name == "part0.jsonl" else "held out: "
        (tmp_path / name).write_text("".join(json.dumps({"prompt": held_out + text}) + "\n" for text in texts))
    counts = [f"data.{key}={len(texts)}" for key in ("prompts_per_iteration", "held_out_prompts")]
    assert call(*run(llama, tmp_path, ["iter=1", *counts])) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    asked = records.read_rows(folder / LINKS / "it1/prompts", records.PROMPTS)
    assert [row["messages"] for row in asked] == [[{"role": "user", "content": text}] for text in texts]
    answered = records.read_rows(folder / LINKS / "it1/responses", records.RESPONSES)
    short = [text for text in texts if len(text) < 1000]
    assert [row["messages"][0]["content"] for row in answered] == short and len(short) == len(texts) - 1


@pytest.mark.full
def test_paid_answers_are_kept_when_a_server_fails(llama: Path, tmp_path: Path) -> None:
    """Two of four answers come before it is down for good; the next command asks for the other two."""
    with answering() as server:
        busy = Step(status=429, body="{}")
        words = ["iter=1", "only=it1/outside_mine", "+answers@data.answers.mine=endpoint"]
        words = run(llama, tmp_path, [*words, *impatient(ASKED, server.url)])
        server.say = lambda body, number: "an answer" if number < 2 else busy
        assert call(*words) == 3
        paid = [text for text, _ in server.asked[:2]]
        server.bodies.clear()
        server.say = lambda body, number: "an answer"
        assert call(*words) == 0
        assert len(server.asked) == 2 and not set(paid) & {text for text, _ in server.asked}


def test_the_rows_are_distinct_and_many() -> None:
    assert len({row.what for row in ROWS}) == len(ROWS) >= 80
    assert len({row.what for row in FINE}) == len(FINE)


def test_the_golden_page_is_made_of_the_rows() -> None:
    text = page(TABLES)
    if os.environ.get("GOLDEN"):
        PAGE.write_text(text)
    assert text == PAGE.read_text(), "docs/bad_input.md is made of the tables; if you meant the change: make golden"
