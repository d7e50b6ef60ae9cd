"""No value of the environment reaches the disk through a word or a file of the config; words are kept as typed."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from tiny_run import World, call, folders

from src.experiment.run_folder import command
from src.experiment.secret_words import refuse_words

CANARY = "canary-3f9a1c"


def test_what_reads_the_environment_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MY_NAME", CANARY)
    for verb in ("run", "plan"):
        for word in ("name=${oc.env:MY_NAME}", "name=x-${ oc.env: MY_NAME, y}", "method.name=${oc.env:MY_NAME,x}"):
            assert call(*([] if verb == "run" else [verb]), word, *folders(tmp_path)) == 2
            told = capsys.readouterr()
            key = word.partition("=")[0]
            assert told.err.startswith(f"error: {key}: ") and told.err.count("\n") == 1
            assert CANARY not in told.out + told.err
        for words in (
            ["model.name=env", "name=${oc.${model.name}:MY_NAME}"],
            ["hydra.job.name=${oc.env:MY_NAME}", "name=${hydra:job.name}"],
            ["name=${oc.\nenv:MY_NAME}"],
        ):
            assert call(*([] if verb == "run" else [verb]), *words, *folders(tmp_path)) == 2, words
            told = capsys.readouterr()
            assert "error: " in told.err and "Traceback" not in told.err
            assert CANARY not in told.out + told.err
    assert list(tmp_path.iterdir()) == []
    refuse_words(["name=${method.name}"])


def test_an_override_is_kept_as_it_was_typed(world: World) -> None:
    word = "name=mine-${method.name}-${seed}"
    assert world.run("iter=2", word) == 0
    folder = world.place / "runs" / "mine-sppo-0"
    words = [*world.words, *folders(world.place), "iter=2", word]
    kept = shlex.split((folder / "command.txt").read_text())
    assert word in kept and sorted(kept) == sorted(shlex.split(command(words)))
