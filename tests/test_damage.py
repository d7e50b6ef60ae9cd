"""Damage of every kind of artifact is found before it is used, named, and repaired by making again what is damaged.

Run: python -m pytest -q tests/test_damage.py
"""

from __future__ import annotations

import json
import random
import re
import shutil
from pathlib import Path

import pytest
from tiny_run import World, call, contents, folders, tiny, typed

from src.artifact import Node, Store
from src.cells import CELLS
from src.provenance import CARD, RECORD, damage, read_record

KINDS = ("prompts", "policy", "responses", "ranking", "pairs", "reference", "evaluation", "divergence")
LATER = ("flip", "cut", "delete", "swap", "flip the record", "delete the record", "swap the folders")


@pytest.fixture(scope="module")
def finished(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    place = tmp_path_factory.mktemp("finished")
    world = World(place, [word for word in tiny(llama, place) if not word.startswith(("store=", "runs="))])
    assert world.run("iter=1") == 0
    return world


@pytest.fixture
def world(finished: World, tmp_path: Path) -> World:
    shutil.copytree(finished.place / "store", tmp_path / "store", symlinks=True)
    return finished._replace(place=tmp_path)


def flip(path: Path, chance: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


def files_of(artifact: Path) -> list[Path]:
    return [artifact / name for name in read_record(artifact)["files"] if name != CARD]


def harm(how: str, victim: Path, other: Path, chance: random.Random) -> str:
    """Damage an artifact; `other` is one of the same kind. Returns the name that is to be told."""
    file = chance.choice([path for path in files_of(victim) if path.stat().st_size])
    if how == "flip":
        flip(file, chance)
    elif how == "cut":
        file.write_bytes(file.read_bytes()[: chance.randrange(file.stat().st_size)])
    elif how == "delete":
        file.unlink()
    elif how == "swap":
        its = other / file.relative_to(victim)
        mine = file.read_bytes()
        shutil.copy(its, file)
        its.write_bytes(mine)
    elif how == "flip the record":
        file = victim / RECORD
        flip(file, chance)
    elif how == "delete the record":
        (victim / RECORD).unlink()
        return ""  # what has none is no artifact, and begun anew without a word
    else:
        aside = victim.with_name("aside")
        victim.rename(aside)
        other.rename(victim)
        aside.rename(other)
        file = victim / RECORD
    return str(file)


def of_kind(world: World, kind: str) -> tuple[Node, Node]:
    """One that others of the run are made from where there is such a one, and another one."""
    nodes = typed(*world.words, *folders(world.place), "iter=1").nodes()
    inputs = {parent.key for node in nodes for parent in node.inputs}
    same = sorted((node for node in nodes if node.stage.kind == kind), key=lambda node: node.key not in inputs)
    return same[0], same[-1]


def times(store: Store, *but: str) -> dict[Path, int]:
    found = {path: path.stat().st_mtime_ns for path in store.root.glob("*/*/*") if path.is_file()}
    return {path: when for path, when in found.items() if path.parent.name not in but and path.name != CARD}


def used_again(world: World, victim: Node) -> set[str]:
    """Have what is made from it made again, so that it is read; returns the keys of that."""
    nodes = typed(*world.words, *folders(world.place), "iter=1").nodes()
    children = [node for node in nodes if victim.key in [parent.key for parent in node.inputs]]
    for node in children[:1]:
        (world.store.path(node) / RECORD).unlink()
    return {node.key for node in children[:1]}


def check(world: World, finished: World, kind: str, how: str, seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    victim, other = of_kind(world, kind)
    if how.startswith("swap") and victim.key == other.key:
        pytest.skip("there is one of it")
    named = harm(how, world.store.path(victim), world.store.path(other), random.Random(seed))
    again = used_again(world, victim)
    before = times(world.store, victim.key, other.key, *again)
    capsys.readouterr()
    assert world.run("iter=1") == 0
    assert contents(world.store) == contents(finished.store)
    assert times(world.store, victim.key, other.key, *again) == before, "something else was made again"
    assert named in capsys.readouterr().err
    assert all(damage(path) == [] for path in world.store.artifacts())


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_is_found_before_use_and_only_that_artifact_is_made_again(
    kind: str, world: World, finished: World, capsys: pytest.CaptureFixture[str]
) -> None:
    check(world, finished, kind, "flip", 0, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("how", LATER[1:])
def test_whatever_else_happens_to_files_is_found(
    how: str, world: World, finished: World, capsys: pytest.CaptureFixture[str]
) -> None:
    check(world, finished, "responses", how, 1, capsys)


@pytest.mark.faults
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("how", LATER)
@pytest.mark.parametrize("kind", KINDS)
def test_every_damage_to_every_kind(
    kind: str, how: str, seed: int, world: World, finished: World, capsys: pytest.CaptureFixture[str]
) -> None:
    check(world, finished, kind, how, seed, capsys)


def test_the_kinds_are_all_there_are(world: World) -> None:
    assert {node.stage.kind for node in typed(*world.words, *folders(world.place), "iter=1").nodes()} == set(KINDS)


@pytest.mark.slow
def test_a_finished_run_repairs_what_its_report_is_made_of(
    world: World, finished: World, capsys: pytest.CaptureFixture[str]
) -> None:
    assert world.run("iter=1") == 0
    victim, _ = of_kind(world, "evaluation")
    (path := world.store.path(victim) / "metrics.json").write_text("{")
    assert world.run("iter=1") == 0
    assert f"{victim.name}: {path}: damaged" in capsys.readouterr().err
    assert contents(world.store) == contents(finished.store)


@pytest.mark.slow
def test_a_job_alone_leaves_it_to_others_to_make_again(
    world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    victim, _ = of_kind(world, "responses")
    flip(world.store.path(victim) / "rows.parquet", random.Random(0))
    (child,) = used_again(world, victim)
    words = [*world.words, *folders(world.place), "iter=1", "launcher=allocation", "launcher.alone=true"]
    name = next(node.name for node in typed(*words).nodes() if node.key == child)
    assert call(*words, f"only={name}") == 3
    assert re.search(r"error: .*: damaged, so it counts as missing now; `retry`", capsys.readouterr().err)
    assert not world.store.has(victim)


@pytest.mark.slow
def test_damaged_answers_in_the_cells_are_made_again(world: World, finished: World) -> None:
    victim, _ = of_kind(world, "responses")
    (world.store.path(victim) / RECORD).unlink()
    for number, path in enumerate(sorted((world.store.root / f".{CELLS}").glob("*/*.jsonl"))):
        flip(path, random.Random(number))
    assert world.run("iter=1") == 0
    assert contents(world.store) == contents(finished.store)


def test_a_record_tells_its_own_changes(world: World) -> None:
    victim = world.store.path(of_kind(world, "prompts")[0])
    record = read_record(victim)
    for field in record:
        (victim / RECORD).write_text(json.dumps(record | {field: "other"}))
        assert damage(victim), field
