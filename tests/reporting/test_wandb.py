"""W&B has every row once, whatever is killed or started again; what fails is one line; `sync` shows what is lacking.

W&B's server is made up here (tests/lib/fake_wandb.py); its real library against a stand-in of its server:
tests/whole/test_wandb_online.py.
"""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_wandb import Killed, Server, faked
from made_up_run import STEPS, MadeUp, made_up, story_of, under_way
from tiny_run import typed

from src.experiment import graph
from src.kernel.artifact import Node
from src.kernel.config import Stopped, UserError
from src.kernel.record import RECORD, git_commit
from src.kernel.rows import Row
from src.launch.compose import read_point
from src.reporting import wandb as module
from src.reporting.metrics_file import METRICS, write_metrics
from src.reporting.wandb import Guarded, Off, Runs, WandB, experiment_of, run_id, sync
from src.reporting.wandb_tables import FAMILIES, family_of

TRACKING = WandB(project="tests", entity=None, group=None)


@pytest.fixture
def server() -> Iterator[Server]:
    with faked(server := Server()):
        yield server


@pytest.fixture
def story(tmp_path: Path) -> MadeUp:
    return made_up(tmp_path)


def runs_of(story: MadeUp) -> Runs:
    """The W&B runs as a process of its own would have them."""
    return Runs(story.point, TRACKING)


def experiment(nodes: list[Node]) -> str:
    return experiment_of({node.name: node.key for node in nodes})


def ids(story: MadeUp) -> dict[str, str]:
    return {family: run_id(story.folder, family, experiment(story.nodes)) for family in FAMILIES}


def carry_out(runs: Runs, story: MadeUp) -> None:
    """As a run does whose artifacts are all there: a stage at a time, then the report."""
    for node in story.nodes:
        runs.begin(node)
        runs.update()
    runs.show_all()
    runs.close(None)


def check_each_row_once(server: Server, story: MadeUp) -> None:
    """Every row of metrics.jsonl is a step of one W&B run, in its order."""
    write_metrics(story.nodes, story.store, story.folder)
    rows = [json.loads(line) for line in (story.folder / METRICS).read_text().splitlines()]
    logged: dict[tuple[str, int | None], Row] = {}
    for family, its in ids(story).items():
        steps = [step for step, _ in server.rows.get(its, [])]
        assert steps == list(range(len(steps))), family
        logged |= {(row["artifact"], row.get("train/step")): row for _, row in server.rows.get(its, [])}
    assert sum(map(len, server.rows.values())) == len(rows) == len(logged)
    for row in rows:
        plain = {key: value for key, value in row.items() if not key.endswith("_histogram")}
        assert plain.items() <= logged[row["artifact"], row.get("train/step")].items()


# Every row once ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_flight", [0, 2])
def test_a_run_that_is_killed_at_any_row_and_started_again_logs_each_step_once(
    story: MadeUp, server: Server, in_flight: int
) -> None:
    """Rows that the killed process had not sent yet come again; then nothing is left, and a start adds nothing."""
    server.in_flight = in_flight
    for alive in range(2 * (STEPS + 4)):
        server.rows.clear()
        server.kill_after = alive
        killed = runs_of(story)
        with pytest.raises(Killed):
            carry_out(killed, story)
        killed.lock.release()  # as the kernel does
        server.kill_after = None
        for _ in range(2):
            carry_out(runs_of(story), story)
            check_each_row_once(server, story)


def test_steps_are_logged_while_they_are_made_and_those_made_again_after_a_kill_are_no_new_ones(
    story: MadeUp, server: Server
) -> None:
    for made in ((1, 3), (2, 2), (3, 4)):
        process = runs_of(story)
        process.begin(story.node("it2/policy"))
        for steps in made:
            under_way(story, steps)
            process.update()
        process.close(Stopped(signal.SIGTERM))
    rows = server.rows[ids(story)["train"]]
    assert [(step, row["train/total_step"]) for step, row in rows] == [(k, k + 1) for k in range(STEPS + 4)]
    assert server.ends == [143] * 3 and list(server.rows) == [ids(story)["train"]]
    assert list((story.folder / "wandb").glob("*run*")) == [], "W&B has it, the folder need not"


def test_two_processes_do_not_show_one_family_and_the_second_one_shows_the_others(
    story: MadeUp, server: Server
) -> None:
    """They may be `sync` while a run goes on, or two SLURM jobs."""
    first, second = runs_of(story), runs_of(story)
    first.begin(story.node("it2/policy"))
    second.show_all()
    second.finish()
    assert server.rows[ids(story)["train"]] == [] and server.rows[ids(story)["rank"]]
    first.update()
    first.close(None)
    check_each_row_once(server, story)


def test_what_an_iteration_makes_belongs_to_one_family_and_what_comes_before_to_none() -> None:
    run = typed("iter=2", "ranker=pairrm", "benchmark=[mt_bench,win_matrix]")
    families = {node.name: family_of(node) for node in graph.nodes_of(run)}
    assert not any(name.startswith("it") for name, family in families.items() if family is None)
    assert families["held_out/prompts"] is None and families["it1/pairs"] == "rank"
    assert set(families.values()) == {None, *FAMILIES, *run.benchmark}


def test_the_id_follows_from_folder_family_and_experiment(story: MadeUp, tmp_path: Path) -> None:
    """More iterations and benchmarks leave the experiment as it is; other settings do not."""
    longer, other = story_of(tmp_path, "benchmark=mt_bench", iterations=3), story_of(tmp_path, "method.eta=7")
    assert experiment(longer.nodes) == experiment(story.nodes) != experiment(other.nodes)
    assert len(set(ids(story).values())) == len(FAMILIES)


# What W&B is told -----------------------------------------------------------------------------------------------------


def test_config_and_summary_are_columns_and_runs_have_a_name_a_group_and_a_job_type(
    story: MadeUp, server: Server
) -> None:
    carry_out(runs_of(story), story)
    columns = {"eta": 1000, "beta": 0.001, "lr": 1e-5, "K": 3, "iter": 2, "method": "sppo", "model": "tiny", "seed": 0}
    columns |= {"ranker": "embedded", "estimator": "pairwise", "hardware": "cpu", "commit": git_commit()}
    for words in server.opened:
        assert (columns | {"train.batch_pairs": 2}).items() <= words["config"].items()
        assert not any(isinstance(value, dict) for value in words["config"].values())
        assert (words["name"], words["group"]) == ("tiny sppo it2 η=1000 lr=1e-05 K=3 s0", story.folder.name)
        assert sorted(words["tags"]) == ["sppo", "tiny"]
    assert {words["job_type"]: words["id"] for words in server.opened} == ids(story)
    summary = dict.fromkeys(("win_rate", "best_win_rate", "hard_win_rate", "lc_win_rate"), 0.6)
    summary |= {"null_win": 0.5, "tokens": 0.3, "kl_per_token": 0.25}
    assert summary.items() <= server.summaries[ids(story)["evaluate"]].items()


def test_a_family_made_what_its_stages_wrote_and_used_what_they_read(story: MadeUp, server: Server) -> None:
    """An artifact has one digest whoever logs it; nothing big is read or copied."""
    folder, train = story.path("it1/pairs"), ids(story)["train"]
    files = {name: {"bytes": 7, "sha256": "0" * 64} for name in ("metrics.json", "rows.parquet")}
    (folder / RECORD).write_text(json.dumps({"files": files}))
    carry_out(runs_of(story), story)
    named = {node.key: node.name for node in story.nodes}
    lineage = {(how, named[artifact.metadata["key"]]) for how, its, artifact, _ in server.artifacts if its == train}
    assert lineage == {
        *(("made", f"it{t}/{name}") for t in (1, 2) for name in ("reference", "policy")),
        *(("used", name) for name in ("base/policy", "it1/pairs", "it2/pairs")),
    }
    made, used = (one for *_, one, _ in server.artifacts if one.metadata["key"] == story.node("it1/pairs").key)
    references = {name: entry.ref for name, entry in made.manifest.entries.items()}
    rows = (folder.resolve() / "rows.parquet").as_uri()
    assert references == {"record.json": None, "metrics.json": None, "rows.parquet": rows}
    assert made.digest == used.digest


# Failures -------------------------------------------------------------------------------------------------------------


def test_without_a_network_one_line_is_said_and_nothing_stops(
    story: MadeUp, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    """A family that is open when the network goes is finished in vain; at the report W&B is back and lacks nothing."""
    mirror = Guarded(runs_of(story))
    mirror.begin(story.node("it1/policy"))
    server.gone = True
    for node in story.nodes:
        mirror.begin(node)
        mirror.update()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("tracking: W&B failed (Timed out") and "`python -m src.main sync` shows them later" in line
    server.gone = False
    mirror.report()
    mirror.close()
    check_each_row_once(server, story)


def test_a_run_that_fails_is_shown_as_failed_and_one_that_is_preempted_as_such(story: MadeUp, server: Server) -> None:
    """SIGUSR1 is SLURM's warning: W&B gives a trial to the next agent. SIGTERM may be W&B's own stop."""
    for error in (ValueError(), Stopped(signal.SIGTERM), Stopped(signal.SIGUSR1)):
        mirror = Guarded(runs_of(story))
        mirror.begin(story.node("it1/pairs"))
        try:
            raise error
        except BaseException:
            mirror.close()
    assert server.ends == [1, 143, "preempting", 128 + signal.SIGUSR1]


def test_a_key_is_found_in_the_environment_or_in_netrc_and_wandb_mode_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a key, or with files that cannot be read, the mirror is off."""
    login, point = b"machine wandb.example\n  login user\n  password secret\n", story_of(tmp_path).point
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    online = [("k", b"", "online"), ("", login, "online")]
    off = [("", b"", "online"), ("", b"\xff", "online"), ("k", b"", "offline")]
    for key, netrc, mode in online + off:
        (tmp_path / "netrc").write_bytes(netrc)
        monkeypatch.setenv("WANDB_API_KEY", key)
        monkeypatch.setenv("WANDB_MODE", mode)
        kind = Guarded if (key, netrc, mode) in online else Off
        assert isinstance(TRACKING.open(point), kind), (key, netrc, mode)


# Later ----------------------------------------------------------------------------------------------------------------


def test_sync_shows_what_w_and_b_lacks_and_leaves_out_what_it_cannot_show(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The point that it reads from the folder is the run's own, whatever the command's words were."""
    with pytest.raises(UserError, match="^sync: not logged in to W&B"):
        sync([], read_point)
    monkeypatch.setattr(module, "has_key", lambda: True)
    story = made_up(tmp_path, words=["tracking=wandb", "tracking.project=theirs"])
    off = made_up(tmp_path / "off")
    for each in (story, off):
        (each.folder / "config.yaml").write_text(each.point.settings)
    shutil.copytree(story.folder, moved := story.folder.with_name("moved"))
    for _ in range(2):
        with pytest.raises(UserError, match="^sync: 2 run folders left out, the reasons are above"):
            sync([f"runs={off.folder},{moved},{story.folder}"], read_point)
        check_each_row_once(server, story)
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == f"{off.folder}: left out: its tracking= is not wandb"
        assert lines[1].startswith(f"{moved}: left out: its config.yaml is that of {story.folder};")
        assert lines[2] == f"{story.folder}: shown"
    assert {words["project"] for words in server.opened} == {"theirs"}
