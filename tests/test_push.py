"""Uploads: nothing without being asked, what the plan says and no more, and every refusal as one line.

Run: python -m pytest -q tests/test_push.py
The hub is a double of a few lines, or a small server of our own that speaks as much of its protocol as an upload needs.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.utils import filter_repo_objects
from huggingface_hub.utils.logging import get_verbosity
from made_up_run import MadeUp, made_up
from tiny_run import ROOT, World, call, folders, tiny

from src.card.hub_id import check_hub_id
from src.card.push import check_apart, check_push, print_push_plan, push
from src.card.write import write_cards
from src.config import UserError
from src.provenance import CARD, RECORD, read_record, sha256

pytestmark = pytest.mark.slow

Capture = pytest.CaptureFixture[str]
TOKEN = "hf_ofNobodyAtAll0123456789"
ITERATIONS = ["me/Tiny-Iter1", "me/Tiny-Iter2"]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No login and no network but those of a test."""
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")


class Hub:
    """Repositories as folders of bytes."""

    def __init__(self) -> None:
        self.private: dict[str, bool] = {}
        self.files: dict[str, dict[str, bytes]] = {}
        self.said: list[str] = []
        self.verbosity: set[int] = set()

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> str:
        assert exist_ok
        self.private.setdefault(repo_id, private)
        self.files.setdefault(repo_id, {})
        return f"https://huggingface.co/{repo_id}"

    def model_info(self, repo_id: str) -> Any:
        return SimpleNamespace(private=self.private[repo_id])

    def upload_folder(
        self,
        *,
        repo_id: str,
        folder_path: Path,
        allow_patterns: list[str],
        delete_patterns: list[str],
        commit_message: str,
    ) -> None:
        self.said.append(commit_message)
        self.verbosity.add(get_verbosity())
        found = {str(path.relative_to(folder_path)): path for path in folder_path.rglob("*") if path.is_file()}
        there, stale = self.files[repo_id], filter_repo_objects(self.files[repo_id], allow_patterns=delete_patterns)
        for name in list(stale):
            del there[name]
        there |= {name: found[name].read_bytes() for name in filter_repo_objects(found, allow_patterns=allow_patterns)}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    return hub


def policies(story: MadeUp) -> list[Path]:
    return [story.store.path(node) for node in story.nodes if node.name in ("it1/policy", "it2/policy")]


@pytest.fixture
def story(tmp_path: Path) -> MadeUp:
    """A finished run of two iterations that goes to the hub, with weights of eight bytes."""
    made = made_up(tmp_path)
    for place in policies(made):
        (place / "model.safetensors").write_bytes(place.name.encode()[:8])
        (place / "notes.txt").write_text("of nobody")
        whole = {"model.safetensors": {"bytes": 8, "sha256": sha256(place / "model.safetensors")}}
        (place / RECORD).write_text(json.dumps(read_record(place) | {"files": whole}))
    made = made._replace(run=dataclasses.replace(made.run, push_to_hub="me/Tiny"))
    assert write_cards(made.run, made.nodes, made.store, "python -m src.main") == []
    return made


def pushed(story: MadeUp, **changes: Any) -> None:
    push(dataclasses.replace(story.run, **changes), story.nodes, story.store)


# What is uploaded --------------------------------------------------------------------------------------------------


def test_every_iteration_goes_to_its_own_private_repository_with_its_card(story: MadeUp, hub: Hub) -> None:
    pushed(story)
    assert hub.private == dict.fromkeys(ITERATIONS, True)
    for repo, place in zip(ITERATIONS, policies(story), strict=True):
        assert hub.files[repo] == {name: (place / name).read_bytes() for name in ("model.safetensors", CARD)}
    assert hub.said == [f"it{t}/policy, policy/{place.name}" for t, place in enumerate(policies(story), 1)]


def test_nothing_leaves_the_machine_unless_it_is_asked_for(story: MadeUp, hub: Hub, capsys: Capture) -> None:
    pushed(story, push_to_hub=None)
    print_push_plan(dataclasses.replace(story.run, push_to_hub=None), story.nodes, story.store)
    check_push(dataclasses.replace(story.run, push_to_hub=None))
    assert hub.files == {} and capsys.readouterr().out == ""


def test_a_second_upload_changes_nothing_and_nothing_changes_here(story: MadeUp, hub: Hub) -> None:
    def here() -> dict[Path, tuple[int, bytes]]:
        return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in story.store.root.rglob("*") if p.is_file()}

    before = here()
    pushed(story)
    there = {repo: dict(files) for repo, files in hub.files.items()}
    pushed(story)
    assert hub.files == there and here() == before


def test_weights_of_another_policy_go_and_other_files_stay(story: MadeUp, hub: Hub) -> None:
    """A model beside shards of another one would be loaded from a mixture."""
    hub.create_repo("me/Tiny-Iter1", private=True, exist_ok=True)
    stale = ["model-00001-of-00002.safetensors", "model.safetensors.index.json"]
    hub.files["me/Tiny-Iter1"] = dict.fromkeys([*stale, "model.safetensors", "figure.png", "config.json"], b"old")
    pushed(story)
    assert sorted(hub.files["me/Tiny-Iter1"]) == [CARD, "config.json", "figure.png", "model.safetensors"]
    assert hub.files["me/Tiny-Iter1"]["model.safetensors"] != b"old"


def test_public_is_said_aloud_or_it_is_not_done(story: MadeUp, hub: Hub) -> None:
    """The hub ignores `private` for a repository that is there."""
    hub.create_repo("me/Tiny-Iter2", private=False, exist_ok=True)
    with pytest.raises(UserError, match=r"push_to_hub: me/Tiny-Iter2 is public already; say push_private=false"):
        pushed(story)
    assert hub.files["me/Tiny-Iter2"] == {} and hub.files["me/Tiny-Iter1"]
    pushed(story, push_private=False)
    assert hub.files["me/Tiny-Iter2"] and hub.private["me/Tiny-Iter1"], "it is not opened behind somebody's back"


def test_a_damaged_policy_stays_here(story: MadeUp, hub: Hub) -> None:
    (policies(story)[0] / "model.safetensors").write_bytes(b"damaged.")
    with pytest.raises(UserError, match=r"model.safetensors: damaged .*; not uploaded; delete the folder"):
        pushed(story)
    assert hub.files == {}


def test_the_uploader_says_how_far_it_is_and_is_quiet_again_afterwards(
    story: MadeUp, hub: Hub, capsys: Capture
) -> None:
    before = get_verbosity()
    pushed(story)
    assert hub.verbosity == {logging.INFO} and get_verbosity() == before != logging.INFO
    lines = capsys.readouterr().out.splitlines()
    size = sum((policies(story)[0] / name).stat().st_size for name in ("model.safetensors", CARD))
    assert lines[0] == f"push: [1/2] me/Tiny-Iter1: 2 files, {size / 1e3:,.1f} kB"
    assert lines[1].startswith("push: [1/2] https://huggingface.co/me/Tiny-Iter1 in ") and len(lines) == 4


# The dry run -------------------------------------------------------------------------------------------------------


def test_the_plan_lists_what_is_uploaded_and_asks_nobody(story: MadeUp, capsys: Capture) -> None:
    """There is no hub in this test."""
    first, second = policies(story)
    shutil.rmtree(second)
    print_push_plan(story.run, story.nodes, story.store)
    size = (first / CARD).stat().st_size / 1e3
    assert capsys.readouterr().out.splitlines() == [
        f"push: it1/policy -> me/Tiny-Iter1 (private): README.md {size:,.1f} kB, model.safetensors 0.0 kB",
        "push: it2/policy -> me/Tiny-Iter2 (private): not made yet",
    ]
    (first / CARD).unlink()
    with (first / "model.safetensors").open("wb") as weights:
        weights.truncate(18_481_000_000)
    print_push_plan(dataclasses.replace(story.run, push_private=False), story.nodes, story.store)
    assert capsys.readouterr().out.splitlines()[0] == (
        "push: it1/policy -> me/Tiny-Iter1 (public): model.safetensors 18,481.0 MB, README.md not written yet"
    )


# Refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Tiny", "must be <you or your organisation>/<name>"),
        ("a/b/c", "must be <you or your organisation>/<name>"),
        ("me/two words", "alphanumeric"),
        ("me/a--b", "Cannot have -- or .."),
        ("me/a.git", "cannot end by '.git'"),
        ("", "must be"),
        ("../x", "Repo id"),
        ("me/" + "x" * 91, "maximum length is 96"),
    ],
)
def test_a_name_that_no_repository_can_have_is_refused(name: str, said: str) -> None:
    with pytest.raises(ValueError, match="^push_to_hub: ") as refusal:
        check_hub_id(name, 3)
    assert said in str(refusal.value) and len(str(refusal.value).splitlines()) == 1


def test_names_are_as_long_as_the_hub_allows_with_the_last_iteration() -> None:
    """96 characters behind the slash: 90 and -Iter3; one more for iteration 10."""
    check_hub_id("me/" + "x" * 90, 3)
    with pytest.raises(ValueError, match="push_to_hub"):
        check_hub_id("me/" + "x" * 90, 10)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("no token", "push_to_hub: no token of the hub here; `hf auth login`"),
        ("offline", "push_to_hub: HF_HUB_OFFLINE forbids it; unset that"),
        ("name", "push_to_hub: "),
    ],
)
def test_what_cannot_be_uploaded_is_said_before_any_work(
    how: str, said: str, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    if how != "no token":
        monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", how == "offline")
    words = tiny(llama, tmp_path, "iter=1", f"push_to_hub={'Tiny' if how == 'name' else 'me/Tiny'}")
    assert call(*words) == 2
    shown = capsys.readouterr().err
    assert f"error: {said}" in shown and "Traceback" not in shown and TOKEN not in shown
    assert not (tmp_path / "store").exists()


def test_points_of_a_sweep_do_not_overwrite_each_other(story: MadeUp) -> None:
    other, nowhere = (dataclasses.replace(story.run, push_to_hub=name) for name in ("me/Other", None))
    check_apart([nowhere, nowhere, story.run, other])
    with pytest.raises(UserError, match="push_to_hub: points of the sweep would overwrite each other in me/Tiny"):
        check_apart([nowhere, nowhere, story.run, other, story.run])


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            RuntimeError(f"Illegal header value b'Bearer {TOKEN}'\nand more"),
            "Illegal header value b'Bearer …' and more",
        ),
        (ConnectionError("Name or service not known"), "Name or service not known"),
        (ValueError(f"old token hf_{'x' * 20}"), "old token hf_…"),
        (KeyError(), "KeyError"),
        (OSError("x" * 1000), "x" * 400),
        (OSError("x" * 390 + TOKEN), "x" * 390 + "…"),
    ],
)
def test_whatever_goes_wrong_is_one_line_without_the_token(
    error: Exception, said: str, story: MadeUp, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**_: Any) -> None:
        raise error

    monkeypatch.setattr(hub, "upload_folder", fail)
    with pytest.raises(UserError) as refusal:
        pushed(story)
    assert str(refusal.value) == f"push_to_hub: me/Tiny-Iter1: {said} (all is kept; the same command tries again)"


def test_a_stop_is_no_error_of_the_hub(story: MadeUp, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(**_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(hub, "upload_folder", stop)
    with pytest.raises(KeyboardInterrupt):
        pushed(story)
    assert get_verbosity() != logging.INFO


# The real client against a server ----------------------------------------------------------------------------------


class Server(ThreadingHTTPServer):
    """As much of the hub's protocol as an upload of small files needs."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.files: dict[str, dict[str, bytes]] = {}
        self.refuse: dict[str, tuple[int, str]] = {}
        """Part of a path -> status and what is said with it."""
        self.commits = 0
        self.tokens: set[str] = set()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def answer(self, path: str, body: bytes) -> Any:
        repo = "/".join(path.split("/")[3:5])
        if path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked['organization']}/{asked['name']}"
            assert asked["visibility"] == "private"
            self.files.setdefault(repo, {})
            return {"url": f"{self.address}/{repo}"}
        if "/preupload/" in path:
            names = [file["path"] for file in json.loads(body)["files"]]
            return {"files": [self._known(repo, name) for name in names]}
        if "/commit/" in path:
            rows = [json.loads(line)["value"] for line in body.splitlines()[1:]]
            self.files[repo] |= {row["path"]: base64.b64decode(row["content"]) for row in rows}
            self.commits += 1
            return {"success": True, "commitOid": "0" * 40, "commitUrl": f"{self.address}/{repo}/commit/0"}
        if "/tree/" in path:
            return [{"type": "file", "path": name, "size": 1, "oid": "0"} for name in self.files[repo]]
        return {"id": repo, "private": True, "sha": "0" * 40, "siblings": []}

    def _known(self, repo: str, name: str) -> dict[str, Any]:
        content = self.files[repo].get(name)
        blob = None if content is None else hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        return {"path": name, "uploadMode": "regular", "shouldIgnore": False, "oid": blob}


class Answer(BaseHTTPRequestHandler):
    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.tokens.add(self.headers.get("Authorization") or "")
        refused = next((say for part, say in self.server.refuse.items() if part in self.path), None)
        status, said = refused or (200, json.dumps(self.server.answer(self.path.partition("?")[0], body)))
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(said))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(said.encode())

    do_GET = do_POST

    def log_message(self, format: str, *args: Any) -> None: ...


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    server = Server()
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.address)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield server
    server.shutdown()
    server.server_close()
    huggingface_hub.close_session()


@pytest.fixture(scope="module")
def finished(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    place = tmp_path_factory.mktemp("finished")
    world = World(place, tiny(llama, place))
    assert world.run("iter=1") == 0
    return world


@pytest.fixture
def world(finished: World, tmp_path: Path) -> World:
    """A copy of the finished run that a test may change."""
    shutil.copytree(finished.place, tmp_path / "copy", symlinks=True)
    return finished._replace(place=tmp_path / "copy")


def test_the_command_uploads_a_policy_that_can_be_loaded_and_a_second_time_nothing(
    world: World, server: Server, tmp_path: Path, capsys: Capture
) -> None:
    assert world.run("iter=1", "push_to_hub=me/Tiny") == 0
    shown = capsys.readouterr()
    assert f"push: [1/1] {server.address}/me/Tiny-Iter1 in " in shown.out
    there, place = server.files["me/Tiny-Iter1"], world.artifact("it1/policy")
    record = read_record(place)["files"]
    assert sorted(there) == sorted([*record, CARD])
    assert {name: hashlib.sha256(there[name]).hexdigest() for name in record} == {
        name: file["sha256"] for name, file in record.items()
    }
    (copy := tmp_path / "downloaded").mkdir()
    for name, content in there.items():
        (copy / name).write_bytes(content)
    from transformers import AutoModelForCausalLM

    assert AutoModelForCausalLM.from_pretrained(copy).num_parameters() > 0
    assert server.commits == 1
    assert world.run("iter=1", "push_to_hub=me/Tiny") == 0
    assert server.commits == 1
    kept = [path.read_bytes() for path in world.place.rglob("*") if path.is_file()]
    assert not [content for content in kept if TOKEN.encode() in content]
    assert TOKEN not in shown.out + shown.err and server.tokens <= {f"Bearer {TOKEN}", ""}


@pytest.mark.parametrize(
    ("where", "status", "body", "said"),
    [
        ("/api/repos/create", 401, '{"error": "Invalid username or password."}', "401"),
        ("/api/repos/create", 403, '{"error": "You don\'t have the rights to create a model"}', "rights to create"),
        ("/api/validate-yaml", 400, '{"error": "Invalid metadata in README.md"}', "Invalid metadata"),
        ("/preupload/", 403, '{"error": "Access to model me/Tiny-Iter1 is restricted"}', "403"),
        ("/commit/", 413, '{"error": "Payload too large"}', "413"),
    ],
)
def test_a_refusal_of_the_hub_is_one_line_and_everything_stays(
    where: str, status: int, body: str, said: str, world: World, server: Server, capsys: Capture
) -> None:
    server.refuse = {where: (status, body)} | ({"/api/models/": (status, body)} if "create" in where else {})
    assert world.run("iter=1", "push_to_hub=me/Tiny") == 2
    shown = capsys.readouterr()
    (line,) = [line for line in shown.err.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: push_to_hub: me/Tiny-Iter1: ") and said in line
    assert "Traceback" not in shown.err and TOKEN not in shown.err and "report: " in shown.out
    assert call("verify", *folders(world.place)) == 0 and not server.files.get("me/Tiny-Iter1")


def test_no_network_is_one_line(world: World, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert world.run("iter=1", "push_to_hub=me/Tiny") == 2
    assert "error: push_to_hub: me/Tiny-Iter1: [Errno 111] Connection refused" in capsys.readouterr().err


def test_a_share_or_one_artifact_is_no_run_and_goes_nowhere(world: World, server: Server) -> None:
    assert world.run("iter=1", "push_to_hub=me/Tiny", "only=it1/policy") == 0
    assert server.files == {}


def test_offline_the_command_itself_ends_with_one_line(world: World) -> None:
    """HF_HUB_OFFLINE is read when the library is imported, so this is a process of its own."""
    words = [sys.executable, "-m", "src.main", *world.words, *folders(world.place), "iter=1", "push_to_hub=me/Tiny"]
    place = {"HF_HUB_OFFLINE": "1", "HF_TOKEN": TOKEN}
    done = subprocess.run(words, cwd=ROOT, env=os.environ | place, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: push_to_hub: HF_HUB_OFFLINE forbids it")
