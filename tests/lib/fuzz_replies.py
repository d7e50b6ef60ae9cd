"""What endpoints reply and SLURM's commands say, as files that fuzzing changes."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any
from unittest import mock

import httpx2
from fuzz_files import text, whole
from fuzzing import Target
from judge_server import judge
from openai import OpenAI

from src.cells import cell_of
from src.completions import Bill, read_completion, served_models
from src.config import UserError
from src.endpoint import Client, Endpoint, Refused, retry_after_s
from src.evaluation.alpaca_eval.asking import _completion, _read
from src.evaluation.alpaca_eval.library import readable
from src.evaluation.mt_bench.judge import rating
from src.evaluation.open_llm.running import versions_of
from src.ranking.replies import Reply, from_cell, kept, read_reply
from src.ranking.verdicts import of_reply
from src.slurm import client as slurm
from src.slurm.check import _partitions, gpus, minutes
from src.slurm.ledger import Ledger
from src.slurm.submit import _send
from src.training.launch import _rendezvous

URL, KEY = "http://localhost:1/v1", "ranker.endpoint"
PAIRWISE, POINTS = (judge(kind, URL, "endpoint.retries=0") for kind in ("pairwise", "points"))
TOP = [{"token": "A", "logprob": -0.1, "bytes": [65]}, {"token": "B", "logprob": -2.5, "bytes": None}]
CHAT = {
    "id": "1",
    "object": "chat.completion",
    "model": "m",
    "created": 1,
    "choices": [
        {
            "index": 0,
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": "Verdict: A"},
            "logprobs": {"content": [{"token": "A", "logprob": -0.1, "bytes": None, "top_logprobs": TOP}]},
        }
    ],
    "usage": {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10},
}
TEXT = CHAT | {
    "object": "text_completion",
    "choices": [{"index": 0, "finish_reason": "length", "text": "It is", "token_ids": [5, 6], "logprobs": None}],
}
MODELS = {"object": "list", "data": [{"id": "m", "object": "model", "created": 1, "owned_by": "me", "root": "/policy"}]}


@lru_cache
def client() -> Client:
    """One whose server says what `said` holds."""
    endpoint: Endpoint = POINTS.endpoint
    made = Client(endpoint, KEY)
    transport = httpx2.MockTransport(lambda request: httpx2.Response(200, content=said[0], headers=HEADERS))
    made._client = OpenAI(api_key="k", base_url=URL, max_retries=0, http_client=httpx2.Client(transport=transport))
    return made


said = [b""]
HEADERS = {"content-type": "application/json"}


def reply(folder: Path, request: Callable[[Any], Any]) -> Any:
    (file,) = folder.iterdir()
    said[0] = file.read_bytes()
    try:
        return client().ask(request)
    except Refused as refused:
        raise UserError(f"{KEY}: {refused}") from None


def chatting(openai: Any) -> Any:
    return openai.chat.completions.create(model="m", messages=[{"role": "user", "content": "Q"}])


def verdict(folder: Path) -> object:
    """As a judge's: kept in a cell, taken from it, and read."""
    found = kept(reply(folder, lambda openai: read_reply(chatting(openai))))
    cell = json.loads(json.dumps(found._asdict()))
    verdicts = [of_reply(one, from_cell(cell)) for one in (PAIRWISE, POINTS)]
    return sum(one.input_tokens / 2 + one.output_tokens for one in verdicts)


def completion(ask: Callable[[Any], Any], folder: Path) -> object:
    """Billed, kept in a cell as it must be to be of use, and rated."""
    found = reply(folder, lambda openai: read_completion(ask(openai)))
    bill = Bill(client(), "generate")
    bill.add(found)
    bill.say()
    found.text.encode()
    assert all(0 <= token < 2**31 for token in found.token_ids or ())
    return rating(json.loads(json.dumps(found._asdict()))["text"])


def preference(folder: Path) -> object:
    found = json.loads(json.dumps(reply(folder, lambda openai: _read(chatting(openai)))))
    client().endpoint.cost(found["input_tokens"], found["output_tokens"])
    return readable(_completion(found))


def models(folder: Path) -> object:
    (file,) = folder.iterdir()
    said[0] = file.read_bytes()
    return {name: Path(root).name for name, root in served_models(client()).items()}


def verdict_text(folder: Path) -> object:
    """Of any text a reply may be."""
    words = (folder / "reply.txt").read_bytes().decode("utf-8", "surrogateescape")
    for one in (PAIRWISE, POINTS):
        of_reply(one, Reply(words, [], False, 0, 0))
    return rating(words)


def header(folder: Path) -> object:
    return retry_after_s((folder / "retry-after.txt").read_bytes().decode("latin-1"))


def cell(folder: Path) -> object:
    try:
        return cell_of((folder / "cell.txt").read_bytes())
    except (ValueError, TypeError) as error:
        raise UserError(f"cell.txt: {error}") from None


def versions(folder: Path) -> object:
    """As an interpreter elsewhere has printed them."""
    (file,) = folder.iterdir()
    found = versions_of(file.read_bytes(), Path(file.name), tuple(VERSIONS))
    return [(version or "none").encode() for version in found.values()]


VERSIONS = {"lm-eval": "0.4.13", "antlr4-python3-runtime": None}


# SLURM -------------------------------------------------------------------------------------------------------------

SQUEUE = "77|3|RUNNING|None|done|a0b1c2d3\n78|N/A|PENDING|Dependency|two\nlines\n79|0|PENDING|Priority|\n"
SCONTROL = "Configuration data as of today\nMaxJobCount             = 10000\nMaxArraySize            = 1001\n" + (
    "AccountingStorageType   = accounting_storage/slurmdbd\nSlurmctldHost[0]        = head(10.0.0.1)\n"
)
SINFO = "gpu*|2-00:00:00|4|64|512000|gpu:a100:4(S:0-1),gpu:v100:2\ncpu|infinite|10|32+|128000+|(null)\n" + (
    "long|30:00|1|8|100|\n"
)


def asked(folder: Path, ask: Callable[[], Any], **others: str) -> Any:
    """What the command's answer, in the file of its name, makes of `ask`; the bytes come from a command on PATH."""
    (file,) = folder.iterdir()
    with tempfile.TemporaryDirectory() as place:
        for name, said in {**others, file.stem: file.read_bytes()}.items():
            (answer := Path(place) / f"{name}.txt").write_bytes(said if isinstance(said, bytes) else said.encode())
            (stub := Path(place) / name).write_text(f"#!/bin/sh\nexec cat '{answer}'\n")
            stub.chmod(0o755)
        with mock.patch.dict(os.environ, ALLOCATION | {"PATH": f"{place}:{os.environ['PATH']}"}):
            return ask()


ALLOCATION = {"SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "a[1-2]", "SLURM_JOB_ID": "20123"}
HOSTS = "a1\na2\n"


def submitted() -> object:
    """A job that the ledger knows by its number."""
    with tempfile.TemporaryDirectory() as place:
        ledger = Ledger.of(Path(place))
        told = ledger.intend("generate", {0: ["k"]}, Path(place), "")
        _send(ledger, told, "#!/bin/sh\n")
        (known,) = Ledger.of(Path(place)).submissions.values()
        assert known.job == told.job and int(str(told.job)) >= 0
        return known


def partitions() -> object:
    found, _ = _partitions()
    return [gpus(group.gres, "gpu") for one in found.values() for group in one.nodes], minutes("1-00:00:00")


TARGETS = [
    Target("a judge's reply", whole("reply.json", CHAT), verdict, (KEY,)),
    Target("a chat completion", whole("reply.json", CHAT), partial(completion, chatting), (KEY,)),
    Target(
        "a text completion",
        whole("reply.json", TEXT),
        partial(completion, lambda openai: openai.completions.create(model="m", prompt=[1])),
        (KEY,),
    ),
    Target("a reply with preferences", whole("reply.json", CHAT), preference, (KEY,)),
    Target("versions of packages elsewhere", whole("python", VERSIONS), versions),
    Target("a list of models", whole("reply.json", MODELS), models, (KEY,)),
    Target("a verdict in words", text("reply.txt", "I think: [[7.5]] Verdict: A, not B. Points: 4"), verdict_text),
    Target("Retry-After", text("retry-after.txt", "Wed, 21 Oct 2015 07:28:00 GMT"), header),
    Target("a cell", text("cell.txt", '["a", {"text": "b", "tokens": []}]'), cell),
    Target(
        "squeue",
        text("squeue.txt", SQUEUE),
        partial(asked, ask=lambda: [one.index for one in slurm.queue()]),
        ("squeue",),
    ),
    Target(
        "scontrol",
        text("scontrol.txt", SCONTROL),
        partial(asked, ask=slurm.limits, squeue="1\n", sacctmgr="5\n"),
        ("scontrol",),
    ),
    Target("sacctmgr", text("sacctmgr.txt", "100\n\n5000\n"), partial(asked, ask=slurm._of_account), ("sacctmgr",)),
    Target("sbatch", text("sbatch.txt", "123456;cluster\n"), partial(asked, ask=submitted), ("sbatch",)),
    Target(
        "scontrol show hostnames",
        text("scontrol.txt", HOSTS),
        partial(asked, ask=lambda: _rendezvous(2), srun=""),
        ("scontrol",),
    ),
    Target("sinfo", text("sinfo.txt", SINFO), partial(asked, ask=partitions), ("sinfo",)),
]
