"""Generation that is killed, stopped or dealt to many: what was finished is kept, and nothing is made twice."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
import slow_engine
from slow_engine import LIMIT_S, made_once, wait_until
from tiny_generation import (  # noqa: F401
    ALONE,
    CODE,
    EVERY,
    QUESTIONS,
    Small,
    engine,
    processes_find_the_engine,
    small,
    write_prompts,
)
from tiny_run import PROMPTS, ROOT, K, World, call, folders, typed

from src.generation.stage import DOING, Generate, hold_all, hold_share
from src.kernel import rows as kernel_rows
from src.kernel.artifact import WORK
from src.kernel.cells import CELLS, Cells, value_of
from src.kernel.config import UserError
from src.kernel.disk import turn
from src.kernel.rows import ROWS, read_rows
from src.kernel.store import LOCK
from src.launch import housekeeping

# ruff: noqa: F811

ALL = K * PROMPTS
WAITING = f"is {DOING}; waiting"
Turn = Callable[[Path], AbstractContextManager[None]]
Capture = pytest.CaptureFixture[str]


# The command --------------------------------------------------------------------------------------------------------


class Place(NamedTuple):
    """A store that has the prompts and the policy of a run whose engine is slow."""

    folder: Path
    store: Path
    words: list[str]

    def go(self) -> None:
        (self.folder / "go").touch()

    def kept(self) -> dict[str, int]:
        """Cell -> the process that made it: each was made once and is kept once."""
        made, files = made_once(self.folder), (self.store / f".{CELLS}").glob("*/*.jsonl")
        assert sorted(value_of(line)[0] for f in files for line in f.read_bytes().splitlines()) == sorted(made)
        return made


@pytest.fixture
def place(world: World, tmp_path: Path) -> Place:
    shutil.rmtree(world.store.root / f".{CELLS}")  # of the run that has finished
    slow = ["hardware.engine._target_=slow_engine.SlowEngine", f"+hardware.engine.folder={tmp_path}"]
    slow += [f"~hardware.engine.{key}" for key in ("dtype", "batch_answers", "device")]
    slow += ["+hardware.engine.first=2", "hardware.generation.save_seconds=1000"]
    return Place(tmp_path, world.store.root, [*world.words, *folders(world.place), *slow, "only=it1/responses"])


@pytest.mark.faults
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_generation_that_is_ended_has_kept_every_finished_answer(number: signal.Signals, place: Place) -> None:
    """Two workers. No save was due but for SIGKILL. Ctrl-C in a terminal goes to the workers as well."""
    seconds, said = 1e-9 if number == signal.SIGKILL else 1000, place.folder / "said"
    words = ["hardware.generation.workers=2", f"hardware.generation.save_seconds={seconds}"]
    with said.open("wb") as out:
        command = [sys.executable, "-m", "src.main", *place.words, *words]
        how: dict[str, Any] = {"stdout": out, "stderr": subprocess.STDOUT, "start_new_session": True}
        # What a shell has in its background ignores Ctrl-C.
        hear = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        process = subprocess.Popen(command, cwd=ROOT, preexec_fn=hear, **how)
    try:
        wait_until(lambda: len(list(place.folder.glob("waits-*"))) == 2, said.read_text())
        workers = [psutil.Process(int(path.name.partition("-")[2])) for path in place.folder.glob("waits-*")]
        (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
        code = process.wait(LIMIT_S)
        assert not psutil.wait_procs(workers, LIMIT_S)[1], "its processes die with it"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert code == (-number if number == signal.SIGKILL else 128 + number)
    assert "Traceback" not in said.read_text()
    assert len(place.kept()) == 2 * 2
    place.go()
    assert call(*place.words) == 0
    assert len(place.kept()) == ALL


# Shares -------------------------------------------------------------------------------------------------------------


SHARE, OTHER = partial(hold_share, share="1of2"), partial(hold_share, share="2of2")


def test_only_shares_that_differ_are_made_side_by_side(tmp_path: Path, capsys: Capture) -> None:
    def check(first: Turn, second: Turn, waits: bool) -> None:
        def come() -> None:
            with second(tmp_path):
                pass

        with ThreadPoolExecutor(1) as threads:
            with first(tmp_path):
                comes, said = threads.submit(come), list[str]()
                wait_until(lambda: said.append(capsys.readouterr().err) or WAITING in "".join(said) or comes.done())
                assert (WAITING in "".join(said), comes.done()) == (waits, not waits)
            comes.result(LIMIT_S)

    for first, second in ((SHARE, hold_all), (hold_all, SHARE), (SHARE, SHARE), (hold_all, hold_all)):
        check(first, second, waits=True)
    check(SHARE, OTHER, waits=False)


def test_a_share_that_waited_makes_nothing_when_the_unfinished_artifact_is_gone(small: Small, capsys: Capture) -> None:
    """The run it waited for has finished it, or `clean` has removed it; the cells are where they were."""
    shared, work = small.folder / "shared", small.folder / "out" / WORK
    for folder in (shared, work):
        folder.mkdir(parents=True)
    (work / CELLS).symlink_to(shared)
    small.run("made")
    inputs = (small.folder / "prompts", small.policy)
    fill = partial(small.stage("made").fill, *inputs, out=work.parent, part=0, parts=2)
    with ThreadPoolExecutor(1) as threads:
        with turn(shared / LOCK, "it"):
            share = threads.submit(fill)
            wait_until(lambda: WAITING in capsys.readouterr().err)
            shutil.rmtree(work.parent)
        share.result(LIMIT_S)
    assert len(made_once(small.folder / "made")) == len(Cells(shared).values) == EVERY


def test_clean_takes_no_answer_while_a_share_is_made_nor_after_it(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """What is in the making stays while a process holds a lock of its cells; finished answers stay in any case."""
    run, told = typed(*place.words), []

    def clean(condition: object = None) -> None:
        capsys.readouterr()
        housekeeping.clean(run, confirmed=True)
        told.append(capsys.readouterr().out)
        place.kept()

    with monkeypatch.context() as patch:
        patch.setattr(slow_engine, "wait_until", clean)
        assert call(*place.words, "part=1/2", "hardware.generation.save_seconds=1e-9") == 0
    assert "kept: a process is making it" in told[-1]
    clean()
    assert len(place.kept()) == ALL // 2
    place.go()
    assert call(*place.words, "part=2/2") == call(*place.words) == 0
    assert len(place.kept()) == ALL


# NaN ----------------------------------------------------------------------------------------------------------------


def test_a_policy_that_gives_nan_is_refused_in_one_line_that_names_the_prompt(llama: Path, tmp_path: Path) -> None:
    """One number is NaN: of the embedding of a token that the longest prompt alone has."""
    from safetensors.torch import load_file, save_file

    from src.modeling.policy import load_tokenizer

    sick, out = shutil.copytree(llama, tmp_path / "sick"), tmp_path / "out"
    (token,) = load_tokenizer(sick).encode("Z", add_special_tokens=False)
    weights = load_file(sick / "model.safetensors")
    weights["model.embed_tokens.weight"][token, 3] = float("nan")
    save_file(weights, sick / "model.safetensors", {"format": "pt"})
    prompts = write_prompts(tmp_path / "prompts", [*QUESTIONS, "Z" + "o" * 100])
    named = read_rows(prompts, kernel_rows.PROMPTS)[-1]["prompt_id"]
    out.mkdir()
    with pytest.raises(UserError, match=rf"^generate: [^\n]* prompt {named}; [^\n]*$"):
        Generate(sampling=CODE, engine=engine(), seed=0, dealing=ALONE)(prompts, sick, out=out)
    assert not Cells(out / WORK / CELLS).values and not (out / ROWS).exists()
