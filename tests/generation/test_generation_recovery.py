"""Generation that is killed, stopped or dealt to many: what was finished is kept, and nothing is made twice."""

from __future__ import annotations

import os
import re
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
from slow_engine import LAST_WORDS, LIMIT_S, SRUN, ApartEngine, Place, SlowEngine, alive, made_once, wait_until
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
from tiny_run import PROMPTS, K, call, folders, tiny, typed

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


@pytest.fixture(scope="module")
def begun(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    place = tmp_path_factory.mktemp("begun")
    words = tiny(llama, place, "iter=1")
    for name in ("base/policy", "it1/prompts"):
        assert call(*words, f"only={name}") == 0
    return place / "store", [word for word in words if word not in folders(place)]


@pytest.fixture
def place(begun: tuple[Path, list[str]], tmp_path: Path) -> Iterator[Place]:
    store, words = begun
    shutil.copytree(store, tmp_path / "store", symlinks=True)
    (tmp_path / "runs").mkdir()
    slow = ["hardware.engine._target_=slow_engine.SlowEngine", f"+hardware.engine.folder={tmp_path}"]
    slow += [f"~hardware.engine.{key}" for key in ("dtype", "batch_answers", "device")]
    slow += ["+hardware.engine.first=2", "hardware.generation.save_seconds=1000"]
    found = Place(tmp_path, [*words, *folders(tmp_path), *slow, "only=it1/responses"], [])
    yield found
    for process in found.started:
        process.kill()
        process.wait()


@pytest.mark.full
@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_generation_has_kept_what_was_saved_and_the_next_makes_the_rest(workers: int, place: Place) -> None:
    process = place.start(f"hardware.generation.workers={workers}", "hardware.generation.save_seconds=1e-9")
    waiting = place.await_waiting(workers)
    assert (process.pid in waiting) == (workers == 1)
    process.kill()
    process.wait()
    wait_until(lambda: not any(map(alive, waiting)), "its processes die with it")
    assert len(place.kept()) == 2 * workers
    place.go()
    assert call(*place.words) == 0
    assert len(place.kept()) == ALL


@pytest.mark.full
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_generation_has_kept_every_finished_answer(
    number: signal.Signals, workers: int, place: Place
) -> None:
    """No save was due. Ctrl-C in a terminal goes to the workers as well."""
    process = place.start(f"hardware.generation.workers={workers}")
    waiting = place.await_waiting(workers)
    assert not place.cells()
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    assert process.wait(LIMIT_S) == 128 + number
    assert not any(map(alive, waiting))
    said = place.said(process)
    assert "the same command goes on" in said and "Traceback" not in said + place.logs()
    assert len(place.kept()) == 2 * workers
    place.go()
    assert call(*place.words) == 0
    assert len(place.kept()) == ALL


# A worker that dies -------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_a_dead_worker_is_named_while_another_is_busy_and_nothing_finished_is_lost(small: Small) -> None:
    """Worker 0 has given two answers, none of them saved, and waits for what never comes."""
    said = rf"^generate: worker 1 \(process \d+\) ended with exit code 7: {LAST_WORDS} \(.*worker1.log\); what was"
    with pytest.raises(UserError, match=said):
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
    told = "srun: error: node1: task 3: Exited with exit code 7; 3: " + LAST_WORDS
    said = rf"^generate: a task of srun \(process \d+\) ended with exit code 7: {told} \(.*srun.log\); what was"
    with pytest.raises(UserError, match=said):
        small.run("made", first=1, dies=3, workers=4, nodes=2, save_seconds=1e-9)
    kept = small.kept()
    assert 1 <= len(kept) <= 3
    rows = small.run("rest", workers=4, nodes=2)
    made = made_once(small.folder / "rest")
    assert len(made) == EVERY - len(kept) and not kept & made.keys()
    assert len(set(made.values())) == 4 and os.getpid() not in made.values()
    assert rows == small.run("alone", out="other")


# Shares -------------------------------------------------------------------------------------------------------------


@pytest.mark.full
@pytest.mark.parametrize(("kind", "workers"), [(SlowEngine, 2), (ApartEngine, 1)])
def test_a_share_is_made_in_processes_of_its_own_where_a_run_would_be(
    kind: type[SlowEngine], workers: int, place: Place
) -> None:
    place.go()
    how = [f"hardware.engine._target_=slow_engine.{kind.__name__}", f"hardware.generation.workers={workers}"]
    assert call(*place.words, *how, "part=2/2") == 0
    share = place.kept()
    assert len(share) == ALL // 2 and len(set(share.values()) - {os.getpid()}) == workers
    assert call(*place.words, *how, "part=1/2") == call(*place.words, *how) == 0
    assert len(place.kept()) == ALL


@pytest.mark.full
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
    assert f"all {ALL // 2} answers are there" in place.said(again)
    assert f"all {ALL} answers are there" in place.said(run)


SHARE, OTHER = partial(beside_others, share="1of2"), partial(beside_others, share="2of2")


@pytest.mark.parametrize(
    ("first", "second", "waits"),
    [(SHARE, alone, True), (alone, SHARE, True), (SHARE, SHARE, True), (alone, alone, True), (SHARE, OTHER, False)],
)
def test_only_shares_that_differ_are_made_side_by_side(
    first: Turn, second: Turn, waits: bool, tmp_path: Path, capsys: Capture
) -> None:
    def come() -> None:
        with second(tmp_path):
            pass

    with ThreadPoolExecutor(1) as threads:
        with first(tmp_path):
            comes, said = threads.submit(come), []
            wait_until(lambda: said.append(capsys.readouterr().err) or WAITING in "".join(said) or comes.done())
            assert (WAITING in "".join(said), comes.done()) == (waits, not waits)
        comes.result(LIMIT_S)


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


# clean --------------------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_clean_between_the_shares_and_the_run_takes_no_answer(place: Place) -> None:
    place.go()
    assert call(*place.words, "part=1/3") == call(*place.words, "part=2/3") == 0
    assert call("clean", "--yes", *folders(place.folder)) == 0
    assert len(place.kept()) == K * 3
    assert call(*place.words, "part=3/3") == call(*place.words) == 0
    assert len(place.kept()) == ALL


def test_clean_while_a_share_is_made_takes_no_answer(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """However often: what is in the making stays while a process holds a lock of its cells."""
    run, told = typed(*folders(place.folder)), []

    def clean(condition: Callable[[], bool]) -> None:
        for _ in range(3):
            capsys.readouterr()
            housekeeping.clean(run, confirmed=True)
            told.append(capsys.readouterr().out)
        place.kept()

    with monkeypatch.context() as patch:
        patch.setattr(slow_engine, "wait_until", clean)
        assert call(*place.words, "part=1/2", "hardware.generation.save_seconds=1e-9") == 0
    assert "kept: a process is making it" in told[-1]
    assert len(place.kept()) == ALL // 2
    place.go()
    assert call(*place.words) == 0
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
    said = re.escape(
        f"generate: the policy gives NaN or infinity for prompt {named}; try hardware.engine.dtype=float32"
    )
    with pytest.raises(UserError, match=rf"^{said}[^\n]*$"):
        Generate(sampling=CODE, engine=engine(), seed=0, dealing=ALONE)(prompts, sick, out=out)
    assert not Cells(out / WORK / CELLS).values and not (out / records.ROWS).exists()
