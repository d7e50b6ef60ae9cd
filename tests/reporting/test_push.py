"""Uploads: nothing without being asked, what the plan says and no more, and every refusal as one line.

The hub is a double of a few lines.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from hub_server import TOKEN, home  # noqa: F401
from huggingface_hub.utils import filter_repo_objects
from huggingface_hub.utils.logging import get_verbosity
from made_up_run import MadeUp, made_up
from tiny_run import call, tiny

from src.card.hub_id import check_hub_id
from src.card.push import check_apart, check_push, print_push_plan, push
from src.card.write import write_cards
from src.config import UserError
from src.provenance import CARD, RECORD, read_record, sha256

pytestmark = pytest.mark.full

Capture = pytest.CaptureFixture[str]
ITERATIONS = ["me/Tiny-Iter1", "me/Tiny-Iter2"]


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
