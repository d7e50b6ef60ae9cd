"""metrics.jsonl follows from the artifacts; which stages are a family; and a mirror that fails stops nothing.

What W&B is shown: test_tracking_runs.py, test_tracking_restarts.py, test_tracking_samples.py, test_tracking_real.py.
"""

from __future__ import annotations

import json
import os
import shutil
from functools import partial
from pathlib import Path

import pytest
import wandb
from made_up_run import STEPS, made_up
from tiny_run import typed
from wandb_files import point_of

from src.artifact import WORK, Node
from src.config import UserError
from src.records import Row
from src.tracking.families import FAMILIES, TRIAL, family_of, nodes_of
from src.tracking.login import server
from src.tracking.metrics import METRICS, metric_rows, write_metrics
from src.tracking.mirror import Guard, Off, Refused, Tracking
from src.tracking.opening import mode_of
from src.tracking.state import run_id
from src.tracking.sync import _server
from src.tracking.wandb_runs import Families


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


def test_a_further_iteration_adds_rows_though_its_prompts_are_known_before_all_else(tmp_path: Path) -> None:
    story = made_up(tmp_path)
    prompts = [node for node in story.nodes if node.name.endswith("/prompts")]
    for node in prompts:
        (story.store.path(node) / "metrics.json").write_text('{"prompts": 3}')
    assert [node.name for node in story.nodes[: len(prompts) + 1]].count("it2/prompts")
    content = list[bytes]()
    for nodes in ([node for node in story.nodes if not node.name.startswith("it2")], story.nodes):
        write_metrics(nodes, story.store, story.folder)
        content.append((story.folder / METRICS).read_bytes())
    assert content[1].startswith(content[0])
    assert [content.count(b'"prompts/prompts"') for content in content] == [1, 2]


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


def test_a_damaged_line_of_a_training_under_way_is_told_once_and_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No record holds it to account yet."""
    story = made_up(tmp_path)
    node = next(node for node in story.nodes if node.name == "it1/policy")
    file = story.store.path(node) / METRICS
    whole = metric_rows(node, file.parent)
    first, second, *rest = file.read_bytes().splitlines(keepends=True)
    for damaged in (b"\xff\x00\n", b'{"step": \n', b"[1]\n", b"7\n"):
        file.write_bytes(b"".join([first, damaged, *rest]))
        assert metric_rows(node, file.parent) == metric_rows(node, file.parent) == [whole[0], *whole[2:]]
    assert capsys.readouterr().err == f"{file}: 1 damaged lines, which are left out\n"


def test_what_no_iteration_owns_has_no_metrics(tmp_path: Path) -> None:
    story = made_up(tmp_path)
    outside = [node for node in story.nodes if not node.name.startswith("it")]
    assert {node.name for node in outside} >= {"base/policy", "base/answers", "held_out/prompts"}
    assert [metric_rows(node, story.store.path(node)) for node in outside] == [[]] * len(outside)


# Families ----------------------------------------------------------------------------------------------------------


def test_a_family_has_what_its_stages_make(tmp_path: Path) -> None:
    nodes = made_up(tmp_path, iterations=1).nodes
    found = {family: {node.name for node in nodes_of(family, nodes)} for family in FAMILIES}
    answers = {f"{who}/{what}" for who in ("it1", "base", "null") for what in ("answers", "answers_ranking")}
    assert found == {
        "generate": {"it1/prompts", "it1/responses"},
        "rank": {"it1/ranking", "it1/pairs"},
        "train": {"it1/reference", "it1/policy"},
        "evaluate": {*answers, "it1/evaluation", "it1/divergence"},
    }
    assert {node.name for node in nodes_of(TRIAL, nodes)} == set().union(*found.values())


@pytest.mark.parametrize(
    "words", [[], ["ranker=pairrm"], ["+answers@data.answers.theirs=endpoint"], ["ranker=llm_judge_points"]]
)
def test_every_stage_of_an_iteration_has_a_family_and_what_comes_before_is_nobodys(words: list[str]) -> None:
    nodes = typed("iter=2", *words).nodes()
    without = {node.name for node in nodes if family_of(node.name) is None}
    assert {name for name in without if name.startswith("it")} == set()
    assert without >= {"held_out/prompts", "base/policy"}
    assert {name.partition("/")[2] for name in without} <= {"prompts", "policy", "model0", "model1"}
    rows = {n.name for n in nodes if n.name.startswith("it")}
    assert rows <= {n.name for family in FAMILIES for n in nodes_of(family, nodes)}


def test_the_rows_of_a_run_are_those_of_its_families(tmp_path: Path) -> None:
    story = made_up(tmp_path)

    def rows(nodes: list[Node]) -> list[str]:
        return sorted(json.dumps(row) for node in nodes for row in metric_rows(node, story.store.path(node)))

    assert rows([node for family in FAMILIES for node in nodes_of(family, story.nodes)]) == rows(story.nodes)


def test_an_id_follows_the_place_of_the_run_and_the_family(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    places = (tmp_path, tmp_path / "link", tmp_path / "x" / "..")
    assert len({run_id(place, "train") for place in places}) == 1
    others = {run_id(tmp_path, "train"), run_id(tmp_path / "x", "train"), run_id(tmp_path, "train", 1)}
    assert len(others | {run_id(tmp_path, "rank")}) == 4


# Mirrors -----------------------------------------------------------------------------------------------------------


def test_off_is_a_mirror_that_shows_nothing(tmp_path: Path) -> None:
    story, mirror = made_up(tmp_path), Off()
    before = sorted(story.folder.iterdir())
    assert isinstance(mirror, Tracking)
    mirror.begin(story.nodes[-1])
    mirror.update()
    mirror.report()
    mirror.close()
    assert sorted(story.folder.iterdir()) == before


class Failing:
    """Fails whenever it is asked."""

    def __init__(self, error: BaseException) -> None:
        self.error, self.asked = error, 0

    def __call__(self) -> None:
        self.asked += 1
        raise self.error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ZeroDivisionError("by zero\nand more"), "W&B failed (by zero); the next start shows the rows it lacks"),
        (KeyError(), "W&B failed (KeyError()); the next start shows the rows it lacks"),
        (Refused("12 GB wait"), "12 GB wait"),
    ],
)
def test_a_failure_is_said_once_and_stops_nothing(
    error: Exception, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
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


def test_a_signal_passes() -> None:
    with pytest.raises(KeyboardInterrupt):
        Guard(set())(Failing(KeyboardInterrupt()))


def test_a_family_that_fails_leaves_the_others_to_be_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    point, asked = point_of(made_up(tmp_path), "tracking=wandb", "tracking.mode=offline"), list[str]()
    families = point.run.tracking.open(point)
    assert isinstance(families, Families)
    for family, run in families.runs.items():
        act = Failing(OSError("disk full")) if family == "rank" else partial(asked.append, family)
        monkeypatch.setattr(run, "update", act)
    families.update()
    families.update()
    assert asked == ["generate", "train", "evaluate"] * 2
    assert capsys.readouterr().err.count("disk full") == 1


@pytest.mark.parametrize(
    ("key", "password", "expected"),
    [("k", "", "online"), ("", "x" * 40, "online"), ("", "short", "online"), ("", "", "offline")],
)
def test_a_key_is_found_in_the_environment_or_in_netrc_and_wandb_mode_wins(
    key: str, password: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong one too: W&B says what is wrong with it."""
    for name in ("WANDB_BASE_URL", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_API_KEY", key)
    host = server().partition("//")[2]
    file = tmp_path / "netrc"
    file.write_text(f"machine {host}\n  login user\n  password {password}\n" if password else "")
    os.chmod(file, 0o600)
    monkeypatch.setenv("NETRC", str(file))
    assert mode_of("auto") == expected
    assert mode_of("offline") == "offline"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert mode_of("auto") == "disabled"


REFUSED = {
    "WANDB_BASE_URL": ("wandb.my.com", "wandb.my.com"),
    "WANDB_HTTP_TIMEOUT": ("abc", "timeout_seconds: Input should be a valid number"),
    "WANDB_SILENT": ("banana", "silent: Input should be a valid boolean"),
    "WANDB_PROJECT": ("a/b", "Invalid project name 'a/b'"),
    "NETRC": ("netrc", "the netrc file is no text"),
}


@pytest.mark.full
@pytest.mark.parametrize("name", REFUSED)
def test_settings_that_wandb_refuses_are_one_line_and_no_end_of_a_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`sync` ends with the same line."""
    (tmp_path / "netrc").write_bytes(b"\xff\xfe machine")
    monkeypatch.chdir(tmp_path)
    for unset in ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_MODE"):
        monkeypatch.delenv(unset, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv(name, REFUSED[name][0])
    point = point_of(made_up(tmp_path), "tracking=wandb")
    wandb.teardown()  # its settings are read once a process
    try:
        assert isinstance(point.run.tracking.open(point), Off)
        said = capsys.readouterr().err
        with pytest.raises(UserError) as refused:
            _server()
    finally:
        wandb.teardown()
    assert said.startswith("tracking: W&B's ") and said.count("\n") == 1 and REFUSED[name][1] in said
    assert str(refused.value) in said


def test_where_wandb_is_disabled_nothing_counts_as_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    story = made_up(tmp_path)
    point = point_of(story, "tracking=wandb")
    assert isinstance(point.run.tracking.open(point), Off)
