"""Uploads by the command: a policy that can be loaded, a second time nothing, and every refusal as one line.

The real client of the hub uploads to a small server of our own.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import TOKEN, Server, home, server  # noqa: F401
from tiny_run import ROOT, World, call, folders, tiny

from src.provenance import CARD, read_record

# ruff: noqa: F811

pytestmark = pytest.mark.full

Capture = pytest.CaptureFixture[str]


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
