"""metrics.jsonl follows from the artifacts; which stages are a family; and a mirror that fails stops nothing.

What W&B is shown: tests/whole/test_wandb_file.py, tests/whole/test_wandb_mirror.py.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from made_up_run import STEPS, made_up
from omegaconf import OmegaConf
from tiny_run import composed, typed
from wandb_files import point_of

from src.experiment import graph
from src.experiment.point import Point
from src.kernel.artifact import WORK
from src.kernel.rows import Row
from src.launch.local import Local
from src.reporting.tracking.columns import config_of, eta, summary_of
from src.reporting.tracking.families import FAMILIES, family_of, nodes_of
from src.reporting.tracking.login import server
from src.reporting.tracking.metrics import METRICS, write_metrics
from src.reporting.tracking.mirror import Guard, Off, Refused
from src.reporting.tracking.opening import mode_of


def lines(folder: Path) -> list[Row]:
    return [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]


def kind(row: Row) -> tuple[int, str]:
    """Iteration and stage of a row of metrics."""
    (stage,) = {name.split("/")[0] for name in row if name not in ("iteration", "artifact")}
    return row["iteration"], stage


# metrics.jsonl -----------------------------------------------------------------------------------------------------


def test_there_is_a_row_a_training_step_and_one_an_evaluation_in_the_order_of_the_run(tmp_path: Path) -> None:
    story = made_up(tmp_path)
    write_metrics(story.nodes, story.store, story.folder)
    rows = lines(story.folder)
    iteration = ["ranking", "pairs", *["train"] * STEPS, "evaluation", "divergence"]
    assert [kind(row) for row in rows] == [(t, stage) for t in (1, 2) for stage in iteration]
    assert [row["train/step"] for row in rows if kind(row) == (2, "train")] == [1, 2, 3]
    assert all((story.store.root / row["artifact"]).is_dir() for row in rows)
    assert len({row["artifact"] for row in rows}) == 2 * len(set(iteration))
    assert rows[2]["train/loss_scaled"] == 0.5
    assert rows[5]["evaluation/win_over_base_low"] == pytest.approx(0.55)
    assert rows[-1]["divergence/kl_per_token"] == 0.25


def test_metrics_are_rebuilt_to_the_byte_and_grow_at_the_end(tmp_path: Path) -> None:
    """Artifacts come in the order of the plan, so that a longer file starts with the shorter one."""
    story, before = made_up(tmp_path), b""
    kept = tmp_path / "kept"
    shutil.move(story.store.root, kept)
    for node in story.nodes:
        shutil.copytree(kept / node.stage.kind / node.key, story.store.path(node))
        for _ in range(2):
            write_metrics(story.nodes, story.store, story.folder)
        content = (story.folder / METRICS).read_bytes()
        assert content.startswith(before)
        before = content
    assert before.count(b"\n") == 2 * (STEPS + 4)


def test_rows_end_at_the_first_missing_artifact(tmp_path: Path) -> None:
    """In a shared store later ones may exist already; their rows must not come before those still to be made."""
    story = made_up(tmp_path)
    write_metrics(story.nodes, story.store, story.folder)
    whole = (story.folder / METRICS).read_bytes()
    (first,) = [node for node in story.nodes if node.name == "it1/policy"]
    shutil.rmtree(story.store.path(first))
    write_metrics(story.nodes, story.store, story.folder)
    content = (story.folder / METRICS).read_bytes()
    assert whole.startswith(content) and content.count(b"\n") == 2


def test_steps_of_a_training_under_way_are_rows_already(tmp_path: Path) -> None:
    """From the working folder of the first missing artifact; nothing of what lies behind it."""
    story = made_up(tmp_path)
    write_metrics(story.nodes, story.store, story.folder)
    whole = lines(story.folder)
    (first,) = [node for node in story.nodes if node.name == "it1/policy"]
    attempt = story.store.path(first).with_name(f"{first.key}.partial-00000000")
    attempt.mkdir()
    shutil.move(story.store.path(first), attempt / WORK)
    for made in (STEPS, 1):
        write_metrics(story.nodes, story.store, story.folder)
        assert lines(story.folder) == whole[: 2 + made]
        steps = attempt / WORK / METRICS
        steps.write_text(steps.read_text().splitlines(keepends=True)[0])


# Families ----------------------------------------------------------------------------------------------------------


def test_every_stage_of_an_iteration_has_a_family_and_what_comes_before_is_nobodys() -> None:
    for words in ([], ["ranker=pairrm"], ["+answers@data.answers.theirs=endpoint"], ["ranker=llm_judge_points"]):
        nodes = graph.nodes_of(typed("iter=2", *words))
        without = {node.name for node in nodes if family_of(node.name) is None}
        assert {name for name in without if name.startswith("it")} == set(), words
        assert without >= {"held_out/prompts", "base/policy"}, words
        rows = {n.name for n in nodes if n.name.startswith("it")}
        assert rows <= {n.name for family in FAMILIES for n in nodes_of(family, nodes)}, words


# Mirrors -----------------------------------------------------------------------------------------------------------


class Failing:
    """Fails whenever it is asked."""

    def __init__(self, error: BaseException) -> None:
        self.error, self.asked = error, 0

    def __call__(self) -> None:
        self.asked += 1
        raise self.error


def test_a_failure_is_said_once_and_stops_nothing_but_a_signal_passes(capsys: pytest.CaptureFixture[str]) -> None:
    cases = {
        "W&B failed (by zero); the next start shows the rows it lacks": ZeroDivisionError("by zero\nand more"),
        "12 GB wait": Refused("12 GB wait"),
    }
    for said, error in cases.items():
        told: set[str] = set()
        one, other, act = Guard(told), Guard(told), Failing(error)
        one(act)
        one(act)
        assert act.asked == 1
        one(act, always=True)
        assert act.asked == 2, "what must be given back is"
        other(act)
        assert act.asked == 3, "it does not know of others' failures"
        assert capsys.readouterr().err == f"tracking: {said}\n"
    with pytest.raises(KeyboardInterrupt):
        Guard(set())(Failing(KeyboardInterrupt()))


def test_a_key_is_found_in_the_environment_or_in_netrc_and_wandb_mode_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong one too: W&B says what is wrong with it. Where W&B is disabled nothing counts as shown."""
    for name in ("WANDB_BASE_URL", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    host, file = server().partition("//")[2], tmp_path / "netrc"
    monkeypatch.setenv("NETRC", str(file))
    for key, password, expected in (("k", "", "online"), ("", "short", "online"), ("", "", "offline")):
        monkeypatch.setenv("WANDB_API_KEY", key)
        file.write_text(f"machine {host}\n  login user\n  password {password}\n" if password else "")
        file.chmod(0o600)
        assert (mode_of("auto"), mode_of("offline")) == (expected, "offline")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    point = point_of(made_up(tmp_path), "tracking=wandb")
    assert mode_of("auto") == "disabled" and isinstance(point.tracking.open(point), Off)


# Columns at W&B ------------------------------------------------------------------------------------------------------


def test_what_looks_like_a_secret_is_no_column() -> None:
    told = {"api_key": "abc", "hf_token": "abc", "x": {"Authorization": "abc"}, "max_tokens": 7, "token_budget": "all"}
    cfg = OmegaConf.create({**composed(), "x": {"extra_body": told}})
    point = Point(typed(), Local(), Off(), [], lambda: cfg)  # pyright: ignore
    found = {k.rpartition("extra_body.")[2]: v for k, v in config_of(point).items() if "extra_body" in k}
    assert found == {"max_tokens": 7, "token_budget": "all"}


def test_eta_is_one_over_beta_and_a_summary_has_the_best_iteration_and_the_last() -> None:
    for method in ("sppo", "sppo_single", "dpo", "ipo", "wpo", "wpo_clamped"):
        run = typed(f"method={method}")
        assert eta(run) == pytest.approx(1 / run.method.beta), method
    rows = [{"iteration": t, "evaluation/win_over_base": win} for t, win in enumerate([0.5, 0.7, 0.7, 0.6], 1)]
    assert summary_of(rows) == {"win_rate": 0.6, "best_win_rate": 0.7, "best_iteration": 2}
    assert summary_of(rows[:1]) == {"win_rate": 0.5, "best_win_rate": 0.5, "best_iteration": 1}
    assert summary_of([]) == {}
