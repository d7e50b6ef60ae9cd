"""A sweep of two points as jobs of a real SLURM makes the same artifacts as the same sweep run here."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from slurm_cluster import Cluster, slurm_words
from tiny_run import call, points_of, tiny

from src.experiment.sweep import Sweep
from src.kernel.store import Store
from src.launch.slurm.ledger import Ledger, Maker

GRID = ("method.eta=1,50", "iter=1", "train.lr=1e-3")


@pytest.mark.timeout(900)  # the last resort of the wait for all jobs, and three times that
def test_a_sweep_runs_in_order_and_makes_what_it_makes_here(
    llama: Path, tmp_path: Path, cluster: Cluster, forking_python: Path
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    assert call("-m", *tiny(llama, here, *GRID)) == 0
    words = [*tiny(llama, there, *GRID), *slurm_words(f"launcher.site.python={forking_python}")]
    assert call("-m", *words) == 0
    assert call("-m", *words) == 0, "again, which submits nothing"
    ledger = Ledger(there / "store")
    tokens = {one.token: len(one.makes) for one in ledger.submissions}
    cluster.until("all jobs have ended", lambda: not cluster.alive())
    jobs = {job: one for job, one in cluster.jobs().items() if one.token in tokens}
    logs = [log.read_text() for log in sorted((there / "runs").glob("*/slurm/logs/*.out"))]
    assert {one.state for one in jobs.values()} == {"COMPLETED"}, logs
    assert call("status", "-m", *words) == 0 and len(jobs) == 7 + 2 * 3

    def jobs_of(maker: Maker) -> list[str]:
        token, end = maker.submission.token, f"_{maker.index}" if tokens[maker.submission.token] > 1 else ""
        return [job for job, one in jobs.items() if one.token == token and job.endswith(end)]

    makers = {key: {job for maker in makers for job in jobs_of(maker)} for key, makers in ledger.makers().items()}
    for node in {node.key: node for nodes in Sweep(points_of("-m", *words)).nodes for node in nodes}.values():
        for parent in node.inputs:
            early = [
                (a, b) for a in makers[parent.key] for b in makers[node.key] - {a} if jobs[a].ended > jobs[b].began
            ]
            assert not early, f"{node.name} began before {parent.name} was made"
    kinds = [{(path.parent.name, path.name) for path in Store(place / "store").artifacts()} for place in (here, there)]
    assert kinds[0] == kinds[1]
    policies = [path.parent for path in (here / "store/policy").glob("*/metrics.jsonl")]
    assert len(policies) == 2, "of each point one"
    for policy in policies:
        other = load_file(there / "store/policy" / policy.name / "model.safetensors")
        for name, weights in load_file(policy / "model.safetensors").items():
            torch.testing.assert_close(other[name], weights, rtol=1e-4, atol=1e-6, msg=f"{policy.name}: {name}")
