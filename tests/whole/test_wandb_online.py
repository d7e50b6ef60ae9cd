"""W&B's real library against a stand-in of its server: a run that goes on is the same run, from the next step on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import wandb
from canaries import CANARIES, plant
from made_up_run import STEPS, MadeUp, made_up, under_way
from tiny_run import ROOT
from wandb_files import UNTIDY, point_of, wandb_home  # noqa: F401
from wandb_server import KEY, WandbServer

from src.reporting import wandb_runs
from src.reporting.wandb import Guarded, WandB
from src.reporting.wandb_runs import FAMILIES, Runs, experiment_of, run_id

# ruff: noqa: F811
pytestmark = UNTIDY


@pytest.fixture
def story(wandb_home: Path) -> MadeUp:
    return made_up(wandb_home)


@pytest.fixture
def server(wandb_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    """A server of W&B, and a key."""
    monkeypatch.delenv("WANDB_MODE")
    plant(monkeypatch)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("SLURM_JOB_COMMENT", "a value of the environment")  # W&B would take all of SLURM's
    with WandbServer() as found:
        monkeypatch.setenv("WANDB_BASE_URL", found.url)
        wandb.teardown()  # its settings are read once a process
        yield found
        wandb.teardown()


def runs_of(story: MadeUp) -> Runs:
    return Runs(point_of(story), "online", "tests", None, None)


def steps(server: WandbServer, story: MadeUp, family: str = "train") -> list[tuple[int, int]]:
    """(step of W&B, step of all trainings) in the order of the lines at W&B."""
    rows = server.rows.get(run_id(story.folder, family, experiment_of(story.nodes)), {})
    return [(rows[line]["_step"], rows[line]["train/total_step"]) for line in sorted(rows)]


def test_a_run_that_is_shown_again_goes_on_at_the_next_step_and_no_secret_leaves(
    story: MadeUp, server: WandbServer
) -> None:
    for made in (0, 2):
        under_way(story, made)
        runs = runs_of(story)
        runs.show_all()
        runs.finish()
        assert steps(server, story) == [(step, step + 1) for step in range(STEPS + made)]
    its = {run_id(story.folder, family, experiment_of(story.nodes)) for family in FAMILIES if family != "generate"}
    assert set(server.rows) == its
    made_by, used_by = (
        {values["input"]["runName"] for name, values in server.asked if name == operation}
        for operation in ("CreateArtifact", "UseArtifact")
    )
    assert made_by - {None} == used_by == its  # what is used and nobody's is created without a run
    assert list((story.folder / "wandb").glob("*run*")) == []
    sent = json.dumps(server.asked)
    assert "train/loss_scaled" in sent and "samples/training" in sent
    assert not [word for word in (*CANARIES.values(), KEY, "of the environment", "diff --git") if word in sent]


KILLED = """
import os, signal, sys
sys.path[:0] = ["tests/lib", "tests/whole", "tests"]
from pathlib import Path
from made_up_run import MadeUp
from test_wandb_online import runs_of
from tiny_run import tiny, typed
from src.kernel.store import Store
run = typed(*tiny(Path("nowhere"), Path(sys.argv[1]), "iter=2"))
story = MadeUp(run, nodes_of(run), Store(run.store), run.runs / "made_up")
process = runs_of(story)
process.begin(next(node for node in story.nodes if node.name == "it2/policy"))
process.update()
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.faults
def test_what_a_killed_process_takes_with_it_is_shown_again(
    story: MadeUp, server: WandbServer, wandb_home: Path
) -> None:
    """Its W&B run was open, and all or nothing of its rows may have been sent."""
    under_way(story, 2)
    done = subprocess.run([sys.executable, "-c", KILLED, str(wandb_home)], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    under_way(story, 3)
    runs = runs_of(story)
    runs.show_all()
    runs.finish()
    assert steps(server, story) == [(step, step + 1) for step in range(STEPS + 3)]


@pytest.mark.full
def test_a_server_that_fails_is_said_in_one_line_in_bounded_time(
    story: MadeUp, server: WandbServer, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(wandb_runs, "OPENED_S", 2.0)
    monkeypatch.setattr(wandb_runs, "FINISHED_S", 2.0)
    mirror = WandB(project="tests", entity=None, mode="online", group=None).open(point_of(story))
    assert isinstance(mirror, Guarded)
    for node in story.nodes:
        mirror.begin(node)
        server.fails = lambda path: True
        mirror.update()
    mirror.report()
    mirror.close()
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("tracking:")]
    assert line.endswith("metrics.jsonl has every row, and `python -m src.main sync` shows them later")
