"""Uploads: nothing without being asked, what the plan says and no more, and every refusal as one line.

The client is the real one, the hub a small server of our own.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import huggingface_hub
import huggingface_hub.constants
import pytest
from hub_server import TOKEN, Server, home, server  # noqa: F401
from made_up_run import MadeUp, made_up
from tiny_run import call, tiny

from src.kernel.config import UserError
from src.kernel.record import CARD, DIGEST, RECORD, digest, read_record, sha256
from src.reporting.card import write_cards
from src.reporting.hub import check_apart, print_push_plan, push

# ruff: noqa: F811

Capture = pytest.CaptureFixture[str]
REPOS = ["me/Tiny-Iter1", "me/Tiny-Iter2"]


@pytest.fixture
def story(tmp_path: Path) -> MadeUp:
    """A finished run of two iterations that goes to the hub, with weights of eight bytes."""
    story = made_up(tmp_path)
    for t in (1, 2):
        place = story.path(f"it{t}/policy")
        (place / "model.safetensors").write_bytes(place.name.encode()[:8])
        (place / "notes.txt").write_text("of nobody")
        files = {"model.safetensors": {"bytes": 8, "sha256": sha256(place / "model.safetensors")}}
        record = read_record(place) | {"files": files, "key": place.name}
        (place / RECORD).write_text(json.dumps(record | {DIGEST: digest(record)}))
    story = story._replace(run=dataclasses.replace(story.run, push_to_hub="me/Tiny"))
    assert write_cards(story.run, story.nodes, story.store, "python -m src.main") == []
    return story


def pushed(story: MadeUp, **changes: Any) -> None:
    push(dataclasses.replace(story.run, **changes), story.nodes, story.store)


def test_what_the_record_names_and_the_card_go_to_private_repositories_once(
    story: MadeUp, server: Server, capsys: Capture
) -> None:
    pushed(story, push_to_hub=None)
    print_push_plan(story.run, story.nodes)
    assert "push: it1/policy -> me/Tiny-Iter1 (private)\n" in capsys.readouterr().out
    assert server.tokens == set(), "nothing leaves the machine unless it is asked for"
    for _ in range(2):
        pushed(story)
        assert (server.files.keys(), server.public, server.commits) == ({*REPOS}, set(), 2), "nothing new, no commit"
    for t, repo in enumerate(REPOS, 1):
        place = story.path(f"it{t}/policy")
        assert server.files[repo] == {name: (place / name).read_bytes() for name in ("model.safetensors", CARD)}
    assert TOKEN not in capsys.readouterr().out and server.tokens == {f"Bearer {TOKEN}"}


def test_weights_of_another_policy_go_and_other_files_stay(story: MadeUp, server: Server) -> None:
    """A model beside shards of another one would be loaded from a mixture."""
    stale = ["model-00001-of-00002.safetensors", "model.safetensors.index.json"]
    server.files[REPOS[0]] = dict.fromkeys([*stale, "model.safetensors", "figure.png", "config.json"], b"old")
    pushed(story)
    assert sorted(server.files[REPOS[0]]) == [CARD, "config.json", "figure.png", "model.safetensors"]
    assert server.files[REPOS[0]]["model.safetensors"] != b"old"


def test_public_is_said_aloud_or_it_is_not_done(story: MadeUp, server: Server) -> None:
    """The hub ignores `private` for a repository that is there."""
    server.files[REPOS[1]] = {}
    server.public.add(REPOS[1])
    with pytest.raises(UserError, match=r"push_to_hub: me/Tiny-Iter2 is public already; say push_private=false"):
        pushed(story)
    assert server.files[REPOS[1]] == {} and server.files[REPOS[0]]
    pushed(story, push_private=False)
    assert server.files[REPOS[1]] and REPOS[0] not in server.public, "it is not opened behind somebody's back"


def test_a_damaged_policy_stays_here(story: MadeUp, server: Server) -> None:
    (story.path("it1/policy") / "model.safetensors").write_bytes(b"damaged.")
    with pytest.raises(UserError, match=r"model.safetensors: damaged .*; not uploaded; delete the folder"):
        pushed(story)
    assert server.files == {}


def test_that_there_is_no_token_is_said_before_any_work(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("HF_TOKEN", "")
    assert call(*tiny(llama, tmp_path, "iter=1", "push_to_hub=me/Tiny")) == 2
    assert "error: push_to_hub: " in capsys.readouterr().err and not (tmp_path / "store").exists()


def test_points_of_a_sweep_do_not_overwrite_each_other(story: MadeUp) -> None:
    other, nowhere = (dataclasses.replace(story.run, push_to_hub=name) for name in ("me/Other", None))
    check_apart([nowhere, nowhere, story.run, other])
    with pytest.raises(UserError, match="push_to_hub: points of the sweep would overwrite each other in me/Tiny"):
        check_apart([nowhere, nowhere, story.run, other, story.run])


def test_whatever_goes_wrong_is_one_line_without_the_token(
    story: MadeUp, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError(f"Illegal header value b'Bearer {TOKEN}'\nand hf_{'x' * 20}")

    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", fail)
    with pytest.raises(UserError) as refusal:
        pushed(story)
    message = "Illegal header value b'Bearer …' and hf_… (all is kept; the same command tries again)"
    assert str(refusal.value) == f"push_to_hub: {REPOS[0]}: {message}"
