"""What endpoints, SLURM's commands and a shell say, as files that fuzzing changes."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any
from unittest import mock

import httpx2
from fuzzing import Target, of_file
from judge_server import judge

from src.evaluation.mt_bench.scores import rating
from src.experiment.selection import folders, not_begun, swept
from src.generation.openai_engine import _read, _served_models
from src.kernel.config import UserError
from src.launch.score import split_words
from src.launch.slurm import client as slurm
from src.modeling.endpoint import Client, Endpoint, Refused
from src.ranking.llm_judge import read_reply

# Endpoints ----------------------------------------------------------------------------------------------------------

URL, ASKED = "http://localhost:1/v1", "ranker.endpoint"
TOP = [{"token": "A", "logprob": -0.1, "bytes": [65]}, {"token": "B", "logprob": -2.5, "bytes": None}]
FIRST = {"token": "A", "logprob": -0.1, "bytes": None, "top_logprobs": TOP}
SAID = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Verdict: A"}}
USAGE = {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10}
CHAT = {"id": "1", "object": "chat.completion", "model": "m", "created": 1, "usage": USAGE}
CHAT |= {"choices": [SAID | {"logprobs": {"content": [FIRST]}}]}
WRITTEN = {"index": 0, "finish_reason": "length", "text": "It is", "token_ids": [5, 6], "logprobs": None}
TEXT = CHAT | {"object": "text_completion", "choices": [WRITTEN]}
MODELS = {"object": "list", "data": [{"id": "m", "object": "model", "created": 1, "owned_by": "me", "root": "/policy"}]}
heard = [b""]


@lru_cache
def judges() -> list[Any]:
    return [judge(kind, URL, "endpoint.retries=0") for kind in ("pairwise", "points")]


@lru_cache
def client() -> Client:
    """One whose server says what was heard last."""
    endpoint: Endpoint = judges()[1].endpoint
    head = {"content-type": "application/json"}
    transport = httpx2.MockTransport(lambda request: httpx2.Response(200, content=heard[0], headers=head))
    with mock.patch("openai.DefaultHttpxClient", partial(httpx2.Client, transport=transport)):
        return Client(endpoint, ASKED)


def reply(file: Path, request: Callable[[Any], Any], read: Callable[[Any], Any]) -> Any:
    heard[0] = file.read_bytes()
    try:
        return client().ask(request, read)
    except Refused as refused:
        raise UserError(f"{ASKED}: {refused}") from None


def chatting(openai: Any) -> Any:
    return openai.chat.completions.create(model="m", messages=[{"role": "user", "content": "Q"}])


def completing(openai: Any) -> Any:
    return openai.completions.create(model="m", prompt=[1])


def verdict(file: Path) -> object:
    """As a judge's: kept in a cell, taken from it, and read."""
    cell = json.loads(json.dumps(reply(file, chatting, read_reply)))
    return cell["input_tokens"] / 2, [judging.value(cell) for judging in judges()]


def completion(file: Path, ask: Callable[[Any], Any]) -> object:
    """Kept in a cell as it must be to be of use, and rated."""
    cell = json.loads(json.dumps(reply(file, ask, _read)))
    cell["text"].encode()
    assert all(0 <= token < 2**31 for token in cell["token_ids"] or ())
    return rating(cell["text"])


def models(file: Path) -> object:
    served = reply(file, lambda openai: openai.models.list(), _served_models)
    return {name: Path(root).name for name, root in served.items()}


def verdict_text(file: Path) -> object:
    """Of any text a reply may be."""
    words = file.read_bytes().decode("utf-8", "surrogateescape")
    return rating(words), [one.value({"text": words, "tokens": []}) for one in judges()]


# Other commands -----------------------------------------------------------------------------------------------------

SQUEUE = "77|3|RUNNING|None|done|a0b1c2d3\n78|N/A|PENDING|Dependency|two\nlines\n79|0|PENDING|Priority|\n"
ALLOCATION = {"SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "a[1-2]", "SLURM_JOB_ID": "20123"}


@contextlib.contextmanager
def saying(file: Path) -> Any:
    """The command of the file's name says what it holds, in place of a process; others say 1."""

    def run(words: list[str], **_: Any) -> Any:
        data = file.read_bytes() if words[0] == file.stem or file.stem == "wandb" else b"1\n"
        return subprocess.CompletedProcess(words, 0, io.TextIOWrapper(io.BytesIO(data), errors="replace").read(), "")

    there = mock.patch("shutil.which", lambda name, **_: f"/bin/{name}")
    with mock.patch("subprocess.run", run), there, mock.patch.dict(os.environ, ALLOCATION):
        yield


def asked(name: str, text: str, ask: Callable[[], Any]) -> Target:
    def read(file: Path) -> object:
        with saying(file):
            return ask()

    return of_file(f"{name}: {text[:9]!r}", f"{name}.txt", text, read, named=name)


def words_in(file: Path) -> list[str]:
    """As a shell would hand them over: no NUL, any other bytes."""
    return file.read_bytes().replace(b"\0", b"").decode("utf-8", "surrogateescape").split("\n")


WORDS, GIVEN = "src/../src/*", "benchmark=mt_bench\nfrom=a.jsonl,b.jsonl\nout=c.json"


def selected(file: Path) -> object:
    value = words_in(file)[0]
    told = swept(value), not_begun(value)
    try:
        return told, folders(value)
    except UserError as error:
        if value == WORDS:  # the example: nothing there is a run folder
            return error
        raise


TARGETS = [
    of_file("a judge's reply", "reply.json", CHAT, verdict, named=ASKED),
    of_file("a chat completion", "reply.json", CHAT, partial(completion, ask=chatting), named=ASKED),
    of_file("a text completion", "reply.json", TEXT, partial(completion, ask=completing), named=ASKED),
    of_file("a list of models", "reply.json", MODELS, models, named=ASKED),
    of_file("a verdict in words", "reply.txt", "I think: [[7.5]] Verdict: A, not B. Points: 4", verdict_text),
    asked("squeue", SQUEUE, slurm.queue),
    of_file("compare's runs=", "runs.txt", WORDS, selected, named="runs:"),
    of_file("score's from=", "from.txt", GIVEN, lambda file: split_words(words_in(file)), named="from:"),
]
