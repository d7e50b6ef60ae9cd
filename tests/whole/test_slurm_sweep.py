"""A sweep of two points as jobs of a real SLURM makes the same artifacts as the same sweep run here."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from slurm_cluster import Cluster, slurm_words
from tiny_run import call, tiny

from src.kernel.store import Store
from src.launch.slurm.ledger import Ledger

GRID = ("method.eta=1,50", "iter=1", "train.lr=1e-3")


@pytest.mark.timeout(900)  # the last resort of the wait for all jobs, and three times that
def test_a_sweep_makes_what_it_makes_here_and_is_submitted_once(
    llama: Path, tmp_path: Path, cluster: Cluster, forking_python: Path
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    assert call("-m", *tiny(llama, here, *GRID)) == 0
    words = [*tiny(llama, there, *GRID), *slurm_words(f"launcher.site.python={forking_python}")]
    assert call("-m", *words) == 0
    assert call("-m", *words) == 0, "this submits nothing"
    tokens = {one.token for one in Ledger(there / "store").submissions}
    cluster.until("all jobs have ended", lambda: not cluster.alive())
    states = [job.state for job in cluster.jobs().values() if job.token in tokens]
    logs = [log.read_text() for log in sorted((there / "runs").glob("*/slurm/logs/*.out"))]
    assert states == ["COMPLETED"] * (7 + 2 * 3), logs
    assert call("status", "-m", *words) == 0
    kinds = [{(path.parent.name, path.name) for path in Store(place / "store").artifacts()} for place in (here, there)]
    assert kinds[0] == kinds[1]
    policies = [path.parent for path in (here / "store/policy").glob("*/metrics.jsonl")]
    assert len(policies) == 2, "of each point one"
    for policy in policies:
        other = load_file(there / "store/policy" / policy.name / "model.safetensors")
        for name, weights in load_file(policy / "model.safetensors").items():
            torch.testing.assert_close(other[name], weights, rtol=1e-4, atol=1e-6, msg=f"{policy.name}: {name}")
