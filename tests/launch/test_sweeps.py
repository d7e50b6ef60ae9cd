"""sweeps/: each grid is what its head says, and each search of W&B makes commands that work.

W&B's own agent is asked; only its server's answers are made up here.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml
from made_up_run import made_up
from omegaconf import OmegaConf
from sweep_points import SEARCHES, choice, head, plain, points_of, value
from tiny_run import ROOT, composed

from src.tracking.metrics import METRICS, write_metrics

GRIDS = sorted((ROOT / "sweeps").glob("*.yaml"))


def swept(file: Path) -> dict[str, list[str]]:
    """Key -> values."""
    params = yaml.safe_load(file.read_text())["hydra"]["sweeper"]["params"]
    return {key: values.split(",") for key, values in params.items()}


def test_a_grid_sweeps_keys_that_there_are_and_its_default_is_in_it() -> None:
    default = composed()
    for file in GRIDS:
        count, keys = re.fullmatch(r"# (\d+) points: (.+)", head(file)[1]).groups()  # type: ignore[union-attr]
        grid = swept(file)
        assert keys.split(", ") == list(grid) and int(count) == math.prod(map(len, grid.values())), file.name
        for key, values in grid.items():
            found = OmegaConf.select(default, key)
            assert found is not None and plain(choice(found)) in map(plain, values), f"{file.name}: {key}"


# Searches of W&B ---------------------------------------------------------------------------------------------------


def trials(search: dict[str, Any]) -> list[dict[str, Any]]:
    """Values that W&B may choose: all of a grid; of distributions both ends and something long between."""
    choices = {
        name: kind["values"] if "values" in kind else [kind["min"], kind["max"], math.sqrt(kind["min"] * kind["max"])]
        for name, kind in search["parameters"].items()
    }
    return [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]


@pytest.fixture
def command_of(tmp_path: Path) -> Iterator[Callable[[dict[str, Any], dict[str, Any]], list[str]]]:
    """What W&B's agent starts for a sweep and the values of a trial; they come to it as JSON."""
    from wandb import wandb_agent

    def build(search: dict[str, Any], values: dict[str, Any]) -> list[str]:
        started: list[list[str]] = []
        agent = wandb_agent.Agent(api=None, queue=None, sweep_id="abc123", count=1)
        agent._sweep_command = list(search["command"])
        arguments = json.loads(json.dumps({name: {"value": value} for name, value in values.items()}))
        order = {"type": "run", "run_id": "trial1", "program": search["program"], "args": arguments}
        with mock.patch.object(
            wandb_agent, "AgentProcess", lambda command, **_: started.append(command) or mock.Mock()
        ):
            agent._command_run(order)
        return started[0]

    with mock.patch.dict(os.environ, {"WANDB_DIR": str(tmp_path), "WANDB_SWEEP_ID": "abc123"}):
        yield build


def test_the_commands_of_wandbs_agent_have_the_values_of_the_trial(command_of: Callable[..., list[str]]) -> None:
    """The process that the agent starts makes the trial: W&B takes its end for the trial's."""
    for file in SEARCHES:
        search = yaml.safe_load(file.read_text())
        for values in (trials(search)[0], trials(search)[-1]):
            command = command_of(search, values)
            assert command[:4] == ["/usr/bin/env", "python", "-m", "src.main"]
            (point,) = points_of("plan", *command[4:])
            assert {name: value(point, name) for name in values} == {name: plain(str(v)) for name, v in values.items()}
            kinds = [type(one).__name__ for one in (point.run.launcher, point.run.tracking)]
            assert kinds == ["Local", "WandB"] and search["project"] == point.cfg.tracking.project
        for word in search["command"]:  # one that the agent does not know it leaves out without a word
            assert command_of({**search, "command": [word]}, trials(search)[0]), word


def test_a_search_is_one_that_wandb_takes(tmp_path: Path) -> None:
    """What goes wrong in YAML is a number that becomes a word. The metric is one that every iteration writes."""
    story, default = made_up(tmp_path), composed()
    write_metrics(story.nodes, story.store, story.folder)
    rows = [json.loads(line) for line in (story.folder / METRICS).read_text().splitlines()]
    for file in SEARCHES:
        search = yaml.safe_load(file.read_text())
        assert search["method"] in ("grid", "random", "bayes") and search["program"] == "src/main.py"
        for name, kind in search["parameters"].items():
            if "values" in kind:
                assert set(kind) == {"values"} and len(set(kind["values"])) == len(kind["values"]) > 1, name
            else:
                assert search["method"] != "grid" and kind["distribution"] == "log_uniform_values", name
                assert all(isinstance(kind[end], float) for end in ("min", "max")), name
                assert 0 < kind["min"] < OmegaConf.select(default, name) < kind["max"], name
        metric = search["metric"]
        assert [row["iteration"] for row in rows if isinstance(row.get(metric["name"]), float)] == [1, 2]
        assert metric["goal"] == "maximize"
