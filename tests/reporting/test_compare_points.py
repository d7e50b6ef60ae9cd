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
from src.reporting.compare.costs import costs, shared, spent
from src.reporting.compare.gather import gather, sort_out
from src.reporting.compare.points import compare_folders
from src.reporting.compare.varied import flat, varied


def test_places_machines_and_labels_do_not_vary_and_beta_is_one_over_eta() -> None:
    one = {"name": "a", "runs": "/x", "hardware": {"name": "cpu"}, "method": {"name": "dpo", "beta": 0.01}}
    two = {"name": "b", "runs": "/y", "hardware": {"name": "gpu"}, "method": {"name": "dpo", "beta": 0.001}}
    found = varied([flat(one | {"data": {"file": "/x/p.json"}}), flat(two | {"data": {"file": "/y/p.json"}})])
    assert found.axes == ["method.eta"] and found.bound == {}
    assert flat(two)["method.eta"] == 1000.0 and "method.beta" not in flat(two)


def test_a_number_is_the_same_however_it_was_typed() -> None:
    assert flat({"a": 1000.0, "b": {"c": [1.0, [2.0], {"d": 3.0}]}, "e": 0.5, "f": True, "g": 1e300}) == {
        "a": 1000, "b.c": '[1, [2], {"d": 3}]', "e": 0.5, "f": True, "g": 1e300
    }  # fmt: skip
    one, other = (flat({"method": {"name": "sppo", "eta": eta}}) for eta in (1000, 1000.0))
    assert str(one) == str(other) and varied([one, other]).axes == []
    for eta in range(1, 2000):
        assert str(flat({"method": {"beta": 1 / eta}})["method.eta"]) == str(eta)


def test_what_follows_from_a_word_or_goes_with_another_key_is_no_axis_of_its_own() -> None:
    runs = [
        {"method.name": "sppo", "method.eta": 1000.0, "train.lr": 1e-5, "train.warmup": 0.1},
        {"method.name": "dpo", "method.eta": 100.0, "train.lr": 1e-5, "train.warmup": 0.1},
        {"method.name": "sppo", "method.eta": 1000.0, "train.lr": 2e-5, "train.warmup": 0.2},
        {"method.name": "dpo", "method.eta": 100.0, "train.lr": 2e-5, "train.warmup": 0.2},
    ]
    found = varied([dict(run) for run in runs])
    assert found.axes == ["method.name", "train.lr"]
    assert found.bound == {"method.eta": "method.name", "train.warmup": "train.lr"}
    usual = varied([{"method.eta": 1.0, "train.lr": 1e-5}, {"method.eta": 2.0, "train.lr": 2e-5}])
    assert usual.axes == ["method.eta", "train.lr"], "the usual numbers are axes, also where they vary together"


def test_every_run_and_iteration_has_a_row_and_seeds_share_a_point(tmp_path: Path) -> None:
    found = compare_folders(write(tmp_path, grid((10, 100), (1e-5,), (0, 1))), "x")
    assert found.varied.axes == ["method.eta", "seed"] and len(found.points) == 2
    assert [(r.point.number, r.values["seed"], r.iteration) for r in found.rows] == [
        (point, seed, t) for point in (1, 2) for seed in (0, 1) for t in (1, 2)
    ]
    first, second = (run.steps[0].numbers["win_over_base"] for run in found.points[0].runs)
    win = found.points[0].win(1)
    assert win and win.over == "seeds" and win.mean == pytest.approx((first + second) / 2)


def changed(file: Path, **values: Any) -> None:
    """JSON, which the settings of these runs are too."""
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def rows(*wins: Any) -> Callable[[Path], None]:
    table = pyarrow.table({"prompt_id": [str(i) for i in range(len(wins))], "win_over_base": wins})
    return lambda file: pyarrow.parquet.write_table(table, file)


def loop(place: Path) -> None:
    place.unlink()
    place.symlink_to(place)


RECORD, METRICS = "artifacts/it1/policy/record.json", "artifacts/it1/evaluation/metrics.json"
ROWS = "artifacts/it2/evaluation/rows.parquet"
DAMAGES: list[tuple[str, str | Callable[[Path], None]]] = [
    ("config.yaml", "a: [\nb: c"),
    ("config.yaml", ""),
    ("config.yaml", "a: [!!binary aGk=]"),
    ("config.yaml", "a: .inf"),
    ("config.yaml", lambda file: changed(file, tracking="off")),
    ("config.yaml", lambda file: changed(file, seed=10**400)),
    ("command.txt", "\udcff"),
    (RECORD, "{"),
    (RECORD, "[" * 100_000),
    (RECORD, lambda file: changed(file, seconds="3")),
    (RECORD, lambda file: changed(file, seconds=10**400)),
    (RECORD, lambda file: changed(file, workload=None)),
    (RECORD, lambda file: changed(file, inputs=[{"kind": "pairs"}])),
    (METRICS, "[]"),
    (METRICS, lambda file: changed(file, tokens=10**400)),
    (ROWS, "PAR1"),
    (ROWS, lambda file: pyarrow.parquet.write_table(pyarrow.table({"prompt_id": ["a"]}), file)),
    (ROWS, rows(None, 0.5)),
    (ROWS, rows("a", "b")),
    (ROWS, rows(0.5, float("nan"))),
    ("artifacts/it2/policy", loop),
]


def test_a_damaged_run_is_told_from_whole_ones_with_a_reason_of_one_line_that_names_the_file(tmp_path: Path) -> None:
    wrong = []
    for number, (name, how) in enumerate(DAMAGES):
        whole, folder = write(tmp_path / str(number), grid((1, 2), (1e-5,)))
        how(folder / name) if callable(how) else (folder / name).write_bytes(how.encode(errors="surrogateescape"))
        found, damaged = sort_out([whole, folder])
        named = [f"/{Path(name).name}" in one.reason and "\n" not in one.reason for one in damaged]
        wrong += [] if (found, named) == ([whole], [True]) else [(name, how, damaged)]
    assert wrong == []
    with pytest.raises(UserError, match=r"config\.yaml: cannot be read"):
        gather([tmp_path / "0" / "runs" / folder.name for folder in (tmp_path / "0" / "runs").iterdir()])
    with pytest.raises(UserError, match="none of the 1 run folders has an evaluation yet"):
        gather(write(tmp_path / "none", [Made(iterations=0)]))


def test_costs_are_seconds_times_devices_and_what_two_runs_have_is_shared(tmp_path: Path) -> None:
    """Iteration 1's responses, ranking, pairs and reference are shared, with prompts and the base's answers."""
    found = compare_folders(write(tmp_path, [Made(eta=1.0, iterations=1, devices=8), Made(eta=2.0, iterations=1)]), "x")
    common = sum(SECONDS[name] for name in ("responses", "ranking", "pairs", "reference", "checkpoint"))
    common += 2 * SECONDS["prompts"] + 2 * (SECONDS["answers"] + SECONDS["answers_ranking"])
    own = [SECONDS["policy"] * devices + 20 + 10 + 3 + 12 for devices in (8, 1)]
    assert [cost.own for cost in costs(found)] == own
    assert [cost.shared for cost in costs(found)] == [common, common]
    assert [cost.part for cost in costs(found)] == [common / 2, common / 2]
    assert spent(found) == sum(own) + common
    assert sum(row.saved for row in shared(found)) == common
    assert shared(found)[0].name == "it1/responses" and shared(found)[0].runs == 2
    for cost in costs(found):
        assert sum(cost.by_family.values()) == cost.alone
