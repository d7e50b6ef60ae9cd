"""A sweep of two points as jobs of a real SLURM: the same command, the same artifacts as of the same sweep run here."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from slurm_cluster import Cluster, cluster, running  # noqa: F401
from slurm_runs import slurm_words
from sweep_points import points_of
from tiny_run import call, tiny

from src.experiment.sweep import Sweep
from src.launch.slurm.ledger import Ledger, Maker

GRID = ("method.eta=1,50", "iter=1", "train.lr=1e-3")


@pytest.mark.timeout(900)  # the last resort of the wait for all jobs, and three times that
def test_a_sweep_runs_in_order_and_makes_what_it_makes_here(
    llama: Path,
    tmp_path: Path,
    cluster: Cluster,  # noqa: F811
    forking_python: Path,
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    assert call("-m", *tiny(llama, here, *GRID)) == 0
    words = [*tiny(llama, there, *GRID), *slurm_words(f"launcher.site.python={forking_python}")]
    assert call("-m", *words) == 0
    assert call("-m", *words) == 0, "again, which submits nothing"
    ledger, sweep, by_token = Ledger(there / "store"), Sweep(points_of("-m", *words)), cluster.by_token()
    jobs = {job for one in ledger.submissions for job in by_token[one.token]}
    cluster.until("all jobs have ended", lambda: not jobs & cluster.alive())
    logs = [log.read_text() for log in sorted((there / "runs").glob("*/slurm/logs/*.out"))]
    assert {state for job, state in cluster.jobs().items() if job in jobs} == {"COMPLETED"}, logs
    assert call("status", "-m", *words) == 0 and len(jobs) == 7 + 2 * 3
    begun, ended = cluster.times()
    for node in {node.key: node for nodes in sweep.nodes for node in nodes}.values():
        for parent in node.inputs:
            before, after = (
                {_job(maker, by_token) for maker in ledger.makers()[key]} for key in (parent.key, node.key)
            )
            early = [(a, b) for a in before for b in after if a != b and ended[a] > begun[b]]
            assert not early, f"{node.name} began before {parent.name} was made"
    assert made(here) == made(there)
    policies = [path for path in made(here) if (there / "store" / path / "metrics.jsonl").exists()]
    assert len(policies) == 2, "of each point one"
    for path in policies:
        own, other = (load_file(place / "store" / path / "model.safetensors") for place in (here, there))
        for name, weights in own.items():
            torch.testing.assert_close(other[name], weights, rtol=1e-4, atol=1e-6, msg=f"{path}: {name}")


def _job(maker: Maker, by_token: dict[str, list[str]]) -> str:
    jobs = by_token[maker.submission.token]
    return next(job for job in jobs if len(jobs) == 1 or job.endswith(f"_{maker.index}"))


def made(place: Path) -> set[str]:
    """Kind and key of each artifact."""
    return {str(path.parent.relative_to(place / "store")) for path in (place / "store").glob("*/*/record.json")}
