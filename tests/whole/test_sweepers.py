"""Sweepers and launchers of Hydra's that are not ours: Optuna is told win rates, submitit that a point has failed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from tiny_run import ROOT, tiny

from src.experiment.sweep_note import members, names

pytestmark = pytest.mark.full


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


def test_under_submitit_a_failing_point_fails_its_own_job_alone(llama: Path, tmp_path: Path) -> None:
    """submitit's jobs are processes here, in place of SLURM's."""
    pytest.importorskip("submitit", reason="the extra `submitit` is not installed")
    words = ["-m", "hydra/launcher=submitit_local", f"hydra.sweep.dir={tmp_path / 'hydra'}", "method.eta=50,-5"]
    command = [sys.executable, "-m", "src.main", *words, *tiny(llama, tmp_path, "iter=1")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode != 0 and len(wins(tmp_path)) == 1, done.stderr
    (sweep,) = names(tmp_path / "runs")
    assert len(members(tmp_path / "runs", sweep)) == 1
    (log,) = [log for log in (tmp_path / "hydra").rglob("*_log.err") if "error: method.eta" in log.read_text()]
    assert "Traceback" not in log.read_text()
