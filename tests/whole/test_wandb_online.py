"""W&B's real library against a stand-in of its server: a run that goes on is the same run, from the next step on."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import wandb
from canaries import plant, singing
from made_up_run import STEPS, MadeUp, made_up, under_way
from wandb_server import WandbServer

from src.reporting import wandb as module
from src.reporting.wandb import Guarded, Runs, WandB, experiment_of, run_id
from src.reporting.wandb_tables import FAMILIES

pytestmark = [pytest.mark.full, pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning")]
"""W&B's artifacts leave their temporary folders to the garbage collector."""


@pytest.fixture
def story(tmp_path: Path) -> MadeUp:
    return made_up(tmp_path)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    """A server of W&B, and a key; everything that W&B writes beside the run goes to the test's folder."""
    monkeypatch.delenv("WANDB_MODE")
    plant(monkeypatch)
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("SLURM_JOB_COMMENT", "a value of the environment")  # W&B would take all of SLURM's
    for name in ("CACHE", "CONFIG", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / name.lower()))
    with WandbServer() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        wandb.teardown()  # its settings are read once per process
        yield server
        wandb.teardown()
    gc.collect()  # while the filter of warnings holds


def runs_of(story: MadeUp) -> Runs:
    return Runs(story.point, WandB(project="tests", entity=None, group=None))


def id_of(story: MadeUp, family: str) -> str:
    return run_id(story.folder, family, experiment_of({node.name: node.key for node in story.nodes}))


def steps(server: WandbServer, story: MadeUp) -> list[tuple[int, int]]:
    """(step of W&B, step of all trainings) in the order of the lines at W&B."""
    rows = server.rows.get(id_of(story, "train"), {})
    return [(rows[line]["_step"], rows[line]["train/total_step"]) for line in sorted(rows)]


def test_a_run_that_is_shown_again_goes_on_at_the_next_step_and_no_secret_leaves(
    story: MadeUp, server: WandbServer, tmp_path: Path
) -> None:
    for made in (0, 2):
        under_way(story, made)
        with closing(runs_of(story)) as runs:
            runs.show_all()
            assert not singing(tmp_path), "while W&B's library has its files: settings, logs, config, summary"
        assert steps(server, story) == [(step, step + 1) for step in range(STEPS + made)]
    its = {id_of(story, family) for family in FAMILIES if family != "generate"}
    assert set(server.rows) == its
    made_by, used_by = (
        {values["input"]["runName"] for name, values in server.asked if name == operation}
        for operation in ("CreateArtifact", "UseArtifact")
    )
    assert made_by - {None} == used_by == its  # what is used and nobody's is created without a run
    assert list((story.folder / "wandb").glob("*run*")) == []
    sent = json.dumps(server.asked)
    for word in ("train/loss_scaled", "samples/training", "win_rate", "train.batch_pairs"):
        assert word in sent
    assert not singing(tmp_path, sent) and "of the environment" not in sent and "diff --git" not in sent


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # W&B leaves the file of values open
def test_a_trial_is_one_run_of_the_sweep(
    story: MadeUp, server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W&B sets aside our id and project for those of the sweep."""
    values = tmp_path / "values.yaml"
    values.write_text("wandb_version: 1\nmethod.eta: {desc: null, value: 300.0}\n")
    words = {"SWEEP_ID": "abc123", "RUN_ID": "trial1", "PROJECT": "theirs", "SWEEP_PARAM_PATH": str(values)}
    for key, word in words.items():
        monkeypatch.setenv(f"WANDB_{key}", word)
    wandb.teardown()  # its settings are read once per process
    with closing(runs_of(story)) as runs:
        runs.show_all()
    rows = server.rows["trial1"]
    assert list(server.rows) == ["trial1"] and [rows[line]["_step"] for line in rows] == list(range(2 * (STEPS + 4)))
    assert {values["project"] for name, values in server.asked if name == "RunResumeStatus"} == {"theirs"}


def test_a_server_that_fails_is_said_and_stops_nothing(
    story: MadeUp, server: WandbServer, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "OPENED_S", 2.0)
    monkeypatch.setattr(module, "FINISHED_S", 2.0)
    mirror = Guarded(runs_of(story))
    mirror.begin(story.node("it1/policy"))
    server.fails = True
    mirror.update()
    mirror.report()
    mirror.close()
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("tracking:")]
    assert lines and all(line.endswith("`python -m src.main sync` shows them later") for line in lines)
