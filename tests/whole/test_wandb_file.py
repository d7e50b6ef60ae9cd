"""W&B's own files of the finished run, written offline and read back with W&B's own tool."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from tiny_run import HELD_OUT, PROMPTS, World, call, folders
from wandb_files import UNTIDY, Recorded, at_home, recorded

from src.kernel.record import git_commit
from src.reporting.metrics_file import METRICS
from src.reporting.wandb_runs import FAMILIES, experiment_in, run_id
from src.reporting.wandb_tables import HELD_OUT as HELD_OUT_TABLE
from src.reporting.wandb_tables import TRAINING

pytestmark = UNTIDY
SECRET = "hf_ofNobodyAtAll0123456789"


class Mirrored(NamedTuple):
    world: World
    found: dict[str, Recorded]


@pytest.fixture(scope="module")
def mirrored(finished: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mirrored]:
    """All is made already. The second start writes every W&B run anew, in place of the first."""
    place = tmp_path_factory.mktemp("mirrored")
    shutil.copytree(finished.place, place / "copy", symlinks=True)
    world = World(place / "copy", [word for word in finished.words if word != "tracking=off"])
    shutil.rmtree(world.folder)
    with at_home(place), pytest.MonkeyPatch.context() as patch:
        for name in ("HF_TOKEN", "WANDB_API_KEY", "OPENAI_API_KEY"):
            patch.setenv(name, SECRET)
        for _ in range(2):
            assert call(*world.words, *folders(world.place), "iter=2", "tracking.project=tests") == 0
        yield Mirrored(world, recorded(world.folder))


def test_each_family_is_one_file_that_has_every_row_of_the_metrics_once(mirrored: Mirrored) -> None:
    world, found = mirrored
    assert set(found) == set(FAMILIES)
    for family, one in found.items():
        assert (one.id, one.run["project"]) == (run_id(world.folder, family, experiment_in(world.folder)), "tests")
        assert one.run["display_name"] == "tiny sppo it2 η=1000 lr=1e-5 K=3"
        assert sorted(one.run["tags"]) == ["it2", "sppo", "tiny"]
        assert one.of("exit")[0].get("exit_code", 0) == 0
        assert one.steps == list(range(len(one.steps)))
    rows = [json.loads(line) for line in (world.folder / METRICS).read_text().splitlines()]
    shown = {(row["artifact"], row.get("train/step")): row for one in found.values() for row in one.history}
    assert len(rows) == sum(len(one.history) for one in found.values()) == len(shown)
    for row in rows:
        plain = {key: value for key, value in row.items() if not isinstance(value, list)}
        its = shown[row["artifact"], row.get("train/step")]
        assert {key: its[key] for key in plain} == plain
    train, rank = found["train"], found["rank"]
    assert [row["train/total_step"] for row in train.history if "train/total_step" in row] == [1, 2, 3, 4]
    assert train.axes["train/*"] == "train/total_step" and rank.axes["pairs/*"] == "iteration"


def test_config_and_summary_are_plain_columns(mirrored: Mirrored) -> None:
    columns = {"eta": 1000, "beta": 0.001, "lr": 1e-5, "K": 3, "iter": 2, "method": "sppo", "model": "tiny", "seed": 0}
    columns |= {"ranker": "embedded", "estimator": "pairwise", "hardware": "cpu", "commit": git_commit()}
    for one in mirrored.found.values():
        assert {name: one.config[name] for name in columns} == columns
        assert one.config["train.batch_pairs"] == 2
        plots = {key for key in one.summary if key.startswith("plots/")}
        assert bool(plots) == (one.family == "evaluate")
        columns_of_columns = {key for key, value in (one.config | one.summary).items() if isinstance(value, dict)}
        assert columns_of_columns == plots
    summary, told = mirrored.found["evaluate"].summary, mirrored.world.metrics("it2/evaluation")
    assert (summary["win_rate"], summary["tokens"]) == (told["win_over_base"], told["tokens"])
    assert summary["kl_per_token"] == mirrored.world.metrics("it2/divergence")["kl_per_token"]


def test_sample_answers_are_shown_in_each_iteration(mirrored: Mirrored) -> None:
    rank, evaluate = mirrored.found["rank"].tables(TRAINING), mirrored.found["evaluate"].tables(HELD_OUT_TABLE)
    assert [[len(table["data"]) for table in some] for some in (rank, evaluate)] == [[PROMPTS] * 2, [HELD_OUT] * 2]


def test_no_key_is_in_w_and_b_s_files(mirrored: Mirrored) -> None:
    files = [path for path in mirrored.world.place.parent.rglob("*") if path.is_file()]
    assert len([path for path in files if path.suffix == ".wandb"]) == len(mirrored.found)
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []
