"""What counts as getting on, for a job that is started again and again.

Run: python -m pytest -q tests/test_slurm_allocation.py
"""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_run import typed

from src.artifact import WORK, Store
from src.slurm.allocation import count_start, progress


@pytest.mark.parametrize("kept", ["held_out.jsonl", "hellaswag/requests_rank0.db"])
def test_an_answer_that_is_kept_is_progress_and_a_line_of_a_log_is_none(kept: str, tmp_path: Path) -> None:
    store, node = Store(tmp_path), typed("iter=1").nodes()[-1]
    work = store.path(node).with_name(f"{node.key}.partial-1") / WORK

    def write(name: str) -> str:
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        with (work / name).open("a") as file:
            file.write("more\n")
        return progress(store, [node])

    before = progress(store, [node])
    after = write(kept)
    assert before != after != write(kept)
    assert progress(store, [node]) == write("hellaswag/log") == write("metrics.jsonl")


def test_starts_are_counted_anew_after_progress(tmp_path: Path) -> None:
    file = tmp_path / "starts.json"
    assert [count_start(file, now) for now in ("a", "a", "a", "b", "b")] == [1, 2, 3, 1, 2]
