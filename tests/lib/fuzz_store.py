"""What a store, run folders and checkpoints hold, as files that fuzzing changes."""

from __future__ import annotations

import io
import json
import shutil
import tempfile
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import conftest
from fuzz_files import lines, parquet, whole
from fuzzing import MILD, Target

from src import records
from src.cells import Cells
from src.compare.gather import read as read_run
from src.compare.select import folders as select
from src.config import Stopped, UserError
from src.evaluation.metrics import read_metrics
from src.layout import LAYOUT, MARK, check_store
from src.model import load_policy, load_tokenizer, render, stop_ids
from src.provenance import DIGEST, damage, digest, read_record
from src.run_folder import is_reported, report, write_command
from src.slurm.allocation import count_start
from src.slurm.ledger import Alive, Ledger
from src.store import Store
from src.sweep_note import group_of, members, names
from src.tracking.spool import ended, unsent_of
from src.tracking.state import damage as damaged_states
from src.tracking.state import read_all, states
from src.training.checkpoints import latest_checkpoint, mark_whole, note_sums
from src.training.launch import _raise_outcome
from src.training.memory import Shape
from src.training.worker import OUTCOME

KEY = "0123456789abcdef0123"
SETTINGS = "iter: 1\nmethod:\n  name: sppo\n  eta: 1000.0\nheld_out:\n  confidence: 0.95\nseed: 0\n"


def record(kind: str, **other: Any) -> dict[str, Any]:
    told: dict[str, Any] = {
        "name": "it1/evaluation",
        "kind": kind,
        "key": KEY,
        "version": 1,
        "config": {"estimator": {"tau": 1.0}},
    }
    told |= {
        "inputs": [{"kind": "policy", "key": KEY}],
        "rows": 2,
        "seconds": 1.5,
        "workload": "x 1",
        "files": {},
    } | other
    return told | {DIGEST: digest(told)}


def artifact(folder: Path) -> None:
    (folder / "rows.txt").write_text("a")
    files = {"rows.txt": {"bytes": 1, "sha256": "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"}}
    (folder / "record.json").write_text(json.dumps(record("evaluation", files=files)))


def look(folder: Path) -> object:
    if said := damage(folder):
        raise UserError(said[0])
    return read_record(folder)["files"]


def run(folder: Path) -> None:
    """Settings, an iteration's evaluation through a link's copy, and a benchmark."""
    (folder / "config.yaml").write_text(SETTINGS)
    (folder / "command.txt").write_text("python -m src.main iter=1\n")
    numbers = {"prompts": 2, "win_over_base": 0.5, "win_over_base_low": 0.4, "win_over_base_high": 0.6, "kl": None}
    for name, rows in {
        "it1/evaluation": [{"prompt_id": "a", "win_over_base": 0.5}, {"prompt_id": "b", "win_over_base": 0.6}],
        "it1/ifeval/scores": [{"item_id": "1", "score": 0.5, "column": "x", "cluster": "c"}],
    }.items():
        place = folder / "artifacts" / name
        place.mkdir(parents=True)
        (place / "record.json").write_text(json.dumps(record("evaluation")))
        (place / "metrics.json").write_text(json.dumps(numbers))
        parquet("rows.parquet", rows)(place)


def compared(folder: Path) -> object:
    found = read_run(folder)
    return found.state, found.confidence, found.device, [one.device_seconds for one in found.artifacts.values()]


def reported(folder: Path) -> None:
    """What is asked of a run folder before anything is made in it."""
    (folder / "config.yaml").write_text(f"{SETTINGS}benchmark:\n  ifeval:\n    first: null\n")
    for name in ("command.txt", "report.md", "summary.txt"):
        (folder / name).write_text(name)


def asked_again(folder: Path) -> object:
    """The same run: where what is there is not of it, its own settings take the place."""
    container = {"iter": 1, "benchmark": {"ifeval": {"first": None}}}
    with tempfile.TemporaryDirectory() as place:
        work = Path(shutil.copytree(folder, place, dirs_exist_ok=True))
        point: Any = SimpleNamespace(folder=work, container=container, run=SimpleNamespace(iter=1), overrides=[])
        point.settings = "iter: 1\n"
        found = is_reported(point)
        with mock.patch("src.run_folder.write_cards", lambda *_: []), redirect_stdout(io.StringIO()):
            report(point.run, [], Store(work), work)
        write_command(point)
        assert not (work / "report.md").exists()
    return found


NOTE = {"name": "eta", "command": ["-m"], "points": [{"folder": "a", "overrides": ["x=1"]}, {"folder": "b"}]}


def note(folder: Path) -> None:
    (folder / "sweep-2-abc").mkdir()
    (folder / "a").mkdir()
    (folder / "a" / "config.yaml").touch()
    whole("points.json", NOTE)(folder / "sweep-2-abc")


def noted(folder: Path) -> object:
    group_of(folder / "a")
    return names(folder), members(folder, "eta"), select(f"{folder}/eta")


LEDGER = [
    {
        "token": "t1",
        "name": "generate",
        "folder": "/runs",
        "elements": {"0": ["k1"], "1": ["k2"]},
        "after": "",
        "group": "t1",
        "needs": {},
    },
    {"token": "t1", "job": "77"},
    {"cancelled": ["77_1"]},
]


def ledger(folder: Path) -> object:
    found = Ledger.of(folder)
    alive = Alive([], found.cancelled)
    return [(found.split(made, alive), [one.log for one in made]) for made in found.makers().values()], found.cut()


def jobs(folder: Path) -> None:
    (folder / ".jobs").mkdir()
    lines("ledger.jsonl", LEDGER)(folder / ".jobs")


def started(folder: Path) -> object:
    with tempfile.TemporaryDirectory() as place:
        return count_start(Path(shutil.copy(folder / "starts.json", place)), "now")


def cells(folder: Path) -> object:
    found = Cells(folder)
    return [found.values.get(key) for key in ("a", "b")]


def journal(folder: Path) -> object:
    with tempfile.TemporaryDirectory() as place:
        shutil.copy(folder / "journal.jsonl", place)
        return records.Journal(Path(place)).rows


STATE = {
    "id": "0" * 16,
    "project": "p",
    "entity": None,
    "plan": "x",
    "rows": ["00000000"],
    "artifacts": {"a:b": ["c:d"]},
    "past": [],
}


def state(folder: Path) -> None:
    (folder / ".wandb").mkdir()
    whole("train.json", STATE | {"past": [STATE]})(folder / ".wandb")


def tracked(folder: Path) -> object:
    states(folder)
    damaged_states([folder])
    return read_all(folder / ".wandb/train.json")


def offline(folder: Path) -> None:
    """A W&B run's file: 7 bytes of its own, then a record that says nothing and one that says how it ended."""
    from wandb.proto import wandb_internal_pb2

    proto: Any = wandb_internal_pb2
    place = folder / "wandb/run-20240101_000000-abc"
    place.mkdir(parents=True)
    told = proto.Record(exit=proto.RunExitRecord(exit_code=0)).SerializeToString()
    head = b":W&B\xff\0"
    parts = b"".join(b"\0\0\0\0" + len(one).to_bytes(2, "little") + b"\1" + one for one in (b"", told))
    (place / "run-abc.wandb").write_bytes(head + parts)


@cache
def tiny() -> Path:
    return conftest.build_policy(Path(tempfile.mkdtemp()), "llama")


def policy(folder: Path) -> None:
    shutil.copytree(tiny(), folder, dirs_exist_ok=True)


def tokens(folder: Path) -> object:
    return render(load_tokenizer(folder), [{"role": "user", "content": "the word </s> 🙂"}])


def loaded(folder: Path) -> object:
    return load_policy(folder, "float32", "cpu")


def loaded_if_small(folder: Path) -> object:
    """What config.json leaves out has the sizes of a real model."""
    if Shape.of(folder).weights > 10**7:
        raise UserError(f"{folder}: too large to be tried")
    return loaded(folder)


def saved(folder: Path) -> None:
    """Two checkpoints of a training."""
    for step in (1, 2):
        place = folder / f"checkpoint-{step}"
        place.mkdir()
        (place / "optimizer.pt").write_bytes(b"state")
        whole("trainer_state.json", {"global_step": step})(place)
        note_sums(place, 0, 1)
        mark_whole(place, "1 process")


def gone_on(folder: Path) -> object:
    with tempfile.TemporaryDirectory() as place:
        work = Path(shutil.copytree(folder, place, dirs_exist_ok=True))
        found = latest_checkpoint(work)
        assert found is None or (Path(found) / "optimizer.pt").read_bytes() == b"state"
        return found


GENERATED = {"prompt_id": "a", "messages": [{"role": "user", "content": "Q"}], "source": "s", "checks": "[]"}


def ended_training(folder: Path) -> str:
    try:
        _raise_outcome(folder / OUTCOME)
    except (UserError, Stopped) as end:
        return str(end)
    return ""


TARGETS = [
    Target("record.json", artifact, look, changed="record.json"),
    Target("metrics.json", whole("metrics.json", {"a": 1, "b": 0.5, "c": None}), read_metrics),
    Target(
        "rows.parquet", parquet("rows.parquet", [GENERATED]), lambda folder: records.read_rows(folder, records.PROMPTS)
    ),
    Target("a run folder", run, compared),
    Target("a run folder asked again", reported, asked_again),
    Target("the mark of a store", whole(MARK, {"layout": LAYOUT}), check_store, ("store:",)),
    Target("a sweep's note", note, noted, ("a sweep of",), changed="points.json"),
    Target("the ledger of jobs", jobs, ledger, ("ledger.jsonl",)),
    Target("starts of a job", whole("starts.json", {"progress": "now", "starts": 2}), started),
    Target("how a training ended", whole(OUTCOME, {"error": "train: no", "fault": True}), ended_training),
    Target("cells", lines("a.jsonl", [["a", {"b": 1}], ["b", [1, 2]]]), cells),
    Target("a journal", lines("journal.jsonl", [[0, {"a": 1}], [1, {"a": 2}]]), journal),
    Target("the state of tracking", state, tracked),
    Target(
        "a file of W&B",
        offline,
        lambda folder: (unsent_of(folder), ended(folder / "wandb/run-20240101_000000-abc")),
        slow=True,
    ),
    Target("config.json", policy, Shape.of, ("model:",), changed="config.json", slow=True),
    Target("generation_config.json", policy, stop_ids, changed="generation_config.json", slow=True),
    Target("tokenizer", policy, tokens, changed="*token*.json", cost=10, slow=True),
    Target("chat template", policy, tokens, changed="*.jinja", cost=10, slow=True),
    Target("weights", policy, loaded, changed="*.safetensors", cost=10, slow=True),
    Target("a training's checkpoints", saved, gone_on, changed="*", slow=True),
    Target(
        "a model's config",
        policy,
        loaded_if_small,
        named=("model:",),
        changed="config.json",
        odd=MILD,
        cost=10,
        slow=True,
    ),
]
