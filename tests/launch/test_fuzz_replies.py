"""Whatever a reply, a queue, a record, a run folder or a checkpoint holds, it is read, or refused in one line."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import httpx2
from foreign_files import Reader, law_of, of_file
from judge_server import judge

from src.evaluation.mt_bench.scores import rating
from src.experiment.run_folder import is_reported
from src.experiment.selection import folders, group_of
from src.kernel.artifact import place_of
from src.kernel.cells import Cells
from src.kernel.config import UserError
from src.kernel.record import DIGEST, damage, digest, read_record
from src.kernel.rows import PAIRS, read_rows
from src.launch.slurm import client as slurm
from src.launch.slurm.ledger import Ledger
from src.modeling.asking import read_completion
from src.modeling.endpoint import Client, Refused
from src.ranking.llm_judge import read_reply
from src.reporting.compare.read import read as read_run
from src.reporting.metrics_file import _rows
from src.training.checkpoints import check_layout, latest_checkpoint

# Replies of servers and of SLURM ------------------------------------------------------------------------------------

URL, ASKED = "http://localhost:1/v1", "ranker.endpoint"
TOP = [{"token": "A", "logprob": -0.1, "bytes": [65]}, {"token": "B", "logprob": -2.5, "bytes": None}]
FIRST = {"token": "A", "logprob": -0.1, "bytes": None, "top_logprobs": TOP}
SPOKEN = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Verdict: A"}}
USAGE = {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10}
COMPLETION = {"id": "1", "object": "chat.completion", "model": "m", "created": 1, "usage": USAGE}
VERDICT = COMPLETION | {"choices": [SPOKEN | {"logprobs": {"content": [FIRST]}}]}
WRITTEN = {"index": 0, "finish_reason": "length", "text": "It is", "token_ids": [5, 6], "logprobs": None}
QUEUE = "77|3|RUNNING|None|done|a0b1c2d3\n78|N/A|PENDING|Dependency|two\nlines\n79|0|PENDING|Priority|\n"
heard = [b""]


@cache
def client() -> tuple[Client, list[Any]]:
    """Return a client whose server says what was heard last, and two judges that ask it."""
    judges = [judge(kind, URL, "endpoint.retries=0") for kind in ("pairwise", "points")]
    head = {"content-type": "application/json"}
    transport = httpx2.MockTransport(lambda _: httpx2.Response(200, content=heard[0], headers=head))
    with mock.patch("openai.DefaultHttpxClient", partial(httpx2.Client, transport=transport)):
        return Client(judges[1].endpoint, ASKED), judges


def reply(file: Path, request: Callable[[Any], Any], read: Callable[[Any], Any]) -> Any:
    """Return what is kept of a reply: it has gone through JSON."""
    heard[0] = file.read_bytes()
    try:
        return json.loads(json.dumps(client()[0].ask(request, read)))
    except Refused as refused:
        raise UserError(f"{ASKED}: {refused}") from None


def asked(openai: Any) -> Any:
    return openai.chat.completions.create(model="m", messages=[{"role": "user", "content": "Q"}])


def verdict(file: Path) -> None:
    cell = reply(file, asked, read_reply)
    for judging in client()[1]:
        judging.value(cell)


def chat(file: Path) -> None:
    rating(reply(file, asked, read_completion)["text"])


def queue(file: Path) -> None:
    ended = subprocess.CompletedProcess([], 0, file.read_bytes().decode(errors="replace"), "")
    with mock.patch("subprocess.run", return_value=ended):
        slurm.queue()


# The store, run folders and checkpoints -----------------------------------------------------------------------------

KEY = "0123456789abcdef0123"


def record(**files: str) -> dict[str, Any]:
    made: dict[str, Any] = {"name": "it1/evaluation", "kind": "evaluation", "key": KEY, "version": 1, "seconds": 1.5}
    made |= {"config": {"estimator": {"tau": 1.0}}, "inputs": [{"kind": "policy", "key": KEY}], "workload": "x 1"}
    made["files"] = {name: {"bytes": 1, "sha256": sha} for name, sha in files.items()}
    return made | {DIGEST: digest(made)}


ARTIFACT = {"a.txt": "a", "record.json": record(**{"a.txt": hashlib.sha256(b"a").hexdigest()})}
SETTINGS: dict[str, Any] = {"iter": 1, "method": {"name": "sppo", "eta": 1000.0}, "held_out": {"confidence": 0.95}}
SETTINGS |= {"seed": 0, "benchmark": {}, "hardware": {"name": "cpu", "devices": {"device": "cpu"}}}
METRICS = {"prompts": 2, "win_over_base": 0.5, "win_over_base_low": 0.4, "win_over_base_high": 0.6, "kl": None}
RUN: dict[str, Any] = {"config.yaml": SETTINGS, "command.txt": "python -m src.main iter=1\n"}
WINS = [{"prompt_id": name, "win_over_base": 0.5} for name in "ab"]
SCORES = [{"item_id": "1", "score": 0.5, "column": "x", "cluster": "c"}]
for place, scores in {"evaluation": WINS, "ifeval/scores": SCORES}.items():
    made = {"record.json": record(), "metrics.json": METRICS, "rows.parquet": scores}
    RUN |= {f"artifacts/it1/{place}/{name}": content for name, content in made.items()}
JOB = {"token": "t1", "name": "generate", "folder": "/runs", "makes": {"0": ["k1"], "1": ["k2"]}, "waits": {}}

PAIR = {field.name: {"list<item: int32>": [1, 2], "string": "x"}.get(str(field.type), 0.5) for field in PAIRS}
NOTE = {"sweep-1-ab/points.json": {"name": "eta", "command": ["-m"], "points": [{"folder": "it", "overrides": []}]}}
NOTE |= {"it/config.yaml": {}}
TRAINED: Any = SimpleNamespace(place=place_of("it1/policy"), stage=SimpleNamespace(kind="policy"), key=KEY)
WHOLE = {"layout": "one", "files": {"trainer_state.json": hashlib.sha256(b"{}").hexdigest()}}
CHECKPOINT = {"checkpoint-1/trainer_state.json": {}, "checkpoint-1/whole": WHOLE}


def artifact(folder: Path) -> None:
    if lines := damage(folder):
        raise UserError(lines[0])
    read_record(folder)


def run_folder(folder: Path) -> None:
    """Read it as a run of others, and as one that is asked for again."""
    point: Any = SimpleNamespace(folder=folder, container={"benchmark": {}}, run=SimpleNamespace(iter=1))
    is_reported(point)
    run = read_run(folder)
    assert all(isinstance(made.seconds, float) for made in run.artifacts.values())


def ledger(folder: Path) -> None:
    for maker in Ledger(folder).elements():
        maker.queued({})
        maker.submission.log(maker.index)
        assert all(isinstance(key, str) for key in (*maker.makes, *maker.waits))


def notes(folder: Path) -> None:
    group_of(folder / "it")
    folders(str(folder / "eta"))


def metrics_of(folder: Path) -> None:
    json.dumps(list(_rows(TRAINED, folder)))


def training(folder: Path) -> None:
    check_layout(folder, "one")
    latest_checkpoint(folder)


# The law ------------------------------------------------------------------------------------------------------------

READERS = [
    *(of_file("verdict.json", VERDICT, verdict, ASKED), of_file("chat.json", VERDICT, chat, ASKED)),
    of_file("squeue.txt", QUEUE, queue),
    Reader("record", ARTIFACT, artifact, changed="record.json"),
    Reader("run folder", RUN, run_folder),
    Reader("notes of sweeps", NOTE, notes, changed="points.json"),
    Reader("pairs", {"rows.parquet": [PAIR, PAIR]}, lambda folder: read_rows(folder, PAIRS)),
    Reader("metrics of a training", {"metrics.jsonl": [{"step": 1, "loss": 0.5}] * 2}, metrics_of),
    Reader("metrics of an artifact", {"metrics.json": METRICS}, metrics_of),
    Reader("ledger of jobs", {".jobs/ledger.jsonl": [JOB, JOB]}, ledger, form="checked"),
    Reader("kept cells", {"a.jsonl": [["a", {"text": "b"}], [5, None]]}, Cells, form="checked"),
    Reader("checkpoint of a training", CHECKPOINT, training, changed="whole", form="json", writes=True),
]


test_any_bytes_are_a_value_or_a_mistake_that_names_them = law_of(READERS)
