"""What a comparison says in sentences, and what it warns of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from made_up_sweep import Made, grid, write

from src.compare.headline import headline, warnings
from src.compare.plots import _bars
from src.compare.points import compare_folders
from src.compare.significance import differences


def null_warning(place: Path, points: list[Made]) -> list[str]:
    return [line for line in warnings(compare_folders(write(place, points), "x")) if "null" in line]


def test_a_null_that_runs_share_is_counted_once(tmp_path: Path) -> None:
    assert null_warning(tmp_path / "a", grid((1, 10, 100), (1e-5,))) == []
    shared = grid((1, 10, 100), (1e-5,), null=0.8, confidence=0.99)
    assert null_warning(tmp_path / "b", shared) == [
        "1 of 1 nulls (the base against itself), shared by 3 runs, does not contain 0.5; "
        "by chance 1% of 99% intervals do not."
    ]
    seeds = [*grid((1, 10), (1e-5,), (0, 1), null=0.8), *grid((1, 10), (1e-5,), (2,))]
    assert null_warning(tmp_path / "c", seeds) == [
        "2 of 3 nulls (the base against itself), shared by 4 runs, do not contain 0.5; "
        "by chance 5% of 95% intervals do not."
    ]
    (alone,) = null_warning(tmp_path / "d", [Made(null=0.8)])
    assert alone.startswith("1 of 1 nulls (the base against itself) does not")
    rankers = [Made(null=0.8), Made(ranker="other")]
    assert null_warning(tmp_path / "e", rankers)[0].startswith("1 of 2 nulls")


@pytest.mark.parametrize(("seeds", "kind"), [((0,), "prompt"), ((0, 1, 2), "seed")])
def test_the_headline_says_which_comparisons_it_is_corrected_for(
    seeds: tuple[int, ...], kind: str, tmp_path: Path
) -> None:
    """Those by prompt and those by seed are two families."""
    found = compare_folders(write(tmp_path, grid((1, 10), (1e-5,), seeds)), "x")
    (told,) = headline(found, differences(found))
    assert told.endswith(f"paired by {kind} and corrected for all comparisons by {kind}.")


def test_bars_are_over_what_their_points_have_finished(tmp_path: Path) -> None:
    one, two = Made(eta=1), Made(eta=1, seed=1)
    for i, (points, said) in enumerate([
        ([one], "held-out prompts."),
        ([one, two], "seeds."),
        ([one, two._replace(iterations=0)], "held-out prompts."),
        ([one, two._replace(iterations=1)], "seeds; over held-out prompts where a point has one seed there."),
    ]):  # fmt: skip
        found = compare_folders(write(tmp_path / str(i), points), "x")
        assert _bars(found) == f"Bars are intervals over {said}"


def test_points_as_good_as_the_best_are_counted(tmp_path: Path) -> None:
    """A step too small to move a policy leaves the answers of all points as they were."""
    for count, said in ((1, ""), (2, " (as is another)"), (4, " (as are 3 others)")):
        points = grid([10.0**i for i in range(count)], (1e-5,))
        found = compare_folders(write(tmp_path / str(count), points, lambda made, t: np.full(48, 0.6)), "x")
        (told,) = headline(found, differences(found))
        assert told.startswith(f"Best: η 1{said}, iteration" if count > 1 else "Best: The run, iteration")


def test_a_rehearsal_is_said_to_mean_nothing(tmp_path: Path) -> None:
    found = compare_folders(write(tmp_path, [Made(), Made(eta=10, hardware="rehearsal")]), "x")
    assert "1 of 2 runs are rehearsals with random weights: their numbers mean nothing." in warnings(found)
    assert not [line for line in warnings(compare_folders(write(tmp_path / "b", [Made()]), "x")) if "rehearsal" in line]
