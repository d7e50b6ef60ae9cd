"""What is read from run folders: what varies between them, which are one point, what is missing, what it cost."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_up_sweep import SECONDS, Made, grid, write
from scipy import stats

from src.kernel.config import UserError
from src.reporting.compare.points import compare_folders, varied
from src.reporting.compare.read import Settings, flat, read_all
from src.reporting.compare.tables import costs


def test_places_machines_and_the_way_a_number_is_typed_do_not_vary_and_beta_is_one_over_eta() -> None:
    one = {"name": "a", "runs": "/x", "hardware": {"name": "cpu"}, "method": {"name": "dpo", "beta": 0.01}}
    two = {"name": "b", "runs": "/y", "hardware": {"name": "gpu"}, "method": {"name": "dpo", "beta": 0.001}}
    differs = varied([flat(one | {"data": {"file": "/x/p.json"}}), flat(two | {"data": {"file": "/y/p.json"}})])
    assert differs.axes == ["method.eta"] and differs.bound == {}
    assert flat({"a": 1000.0, "b": {"c": [1, 2]}, "e": 0.5, "f": True, "g": None}) == {
        "a": 1000, "b.c": "[1, 2]", "e": 0.5, "f": True, "g": None
    }  # fmt: skip
    for eta in range(1, 2000):
        assert str(flat({"method": {"beta": 1 / eta}})["method.eta"]) == str(eta)


def test_what_follows_from_a_word_or_goes_with_another_key_is_no_axis_of_its_own() -> None:
    runs: list[Settings] = [
        {"method.name": name, "method.eta": eta, "train.lr": lr, "train.warmup": 1e4 * lr}
        for name, eta in (("sppo", 1000.0), ("dpo", 100.0))
        for lr in (1e-5, 2e-5)
    ]
    differs = varied(runs)
    assert differs.axes == ["method.name", "train.lr"]
    assert differs.bound == {"method.eta": "method.name", "train.warmup": "train.lr"}
    usual = varied([{"method.eta": 1.0, "train.lr": 1e-5}, {"method.eta": 2.0, "train.lr": 2e-5}])
    assert usual.axes == ["method.eta", "train.lr"], "the usual numbers are axes, also where they vary together"


def test_seeds_share_a_point_and_runs_of_equal_settings_do_not(tmp_path: Path) -> None:
    comparison = compare_folders(write(tmp_path, grid((10, 100), (1e-5,), (0, 1))), "x")
    assert comparison.varied.axes == ["method.eta", "seed"]
    assert [(r.point.number, r.run.settings["seed"], r.step and r.step.iteration) for r in comparison.rows] == [
        (point, seed, t) for point in (1, 2) for seed in (0, 1) for t in (1, 2)
    ]
    rates = [run.steps[0].numbers["win_over_base"] for run in comparison.points[0].runs]
    win = comparison.points[0].win(1)
    assert win and win.over == "seeds" and win.mean == pytest.approx(sum(rates) / 2)
    t = stats.t.ppf(0.975, 1)
    assert win.half == pytest.approx(t * abs(rates[0] - rates[1]) / 2), "standard deviation of two over √2"
    copies = compare_folders(write(tmp_path / "copies", [Made(device="cpu"), Made(device="cuda")]), "x")
    assert [point.values for point in copies.points] == [{"run": point.runs[0].name} for point in copies.points]


DAMAGES = {
    "config.yaml": ["a: [\nb: c"],
    "command.txt": ["\udcff"],
    "artifacts/it1/policy/record.json": ["{", "[" * 100_000, "{}"],
    "artifacts/it1/evaluation/metrics.json": ["[]"],
    "artifacts/it2/evaluation/rows.parquet": ["PAR1"],
}


def test_a_damaged_run_is_left_out_with_a_reason_of_one_line(tmp_path: Path) -> None:
    cases = [(name, text) for name, texts in DAMAGES.items() for text in texts]
    for number, (name, text) in enumerate(cases):
        whole, folder = write(tmp_path / str(number), grid((1, 2), (1e-5,)))
        (folder / name).write_bytes(text.encode(errors="surrogateescape"))
        runs, damaged = read_all([whole, folder])
        assert [run.path for run in runs] == [whole] and len(damaged) == 1, (name, text)
        assert damaged[0].startswith(f"{folder.name} cannot be read") and "\n" not in damaged[0], damaged
    with pytest.raises(UserError, match="cannot be read"):
        read_all([folder])
    with pytest.raises(UserError, match="none of the 1 run folders has an evaluation yet"):
        read_all(write(tmp_path / "none", [Made(iterations=0)]))


def test_costs_are_seconds_times_devices_and_what_two_runs_have_is_shared(tmp_path: Path) -> None:
    """They share two sets of prompts, the base, its two sets of answers, and all of iteration 1 up to the reference."""
    folders = write(tmp_path, [Made(eta=1.0, iterations=1, devices=8), Made(eta=2.0, iterations=1)])
    table, sentence = costs(compare_folders(folders, "x"))
    answered = SECONDS["answers"] + SECONDS["answers_ranking"]
    before = SECONDS["responses"] + SECONDS["ranking"] + 1 + SECONDS["reference"]
    shared = 2 * 1 + SECONDS["base/policy"] + 2 * answered + before
    own = [SECONDS["policy"] * devices + answered + SECONDS["evaluation"] + SECONDS["divergence"] for devices in (8, 1)]
    assert table["all"].tolist() == [f"{(each + shared) / 3600:.3g}" for each in own]
    assert table["train"][0] == f"{(SECONDS['policy'] * 8 + SECONDS['reference']) / 3600:.3g}"
    assert f"took {(sum(own) + shared) / 3600:.3g} CPU-hours; without" in sentence
    assert f"have been {(sum(own) + 2 * shared) / 3600:.3g}." in sentence
