"""What W&B is told of a run: a W&B run a family, with columns, axes."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from made_up_run import STEPS, MadeUp, made_up
from omegaconf import OmegaConf
from tiny_run import ROOT, composed, typed
from wandb_files import UNTIDY, Recorded, at_home, families, point_of, recorded, wandb_home  # noqa: F401

from src.launcher import Point
from src.provenance import git_commit
from src.tracking import opening
from src.tracking.columns import config_of, eta, group_of, name_of, short, summary_of, tags_of
from src.tracking.families import FAMILIES
from src.tracking.metrics import METRICS, write_metrics
from src.tracking.state import run_id

pytestmark = UNTIDY


def show(story: MadeUp, *words: str) -> list[Recorded]:
    """All that a run of the made-up artifacts tells W&B."""
    point = point_of(story, "tracking=wandb", "tracking.project=tests", *words)
    mirror = point.run.tracking.open(point)
    mirror.update()
    mirror.close()
    return recorded(story.folder)


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> MadeUp:
    return made_up(tmp_path_factory.mktemp("story"))


@pytest.fixture(scope="module")
def shown(story: MadeUp) -> Iterator[dict[str, Recorded]]:
    """Family -> its only W&B run."""
    with at_home(story.folder.parent):
        yield {family: one for family, (one,) in families(show(story)).items()}


@pytest.mark.full
def test_each_family_is_a_run_of_its_own_with_an_id_a_group_a_type_a_name_and_tags(
    story: MadeUp, shown: dict[str, Recorded]
) -> None:
    assert tuple(shown) == FAMILIES
    for family, one in shown.items():
        assert (one.id, one.run["project"]) == (run_id(story.folder, family), "tests")
        assert one.run["display_name"] == "tiny sppo it2 η=1000 lr=1e-5 K=3"
        assert one.run["run_group"] == "made_up"
        assert sorted(one.run["tags"]) == ["it2", "sppo", "tiny"]


def test_every_row_of_the_metrics_is_a_step_of_its_family(story: MadeUp, shown: dict[str, Recorded]) -> None:
    write_metrics(story.nodes, story.store, story.folder)
    rows = [json.loads(line) for line in (story.folder / METRICS).read_text().splitlines()]
    found = [row for one in shown.values() for row in one.history]
    assert len(found) == len(rows)
    for one in shown.values():
        assert one.steps == list(range(len(one.history)))
        artifacts = [row["artifact"] for row in one.history]
        expected = [row for row in rows if row["artifact"] in artifacts]
        for row, wanted in zip(one.history, expected, strict=True):
            plain = {key: value for key, value in wanted.items() if not isinstance(value, list)}
            assert {key: row[key] for key in plain} == plain


def test_steps_of_a_training_are_counted_over_the_iterations_and_are_its_axis(shown: dict[str, Recorded]) -> None:
    train = shown["train"]
    assert [(row["train/step"], row["train/total_step"]) for row in train.history] == [
        (step, (t - 1) * STEPS + step) for t in (1, 2) for step in range(1, STEPS + 1)
    ]
    assert train.axes["train/*"] == "train/total_step"
    axes = {name: axis for one in shown.values() for name, axis in one.axes.items() if name.endswith("/*")}
    axes.pop("train/*")
    assert set(axes.values()) == {"iteration"}
    logged = {name for one in shown.values() for row in one.history for name in row if "/" in name}
    assert {f"{name.partition('/')[0]}/*" for name in logged} <= axes.keys() | {"train/*"}


def test_the_config_is_flat_and_has_the_columns_of_every_method(shown: dict[str, Recorded]) -> None:
    for one in shown.values():
        columns = {"eta": 1000, "beta": 0.001, "lr": 1e-5, "K": 3, "iter": 2, "method": "sppo", "model": "tiny"}
        columns |= {"seed": 0, "experiment": None, "variant": None, "ranker": "embedded", "estimator": "pairwise"}
        columns |= {"hardware": "cpu", "commit": git_commit()}
        assert {name: one.config[name] for name in columns} == columns
        assert one.config["train.batch_pairs"] == 2 and one.config["method.eta"] == 1000
        assert not [key for key, value in one.config.items() if isinstance(value, dict)]
        assert not [key for key in one.config if key.startswith("_")]


def test_the_summary_is_plain_columns_of_the_last_iteration_and_the_best(shown: dict[str, Recorded]) -> None:
    """The metric of the sweeps of sweeps/wandb is among them."""
    expected = {"win_rate": 0.6, "win_rate_high": 0.65, "win_rate_over_previous": 0.6, "null_win": 0.5}
    expected |= {"tokens": 0.3, "checks_kept": 0.3, "kl_per_token": 0.25, "kl_per_answer": 2}
    expected |= {"best_win_rate": 0.6, "best_iteration": 1, "evaluation/win_over_base": 0.6}
    assert {name: shown["evaluate"].summary[name] for name in expected} == expected
    expected = {"loss": STEPS - 0.5, "lowest_loss": 0.5, "reward_margin": STEPS - 0.5}
    assert {name: shown["train"].summary[name] for name in expected} == expected
    for one in shown.values():
        assert not [name for name, value in one.summary.items() if isinstance(value, dict)]


def test_a_summary_has_the_best_iteration_and_the_last() -> None:
    wins = [0.5, 0.7, 0.7, 0.6]
    rows = [{"iteration": t, "evaluation/win_over_base": win} for t, win in enumerate(wins, 1)]
    assert summary_of(rows) == {"win_rate": 0.6, "best_win_rate": 0.7, "best_iteration": 2}
    assert summary_of(rows[:1]) == {"win_rate": 0.5, "best_win_rate": 0.5, "best_iteration": 1}
    assert summary_of([]) == {}


def test_what_was_made_is_logged_under_its_key(story: MadeUp, shown: dict[str, Recorded]) -> None:
    for family, name in (("generate", "it1/responses"), ("rank", "it2/pairs"), ("train", "it2/policy")):
        (node,) = [node for node in story.nodes if node.name == name]
        assert node.key in {alias for artifact in shown[family].of("artifact") for alias in artifact["aliases"]}
    states = [json.loads((story.folder / ".wandb" / f"{family}.json").read_text()) for family in FAMILIES]
    made = {node.key for node in story.nodes if node.inputs}
    assert {name.partition(":")[2] for state in states for name in state["artifacts"]} == made


def test_packages_machine_and_commit_are_kept(shown: dict[str, Recorded]) -> None:
    """W&B looks at the machine beside the run, so one of a second may end before it has."""
    machine: set[str] = set()
    for one in shown.values():
        assert "requirements.txt" in one.files and "wandb==" in (one.folder / "files/requirements.txt").read_text()
        environment = {key: value for each in one.of("environment") for key, value in each.items()}
        assert environment["git"]["commit"] == git_commit().removesuffix("+dirty")
        assert {"python", "os"} <= environment.keys()
        machine |= environment.keys()
    assert {"cpu_count", "memory"} <= machine


@pytest.mark.full
def test_a_changed_source_tree_is_kept_as_a_diff(
    wandb_home: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The run folder lies elsewhere, and so does the process; untracked files are none of the commit's."""
    source = wandb_home / "source"
    source.mkdir()
    git = ["git", "-c", "user.name=n", "-c", "user.email=n@example.invalid"]
    (source / "code.py").write_text("one = 1\n")
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *words], cwd=source, check=True)
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=source, check=True, capture_output=True, text=True).stdout
    monkeypatch.setattr(opening, "SOURCE", source)
    opening.source_diff.cache_clear()
    try:
        assert opening.source_diff() == b""
        (source / "code.py").write_text("one = 2\n")
        opening.source_diff.cache_clear()
        one = show(made_up(wandb_home, iterations=1))[0]
        assert "diff.patch" in one.files
        diff = (one.folder / "files" / "diff.patch").read_text()
        assert "-one = 1\n+one = 2\n" in diff
        assert one.run["git"]["commit"] == head.strip()
        monkeypatch.setattr(opening, "LONGEST_DIFF", len(diff) - 1)
        opening.source_diff.cache_clear()
        assert opening.source_diff() == b""
        monkeypatch.setattr(opening, "SOURCE", wandb_home / "cache")
        (wandb_home / ".git").write_text("gitdir: nowhere\n")  # whatever lies around the temporary folder
        opening.source_diff.cache_clear()
        assert opening.source_diff() == b"", "outside git"
    finally:
        opening.source_diff.cache_clear()


# Names -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1000.0, "1000"),
        (5e-7, "5e-7"),
        (1e-5, "1e-5"),
        (0.01, "0.01"),
        (1e6, "1e6"),
        (2.5e-6, "2.5e-6"),
        (1e10, "1e10"),
    ],
)
def test_a_number_is_short(value: float, text: str) -> None:
    assert short(value) == text and float(text) == value


def test_a_name_can_be_read() -> None:
    run = typed("experiment=gemma2_9b_it_sppo", "iter=2", "seed=1")
    assert name_of(run) == "gemma2_9b_it sppo it2 η=1000 lr=5e-7 K=5 s1"
    assert tags_of(run, "eta") == ["sppo", "gemma2_9b_it", "gemma2_9b_it_sppo", "eta", "it2"]
    assert name_of(typed("method=dpo", "method.beta=0.004", "iter=1")).split(" ", 1)[1] == "dpo it1 η=250 lr=1e-5 K=5"


def test_no_name_or_tag_is_longer_than_wandb_lets_it_be() -> None:
    run = typed("model.name=" + "m" * 200, "method.name=" + "n" * 200)
    assert len(name_of(run)) == 128 and {len(tag) for tag in tags_of(run, "s" * 99)} == {64, len("it3")}


@pytest.mark.parametrize("method", ["sppo", "sppo_single", "dpo", "ipo", "wpo", "wpo_clamped"])
def test_eta_is_one_over_beta_whatever_the_method(method: str) -> None:
    run = typed(f"method={method}")
    assert eta(run) == pytest.approx(1 / run.method.beta)


def test_what_looks_like_a_secret_stays_here() -> None:
    told = {"api_key": "abc", "hf_token": "abc", "x": {"Authorization": "abc"}, "max_tokens": 7, "token_budget": "all"}
    cfg = OmegaConf.create({**composed(), "x": {"extra_body": told}})
    point = Point(typed(), [], lambda: cfg)  # pyright: ignore
    found = {k.rpartition("extra_body.")[2]: v for k, v in config_of(point).items() if "extra_body" in k}
    assert found == {"max_tokens": 7, "token_budget": "all"}


def test_the_group_is_what_was_chosen_else_the_sweep_else_the_experiment(tmp_path: Path) -> None:
    story = made_up(tmp_path)
    plain = point_of(story)
    published = dataclasses.replace(plain, run=dataclasses.replace(plain.run, experiment="gemma2_9b_it_sppo"))
    assert group_of(plain, None) == ("made_up", None)
    assert group_of(published, None) == ("gemma2_9b_it_sppo", None)
    note = {"name": "eta", "command": [], "points": [{"folder": "made_up", "overrides": []}]}
    (story.folder.parent / "sweep-1-abcdef").mkdir()
    (story.folder.parent / "sweep-1-abcdef" / "points.json").write_text(json.dumps(note))
    assert group_of(published, None) == ("eta", "eta")
    assert group_of(published, "mine") == ("mine", "eta")


def test_importing_the_mirror_imports_no_wandb() -> None:
    code = "import src.tracking.wandb_runs, sys; sys.exit('wandb' in sys.modules or 'torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
