"""W&B's own files of the finished run, mirrored offline and read back with W&B's own tool."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from tiny_run import HELD_OUT, PROMPTS, World, call, folders
from wandb_files import UNTIDY, Recorded, at_home, each_row_once, families, recorded

from src.kernel.record import git_commit, read_record
from src.reporting.tracking.families import FAMILIES
from src.reporting.tracking.samples import HELD_OUT as HELD_OUT_TABLE
from src.reporting.tracking.samples import TRAINING
from src.reporting.tracking.state import run_id

pytestmark = UNTIDY
SECRET = "hf_ofNobodyAtAll0123456789"


class Mirrored(NamedTuple):
    world: World
    found: list[Recorded]

    def of(self, family: str) -> list[Recorded]:
        return families(self.found)[family]


@pytest.fixture(scope="module")
def mirrored(finished: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mirrored]:
    """All is made already; a second start has nothing to show. The report's plots are shown last, by themselves."""
    place = tmp_path_factory.mktemp("mirrored")
    shutil.copytree(finished.place, place / "copy", symlinks=True)
    world = World(place / "copy", [word for word in finished.words if word != "tracking=off"])
    shutil.rmtree(world.folder)
    with at_home(place), pytest.MonkeyPatch.context() as patch:
        for name in ("HF_TOKEN", "WANDB_API_KEY", "OPENAI_API_KEY"):
            patch.setenv(name, SECRET)
        more = ("iter=2", "tracking.project=tests", "tracking.patience_seconds=600")
        for _ in range(2):
            assert call(*world.words, *folders(world.place), *more) == 0
        yield Mirrored(world, recorded(world.folder))


def test_each_family_is_a_run_that_shows_every_row_of_the_metrics_once(mirrored: Mirrored) -> None:
    world, found = mirrored
    assert [one.family for one in found] == [*FAMILIES, "evaluate"]
    each_row_once(world.folder, found)
    for one in found:
        assert (one.id, one.run["project"]) == (run_id(world.folder, one.family), "tests")
        assert one.run["display_name"] == "tiny sppo it2 η=1000 lr=1e-5 K=3"
        assert sorted(one.run["tags"]) == ["it2", "sppo", "tiny"]
        assert one.of("exit")[0].get("exit_code", 0) == 0
    (train,), (rank,) = mirrored.of("train"), mirrored.of("rank")
    assert [row["train/total_step"] for row in train.history if "train/total_step" in row] == [1, 2, 3, 4]
    assert train.axes["train/*"] == "train/total_step" and rank.axes["pairs/*"] == "iteration"


def test_config_and_summary_are_plain_columns(mirrored: Mirrored) -> None:
    columns = {"eta": 1000, "beta": 0.001, "lr": 1e-5, "K": 3, "iter": 2, "method": "sppo", "model": "tiny", "seed": 0}
    columns |= {"ranker": "embedded", "estimator": "pairwise", "hardware": "cpu", "commit": git_commit()}
    for one in mirrored.found:
        assert {name: one.config[name] for name in columns} == columns
        assert one.config["train.batch_pairs"] == 2
        assert not [key for key, value in (one.config | one.summary).items() if isinstance(value, dict)]
    summary, told = mirrored.of("evaluate")[0].summary, mirrored.world.metrics("it2/evaluation")
    assert (summary["win_rate"], summary["tokens"]) == (told["win_over_base"], told["tokens"])


def test_answers_plots_and_artifacts_are_shown_once(mirrored: Mirrored) -> None:
    world, found = mirrored
    tables = {key: [t for one in found for t in one.tables(key)] for key in (TRAINING, HELD_OUT_TABLE)}
    assert [[len(table["data"]) for table in some] for some in tables.values()] == [[PROMPTS] * 2, [HELD_OUT] * 2]
    assert [row["iteration"] for one in found for row in one.history if "plots/win_rate.path" in row] == [2]
    logged = [each for one in found for each in one.of("artifact") if each["type"] != "run_table"]  # W&B's own
    made = {record["key"] for place in world.store.artifacts() if (record := read_record(place))["inputs"]}
    assert made <= {alias for artifact in logged for alias in artifact["aliases"]}
    names = [(artifact["type"], artifact["aliases"][1]) for artifact in logged if not artifact.get("user_created")]
    assert len(names) == len(set(names)) == len(made)
    for artifact in logged:
        assert json.loads(artifact["metadata"])["key"] == artifact["aliases"][1]


def test_no_key_is_in_w_and_b_s_files(mirrored: Mirrored) -> None:
    files = [path for path in mirrored.world.place.parent.rglob("*") if path.is_file()]
    assert len([path for path in files if path.suffix == ".wandb"]) == len(mirrored.found)
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []
