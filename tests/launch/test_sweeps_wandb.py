"""sweeps/wandb: each sweep makes commands that work, whose trials have an end and a metric.

W&B's own agent is asked; only its server's answers are made up here.
"""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml
from made_up_run import made_up
from omegaconf import OmegaConf
from sweep_points import SEARCHES, head, plain, points_of, value
from tiny_run import call, composed

from src.tracking.metrics import METRICS, write_metrics

pytestmark = pytest.mark.full
each_search = pytest.mark.parametrize("file", SEARCHES, ids=lambda file: file.stem)


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


@each_search
def test_the_commands_of_wandbs_agent_are_planned_with_the_values_of_the_trial(
    file: Path, command_of: Callable[..., list[str]]
) -> None:
    search = yaml.safe_load(file.read_text())
    for values in trials(search):
        command = command_of(search, values)
        assert command[:4] == ["/usr/bin/env", "python", "-m", "src.main"]
        (point,) = points_of("plan", *command[4:])
        assert {name: value(point, name) for name in values} == {name: plain(str(v)) for name, v in values.items()}
    assert call("plan", *command[4:]) == 0


@each_search
def test_a_trial_is_made_by_the_process_that_the_agent_started(
    file: Path, command_of: Callable[..., list[str]]
) -> None:
    """Submitted to a cluster it would end before there is a number, and W&B would take that for the end."""
    search = yaml.safe_load(file.read_text())
    (point,) = points_of("plan", *command_of(search, trials(search)[0])[4:])
    assert type(point.run.launcher).__name__ == "Local"
    assert type(point.run.tracking).__name__ == "WandB" and point.run.only is None
    assert search["project"] == point.cfg.tracking.project


@each_search
def test_the_agent_knows_every_word_in_braces(file: Path, command_of: Callable[..., list[str]]) -> None:
    """One that it does not know it leaves out without a word."""
    search = yaml.safe_load(file.read_text())
    for word in search["command"]:
        assert command_of({**search, "command": [word]}, trials(search)[0]), word


@each_search
def test_a_search_is_one_that_wandb_takes(file: Path) -> None:
    """Its server has the whole schema; what goes wrong in YAML is a number that becomes a word."""
    search = yaml.safe_load(file.read_text())
    assert search["method"] in ("grid", "random", "bayes") and search["program"] == "src/main.py"
    for name, kind in search["parameters"].items():
        if "values" in kind:
            assert set(kind) == {"values"} and len(set(kind["values"])) == len(kind["values"]) > 1, name
        else:
            assert search["method"] != "grid", name
            assert set(kind) == {"distribution", "min", "max"} and kind["distribution"] == "log_uniform_values", name
            assert all(isinstance(kind[end], float) for end in ("min", "max")), name
            assert 0 < kind["min"] < OmegaConf.select(composed(), name) < kind["max"], name


@each_search
def test_the_metric_is_one_that_every_iteration_writes(file: Path, tmp_path: Path) -> None:
    metric = yaml.safe_load(file.read_text())["metric"]
    story = made_up(tmp_path)
    write_metrics(story.nodes, story.store, story.folder)
    rows = [json.loads(line) for line in (story.folder / METRICS).read_text().splitlines()]
    assert [row["iteration"] for row in rows if isinstance(row.get(metric["name"]), float)] == [1, 2]
    assert metric["goal"] == "maximize"


@each_search
def test_the_array_that_the_head_shows_has_an_element_a_trial(file: Path) -> None:
    search = yaml.safe_load(file.read_text())
    count = len(trials(search)) if search["method"] == "grid" else search["run_cap"]
    assert f"#   sbatch --array=0-{count - 1}%4 slurm/agent.sbatch me/{search['project']}/abc123" in "\n".join(
        head(file)
    )
    assert f"# Cost: {count} trials of 3 trainings each." in "\n".join(head(file)) and "iter=3" in search["command"]
