"""Damage of every kind of artifact is found before it is used, named, and repaired by making again what is damaged."""

from __future__ import annotations

import json
import random
import re
import shutil
from pathlib import Path

import pytest
from tiny_run import World, call, contents, folders, typed

from src.experiment.graph import nodes_of
from src.kernel.artifact import Node
from src.kernel.cells import CELLS
from src.kernel.record import CARD, RECORD, damage, read_record
from src.kernel.store import Store

Capture = pytest.CaptureFixture[str]
KINDS = ("divergence", "evaluation", "pairs", "policy", "prompts", "ranking", "reference", "responses")
HARMS = ("flip", "cut", "delete", "swap", "flip the record", "delete the record", "swap the folders")


def flip(path: Path, chance: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


def files_of(artifact: Path) -> list[Path]:
    return [artifact / name for name in read_record(artifact)["files"] if name != CARD]


def exchange(one: Path, another: Path) -> None:
    aside = one.with_name("aside")
    one.rename(aside)
    another.rename(one)
    aside.rename(another)


def harm(how: str, victim: Path, other: Path, chance: random.Random) -> Path:
    """Damage an artifact; a swap damages `other` too. Returns the file that is to be named."""
    files = [path for path in files_of(victim) if path.stat().st_size]
    if how == "swap the folders":
        exchange(victim, other)
        return victim / RECORD
    if how == "swap":
        twins = [(path, twin if (twin := other / path.name).exists() else files_of(other)[0]) for path in files]
        file, twin = chance.choice([pair for pair in twins if pair[0].read_bytes() != pair[1].read_bytes()])
        exchange(file, twin)
        return file
    file = victim / RECORD if how.endswith("the record") else chance.choice(files)
    if how.startswith("flip"):
        flip(file, chance)
    elif how == "cut":
        file.write_bytes(file.read_bytes()[: chance.randrange(file.stat().st_size)])
    else:
        file.unlink()
    return file


def planned(world: World) -> list[Node]:
    return nodes_of(typed(*world.words, *folders(world.place), "iter=2"))


def of_kind(world: World, kind: str) -> tuple[Node, Node]:
    """One that others of the run are made from where there is such a one, and another that holds something else: of its
    kind if there is one.
    """
    nodes = planned(world)
    inputs = {parent.key for node in nodes for parent in node.inputs}
    files = {node.key: read_record(world.store.path(node))["files"] for node in nodes}
    victim, *_ = sorted((n for n in nodes if n.stage.kind == kind), key=lambda node: node.key not in inputs)
    unlike = [node for node in nodes if files[node.key] != files[victim.key]]
    return victim, max(unlike, key=lambda node: (node.stage.kind == kind, nodes.index(node)))


def times(store: Store, *but: str) -> dict[Path, int]:
    found = {path: path.stat().st_mtime_ns for path in store.root.glob("*/*/*") if path.is_file()}
    return {path: when for path, when in found.items() if path.parent.name not in but and path.name != CARD}


def used_again(world: World, harmed: set[str]) -> set[str]:
    """Have what is made from each made again, so that it is read; returns the keys of that."""
    found = set()
    for key in harmed:
        readers = [node for node in planned(world) if key in [parent.key for parent in node.inputs]]
        for node in [node for node in readers if node.key not in harmed][:1]:
            (world.store.path(node) / RECORD).unlink(missing_ok=True)
            found.add(node.key)
    return found


def check(world: World, finished: World, capsys: Capture, *harms: tuple[str, str]) -> None:
    """Of these kinds, each harmed in its way, all are named and made again, and nothing else is."""
    named, harmed = [], set[str]()
    for kind, how in harms:
        victim, other = of_kind(finished, kind)
        path = harm(how, world.store.path(victim), world.store.path(other), random.Random(kind + how))
        named.append(f"{victim.name}: {path}: ")
        harmed |= {victim.key, other.key} if how.startswith("swap") else {victim.key}
    again = used_again(world, harmed) | harmed
    before = times(world.store, *again)
    capsys.readouterr()
    assert world.run("iter=2") == 0
    said = capsys.readouterr().err
    assert [line for line in named if line not in said] == []
    assert contents(world.store) == contents(finished.store)
    assert times(world.store, *again) == before, "something else was made again"
    assert all(damage(path) == [] for path in world.store.artifacts())


def test_every_damage_is_found_before_use_and_only_what_is_damaged_is_made_again(
    world: World, finished: World, capsys: Capture
) -> None:
    kinds = ("policy", "responses", "evaluation", "ranking", "divergence", "prompts")
    check(world, finished, capsys, *zip(kinds, HARMS[:-1], strict=True))


def test_swapped_folders_are_found(world: World, finished: World, capsys: Capture) -> None:
    check(world, finished, capsys, ("pairs", "swap the folders"))


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
    name = next(node.name for node in nodes_of(typed(*words)) if node.key == child)
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
    told = capsys.readouterr().err
    assert files and any(f"{path}: a damaged line" in told for path in files)
    assert contents(world.store) == contents(finished.store)


def test_a_record_tells_its_own_changes(world: World) -> None:
    victim = world.store.path(of_kind(world, "prompts")[0])
    record = read_record(victim)
    for field in record:
        renamed = {name if name != field else f"{name}_": value for name, value in record.items()}
        for other in (record | {field: "other"}, renamed):
            (victim / RECORD).write_text(json.dumps(other))
            assert damage(victim), field
