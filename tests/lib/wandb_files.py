"""What W&B has written of offline runs, read back with its own tool; and a home for what else it writes."""

from __future__ import annotations

import gc
import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
from made_up_run import MadeUp
from tiny_run import composed, tiny

from src.experiment.point import Point
from src.kernel.artifact import Node
from src.kernel.rows import Row
from src.launch import composer
from src.reporting.tracking.families import experiment_of, nodes_of
from src.reporting.tracking.metrics import METRICS
from src.reporting.tracking.one_run import OneRun
from src.reporting.tracking.opening import Opener, mode_of
from src.reporting.tracking.samples import Samples
from src.reporting.tracking.state import Place
from src.reporting.tracking.wandb_runs import WandB


class Recorded:
    """One opening of a W&B run."""

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
        """What it was opened with; empty where a killed process took it along."""
        return (self.of("run") or [{}])[0]

    @property
    def id(self) -> str:
        return self.file.stem.removeprefix("run-")

    @property
    def family(self) -> str:
        return self.run.get("job_type", "")

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


def recorded(folder: Path) -> list[Recorded]:
    """All that a run folder has, in the order they were opened."""
    import wandb

    wandb.teardown()  # the files are written by another process; they are whole when that has ended
    found = [Recorded(place) for place in folder.glob("wandb/offline-run-*")]
    return sorted(found, key=lambda one: one.run.get("start_time", ""))


def families(found: Sequence[Recorded]) -> dict[str, list[Recorded]]:
    """Family -> its openings."""
    return {family: [one for one in found if one.family == family] for family in dict.fromkeys(f.family for f in found)}


def each_row_once(folder: Path, found: Sequence[Recorded]) -> None:
    """Every row of the metrics is a step of its family, and the steps of a family go on over its files."""
    shown: list[Row] = []
    for run_id in dict.fromkeys(one.id for one in found):
        openings = [one for one in found if one.id == run_id]
        steps = [step for one in openings for step in one.steps]
        assert steps == list(range(len(steps)))
        shown += [row for one in openings for row in one.history if "artifact" in row]
    rows = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    told, wanted = ({(row["artifact"], row.get("train/step")): row for row in some} for some in (shown, rows))
    assert told.keys() == wanted.keys() and len(shown) == len(rows)
    for name, row in wanted.items():
        plain = {key: value for key, value in row.items() if not isinstance(value, list)}
        assert {key: told[name][key] for key in plain} == plain


def point_of(story: MadeUp, *words: str) -> Point:
    """Of a run that was made up, in its folder."""
    place = story.folder.parents[1]
    given = [*tiny(Path("nowhere"), place, f"iter={story.run.iter}", f"name={story.folder.name}"), *words]
    cfg = composed(*given)
    return composer.point_of(cfg, given, lambda: cfg, ())


def one_run(story: MadeUp, family: str = "train", nodes: Sequence[Node] | None = None, **settings: Any) -> OneRun:
    """The mirror of a family, as a process of its own would open it; `nodes` of another experiment."""
    given: dict[str, Any] = {"project": "tests", "entity": None, "mode": "offline", "group": None}
    given |= {"patience_seconds": 5.0, "spool_gb": 1.0} | settings
    tracking = WandB(**given)
    samples = Samples(story.nodes, story.store, story.run.estimator)
    opener = Opener(tracking, point_of(story), mode_of(tracking.mode), lambda: None)
    chosen = nodes or story.nodes
    place = Place(story.folder, family, tracking.project, tracking.entity, experiment_of(chosen))
    return OneRun(place, nodes_of(family, chosen), story.store, samples, opener)


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
