"""Run folders become points: which folders are meant, what varies, what is one point, what is missing, what it cost."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest
from made_up_sweep import SECONDS, MadeUpRun, grid, write
from scipy.stats import t as student_t

from src.evaluation.statistics import two_way
from src.experiment.selection import folders, not_begun, swept
from src.kernel.config import UserError
from src.reporting.compare.command import cautions
from src.reporting.compare.points import Comparison, Point, Varied, by_seed, compare_folders, varied
from src.reporting.compare.read import Artifact, Settings, _measurement, flat, read_all
from src.reporting.compare.tables import costs, over_seeds, results


def test_places_machines_and_the_way_a_number_is_typed_do_not_vary_and_beta_is_one_over_eta() -> None:
    one = {"name": "a", "runs": "/x", "hardware": {"name": "cpu"}, "method": {"name": "dpo", "beta": 0.01}}
    two = {"name": "b", "runs": "/y", "hardware": {"name": "gpu"}, "method": {"name": "dpo", "beta": 0.001}}
    differs = varied([flat(one | {"data": {"file": "/x/p.json"}}), flat(two | {"data": {"file": "/y/p.json"}})])
    assert differs.axes == ["method.eta"] and differs.bound == {}
    assert flat({"a": 1000.0, "b": {"c": [1, 2]}, "f": True}) == {"a": 1000, "b.c": "[1, 2]", "f": True}
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
    points = [Point(1, {}, [])]
    names = Comparison("x", Varied(["ranker.weights.finished", "a.lr"], {}, {}), points, []).names
    assert [*names.values()] == ["ranker.weights.finished", "lr"], "a column of the results is called finished"
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
    assert win and (win.over, win.mean) == ("seeds × 48 held-out prompts", pytest.approx(sum(rates) / 2))
    (low, high), _ = two_way(by_seed([run.steps[0].items[""] for run in comparison.points[0].runs]), 0.95)
    assert (win.low, win.high) == (low, high)
    one, other = (pd.Series([0.2, 0.4], [f"{name}1", f"{name}2"]) for name in "ab")
    assert by_seed([one, other]).tolist() == [[pytest.approx(0.3)]] * 2, "of other prompts"
    copies = compare_folders(write(tmp_path / "copies", [MadeUpRun(device="cpu"), MadeUpRun(device="cuda")]), "x")
    assert [point.values for point in copies.points] == [{"run": point.runs[0].name} for point in copies.points]


def test_a_second_judge_has_its_own_interval_over_seeds_and_two_of_them_are_not_compared(tmp_path: Path) -> None:
    for others in (["b", "b"], ["b", "c"], ["b", ""]):
        runs = [MadeUpRun(seed=seed, second=second) for seed, second in enumerate(others)]
        comparison = compare_folders(write(tmp_path / "".join(others), runs), "x")
        table, alike = over_seeds(comparison), others == ["b", "b"]
        assert list(results(comparison)["KL per token"])[:3:2] == ["0.0040 ± 0.0010", "0.0050 ± 0.0013"]
        assert table["KL per token"][0] == f"0.0045 ± {0.0005 * student_t(1).isf(0.025):.4f}", "by two seeds"
        assert ("by the second judge" in table) == alike
        assert not alike or list(table["by the second judge"]) == list(table["win rate over base"]), "they say the same"
        assert any("second judge" in sentence for sentence in cautions(comparison)) == ("c" in others)


def test_a_model_is_the_same_whichever_judge_links_to_it() -> None:
    def measured(link: str) -> dict[str, str]:
        named = ((link, "m", []), ("it1/evaluation", "e", ["a/m"]))
        model, ran = (Artifact(name, Path(key), {"kind": "a", "key": key, "version": 1, "config": {}}, parents, 0.0)
                      for name, key, parents in named)  # fmt: skip
        return _measurement(ran, {model.id: model})

    assert measured("held_out/second/model0") == measured("win_matrix/ranker/model1")


DAMAGES = (
    ("config.yaml", "a: [\nb: c"), ("command.txt", "\udcff"), ("artifacts/it1/policy/record.json", "{"),
    ("artifacts/it1/policy/record.json", "[" * 100_000), ("artifacts/it1/policy/record.json", "{}"),
    ("artifacts/it1/evaluation/metrics.json", "[]"), ("artifacts/it2/evaluation/rows.parquet", "PAR1"),
)  # fmt: skip


def test_a_damaged_run_is_left_out_with_a_reason_of_one_line(tmp_path: Path) -> None:
    for number, (name, text) in enumerate(DAMAGES):
        whole, folder = write(tmp_path / str(number), grid((1, 2), (1e-5,)))
        (folder / name).write_bytes(text.encode(errors="surrogateescape"))
        runs, (reason,) = read_all([whole, folder])
        assert [run.path for run in runs] == [whole], (name, text)
        assert reason.startswith(f"{folder.name} cannot be read") and "\n" not in reason, reason
    with pytest.raises(UserError, match="cannot be read"):
        read_all([folder])
    with pytest.raises(UserError, match="none of the 1 run folders has an evaluation yet"):
        read_all(write(tmp_path / "none", [MadeUpRun(iterations=0)]))


def test_costs_are_seconds_times_devices_and_what_two_runs_have_is_shared(tmp_path: Path) -> None:
    """They share two sets of prompts, the base, its two sets of answers, and all of iteration 1 up to the reference."""
    runs = write(tmp_path, [MadeUpRun(eta=1.0, iterations=1, devices=8), MadeUpRun(eta=2.0, iterations=1)])
    table, sentence = costs(compare_folders(runs, "x"))
    answered = SECONDS["answers"] + SECONDS["answers_ranking"]
    before = SECONDS["responses"] + SECONDS["ranking"] + 1 + SECONDS["reference"]
    shared = 2 * 1 + SECONDS["base/policy"] + 2 * answered + before
    own = [SECONDS["policy"] * devices + answered + SECONDS["evaluation"] + SECONDS["divergence"] for devices in (8, 1)]
    assert table["all"].tolist() == [f"{(each + shared) / 3600:.3g}" for each in own]
    assert table["train"][0] == f"{(SECONDS['policy'] * 8 + SECONDS['reference']) / 3600:.3g}"
    assert f"took {(sum(own) + shared) / 3600:.3g} CPU-hours; without" in sentence
    assert f"have been {(sum(own) + 2 * shared) / 3600:.3g}." in sentence


# What `runs=` names -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of two points, a run of its own, and folders that are no runs."""
    place = tmp_path_factory.mktemp("sweep")
    write(place, grid((10, 100), (1e-5,)), sweep="eta")
    write(place, [MadeUpRun(eta=5.0)])
    (place / "runs" / "notes").mkdir()
    return place


def test_a_glob_folders_by_commas_and_the_name_of_a_sweep_mean_run_folders_each_once(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = folders(f"{place}/runs/*")
    assert folders(str(second)) == [second]
    assert folders(f"{third},{first},{place}/runs/../runs/{third.name}") == [third, first]
    monkeypatch.chdir(place)
    eta = [folder.name for folder in folders("eta")]
    assert len(eta) == 2 and eta == [folder.name for folder in folders(f"{place}/runs/eta")]
    assert len(folders(",".join([*["eta"] * 1500, "runs/tiny-*"]))) == 3
    assert swept("eta") == "eta" and swept("runs/*") is None
    for value in ("nope", "x" * 300):
        with pytest.raises(UserError, match="^runs: .* names no run folder .*there are eta, tiny-"):
            folders(value)


def test_points_that_have_not_begun_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, third = write(tmp_path, grid((1, 10, 100), (1e-5,)), sweep="eta")
    monkeypatch.chdir(tmp_path)
    assert not_begun("eta") == [] == not_begun("runs/*")
    shutil.rmtree(third)
    assert not_begun(f"{tmp_path}/runs/eta") == ["Of the sweep eta, 1 of 3 points are not begun."]
    (second / "config.yaml").unlink()
    assert not_begun("eta") == ["Of the sweep eta, 2 of 3 points are not begun."]
    assert [folder.name for folder in folders("eta")] == [first.name]
