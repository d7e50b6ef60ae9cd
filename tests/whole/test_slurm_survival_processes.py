"""A training in several processes, on one node and on two, is warned and goes on: all processes save together."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from places import PYTHONPATH
from slurm_cluster import Cluster, cluster  # noqa: F401
from slurm_runs import REQUEUED, Place, Prepared, prepared, slurm_words

from src.artifact import WORK
from src.training.checkpoints import STOP

pytestmark = [pytest.mark.full, pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")]

TRAIN = "it1-training"
TWO = ("hardware.devices.count=2", "+deepspeed@hardware.devices.deepspeed=zero2", "train.batch_pairs=2")
RESOLVE = """#!/usr/bin/env bash
# The names of the cluster's nodes mean nothing to anybody else.
[ "$1 $2" = "show hostnames" ] && exec printf '127.0.0.1\\n127.0.0.1\\n'
exec {scontrol} "$@"
"""


@pytest.fixture(scope="module", autouse=True)
def processes_find_the_tests() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", PYTHONPATH)
        yield


@pytest.fixture(scope="module")
def whole(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepared(llama, tmp_path_factory, *TWO)


@pytest.fixture
def place(
    whole: Prepared,
    cluster: Cluster,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Place]:
    scontrol, bin = shutil.which("scontrol"), tmp_path / "bin"
    bin.mkdir()
    (bin / "scontrol").write_text(RESOLVE.format(scontrol=scontrol))
    (bin / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin}:{os.environ['PATH']}")
    found = whole.place(cluster, tmp_path, *slurm_words())
    yield found
    found.close()


@pytest.mark.parametrize("nodes", [1, 2])
def test_all_processes_save_together_and_go_on(nodes: int, place: Place, whole: Prepared) -> None:
    place.words.append(f"hardware.devices.nodes={nodes}")
    place.gate.close()
    assert place.run() == 0
    job = place.job(TRAIN)
    pid = place.until_held()
    assert place.shown(job)["NumNodes"] == str(nodes)
    place.cluster.run("scancel", "--signal=USR1", "--batch", job)
    place.until("they are told", lambda: list((place.folder / "store/policy").glob(f"*.partial-*/{WORK}/{STOP}")))
    place.gate.let_go(pid)
    place.until_state(job, "COMPLETED")
    assert REQUEUED.findall(place.log(TRAIN)) == [job] and place.shown(job)["Restarts"] == "1"
    assert place.run("cancel") == 0
    assert place.weights() == whole.weights and place.whole()
