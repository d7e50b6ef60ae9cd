"""What is read from run folders: what varies between them, which are one point, what is missing, what it cost."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from made_up_sweep import SECONDS, Made, grid, write

from src.kernel.config import UserError
from src.reporting.compare.points import compare_folders
from src.reporting.compare.read import read_all
from src.reporting.compare.settings import flat, varied
from src.reporting.compare.tables import costs, shared, spent


def test_places_machines_and_the_way_a_number_is_typed_do_not_vary_and_beta_is_one_over_eta() -> None:
    one = {"name": "a", "runs": "/x", "hardware": {"name": "cpu"}, "method": {"name": "dpo", "beta": 0.01}}
    two = {"name": "b", "runs": "/y", "hardware": {"name": "gpu"}, "method": {"name": "dpo", "beta": 0.001}}
    differs = varied([flat(one | {"data": {"file": "/x/p.json"}}), flat(two | {"data": {"file": "/y/p.json"}})])
    assert differs.axes == ["method.eta"] and differs.bound == {}
    assert flat({"a": 1000.0, "b": {"c": [1.0, [2.0], {"d": 3.0}]}, "e": 0.5, "f": True, "g": 1e300}) == {
        "a": 1000, "b.c": '[1, [2], {"d": 3}]', "e": 0.5, "f": True, "g": 1e300
    }  # fmt: skip
    for eta in range(1, 2000):
        assert str(flat({"method": {"beta": 1 / eta}})["method.eta"]) == str(eta)


def test_what_follows_from_a_word_or_goes_with_another_key_is_no_axis_of_its_own() -> None:
    runs = [
        {"method.name": "sppo", "method.eta": 1000.0, "train.lr": 1e-5, "train.warmup": 0.1},
        {"method.name": "dpo", "method.eta": 100.0, "train.lr": 1e-5, "train.warmup": 0.1},
        {"method.name": "sppo", "method.eta": 1000.0, "train.lr": 2e-5, "train.warmup": 0.2},
        {"method.name": "dpo", "method.eta": 100.0, "train.lr": 2e-5, "train.warmup": 0.2},
    ]
    differs = varied([dict(run) for run in runs])
    assert differs.axes == ["method.name", "train.lr"]
    assert differs.bound == {"method.eta": "method.name", "train.warmup": "train.lr"}
    usual = varied([{"method.eta": 1.0, "train.lr": 1e-5}, {"method.eta": 2.0, "train.lr": 2e-5}])
    assert usual.axes == ["method.eta", "train.lr"], "the usual numbers are axes, also where they vary together"


def test_every_run_and_iteration_has_a_row_and_seeds_share_a_point_but_copies_do_not(tmp_path: Path) -> None:
    comparison = compare_folders(write(tmp_path, grid((10, 100), (1e-5,), (0, 1))), "x")
    assert comparison.varied.axes == ["method.eta", "seed"] and len(comparison.points) == 2
    assert [(r.point.number, r.values["seed"], r.iteration) for r in comparison.rows] == [
        (point, seed, t) for point in (1, 2) for seed in (0, 1) for t in (1, 2)
    ]
    first, second = (run.steps[0].numbers["win_over_base"] for run in comparison.points[0].runs)
    win = comparison.points[0].win(1)
    assert win and win.over == "seeds" and win.mean == pytest.approx((first + second) / 2)
    copies = compare_folders(write(tmp_path / "copies", [Made(device="cpu"), Made(device="cuda")]), "x")
    assert [point.values for point in copies.points] == [{"copy": "no. 1"}, {"copy": "no. 2"}]


def changed(**values: Any) -> Callable[[Path], None]:
    """Changes JSON, which the settings of these runs are too."""
    return lambda file: (file.write_text(json.dumps(json.loads(file.read_text()) | values)), None)[1]


def rows(**columns: list[Any]) -> Callable[[Path], None]:
    return lambda file: pyarrow.parquet.write_table(pyarrow.table(columns), file)


RECORD, METRICS = "artifacts/it1/policy/record.json", "artifacts/it1/evaluation/metrics.json"
ROWS = "artifacts/it2/evaluation/rows.parquet"
DAMAGES: list[tuple[str, str | Callable[[Path], None]]] = [
    *[("config.yaml", text) for text in ("a: [\nb: c", "", "a: [!!binary aGk=]", "a: .inf")],
    ("config.yaml", changed(tracking="off")),
    ("config.yaml", changed(seed=10**400)),
    ("command.txt", "\udcff"),
    *[(RECORD, text) for text in ("{", "[" * 100_000)],
    *[(RECORD, changed(seconds=seconds)) for seconds in ("long", 10**400)],
    *[(RECORD, changed(workload=None)), (RECORD, changed(inputs=[{"kind": "pairs"}]))],
    *[(METRICS, "[]"), (METRICS, changed(tokens=10**400))],
    *[(ROWS, "PAR1"), (ROWS, rows(prompt_id=["a"]))],
    *[
        (ROWS, rows(prompt_id=["a", "b"], win_over_base=wins))
        for wins in ([None, 0.5], ["a", "b"], [0.5, float("nan")])
    ],
]


def test_a_damaged_run_is_left_out_with_a_reason_of_one_line_that_names_the_file(tmp_path: Path) -> None:
    wrong = []
    for number, (name, how) in enumerate(DAMAGES):
        whole, folder = write(tmp_path / str(number), grid((1, 2), (1e-5,)))
        how(folder / name) if callable(how) else (folder / name).write_bytes(how.encode(errors="surrogateescape"))
        runs, damaged = read_all([whole, folder])
        named = [f"/{Path(name).name}" in one.reason and "\n" not in one.reason for one in damaged]
        wrong += [] if ([run.path for run in runs], named) == ([whole], [True]) else [(name, how, damaged)]
    assert wrong == []
    with pytest.raises(UserError, match=r"rows\.parquet: cannot be read"):
        read_all([folder])
    with pytest.raises(UserError, match="none of the 1 run folders has an evaluation yet"):
        read_all(write(tmp_path / "none", [Made(iterations=0)]))


def test_costs_are_seconds_times_devices_and_what_two_runs_have_is_shared(tmp_path: Path) -> None:
    """Iteration 1's responses, ranking, pairs and reference are shared, with prompts and the base's answers."""
    folders = write(tmp_path, [Made(eta=1.0, iterations=1, devices=8), Made(eta=2.0, iterations=1)])
    comparison = compare_folders(folders, "x")
    common = sum(SECONDS[name] for name in ("responses", "ranking", "pairs", "reference", "checkpoint"))
    common += 2 * SECONDS["prompts"] + 2 * (SECONDS["answers"] + SECONDS["answers_ranking"])
    own = [SECONDS["policy"] * devices + 20 + 10 + 3 + 12 for devices in (8, 1)]
    table = costs(comparison)
    assert list(table["own"]) == own and list(table["shared"]) == [common] * 2 == list(2 * table["part"])
    assert list(table["alone"]) == list(table[["generate", "rank", "train", "evaluate", "prepare"]].sum(axis=1))
    assert spent(comparison) == sum(own) + common
    first = shared(comparison).iloc[0]
    assert (first["artifact"], first["runs that use them"]) == ("it1/responses", "2")
