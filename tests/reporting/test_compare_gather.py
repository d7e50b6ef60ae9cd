"""What is read from run folders: what varies between them, which are one point, what is missing, what it cost."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from made_up_sweep import SECONDS, Made, grid, write

from src.compare.costs import costs, family, shared, spent
from src.compare.gather import gather, sort_out
from src.compare.points import compare_folders
from src.compare.tables import as_csv
from src.compare.varied import flat, in_order, short_names, shown, varied
from src.config import UserError


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


def test_runs_of_a_sweep_and_a_setting_s_own_file_are_points_of_one_grid(tmp_path: Path) -> None:
    """As `compare runs=eta,lr` has them: a sweep types 1000, conf/method/sppo.yaml 1000.0, and DPO's beta is .001."""
    found = compare_folders(write(tmp_path, [Made(eta=1000), Made(eta=1000.0, seed=1), Made(eta=1000.0, seed=2)]), "x")
    assert found.varied.axes == ["seed"] and len(found.points) == 1 and len(found.points[0].runs) == 3
    found = compare_folders(write(tmp_path / "b", [Made(eta=1000), Made(eta=1000.0, method="dpo")]), "x")
    assert found.varied.axes == ["method.name"] and "method.eta" not in found.varied.bound


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


def test_two_usual_numbers_that_vary_together_are_two_axes() -> None:
    found = varied([{"method.eta": 1.0, "train.lr": 1e-5}, {"method.eta": 2.0, "train.lr": 2e-5}])
    assert found.axes == ["method.eta", "train.lr"]


def test_values_are_shown_and_sorted_as_people_write_them() -> None:
    assert [shown(v) for v in (5e-7, 1000.0, 5, True, None, "src.pairing.rules.BestWorst")] == [
        "5e-7", "1000", "5", "true", "–", "BestWorst"
    ]  # fmt: skip
    assert in_order([10, 9, "b", "a", 9]) == [9, 10, "a", "b"]
    assert short_names(["train.lr", "a.x", "b.x"]) == {"train.lr": "lr", "a.x": "a.x", "b.x": "b.x"}


def test_what_no_page_can_hold_is_shown_as_a_sign_that_says_so() -> None:
    for bad in ("\0", "\x07", "\x1b", "\x9b", "\ud800", "\uffff"):
        assert shown(f"a{bad}b") == "a\ufffdb" == short_names([f"x.a{bad}b"])[f"x.a{bad}b"]
    assert shown("η\t⭐\n") == "η\t⭐\n"


def test_every_run_and_iteration_has_a_row_and_seeds_share_a_point(tmp_path: Path) -> None:
    found = compare_folders(write(tmp_path, grid((10, 100), (1e-5,), (0, 1))), "x")
    assert found.varied.axes == ["method.eta", "seed"] and len(found.points) == 2
    assert [(r.point.number, r.values["seed"], r.iteration) for r in found.rows] == [
        (point, seed, t) for point in (1, 2) for seed in (0, 1) for t in (1, 2)
    ]
    first, second = (run.steps[0].numbers["win_over_base"] for run in found.points[0].runs)
    win = found.points[0].win(1)
    assert win and win.over == "seeds" and win.mean == pytest.approx((first + second) / 2)


def test_runs_of_equal_settings_are_told_apart(tmp_path: Path) -> None:
    folder, other = write(tmp_path, [Made(), Made(device="cuda")])
    found = compare_folders([folder, other], "x")
    assert [point.values for point in found.points] == [{"copy": "no. 1"}, {"copy": "no. 2"}]


def test_unfinished_runs_give_what_they_have(tmp_path: Path) -> None:
    points = [Made(eta=1.0), Made(eta=2.0, iterations=1), Made(eta=3.0, iterations=0)]
    found = compare_folders(write(tmp_path, points), "x")
    assert [(row.values["method.eta"], row.iteration) for row in found.rows] == [(1.0, 1), (1.0, 2), (2.0, 1), (3.0, 0)]
    assert [run.state for run in found.runs] == [
        "finished", "unfinished: 1 of 2 iterations evaluated", "unfinished: 0 of 2 iterations evaluated"
    ]  # fmt: skip


def test_no_evaluation_at_all_is_an_error_as_are_files_that_cannot_be_read(tmp_path: Path) -> None:
    (folder,) = write(tmp_path / "a", [Made(iterations=0)])
    with pytest.raises(UserError, match="none of the 1 run folders has an evaluation yet"):
        gather([folder])
    (folder,) = write(tmp_path / "b", [Made()])
    rows = folder / "artifacts/it1/evaluation/rows.parquet"
    rows.write_text("no parquet")
    with pytest.raises(UserError, match=r"rows\.parquet: cannot be read"):
        gather([folder])
    (folder / "config.yaml").write_text("a: [")
    with pytest.raises(UserError, match=r"config\.yaml: cannot be read"):
        gather([folder])


def test_damaged_runs_are_told_from_whole_ones_with_a_reason_of_one_line(tmp_path: Path) -> None:
    folders = write(tmp_path, [Made(eta=float(eta)) for eta in range(1, 9)])
    for folder, file, text in [
        (folders[0], "config.yaml", "a: [\nb: c"),
        (folders[1], "config.yaml", ""),
        (folders[2], "command.txt", b"\xff"),
        (folders[3], "artifacts/it1/policy/record.json", "{"),
        (folders[4], "artifacts/it2/evaluation/metrics.json", "[]"),
        (folders[5], "artifacts/it2/evaluation/rows.parquet", "PAR1"),
    ]:
        (folder / file).write_bytes(text if isinstance(text, bytes) else text.encode())
    other = pyarrow.table({"prompt_id": ["a"]})
    pyarrow.parquet.write_table(other, folders[6] / "artifacts/it2/evaluation/rows.parquet")
    whole, damaged = sort_out(folders)
    assert whole == [folders[7]] and [run.name for run in damaged] == [folder.name for folder in folders[:7]]
    files = ["config.yaml", "config.yaml", "command.txt", "record.json", "metrics.json", "rows.parquet", "rows.parquet"]
    for run, file in zip(damaged, files, strict=True):
        assert f"/{file}: " in run.reason and "\n" not in run.reason


def changed(file: Path, **values: Any) -> None:
    """JSON, which the settings of these runs are too."""
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize(
    "wrong",
    [
        {"seconds": None},
        {"seconds": "3"},
        {"seconds": 10**400},
        {"workload": None},
        {"config": None},
        {"inputs": None},
        {"inputs": [1]},
        {"inputs": [{"kind": "pairs"}]},
    ],
)
def test_a_record_of_other_types_is_damage(wrong: dict[str, Any], tmp_path: Path) -> None:
    whole, other = write(tmp_path, grid((1, 2), (1e-5,)))
    changed(other / "artifacts/it2/policy/record.json", **wrong)
    found, (damaged,) = sort_out([whole, other])
    assert found == [whole] and f"/record.json: not a record of this code ({next(iter(wrong))})" in damaged.reason


@pytest.mark.parametrize(
    "wrong",
    [
        {"tracking": "off"},
        {"seed": 10**400},
        {"prompts": {"bytes": 10**400}},
    ],
)
def test_settings_of_other_types_are_damage(wrong: dict[str, Any], tmp_path: Path) -> None:
    whole, other = write(tmp_path, grid((1, 2), (1e-5,)))
    changed(other / "config.yaml", **wrong)
    found, (damaged,) = sort_out([whole, other])
    assert found == [whole] and f"/config.yaml: {next(iter(wrong))}" in damaged.reason


@pytest.mark.parametrize("text", ["a: !!binary aGk=", "a: [!!binary aGk=]", "a: .inf"])
def test_settings_that_are_no_json_are_damage(text: str, tmp_path: Path) -> None:
    (folder,) = write(tmp_path, [Made()])
    (folder / "config.yaml").write_text(text)
    _, (damaged,) = sort_out([folder])
    assert "/config.yaml: " in damaged.reason


@pytest.mark.parametrize("wins", [[None, 0.5], ["a", "b"], [0.5, float("nan")]], ids=["null", "text", "nan"])
def test_win_values_that_are_no_numbers_are_damage(wins: list[Any], tmp_path: Path) -> None:
    (folder,) = write(tmp_path, [Made()])
    rows = pyarrow.table({"prompt_id": ["a", "b"], "win_over_base": wins})
    pyarrow.parquet.write_table(rows, folder / "artifacts/it1/evaluation/rows.parquet")
    _, (damaged,) = sort_out([folder])
    assert "/rows.parquet: not every row has a number as win_over_base" in damaged.reason


@pytest.mark.parametrize("file", ["policy/record.json", "evaluation/metrics.json"])
def test_nesting_without_end_is_damage(file: str, tmp_path: Path) -> None:
    (folder,) = write(tmp_path, [Made()])
    (folder / "artifacts/it1" / file).write_text("[" * 100_000)
    _, (damaged,) = sort_out([folder])
    assert re.search(rf"{Path(file).name}: (cannot be read|not a readable record) \(maximum recursion", damaged.reason)


def test_a_number_that_no_float_can_hold_is_damage(tmp_path: Path) -> None:
    (folder,) = write(tmp_path, [Made()])
    changed(folder / "artifacts/it1/evaluation/metrics.json", tokens=10**400)
    _, (damaged,) = sort_out([folder])
    assert "/metrics.json: cannot be read (int too large" in damaged.reason


@pytest.mark.parametrize("name", ["it2/policy", "it2"])
def test_a_loop_of_links_is_damage(name: str, tmp_path: Path) -> None:
    (folder,) = write(tmp_path, [Made()])
    place = folder / "artifacts" / name
    os.rename(place, tmp_path / "away")
    place.symlink_to(place)
    _, (damaged,) = sort_out([folder])
    assert damaged.reason.startswith(str(place)) and "symbolic links" in damaged.reason


def test_a_workload_may_end_in_anything(tmp_path: Path) -> None:
    (folder,) = write(tmp_path, [Made()])
    for told, devices in [("train tiny cpu 8", 8), ("train ²", 1), ("train " + "9" * 5000, 1), ("", 1)]:
        changed(folder / "artifacts/it1/policy/record.json", workload=told)
        assert gather([folder])[0].artifacts["it1/policy"].devices == devices


def test_a_link_to_what_was_cleaned_away_is_an_artifact_that_is_missing(tmp_path: Path) -> None:
    (folder,) = write(tmp_path, [Made()])
    shutil.rmtree((folder / "artifacts/it2/evaluation").resolve())
    (run,) = gather([folder])
    assert len(run.steps) == 1 and "it2/evaluation" not in run.artifacts and run.state.startswith("unfinished: 1 of 2")


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


def test_artifacts_belong_to_a_family_by_their_name() -> None:
    names = ("it1/own_responses", "it2/outside_gpt", "it1/pairs", "it1/policy", "base/policy", "null/answers",
             "it3/joint_ranking", "it1/prompts", "ranker/model0")  # fmt: skip
    assert [family(name) for name in names] == [
        "generate", "generate", "rank", "train", "prepare", "evaluate", "evaluate", "prepare", "prepare"
    ]  # fmt: skip


def test_the_csv_has_a_row_a_run_and_iteration_in_full_precision(tmp_path: Path) -> None:
    found = compare_folders(write(tmp_path, [Made(eta=0.3), Made(eta=0.7, iterations=0)]), "x")
    rows = list(csv.DictReader(io.StringIO(as_csv(found, costs(found)))))
    assert [(row["eta"], row["iteration"]) for row in rows] == [("0.3", "1"), ("0.3", "2"), ("0.7", "")]
    step = found.rows[1].step
    assert step and float(rows[1]["win_over_base"]) == step.numbers["win_over_base"]
    assert float(rows[1]["kl_per_token"]) == step.numbers["kl_per_token"]
    assert rows[0]["lr"] == "1e-05" and rows[0]["train_s"] == "200.0" and rows[2]["win_over_base"] == ""
