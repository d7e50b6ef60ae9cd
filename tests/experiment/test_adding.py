"""What docs/adding.md adds is added: its files, beside the others, make runs."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_run import ROOT, tiny

from src.kernel.rows import RANKING, RESPONSES, read_rows

PAGE = ROOT / "docs" / "adding.md"
FILE = re.compile(r"`((?:src|conf)/[\w/.]+)`:\n\n```\w+\n(.*?)^```", re.MULTILINE | re.DOTALL)
QUESTIONS = [{"question": f"What is {n} and {n}?"} for n in range(200)]


@pytest.fixture(scope="module")
def added(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This repository's code and config, with the page's files; a user's file of prompts lies there."""
    place = tmp_path_factory.mktemp("added")
    for folder in ("src", "conf", "slurm", "sweeps"):
        shutil.copytree(ROOT / folder, place / folder, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    files = FILE.findall(PAGE.read_text())
    assert len(files) == 7
    for name, content in files:
        assert not (place / name).exists(), name
        (place / name).write_text(content)
    (place / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    return place


def run(place: Path, *words: str) -> str:
    done = subprocess.run([sys.executable, "-m", "src.main", *words], cwd=place, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.full
def test_what_was_added_is_planned_and_runs(added: Path, llama: Path) -> None:
    """Where policy and reference agree, the page's loss is log 2; its ranker's scores are those of its words."""
    for words in ("data=mine", "hardware=4xa100_80gb model=smollm2_1b7_instruct"):
        assert "it3/policy" in run(added, "plan", *words.split())
    run(added, *tiny(llama, added, "iter=1", "method=soft_dpo", "ranker=about_so_long", ranker=[]))
    (folder,) = (added / "runs").iterdir()
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [row["train/loss"] for row in rows if row.get("train/step") == 1]
    assert losses == [pytest.approx(math.log(2), abs=1e-4)]
    responses = read_rows(folder / "artifacts/it1/responses", RESPONSES)
    ranking = read_rows(folder / "artifacts/it1/ranking", RANKING)
    for row, ranked in zip(responses, ranking, strict=True):
        counts = [max(1, len(answer["text"].split())) for answer in row["responses"]]
        assert ranked["scores"] == pytest.approx([-abs(math.log(count / 60)) / 0.25 for count in counts])
