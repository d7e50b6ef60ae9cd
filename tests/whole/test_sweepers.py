"""Sweepers and launchers of Hydra's that are not ours: Optuna is told win rates."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from slurm_cluster import Cluster, cluster, install  # noqa: F401
from slurm_runs import slurm_words
from tiny_run import ROOT, call, tiny

from src.slurm import client
from src.sweep_note import members, names

pytestmark = pytest.mark.full


NOTING = """
import json, runpy, sys
from optuna import study
file, tell = sys.argv.pop(1), study.Study.tell
def note(self, trial, values, state):
    print(json.dumps([state.name, values]), file=open(file, "a"), flush=True)
    tell(self, trial, values, state)
study.Study.tell = note
runpy.run_module("src.main", run_name="__main__", alter_sys=True)
"""
"""`python -m src.main`, and what Optuna's study is told into a file."""


def wins(place: Path) -> list[float]:
    """Over the base, of every evaluation in the store."""
    files = sorted((place / "store" / "evaluation").glob("*/metrics.json"))
    return [json.loads(file.read_text())["win_over_base"] for file in files]


def test_optuna_is_told_the_win_rate_over_the_base(llama: Path, tmp_path: Path) -> None:
    pytest.importorskip("optuna", reason="the extra `optuna` is not installed")
    words = ["-m", "hydra/sweeper=optuna", "hydra.sweeper.direction=maximize", f"hydra.sweep.dir={tmp_path / 'hydra'}"]
    words += ["hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=2", "hydra.sweeper.sampler.seed=1"]
    words += ["method.eta=tag(log,interval(10,1000))", *tiny(llama, tmp_path, "iter=1")]
    subprocess.run([sys.executable, "-m", "src.main", *words], cwd=ROOT, check=True)  # Optuna's log handler would stay
    best = OmegaConf.load(tmp_path / "hydra" / "optimization_results.yaml")
    found = wins(tmp_path)
    assert len(found) == 3 and best.best_value == max(found)
    assert 10 <= best.best_params["method.eta"] <= 1000
    responses = list((tmp_path / "store" / "responses").iterdir())
    assert len(responses) == 1 + 2 + 3, "of iteration 1 once, of base and null once, of each policy"
    (sweep,) = names(tmp_path / "runs")
    assert len(members(tmp_path / "runs", sweep)) == 3, "its trials are one sweep"


def test_an_optuna_study_is_no_grid_that_could_be_planned() -> None:
    pytest.importorskip("optuna", reason="the extra `optuna` is not installed")
    command = [sys.executable, "-m", "src.main", "plan", "-m", "hydra/sweeper=optuna", "seed=range(0,9)"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: hydra/sweeper: OptunaSweeper chooses its points as it goes; plan takes the")
    assert done.stderr.count("\n") == 1


def test_an_optuna_study_submits_its_trials_and_waits_for_their_win_rates(
    llama: Path,
    tmp_path: Path,
    cluster: Cluster,  # noqa: F811
) -> None:
    """Two trials in one batch. What they have in common is made by the jobs of the first."""
    pytest.importorskip("optuna", reason="the extra `optuna` is not installed")
    words = ["-m", "hydra/sweeper=optuna", "hydra.sweeper.direction=maximize", f"hydra.sweep.dir={tmp_path / 'hydra'}"]
    words += ["hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=2", "hydra.sweeper.sampler.seed=1"]
    words += ["method.eta=tag(log,interval(10,1000))", *tiny(llama, tmp_path, "iter=1")]
    words += slurm_words(warn_seconds="60")
    command = [sys.executable, "-c", NOTING, str(tmp_path / "told"), *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=580)
    logs = [log.read_text() for log in sorted((tmp_path / "runs").glob("*/slurm/logs/*.out"))]
    assert done.returncode == 0, (done.stdout, done.stderr, logs)
    told = [json.loads(line) for line in (tmp_path / "told").read_text().splitlines()]
    found = wins(tmp_path)
    assert len(found) == 2 and sorted(told) == sorted(["COMPLETE", [win]] for win in found)
    responses = list((tmp_path / "store" / "responses").iterdir())
    assert len(responses) == 1 + 2 + 2, "of iteration 1 once, of base and null once, of each policy"
    assert len(list((tmp_path / "runs").glob("*/report.md"))) == 2


@pytest.fixture(scope="module")
def accounted() -> Iterator[Cluster]:
    """submitit asks sacct what became of a job."""
    if reason := install(accounting=True):
        pytest.skip(reason)
    with Cluster(accounting=True, gpus=0) as own:
        yield own


def test_under_submitit_a_failing_point_fails_its_slurm_task(llama: Path, tmp_path: Path, accounted: Cluster) -> None:
    pytest.importorskip("submitit", reason="the extra `submitit` is not installed")
    words = ["-m", "hydra/launcher=submitit_slurm", f"hydra.sweep.dir={tmp_path / 'hydra'}", "method.eta=50,-5"]
    words += [f"hydra.launcher.{word}" for word in ("timeout_min=20", "mem_gb=1", "cpus_per_task=1")]
    command = [sys.executable, "-m", "src.main", *words, *tiny(llama, tmp_path, "iter=1")]
    environment = os.environ | accounted.env
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode != 0
    deadline = time.monotonic() + 60
    while (states := sorted(accounted.jobs().values())) != ["COMPLETED", "FAILED"]:
        assert time.monotonic() < deadline, (states, done.stderr)
        time.sleep(0.5)
    assert len(wins(tmp_path)) == 1
    (sweep,) = names(tmp_path / "runs")
    assert len(members(tmp_path / "runs", sweep)) == 1
    (log,) = [log for log in (tmp_path / "hydra").rglob("*_log.err") if "method.eta" in log.read_text()]
    assert "error: method.eta: Input should be greater than 0 (got -5)" in log.read_text()
    assert "Traceback" not in log.read_text()


def test_with_another_launcher_of_hydra_nothing_but_a_run_is_begun(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("plan", "-m", "hydra/launcher=submitit_slurm", "method.eta=1,2") == 2
    assert capsys.readouterr().err.startswith("error: hydra/launcher=submitit_slurm: with it a sweep can be run")


def test_a_sweep_wants_its_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("plan", "+sweep=eta") == 2
    assert capsys.readouterr().err == "error: +sweep=eta: a sweep wants -m too\n"


def test_the_accounting_s_limit_of_jobs_is_read(accounted: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CONF", accounted.env["SLURM_CONF"])
    assert (client.limits().array, client.limits().submitted) == (1001, 4999)
    accounted.run("sacctmgr", "-i", "modify", "user", "root", "set", "maxsubmitjobs=7")
    assert (client.limits().array, client.limits().submitted) == (1001, 7)
