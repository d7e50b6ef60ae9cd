"""Generation that is killed, stopped or dealt to many: what was finished is kept, and nothing is made twice."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import pytest
import slow_engine
from slow_engine import LAST_WORDS, LIMIT_S, SRUN, Place, alive, made_once, wait_until
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
from tiny_run import PROMPTS, K, World, call, folders, typed

from src import housekeeping, records
from src.artifact import WORK
from src.attempts import locked
from src.cells import CELLS, Cells
from src.config import UserError
from src.generation.stage import Generate
from src.generation.turns import DOING, alone, beside_others
from src.store import LOCK

# ruff: noqa: F811

ALL = K * PROMPTS
WAITING = f"is {DOING}; waiting"
Turn = Callable[[Path], AbstractContextManager[None]]
Capture = pytest.CaptureFixture[str]


# The command --------------------------------------------------------------------------------------------------------


@pytest.fixture
def place(world: World, tmp_path: Path) -> Iterator[Place]:
    """A run whose prompts and policy are there; its engine is slow."""
    shutil.rmtree(world.store.root / f".{CELLS}")  # of the run that has finished
    slow = ["hardware.engine._target_=slow_engine.SlowEngine", f"+hardware.engine.folder={tmp_path}"]
    slow += [f"~hardware.engine.{key}" for key in ("dtype", "batch_answers", "device")]
    slow += ["+hardware.engine.first=2", "hardware.generation.save_seconds=1000"]
    found = Place(tmp_path, world.store.root, [*world.words, *folders(world.place), *slow, "only=it1/responses"], [])
    yield found
    for process in found.started:
        process.kill()
        process.wait()


@pytest.mark.faults
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_generation_that_is_ended_has_kept_every_finished_answer(number: signal.Signals, place: Place) -> None:
    """Two workers. No save was due but for SIGKILL. Ctrl-C in a terminal goes to the workers as well."""
    seconds = 1e-9 if number == signal.SIGKILL else 1000
    process = place.start("hardware.generation.workers=2", f"hardware.generation.save_seconds={seconds}")
    waiting = place.await_waiting(2)
    assert process.pid not in waiting
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    code = process.wait(LIMIT_S)
    wait_until(lambda: not any(map(alive, waiting)), "its processes die with it")
    assert code == (-number if number == signal.SIGKILL else 128 + number)
    assert "Traceback" not in place.said(process) + place.logs()
    assert len(place.kept()) == 2 * 2
    place.go()
    assert call(*place.words) == 0
    assert len(place.kept()) == ALL


@pytest.mark.faults
def test_who_wants_what_another_is_making_waits_for_it_and_makes_nothing(place: Place) -> None:
    """Two shares side by side, the second share once more (a requeued task), and the run."""
    first, second = place.start("part=1/2"), place.start("part=2/2")
    assert sorted(place.await_waiting(2)) == sorted([first.pid, second.pid])
    again, run = place.start("part=2/2"), place.start()
    wait_until(lambda: WAITING in place.said(again) and WAITING in place.said(run), "they say that they wait")
    place.go()
    assert [process.wait(LIMIT_S) for process in place.started] == [0] * 4
    makers = list(place.kept().values())
    assert makers.count(first.pid) == makers.count(second.pid) == ALL // 2


# Workers ------------------------------------------------------------------------------------------------------------


@pytest.mark.faults
def test_a_dead_worker_is_named_while_another_is_busy_and_nothing_finished_is_lost(small: Small) -> None:
    """Worker 0 has given two answers, none of them saved, and waits for what never comes."""
    with pytest.raises(UserError, match=rf"^generate: worker 1 .*exit code 7: {LAST_WORDS} "):
        small.run("made", first=2, dies=1, workers=2)
    assert small.kept() == made_once(small.folder / "made").keys() and len(small.kept()) == 2
    rows = small.run("made", workers=3)
    made = made_once(small.folder / "made")
    assert small.kept() == made.keys() and (len(made), len(set(made.values()))) == (EVERY, 1 + 3)
    assert rows == small.run("alone", out="other")


@pytest.mark.full
def test_the_tasks_of_two_nodes_give_the_rows_of_one_process(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first time, the last task dies and is named; the others have saved."""
    (tmp_path / "srun").write_text(SRUN.format(python=sys.executable))
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "2")
    with pytest.raises(UserError, match=rf"^generate: a task of srun .*task 3: .*exit code 7; 3: {LAST_WORDS} "):
        small.run("made", first=1, dies=3, workers=4, nodes=2, save_seconds=1e-9)
    kept = small.kept()
    assert 1 <= len(kept) <= 3
    rows = small.run("rest", workers=4, nodes=2)
    made = made_once(small.folder / "rest")
    assert len(made) == EVERY - len(kept) and not kept & made.keys()
    assert len(set(made.values())) == 4 and os.getpid() not in made.values()
    assert rows == small.run("alone", out="other")


@pytest.mark.full
def test_a_share_is_made_in_processes_of_its_own_where_a_run_would_be(place: Place) -> None:
    place.go()
    how = ["hardware.engine._target_=slow_engine.ApartEngine", "hardware.generation.workers=2"]
    assert call(*place.words, *how, "part=2/2") == 0
    share = place.kept()
    assert len(share) == ALL // 2 and len(set(share.values()) - {os.getpid()}) == 2


# Shares -------------------------------------------------------------------------------------------------------------


SHARE, OTHER = partial(beside_others, share="1of2"), partial(beside_others, share="2of2")


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

    for first, second in ((SHARE, alone), (alone, SHARE), (SHARE, SHARE), (alone, alone)):
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
        with locked(shared / LOCK, "it is free"):
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

    from src.model import load_tokenizer

    sick, out = shutil.copytree(llama, tmp_path / "sick"), tmp_path / "out"
    (token,) = load_tokenizer(sick).encode("Z", add_special_tokens=False)
    weights = load_file(sick / "model.safetensors")
    weights["model.embed_tokens.weight"][token, 3] = float("nan")
    save_file(weights, sick / "model.safetensors", {"format": "pt"})
    prompts = write_prompts(tmp_path / "prompts", [*QUESTIONS, "Z" + "o" * 100])
    named = records.read_rows(prompts, records.PROMPTS)[-1]["prompt_id"]
    out.mkdir()
    with pytest.raises(UserError, match=rf"^generate: [^\n]* prompt {named}; [^\n]*$"):
        Generate(sampling=CODE, engine=engine(), seed=0, dealing=ALONE)(prompts, sick, out=out)
    assert not Cells(out / WORK / CELLS).values and not (out / records.ROWS).exists()
