"""What W&B and the hub say, as files that fuzzing changes: replies of their servers, and what W&B's tool reads."""

from __future__ import annotations

import io
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from fuzz_files import lines, parquet, whole
from fuzz_store import KEY, STATE, artifact
from fuzzing import Target

from src.card.push import push
from src.compare import wandb_report
from src.compare.wandb_panels import load_library
from src.compare.wandb_report import Shown, publish
from src.data.reading import Source, read_columns
from src.data.rows import Columns
from src.records import Row
from src.tracking.lineage import link
from src.tracking.recovery import look
from src.tracking.state import RUNS, Place, State, read_all, write_all
from src.tracking.sync import _asking

# W&B's interface ----------------------------------------------------------------------------------------------------


class Api:
    """Stands in for `wandb.Api`: everything it is asked has its answer in a file."""

    def __init__(self, file: Path) -> None:
        self.told: dict[str, Any] = json.loads(file.read_bytes())
        self.default_entity = self.told["default_entity"]

    def run(self, path: str) -> Any:
        run = _object(self.told["run"])
        return SimpleNamespace(
            logged_artifacts=lambda: run.logged, used_artifacts=lambda: run.used, use_artifact=lambda _: None
        )

    def artifact_exists(self, name: str) -> Any:
        return self.told["artifacts"][name]

    def artifact(self, name: str) -> Any:
        return _object(self.told["artifacts"][name])

    def reports(self, path: str) -> Any:
        return _object(self.told["reports"])


def _object(value: Any) -> Any:
    """What is a dictionary has its keys as attributes."""
    if isinstance(value, dict):
        return SimpleNamespace(**{key: _object(item) for key, item in value.items()})
    return [_object(item) for item in value] if isinstance(value, list) else value


REPLIES = {
    "default_entity": "me",
    "run": {"logged": [{"aliases": ["latest", "b"]}], "used": [{"aliases": ["latest"]}]},
    "artifacts": {"me/p/c:d": {"id": 1}, "me/p/a:b": {"id": 2}},
    "reports": [{"id": "r1", "description": "mine"}, {"id": "r2", "description": None}],
}


def linked(folder: Path) -> object:
    """What is told of a run folder, whose state can be read afterwards."""
    with tempfile.TemporaryDirectory() as place, mock.patch("wandb.Api", lambda: Api(folder / "replies.json")):
        (state := Path(place) / ".wandb/train.json").parent.mkdir()
        state.write_text(json.dumps(STATE | {"artifacts": {"a:b": ["c:d"]}}))
        try:
            with _asking() as api:
                return link([Path(place)], api)
        finally:
            assert len(read_all(state)) == 1


def published(folder: Path) -> object:
    load_library()
    from wandb_workspaces.reports.v2.interface import Report
    from wandb_workspaces.workspaces import Workspace

    of = Shown("", "p", "t", {"train": ["x"], "summary": ["y"]}, {}, (), (), "python", "0123")
    patched: dict[str, Any] = {"shown": lambda *_: of, "_check_server": lambda: None, "sections": lambda *_: []}
    with (
        mock.patch("wandb.Api", lambda: Api(folder / "replies.json")),
        mock.patch.multiple(wandb_report, **patched),
        mock.patch.object(Report, "save"),
        mock.patch.object(Workspace, "save"),
        mock.patch.object(Report, "url", "https://wandb.test/r"),
        mock.patch.object(Workspace, "url", "https://wandb.test/w"),
        redirect_stdout(io.StringIO()),
    ):
        return publish(SimpleNamespace())  # pyright: ignore[reportArgumentType]


# W&B's own files, as its tool tells them ----------------------------------------------------------------------------


def row(step: int) -> Row:
    return {"type": "history", "history": {"item": {"_step": step, "artifact": "a/b", "train/step": step}}}


MADE = {"type": "a", "metadata": json.dumps({"key": "b", "inputs": ["c:d"]}), "user_created": False}
RECORDS = [
    {"type": "run", "run": {"project": "p", "entity": "me", "run_id": "x"}},
    row(0),
    {"type": "artifact", "artifact": MADE},
    {"type": "artifact", "artifact": {"type": "run_table", "metadata": ""}},
    row(1),
    {"type": "exit", "exit": {"exit_code": 0}},
]


def recovered(folder: Path, state: Callable[[str], list[State]]) -> object:
    """Of a family whose state is `state` of its folder's name; what is made of it can be read."""
    with tempfile.TemporaryDirectory() as where, _told_by(folder / "said.jsonl", Path(where)):
        place = Place(Path(where) / "run", "train", "p", None, "plan")
        name = f"run-20240101_000000-{place.run_id(0)}"
        (own := place.folder / RUNS / name).mkdir(parents=True)
        (own / f"run-{place.run_id(0)}.wandb").touch()
        place.file.parent.mkdir()
        if made := state(name):
            made[0].id = place.run_id(0)
            write_all(place.file, made)
        with redirect_stderr(io.StringIO()):
            found = look(place, ["a:b"])
        assert all(isinstance(one, str) for one in found.rows)
        read_all(place.file)
        return found


@contextmanager
def _told_by(file: Path, where: Path) -> Iterator[None]:
    """W&B's tool is started by this Python: in its place a command that says what the file does."""
    (stub := where / "python").write_text(f"#!/bin/sh\nexec cat '{file}'\n")
    stub.chmod(0o755)
    with mock.patch.object(sys, "executable", str(stub)):
        yield


def killed(name: str) -> list[State]:
    state = State("", "p", None, "plan", rows=["00000000"])
    state.open(name)
    return [state]


# The hub ------------------------------------------------------------------------------------------------------------

HUB = {
    "create": {"url": "https://huggingface.co/me/m-Iter1", "name": "me/m-Iter1", "id": "1"},
    "info": {"id": "me/m-Iter1", "private": True, "sha": "a" * 40, "siblings": [{"rfilename": "README.md"}]},
    "preupload": {"files": [{"path": "rows.txt", "uploadMode": "regular", "shouldIgnore": False, "oid": None}]},
    "commit": {"commitUrl": "https://huggingface.co/me/m-Iter1/commit/0", "commitOid": "0" * 40, "success": True},
    "tree": [{"type": "file", "path": "README.md", "size": 1, "oid": "0" * 40}],
}
ROUTES = ("create", "preupload", "commit", "tree")


def uploaded(folder: Path) -> object:
    """The files of an artifact, to a hub whose replies the file has."""
    import httpx2
    import huggingface_hub
    from huggingface_hub.utils._http import default_client_factory

    data = (folder / "hub.json").read_bytes()

    def reply(request: httpx2.Request) -> httpx2.Response:
        try:
            told = json.loads(data)
            route = next((one for one in ROUTES if f"/{one}" in request.url.path), "info")
            return httpx2.Response(200, json=told[route])
        except (ValueError, RecursionError, KeyError, TypeError):
            return httpx2.Response(200, content=data)

    huggingface_hub.set_client_factory(lambda: httpx2.Client(transport=httpx2.MockTransport(reply)))
    run: Any = SimpleNamespace(push_to_hub="me/m", iter=1, push_private=True)
    with tempfile.TemporaryDirectory() as place, mock.patch.dict(os.environ, {"HF_TOKEN": "hf_none"}):
        artifact(Path(place))
        node: Any = SimpleNamespace(name="it1/policy", key=KEY, stage=SimpleNamespace(kind="policy"))
        store: Any = SimpleNamespace(path=lambda _: Path(place))
        try:
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                return push(run, [node], store)
        finally:
            huggingface_hub.set_client_factory(default_client_factory)


ROWS = [{"prompt": "Q", "source": "mine", "n": 1}, {"prompt": "R", "source": None, "n": 2}]


def data_set(folder: Path) -> object:
    """As `datasets` loads it: what it finds in the file, whatever that is."""
    import datasets
    import pyarrow.parquet as pq

    def load(path: str, *_: Any, **__: Any) -> Any:
        return datasets.Dataset(pq.read_table(folder / "rows.parquet"))

    source = Source(path=str(folder), split="train")
    with mock.patch.object(datasets, "load_dataset", load):
        return [Columns().prompt_row(placed, source.label) for placed in read_columns(source, Columns().wanted)]


TARGETS = [
    Target("W&B's replies about lineage", whole("replies.json", REPLIES), linked, ("sync:",), slow=True),
    Target("W&B's replies about reports", whole("replies.json", REPLIES), published, ("report:",), slow=True),
    Target("W&B's files where the state is lost", lines("said.jsonl", RECORDS), lambda f: recovered(f, lambda _: [])),
    Target("W&B's file after a kill", lines("said.jsonl", RECORDS), lambda f: recovered(f, killed), (".wandb",)),
    Target("replies of the hub", whole("hub.json", HUB), uploaded, ("push_to_hub:",), cost=2, slow=True),
    Target("rows of a data set", parquet("rows.parquet", ROWS), data_set, slow=True),
]
