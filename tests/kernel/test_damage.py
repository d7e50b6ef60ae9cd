"""Damage of every kind of artifact is found before it is used, named, and repaired by making again what is damaged."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from pathlib import Path

import pytest
from tiny_run import World, call, contents, folders

from src.kernel.artifact import Node
from src.kernel.cells import CELLS
from src.kernel.record import CARD, RECORD, damage, read_record
from src.kernel.store import Store

Capture = pytest.CaptureFixture[str]
KINDS = ("policy", "responses", "evaluation", "ranking", "divergence", "pairs", "prompts", "reference")
HARMS = ("flip", "cut", "delete", "flip the record", "delete the record", "cut the record", "swap the folders")


def flip(path: Path, chance: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


def harm(how: str, victim: Path, other: Path, chance: random.Random) -> Path:
    """Damage an artifact, and `other` too when they are swapped. Return the file that is to be named."""
    files = [victim / name for name in read_record(victim)["files"] if name != CARD and (victim / name).stat().st_size]
    file = chance.choice(files) if how in ("flip", "cut", "delete") else victim / RECORD
    if how.startswith("flip"):
        flip(file, chance)
    elif how.startswith("delete"):
        file.unlink()
    elif how.startswith("cut"):
        os.truncate(file, file.stat().st_size // chance.randint(2, 9))
    else:
        victim.rename(aside := victim.with_name("aside"))
        other.rename(victim)
        aside.rename(other)
    return file


def of_kind(world: World, kind: str) -> tuple[Node, Node]:
    """Return a node of the kind and one that holds something else, of its kind if there is one.

    The first is one that others of the run are made from where there is such a one.
    """
    nodes = world.nodes()
    inputs = {parent.key for node in nodes for parent in node.inputs}
    files = {node.key: read_record(world.store.path(node))["files"] for node in nodes}
    victim, *_ = sorted((n for n in nodes if n.stage.kind == kind), key=lambda node: node.key not in inputs)
    unlike = [node for node in nodes if files[node.key] != files[victim.key]]
    return victim, max(unlike, key=lambda node: (node.stage.kind == kind, nodes.index(node)))


def times(store: Store, but: set[str]) -> dict[Path, int]:
    """Return when each file was written, but those of some artifacts."""
    paths = [path for path in store.root.glob("*/*/*") if path.is_file() and path.name != CARD]
    return {path: path.stat().st_mtime_ns for path in paths if path.parent.name not in but}


def used_again(world: World, harmed: set[str]) -> set[str]:
    """Have a reader of each made again, so that it is read; return the keys of the readers."""
    again = set()
    for key in harmed:
        readers = [node for node in world.nodes() if key in [parent.key for parent in node.inputs]]
        for node in [node for node in readers if node.key not in harmed][:1]:
            (world.store.path(node) / RECORD).unlink(missing_ok=True)
            again.add(node.key)
    return again


def check(world: World, finished: World, capsys: Capture, *harms: tuple[str, str]) -> None:
    """Harm one of each kind: all are named and made again, and nothing else is."""
    named, harmed = [], set[str]()
    for kind, how in harms:
        victim, other = of_kind(finished, kind)
        path = harm(how, world.store.path(victim), world.store.path(other), random.Random(kind + how))
        named.append(f"{victim.name}: {path}: ")
        harmed |= {victim.key, other.key} if how.startswith("swap") else {victim.key}
    again = used_again(world, harmed) | harmed
    before = times(world.store, again)
    capsys.readouterr()
    assert world.run("iter=2") == 0
    messages = capsys.readouterr().err
    assert [line for line in named if line not in messages] == []
    assert contents(world.store) == contents(finished.store)
    assert times(world.store, again) == before, "something else was made again"
    assert all(damage(path) == [] for path in world.store.artifacts())


def test_every_damage_is_found_before_use_and_only_what_is_damaged_is_made_again(
    world: World, finished: World, capsys: Capture
) -> None:
    check(world, finished, capsys, *zip(KINDS, HARMS, strict=False))


@pytest.mark.faults
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", KINDS)
def test_every_damage_to_every_kind(kind: str, finished: World, tmp_path: Path, capsys: Capture) -> None:
    assert {path.parent.name for path in finished.store.artifacts()} == set(KINDS)
    for how in HARMS:
        world = finished._replace(place=tmp_path / how)
        shutil.copytree(finished.place / "store", world.place / "store", symlinks=True)
        check(world, finished, capsys, (kind, how))


def test_a_job_alone_leaves_it_to_others_to_make_again(
    world: World, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    victim, _ = of_kind(world, "responses")
    flip(world.store.path(victim) / "rows.parquet", random.Random(0))
    (child,) = used_again(world, {victim.key})
    words = [*world.words, *folders(world.place), "iter=2", "launcher=allocation", "launcher.alone=true"]
    name = next(node.name for node in world.nodes() if node.key == child)
    assert call(*words, f"only={name}") == 3
    assert re.search(r"error: .*: damaged, so it counts as missing now; `retry`", capsys.readouterr().err)
    assert not world.store.has(victim)


def test_damaged_answers_in_the_cells_are_made_again(world: World, finished: World, capsys: Capture) -> None:
    victim, _ = of_kind(world, "responses")
    (world.store.path(victim) / RECORD).unlink()
    files = sorted((world.store.root / f".{CELLS}").glob("responses-*/*.jsonl"))
    for number, path in enumerate(files):
        flip(path, random.Random(number))
    assert world.run("iter=2") == 0
    messages = capsys.readouterr().err
    assert files and any(f"{path}: a damaged line" in messages for path in files)
    assert contents(world.store) == contents(finished.store)


def test_a_change_of_any_field_of_a_record_is_seen(world: World) -> None:
    victim = world.store.path(of_kind(world, "prompts")[0])
    record = read_record(victim)
    for field in record:
        (victim / RECORD).write_text(json.dumps(record | {field: "other"}))
        assert damage(victim), field
