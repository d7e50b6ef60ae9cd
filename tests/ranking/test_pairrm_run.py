"""`ranker=pairrm` through the real command: a run, a larger K, the presets, the other backend."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_pairrm import build_pairrm, build_vocabulary
from tiny_run import HELD_OUT, PROMPTS, World, tiny

from src import records
from src.cells import Cells

pytestmark = pytest.mark.full
ITERATION, JOINT = "it1/ranking", "it1/joint_ranking"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides that put a tiny PairRM in the place of the published one, in fp32 so that bits can be compared."""
    place = tmp_path_factory.mktemp("published")
    base = build_vocabulary(place / "base")
    checkpoint = build_pairrm(place / "pairrm", base)
    return [f"ranker.checkpoint.repo={checkpoint}", f"ranker.base.repo={base}", "ranker.precision=float32"]


@pytest.fixture(scope="module")
def world(published: list[str], llama: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    place = tmp_path_factory.mktemp("world")
    made = World(place, tiny(llama, place, "iter=1", "name=first", ranker=["ranker=pairrm", *published]))
    assert made.run() == 0
    return made


def matrices(world: World, run: str, name: str = ITERATION) -> list[np.ndarray]:
    folder = world.place / "runs" / run / "artifacts" / name
    return [np.array(row["logits"]) for row in records.read_rows(folder, records.RANKING)]


def cells(world: World) -> int:
    """Of every ranker that ever worked in the store."""
    return sum(len(Cells(folder).values) for folder in (world.place / "store" / ".cells").iterdir())


def test_training_answers_and_the_four_policies_are_compared(world: World) -> None:
    training, joint = matrices(world, "first"), matrices(world, "first", JOINT)
    assert [m.shape for m in training] == [(3, 3)] * PROMPTS and [m.shape for m in joint] == [(4, 4)] * HELD_OUT
    assert all(np.isnan(np.diag(m)).all() and np.isfinite(m[~np.eye(len(m), dtype=bool)]).all() for m in training)


def test_the_report_shows_what_the_ranker_did(world: World) -> None:
    report = (world.folder / "report.md").read_text()
    assert "## The ranking" in report and "position bias" in report and "plots/matrices.png" in report
    assert (world.folder / "plots" / "matrices.png").stat().st_size > 0
    assert '"ranking/position_bias"' in (world.folder / "metrics.jsonl").read_text()


def test_a_larger_k_asks_only_for_the_new_comparisons(world: World) -> None:
    """K = 3 to 4: answers 1 to 3 stay, so a prompt has at most 12 - 6 new ordered pairs."""
    before, small = cells(world), matrices(world, "first")
    assert world.run("sampling.K=4", "name=more") == 0
    large = matrices(world, "more")
    for a, b in zip(small, large, strict=True):
        np.testing.assert_array_equal(b[:3, :3], a)
    joint = 12 * HELD_OUT
    assert cells(world) - before <= 6 * PROMPTS + joint


def test_both_backends_choose_the_same_pairs(world: World) -> None:
    assert world.run("ranker.backend=llm_blender", "name=blender") == 0
    for a, b in zip(matrices(world, "first"), matrices(world, "blender"), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("preset", ["paper", "code"])
def test_the_presets_are_whole_runs(preset: str, world: World, published: list[str]) -> None:
    assert world.run(f"+ranking={preset}", *published, f"name={preset}") == 0
    assert len(records.read_rows(world.place / "runs" / preset / "artifacts" / "it1/pairs", records.PAIRS)) > 0
