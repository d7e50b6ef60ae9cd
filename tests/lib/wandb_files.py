"""What W&B has written of offline runs, read back with its own tool; and a home for what else it writes."""

from __future__ import annotations

import gc
import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
from made_up_run import MadeUp
from tiny_run import composed, tiny

from src.experiment.point import Point
from src.kernel.rows import Row
from src.launch import compose


class Recorded:
    """A W&B run."""

    def __init__(self, folder: Path) -> None:
        from wandb.util import get_core_path

        (self.file,) = folder.glob("*.wandb")
        self.folder = folder
        # As `wandb leet inspect --json` does, without the seconds of its imports.
        words = [get_core_path(), "leet", "inspect", "--no-observability", "--json", "--run-file", str(self.file)]
        words.append(str(folder.parent))
        done = subprocess.run(words, check=True, capture_output=True, text=True)
        self.records: list[Row] = [json.loads(line) for line in done.stdout.splitlines()]

    def of(self, kind: str) -> list[Any]:
        return [record[kind] for record in self.records if record["type"] == kind]

    @cached_property
    def run(self) -> Row:
        """What it was opened with."""
        return self.of("run")[0]

    @property
    def id(self) -> str:
        return self.file.stem.removeprefix("run-")

    @property
    def family(self) -> str:
        return self.run["job_type"]

    @property
    def config(self) -> dict[str, Any]:
        return {key: value for key, value in self.run["config"]["update"].items() if key != "_wandb"}

    @cached_property
    def history(self) -> list[Row]:
        return [row["item"] for row in self.of("history")]

    @property
    def steps(self) -> list[int]:
        return [row["_step"] for row in self.history]

    @cached_property
    def summary(self) -> Row:
        found: Row = {}
        for update in self.of("summary"):
            found |= update.get("update", {})
        return found

    @property
    def axes(self) -> dict[str, str | None]:
        """Metric or pattern -> its x-axis."""
        return {m.get("name") or m["glob_name"]: m.get("step_metric") for m in self.of("metric")}

    def tables(self, key: str) -> list[Row]:
        """Of each step that has one."""
        paths = [row[f"{key}.path"] for row in self.history if f"{key}.path" in row]
        return [json.loads((self.folder / "files" / path).read_text()) for path in paths]


def recorded(folder: Path) -> dict[str, Recorded]:
    """All that a run folder has, by family."""
    import wandb

    wandb.teardown()  # the files are written by another process; they are whole when that has ended
    found = [Recorded(place) for place in sorted(folder.glob("wandb/offline-run-*"))]
    by_family = {one.family: one for one in found}
    assert len(by_family) == len(found), "of each W&B run there is one file"
    return by_family


def point_of(story: MadeUp, *words: str) -> Point:
    """Of a run that was made up, in its folder."""
    place = story.folder.parents[1]
    given = [*tiny(Path("nowhere"), place, f"iter={story.run.iter}", f"name={story.folder.name}"), *words]
    cfg = composed(*given)
    return compose.point_of(cfg, given)


UNTIDY = pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning")
"""W&B's artifacts leave their temporary folders to the garbage collector."""


@contextmanager
def at_home(place: Path) -> Iterator[Path]:
    """No network, and everything W&B writes beside the run goes to `place`."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("CACHE", "CONFIG", "DATA"):
            patch.setenv(f"WANDB_{name}_DIR", str(place / name.lower()))
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        yield place
    gc.collect()  # while UNTIDY holds


@pytest.fixture
def wandb_home(tmp_path: Path) -> Iterator[Path]:
    with at_home(tmp_path) as place:
        yield place
