"""Answers are kept when a generation is killed, stopped or dealt to many, and none is made twice."""

from __future__ import annotations

import dataclasses
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
from places import PYTHONPATH
from slow_engine import LIMIT_S, SlowEngine, made_once, wait_until
from tiny_generation import ALONE, CODE, QUESTIONS, engine, write_prompts
from tiny_run import PROMPTS, ROOT, K, World, call, folders

from src.generation.stage import DOING, Generate, hold_all, hold_share
from src.kernel.artifact import WORK
from src.kernel.cells import CELLS, value_of
from src.kernel.rows import ROWS

ALL, EVERY = K * PROMPTS, CODE.K * len(QUESTIONS)
"""Answers of the tiny run, and of the stage by itself."""
WAITING = f"is {DOING}; waiting"
Turn = Callable[[Path], AbstractContextManager[None]]
Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def processes_find_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", PYTHONPATH)


# The stage ----------------------------------------------------------------------------------------------------------


class PowerCut(Exception):
    pass


class Small(NamedTuple):
    """The stage in this process, with an engine that notes what it makes. Of the policy only the tokenizer is used."""

    folder: Path
    policy: Path

    def stage(self, made: str, first: int = 1000, k: int = CODE.K, seed: int = 0) -> Generate:
        (self.folder / made).mkdir(exist_ok=True)
        slow = SlowEngine(folder=str(self.folder / made), first=first)
        return Generate(sampling=dataclasses.replace(CODE, K=k), engine=slow, seed=seed, dealing=ALONE)

    def run(self, made: str, out: str = "out", prompts: int = len(QUESTIONS), **how: Any) -> bytes:
        """Return the rows; the names of what was made are in the folder `made`."""
        (self.folder / out).mkdir(exist_ok=True)
        asked = write_prompts(self.folder / f"prompts{prompts}", QUESTIONS[:prompts])
        self.stage(made, **how)(asked, self.policy, out=self.folder / out)
        return (self.folder / out / ROWS).read_bytes()


@pytest.fixture
def small(llama: Path, tmp_path: Path) -> Small:
    return Small(tmp_path, llama)


def test_a_killed_run_makes_only_the_missing_answers_and_the_same_bytes(
    small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The power is cut before the eighth answer, in the middle of a line. Later a line of a whole run is lost."""

    def cut(condition: object) -> None:
        raise PowerCut

    expected, out = small.run("whole", out="whole"), small.folder / "out"
    with monkeypatch.context() as patch, pytest.raises(PowerCut):
        patch.setattr(slow_engine, "wait_until", cut)
        small.run("made", first=7)
    assert len(made_once(small.folder / "made")) == 7 and not (out / ROWS).exists()
    (torn,) = (out / WORK / CELLS).glob("*.jsonl")
    with torn.open("a") as file:
        file.write('["torn by the power c')
    assert small.run("made") == expected and len(made_once(small.folder / "made")) == EVERY

    lines = torn.read_text().splitlines()
    torn.write_text("\n".join(lines[:3] + lines[4:-1]) + "\n")
    assert small.run("again") == expected
    assert [*made_once(small.folder / "again")] == [value_of(lines[3].encode())[0]]


def test_more_answers_and_more_prompts_make_the_new_ones_only(small: Small) -> None:
    """K = 3 -> 5 samples two more a prompt, 5 -> 3 none, more prompts theirs; all from the store's shared cells."""
    for number, (prompts, k, new) in enumerate([(4, 3, 12), (4, 5, 8), (4, 3, 0), (6, 5, 10)]):
        (work := small.folder / str(number) / WORK).mkdir(parents=True)
        (work / CELLS).symlink_to(small.folder)
        small.run(f"made{number}", out=str(number), prompts=prompts, k=k)
        assert len(made_once(small.folder / f"made{number}")) == new


def test_what_is_shared_depends_on_all_that_moves_an_answer() -> None:
    def shared(batch: int = 4, dtype: Any = "float32", seed: int = 0, **sampling: Any) -> Any:
        settings = dataclasses.replace(CODE, **sampling)
        return Generate(sampling=settings, engine=engine(batch, dtype), seed=seed, dealing=ALONE).shared()

    assert shared() == shared(K=8) == shared(max_prompt_tokens=7) == shared(batch=64)
    for other in ({"temperature": 0.8}, {"top_p": 1.0}, {"max_new_tokens": 11}, {"seed": 1}, {"dtype": "bfloat16"}):
        assert shared(**other) != shared(), other


# Shares -------------------------------------------------------------------------------------------------------------


SHARE, OTHER = partial(hold_share, share="1of2"), partial(hold_share, share="2of2")


def test_only_shares_that_differ_are_made_side_by_side(tmp_path: Path, capsys: Capture) -> None:
    def check(first: Turn, second: Turn, waits: bool) -> None:
        def come() -> None:
            with second(tmp_path):
                pass

        with ThreadPoolExecutor(1) as threads:
            with first(tmp_path):
                comes, lines = threads.submit(come), list[str]()
                wait_until(lambda: lines.append(capsys.readouterr().err) or WAITING in "".join(lines) or comes.done())
                assert (WAITING in "".join(lines), comes.done()) == (waits, not waits)
            comes.result(LIMIT_S)

    for first, second in ((SHARE, hold_all), (hold_all, SHARE), (SHARE, SHARE), (hold_all, hold_all)):
        check(first, second, waits=True)
    check(SHARE, OTHER, waits=False)


# The command --------------------------------------------------------------------------------------------------------


class Place(NamedTuple):
    """A store that has the prompts and the policy of a run whose engine waits after two answers."""

    folder: Path
    store: Path
    words: list[str]

    def go(self) -> None:
        (self.folder / "go").touch()

    def kept(self) -> int:
        """Count the answers. Each was made once and is kept once."""
        made, files = made_once(self.folder), (self.store / f".{CELLS}").glob("*/*.jsonl")
        assert sorted(value_of(line)[0] for f in files for line in f.read_bytes().splitlines()) == sorted(made)
        return len(made)


@pytest.fixture
def place(world: World, tmp_path: Path) -> Place:
    shutil.rmtree(world.store.root / f".{CELLS}")  # of the run that has finished
    slow = ["hardware.engine._target_=slow_engine.SlowEngine", f"+hardware.engine.folder={tmp_path}"]
    slow += [f"~hardware.engine.{key}" for key in ("dtype", "batch_answers", "device")]
    slow += ["+hardware.engine.first=2", "hardware.generation.save_seconds=1000"]
    return Place(tmp_path, world.store.root, [*world.words, *folders(world.place), *slow, "only=it1/responses"])


def test_parts_that_are_made_apart_are_the_whole(place: Place) -> None:
    place.go()
    assert call(*place.words, "part=1/2") == 0 and place.kept() == ALL // 2
    assert call(*place.words, "part=2/2") == call(*place.words) == 0 and place.kept() == ALL


@pytest.mark.faults
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_generation_that_is_ended_has_kept_every_finished_answer(number: signal.Signals, place: Place) -> None:
    """Two workers. No save was due but for SIGKILL. Ctrl-C in a terminal goes to the workers as well."""
    seconds, output = 1e-9 if number == signal.SIGKILL else 1000, place.folder / "output"
    words = ["hardware.generation.workers=2", f"hardware.generation.save_seconds={seconds}"]
    with output.open("wb") as out:
        command = [sys.executable, "-m", "src.main", *place.words, *words]
        how: dict[str, Any] = {"stdout": out, "stderr": subprocess.STDOUT, "start_new_session": True}
        # What a shell has in its background ignores Ctrl-C.
        hear = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        process = subprocess.Popen(command, cwd=ROOT, preexec_fn=hear, **how)
    try:
        wait_until(lambda: len(list(place.folder.glob("waits-*"))) == 2, output.read_text())
        workers = [psutil.Process(int(path.name.partition("-")[2])) for path in place.folder.glob("waits-*")]
        (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
        code = process.wait(LIMIT_S)
        assert not psutil.wait_procs(workers, LIMIT_S)[1], "its processes die with it"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert code == (-number if number == signal.SIGKILL else 128 + number)
    assert "Traceback" not in output.read_text()
    assert place.kept() == 2 * 2
    place.go()
    assert call(*place.words) == 0 and place.kept() == ALL
