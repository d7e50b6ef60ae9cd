"""The real command with its mirror: two iterations, a training that is killed, jobs that share a run folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_run import HELD_OUT, PROMPTS, ROOT, call, tiny
from wandb_files import UNTIDY, Recorded, families, recorded, wandb_home  # noqa: F401

from src.artifact import WORK
from src.records import Row
from src.tracking.families import FAMILIES
from src.tracking.metrics import METRICS
from src.tracking.samples import HELD_OUT as HELD_OUT_TABLE
from src.tracking.samples import TRAINING

pytestmark = [pytest.mark.full, UNTIDY]


def mirrored(llama: Path, place: Path, *more: str) -> list[str]:
    """Words of a tiny run that is mirrored."""
    return [word for word in tiny(llama, place, *more) if word != "tracking=off"]


def lines(folder: Path) -> list[Row]:
    return [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]


def each_row_once(folder: Path, found: list[Recorded]) -> None:
    """Every row of the metrics is a step of its family, and the steps of a family go on over its files."""
    shown = []
    for run_id in dict.fromkeys(one.id for one in found):
        openings = [one for one in found if one.id == run_id]
        steps = [step for one in openings for step in one.steps]
        assert steps == list(range(len(steps)))
        shown += [row for one in openings for row in one.history if "artifact" in row]
    identity = [(row["artifact"], row.get("train/step")) for row in shown]
    assert sorted(map(str, identity)) == sorted(str((row["artifact"], row.get("train/step"))) for row in lines(folder))


def test_a_real_run_is_mirrored_and_goes_on_where_it_was(llama: Path, wandb_home: Path) -> None:  # noqa: F811
    words = mirrored(llama, wandb_home)
    for iterations in (1, 2):
        assert call(*words, f"iter={iterations}") == 0
    (folder,) = (wandb_home / "runs").iterdir()
    count = len(list(folder.glob("wandb/offline-run-*")))
    assert call(*words, "iter=2") == 0
    found = recorded(folder)
    assert len(found) == count, "the third start had nothing to show"
    by_family = families(found)
    assert set(by_family) == set(FAMILIES)
    each_row_once(folder, found)
    tables = {key: [t for one in found for t in one.tables(key)] for key in (TRAINING, HELD_OUT_TABLE)}
    assert [len(table["data"]) for table in tables[TRAINING]] == [PROMPTS, PROMPTS]
    assert [len(table["data"]) for table in tables[HELD_OUT_TABLE]] == [HELD_OUT, HELD_OUT]
    plots = [row for one in by_family["evaluate"] for row in one.history if "plots/win_rate.path" in row]
    assert [row["iteration"] for row in plots] == [1, 2]
    responses = [row for one in by_family["generate"] for row in one.history if "responses/tokens" in row]
    assert len(responses) == 2 and all(0 < row["responses/tokens"] <= 8 for row in responses)
    last = by_family["evaluate"][-1].summary
    evaluation = json.loads((folder / "artifacts/it2/evaluation/metrics.json").read_text())
    assert last["win_rate"] == evaluation["win_over_base"] and last["tokens"] == evaluation["tokens"]
    assert not [key for key, value in last.items() if isinstance(value, dict)]


def test_a_run_killed_in_training_shows_every_step_once(llama: Path, wandb_home: Path) -> None:  # noqa: F811
    words = mirrored(llama, wandb_home, "iter=1", "train.batch_pairs=1")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.Popen([sys.executable, "-m", "src.main", *words], cwd=ROOT, env=environment)
    try:
        limit = time.monotonic() + 120
        while not list(wandb_home.glob(f"store/policy/*.partial-*/{WORK}/checkpoint-*")):
            assert run.poll() is None and time.monotonic() < limit
            time.sleep(0.005)
    finally:
        run.send_signal(signal.SIGKILL)
        run.wait()
    time.sleep(2)  # W&B's own process ends after ours
    (folder,) = (wandb_home / "runs").iterdir()
    assert json.loads((folder / ".wandb" / "train.json").read_text())["unfinished"]
    assert call(*words) == 0
    found = recorded(folder)
    each_row_once(folder, found)
    assert len([row for row in lines(folder) if "train/step" in row]) == PROMPTS


def test_a_job_shows_its_family_though_another_has_the_run_folder(llama: Path, wandb_home: Path) -> None:  # noqa: F811
    """As the jobs of a sweep do, each with what the others made."""
    from tiny_run import typed

    from src.attempts import turn_if_free
    from src.run_folder import LOCK, run_name

    words = mirrored(llama, wandb_home, "iter=1", "launcher=allocation", "launcher.alone=true")
    os.environ["SLURM_JOB_ID"] = "77"
    try:
        for name in ("base/policy", "held_out/prompts", "it1/prompts"):
            assert call(*words, f"only={name}") == 0
        folder = wandb_home / "runs" / run_name(typed(*words))
        with turn_if_free(folder / LOCK, "elsewhere") as free:
            assert free
            assert call(*words, "only=it1/responses") == 0
    finally:
        del os.environ["SLURM_JOB_ID"]
    found = recorded(folder)
    assert {one.family for one in found} == {"generate"}
    shown = [row["artifact"].split("/")[0] for one in found for row in one.history]
    assert shown == ["prompts", "responses"]


def test_processes_of_a_training_open_nothing(llama: Path, wandb_home: Path) -> None:  # noqa: F811
    """Two that train together: the W&B runs are those that the command opened."""
    words = mirrored(llama, wandb_home, "iter=1", "hardware.devices.count=2")
    words.append("+deepspeed@hardware.devices.deepspeed=zero2")
    assert call(*words) == 0
    (folder,) = (wandb_home / "runs").iterdir()
    found = recorded(folder)
    each_row_once(folder, found)
    elsewhere = [path for path in wandb_home.rglob("run-*.wandb") if folder / "wandb" not in path.parents]
    assert elsewhere == [] and not list(ROOT.glob("wandb/*run-*")), "beside W&B's log of its own commands"
