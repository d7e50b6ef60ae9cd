"""What a store, run folders, checkpoints and models hold, as files that fuzzing changes."""

from __future__ import annotations

import json
import shutil
import struct
import tempfile
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import conftest
from fuzzing import MILD, Target, of_file
from tiny_training import train_stage

from src.experiment.run_folder import is_reported
from src.experiment.selection import folders as select
from src.experiment.selection import group_of, points_of
from src.kernel.cells import Cells
from src.kernel.config import UserError
from src.kernel.record import DIGEST, damage, digest, read_record
from src.kernel.rows import PROMPTS, read_metrics, read_rows
from src.launch.slurm.ledger import Ledger
from src.modeling.checkpoints import refuse_broken
from src.modeling.policy import load_policy, load_tokenizer, render, stop_ids
from src.reporting.compare.read import read as read_run
from src.training.memory import Shape

KEY = "0123456789abcdef0123"
LARGEST = 10**7
"""Weights of a model that is tried."""

# The store and run folders ------------------------------------------------------------------------------------------


def record(**files: Any) -> dict[str, Any]:
    told: dict[str, Any] = {"name": "it1/evaluation", "kind": "evaluation", "key": KEY, "version": 1, "rows": 2}
    told |= {"config": {"estimator": {"tau": 1.0}}, "inputs": [{"kind": "policy", "key": KEY}], "files": files}
    told |= {"seconds": 1.5, "workload": "x 1"}
    return told | {DIGEST: digest(told)}


FILE = {"bytes": 1, "sha256": "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"}
ARTIFACT = {"rows.txt": "a", "record.json": record(**{"rows.txt": FILE})}
SETTINGS = "iter: 1\nmethod:\n  name: sppo\n  eta: 1000.0\nheld_out:\n  confidence: 0.95\nseed: 0\nbenchmark: {}\n"
SETTINGS += "hardware:\n  name: cpu\n  devices:\n    device: cpu\n"
NUMBERS = {"prompts": 2, "win_over_base": 0.5, "win_over_base_low": 0.4, "win_over_base_high": 0.6, "kl": None}
RUN: dict[str, Any] = {"config.yaml": SETTINGS, "command.txt": "python -m src.main iter=1\n"}
for place, rows in {
    "artifacts/it1/evaluation": [{"prompt_id": "a", "win_over_base": 0.5}, {"prompt_id": "b", "win_over_base": 0.6}],
    "artifacts/it1/ifeval/scores": [{"item_id": "1", "score": 0.5, "column": "x", "cluster": "c"}],
}.items():
    RUN |= {f"{place}/record.json": record(), f"{place}/metrics.json": NUMBERS, f"{place}/rows.parquet": rows}
NOTE = {"name": "eta", "command": ["-m"], "points": [{"folder": "a", "overrides": ["x=1"]}, {"folder": "b"}]}
SWEEP = {"sweep-2-abc/points.json": NOTE, "a/config.yaml": ""}
JOB = {"token": "t1", "name": "generate", "folder": "/runs", "elements": {"0": ["k1"], "1": ["k2"]}}
LEDGER = [JOB | {"waits": {"1": ["k0"]}}, JOB | {"waits": {}}]
PROMPT = {"prompt_id": "a", "messages": [{"role": "user", "content": "Q"}], "source": "s", "checks": "[]"}


def look(folder: Path) -> object:
    if said := damage(folder):
        raise UserError(said[0])
    return read_record(folder)["files"]


def compared(folder: Path) -> object:
    """As a run of others, and as one that is asked for again."""
    point: Any = SimpleNamespace(folder=folder, container={"benchmark": {}}, run=SimpleNamespace(iter=1))
    is_reported(point)
    found = read_run(folder)
    return found.state, found.confidence, found.device, [one.seconds for one in found.artifacts.values()]


def noted(folder: Path) -> object:
    group_of(folder / "a")
    return points_of(f"{folder}/eta"), select(f"{folder}/eta")


def ledger(folder: Path) -> object:
    return [(one.queued({}), one.submission.log(one.index), one.makes, one.waits) for one in Ledger(folder).elements()]


# Checkpoints --------------------------------------------------------------------------------------------------------


def weights_of(names: str) -> bytes:
    head = {name: {"dtype": "F32", "shape": [2], "data_offsets": [8 * n, 8 * n + 8]} for n, name in enumerate(names)}
    data = json.dumps({"__metadata__": {"format": "pt"}} | head).encode()
    return struct.pack("<Q", len(data)) + data + bytes(8 * len(names))


WHERE = {"a": "model-1.safetensors", "b": "model-1.safetensors", "c": "model-2.safetensors"}
SHARDS = {"config.json": {"model_type": "llama"}, "model-1.safetensors": weights_of("ab")} | {
    "model-2.safetensors": weights_of("c"),
    "model.safetensors.index.json": {"metadata": {"total_size": 24}, "weight_map": WHERE},
}
# Models -------------------------------------------------------------------------------------------------------------


@cache
def policy() -> Path:
    return conftest.build_policy(Path(tempfile.mkdtemp()), "llama")


def loaded(folder: Path) -> object:
    """As by a run that trains: before its first answer, and then whole. What config.json leaves out is large."""
    train_stage().foresee((None, None), folder)
    render(load_tokenizer(folder), [{"role": "user", "content": "the word </s> 🙂"}])
    stop_ids(folder)
    if Shape.of(folder).weights > LARGEST:
        raise UserError(f"{folder}: too large to be tried")
    return load_policy(folder, "float32", "cpu")


def of_model(name: str, made: Any, read: Any, changed: str) -> Target:
    make = partial(lambda folder: shutil.copytree(made(), folder, dirs_exist_ok=True))
    return Target(f"{changed} of {name}", make, read, "model:", changed, cost=10, odd=MILD)


TARGETS = [
    Target("record.json", ARTIFACT, look, changed="record.json"),
    of_file("metrics.json", "metrics.json", NUMBERS, lambda file: read_metrics(file.parent)),
    Target("rows", {"rows.parquet": [PROMPT]}, lambda folder: read_rows(folder, PROMPTS)),
    Target("a run folder", RUN, compared, cost=4),
    Target("a sweep's note", SWEEP, noted, "a sweep of", "points.json"),
    Target("the ledger of jobs", {".jobs/ledger.jsonl": LEDGER}, ledger),
    Target("cells", {"a.jsonl": [["a", {"b": 1}], ["b", [1, 2]]]}, lambda folder: Cells(folder).values.get("a")),
    Target("a published checkpoint", SHARDS, lambda folder: refuse_broken(sorted(folder.iterdir()))),
]
HEAVY = [of_model("a policy", policy, loaded, name) for name in ("config.json", "*_*.json", "*.jinja", "*.saf*")]
"""They load models."""
