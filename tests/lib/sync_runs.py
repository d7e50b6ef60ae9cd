"""Run folders with two of W&B's in them, and a stand-in of its server to which they are uploaded."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from wandb_server import KEY, WandbServer

from src.tracking import sync as module
from src.tracking.spool import run_id, synced
from src.tracking.state import State

FIRST, SECOND = "offline-run-20260101_000001-one-id", "offline-run-20260101_000002-one-id"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two of W&B's folders: of a run that was begun, and of the same run that went on."""
    import wandb

    place = tmp_path_factory.mktemp("recorded")
    with pytest.MonkeyPatch.context() as patch:
        isolate(patch, place)
        for step in range(2):
            settings = wandb.Settings(silent=True, console="off", use_dot_wandb=False)
            run = wandb.init(project="p", id="one-id", dir=place, mode="offline", resume="allow", settings=settings)
            run.log({"loss": 0.5 + step}, step=step)
            run.finish()
            wandb.teardown()
            (place / FIRST if not step else place / SECOND).mkdir()
            shutil.move(Path(run.settings.sync_dir) / "run-one-id.wandb", place / (FIRST, SECOND)[step])
    shutil.rmtree(place / "wandb")
    return place


def isolate(patch: pytest.MonkeyPatch, place: Path) -> None:
    """Nothing outside is read or written."""
    for name in ("CACHE", "CONFIG", "DATA"):
        patch.setenv(f"WANDB_{name}_DIR", str(place / name))
    patch.setenv("WANDB_DIR", str(place))
    patch.setenv("NETRC", str(place / "netrc"))
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL"):
        patch.delenv(name, raising=False)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    """Whoever has a key reaches it."""
    import wandb

    isolate(monkeypatch, tmp_path)
    with WandbServer() as found:
        monkeypatch.setenv("WANDB_BASE_URL", found.url)
        wandb.teardown()  # its settings are read once a process
        yield found
        wandb.teardown()


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)


@pytest.fixture
def runs(tmp_path: Path, recorded: Path) -> Path:
    """A run folder with two of W&B's, and the state of the family whose run they are."""
    folder = tmp_path / "runs" / "one"
    for name in (FIRST, SECOND):
        shutil.copytree(recorded / name, folder / "wandb" / name)
    (folder / "config.yaml").write_text("iter: 1\n")
    (folder / ".wandb").mkdir()
    state = State("one-id", "p", "me", "plan", artifacts={"policy:aa": []}, steps=2)
    (folder / ".wandb" / "train.json").write_text(json.dumps(dataclasses.asdict(state)))
    return tmp_path / "runs"


def words(runs: Path, *more: str) -> list[str]:
    return [f"runs={runs}/*", *more]


def waiting(runs: Path) -> list[str]:
    return [place.name for place in sorted(runs.glob("one/wandb/*run-*")) if not synced(place)]


@pytest.fixture
def uploaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of what would be uploaded, in place of uploading: marked as W&B does."""
    found: list[str] = []

    def upload(ready: list[Path], server: str, again: bool) -> None:
        for place in ready:
            found.append(place.name)
            (place / f"run-{run_id(place)}.wandb.synced").touch()

    monkeypatch.setattr(module, "upload", upload)
    monkeypatch.setattr(module, "link", lambda *_: [])
    monkeypatch.setattr("wandb.Api", lambda: None)
    return found
