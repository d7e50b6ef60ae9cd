"""A queue is worked off by one process or several; a dead worker is named and costs nothing."""

from __future__ import annotations

import errno
import signal
from array import array
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from places import PYTHONPATH

from src.kernel.cells import CELLS, Cells
from src.kernel.config import UserError
from src.kernel.faults import MESSAGES
from src.kernel.processes import Job, environment, run_in_processes
from src.launch.mistakes import exit_code
from src.ranking.batching import Item, Texts, Work, batches, work_off

ITEMS = [Item(f"key {n}", (array("i", [1] * n + [n]),)) for n in range(12)]
"""Item n has n tokens of 1 and one of n."""
WORK = Work(device="cpu", attention="segments", batch_tokens=8, workers=1, save_seconds=1e-9)


def sums(items: list[Texts]) -> list[float]:
    return [float(sum(sum(text) for text in item)) for item in items]


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 60))
def test_batches_hold_every_item_once_within_the_budget(lengths: list[int], tokens: int) -> None:
    items = [Item(str(i), (array("i", [0] * n),)) for i, n in enumerate(lengths)]
    made = batches(items, tokens)
    assert sorted(item for batch in made for item in batch) == sorted(items)
    assert all(len(batch) == 1 or sum(item.tokens for item in batch) <= tokens for batch in made)
    longest = [max(item.tokens for item in batch) for batch in made]
    assert longest == sorted(longest, reverse=True)


def test_every_item_gets_its_score_and_what_is_in_the_cells_is_not_computed_again(tmp_path: Path) -> None:
    """A wrong value that is there already stays: nothing was computed for it."""
    Cells(tmp_path / CELLS).add({"key 3": 99.0})
    expected = {f"key {n}": float(2 * n) for n in range(12)} | {"key 3": 99.0}
    assert work_off(lambda _: sums, ITEMS, WORK, tmp_path, "item") == expected
    assert work_off(lambda _: pytest.fail("loaded again"), ITEMS, WORK, tmp_path, "item") == expected


def test_not_a_number_is_refused_and_not_kept(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="NaN or infinity; try ranker.precision=float32"):
        work_off(lambda _: lambda items: [float("nan")] * len(items), ITEMS, WORK, tmp_path, "item")
    assert not Cells(tmp_path / CELLS).values


def fails(error: Exception | None, number: int, count: int) -> None:
    """End worker 1 by an error, or by a signal where there is none."""
    if number == 1:
        if error:
            raise error
        signal.raise_signal(signal.SIGKILL)


FULL = OSError(errno.ENOSPC, "x", "/store/cells")
FAILURES: list[tuple[Job, int, str]] = [
    (partial(fails, FULL), 3, f"exit code 3: /store/cells: {MESSAGES[errno.ENOSPC]}"),
    (partial(fails, UserError("data.parts: no")), 2, "exit code 2: data.parts: no"),
    (partial(fails, ValueError("x")), 3, "exit code 1: ValueError: x"),
    (partial(fails, None), 3, "was killed by SIGKILL; was memory short?: it said nothing"),
]


@pytest.mark.full
def test_the_command_ends_as_its_worker_did(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """2 for a mistake of the user, 3 for whatever else it died of."""
    monkeypatch.setenv("PYTHONPATH", PYTHONPATH)  # workers import this file
    for job, code, message in FAILURES:
        with pytest.raises((UserError, OSError)) as failure:
            run_in_processes(job, "rank", 2, "cpu", 1, tmp_path, lambda: None)
        assert exit_code(failure.value, []) == code
        line = capsys.readouterr().err
        assert line.startswith("error: rank: worker 1 (process ") and line.count("\n") == 1 and message in line


@pytest.mark.parametrize(
    ("number", "each", "visible", "devices"),
    [(1, 1, "", "1"), (1, 1, "GPU-a,GPU-b", "GPU-b"), (1, 2, "", "2,3"), (0, 2, "4,5,6,7", "4,5")],
)
def test_each_worker_has_its_own_devices(
    number: int, each: int, visible: str, devices: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert environment(number, 2, "cuda", each)["CUDA_VISIBLE_DEVICES"] == devices
