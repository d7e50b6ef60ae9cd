"""W&B has every row once, whatever is killed or started again; what fails is said once; `sync` shows what is lacking.

W&B's server is made up here (tests/lib/fake_wandb.py); its real files: tests/whole/test_wandb_file.py, its real library
against a stand-in of its server: tests/whole/test_wandb_online.py.
"""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import wandb
from fake_wandb import FakeRun, Killed, Server, faked
from made_up_run import STEPS, MadeUp, made_up, under_way
from tiny_run import typed
from wandb_files import point_of

from src.experiment import graph
from src.experiment.point import Point
from src.experiment.run_folder import link
from src.kernel.artifact import Node
from src.kernel.config import Stopped, UserError
from src.kernel.rows import Row
from src.launch.compose import read_point
from src.reporting import wandb as module
from src.reporting.metrics_file import METRICS, in_order, write_metrics
from src.reporting.wandb import Guarded, Off, WandB, mode_of, sync
from src.reporting.wandb import server as address
from src.reporting.wandb_runs import FAMILIES, TRIAL, Runs, experiment_in, experiment_of, family_of, nodes_of, run_id
from src.reporting.wandb_tables import CARD


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server()
    with faked(found):
        yield found


@pytest.fixture
def story(tmp_path: Path) -> MadeUp:
    return made_up(tmp_path)


composed = dict[Path, Point]()


def runs_of(story: MadeUp) -> Runs:
    """The W&B runs as a process of its own would have them."""
    if story.folder not in composed:
        composed[story.folder] = point_of(story)
    return Runs(composed[story.folder], "online", "tests", None, None)


def ids(story: MadeUp) -> dict[str, str]:
    return {family: run_id(story.folder, family, experiment_of(story.nodes)) for family in FAMILIES}


def carry_out(runs: Runs, story: MadeUp) -> None:
    """As a run does whose artifacts are all there: a stage at a time, then the report."""
    for node in story.nodes:
        runs.begin(node)
        runs.update()
    runs.report()
    runs.close(None)


def metrics(story: MadeUp) -> list[Row]:
    write_metrics(story.nodes, story.store, story.folder)
    return [json.loads(line) for line in (story.folder / METRICS).read_text().splitlines()]


def each_row_once(server: Server, story: MadeUp) -> None:
    """Every row of metrics.jsonl is a step of one W&B run, in its order."""
    rows, shown = metrics(story), list[Row]()
    for family, its in ids(story).items():
        steps = [step for step, _ in server.rows.get(its, [])]
        assert steps == list(range(len(steps))), family
        shown += [row for _, row in server.rows.get(its, [])]
    assert len(shown) == len(rows)
    found = {(row["artifact"], row.get("train/step")): row for row in shown}
    for row in rows:
        its = found[row["artifact"], row.get("train/step")]
        assert {key: its[key] for key in row if not key.endswith("_histogram")} == {
            key: value for key, value in row.items() if not key.endswith("_histogram")
        }


# Every row once ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_flight", [0, 2])
def test_a_run_that_is_killed_at_any_row_and_started_again_logs_each_step_once(
    story: MadeUp, server: Server, in_flight: int
) -> None:
    """Rows that the killed process had not sent yet come again; then nothing is left, and a start adds nothing."""
    server.in_flight = in_flight
    for alive in range(len(metrics(story))):
        server.rows.clear()
        server.kill_after = alive
        killed = runs_of(story)
        with pytest.raises(Killed):
            carry_out(killed, story)
        killed.lock.release()  # as the kernel does
        server.kill_after = None
        for _ in range(2):
            carry_out(runs_of(story), story)
            each_row_once(server, story)


def test_steps_are_logged_while_they_are_made_and_those_made_again_after_a_kill_are_no_new_ones(
    story: MadeUp, server: Server
) -> None:
    (policy,) = [node for node in story.nodes if node.name == "it2/policy"]
    for made in ((1, 3), (2, 2), (3, 4)):
        process = runs_of(story)
        process.begin(policy)
        for steps in made:
            under_way(story, steps)
            process.update()
        process.close(Stopped(signal.SIGTERM))
    rows = server.rows[ids(story)["train"]]
    assert [(step, row["train/total_step"]) for step, row in rows] == [(k, k + 1) for k in range(STEPS + 4)]
    assert server.codes == [143] * 3 and list(server.rows) == [ids(story)["train"]]


def test_two_processes_do_not_show_one_family_and_the_second_one_shows_the_others(
    story: MadeUp, server: Server
) -> None:
    """`sync` while a run goes on, say; or two SLURM jobs."""
    first, second = runs_of(story), runs_of(story)
    first.begin(next(node for node in story.nodes if node.name == "it2/policy"))
    assert second.show_all() == ["train"]
    second.finish()
    first.update()
    first.close(None)
    each_row_once(server, story)


def test_what_an_iteration_makes_belongs_to_one_family_and_what_comes_before_to_none() -> None:
    for words in (
        [],
        ["ranker=pairrm"],
        ["+answers@data.answers.theirs=endpoint"],
        ["benchmark=[mt_bench,win_matrix]"],
    ):
        run = typed("iter=2", *words)
        nodes, families = in_order(graph.nodes_of(run)), (*FAMILIES, *run.benchmark)
        without = {node.name for node in nodes if family_of(node.name) is None}
        assert not any(name.startswith("it") for name in without), words
        assert without >= {"held_out/prompts", "base/policy"}, words
        placed = {node.name: [f for f in families if node in nodes_of(f, nodes)] for node in nodes}
        assert all(len(found) == (name not in without) for name, found in placed.items()), words
        assert nodes_of(TRIAL, nodes) == [node for node in nodes if node.name not in without], words


def test_the_id_follows_from_folder_family_and_experiment_and_the_folders_links_tell_it_too(story: MadeUp) -> None:
    """More iterations and benchmarks leave the experiment as it is; other settings do not."""
    for node in story.nodes:
        link(story.folder, node, story.store)
    link(story.folder, Node("it1/mt_bench/scores", story.nodes[-1].stage), story.store)
    assert experiment_in(story.folder) == experiment_of(story.nodes)
    more = point_of(story, "iter=3", "benchmark=mt_bench").nodes
    assert experiment_of(more) == experiment_of(story.nodes)
    assert experiment_of(point_of(story, "method.eta=7").nodes) != experiment_of(story.nodes)
    assert len(set(ids(story).values())) == len(FAMILIES)


# What W&B is told -----------------------------------------------------------------------------------------------------


def test_a_family_made_what_its_stages_wrote_and_used_what_they_read(story: MadeUp, server: Server) -> None:
    """Names, columns, tables and plots: tests/whole/test_wandb_file.py."""
    carry_out(runs_of(story), story)

    def keys(told: list[tuple[wandb.Artifact, list[str]]]) -> set[str]:
        assert all(aliases == ["latest", artifact.metadata["key"]] for artifact, aliases in told)
        return {artifact.metadata["key"] for artifact, _ in told}

    nodes, train = {node.name: node for node in story.nodes}, ids(story)["train"]
    made, used = keys(server.made[train]), keys(server.used[train])
    assert made == {nodes[f"it{t}/{name}"].key for t in (1, 2) for name in ("reference", "policy")}
    assert used == {nodes[name].key for name in ("base/policy", "it1/pairs", "it2/pairs")}


def test_an_artifact_has_one_digest_whoever_logs_it(story: MadeUp, server: Server) -> None:
    """As output or as input, before its card was written or after; nothing big is read or copied."""
    (pairs,) = [node for node in story.nodes if node.name == "it1/pairs"]
    folder = story.store.path(pairs)
    (folder / "record.json").write_text(
        json.dumps({"files": {name: {"bytes": 7, "sha256": "0" * 64} for name in ("metrics.json", "rows.parquet")}})
    )
    for _ in range(2):
        runs = runs_of(story)
        runs.show_all()
        runs.finish()
        (folder / CARD).write_text("# A card, written later")
    told = [one for some in (server.made, server.used) for artifacts in some.values() for one, _ in artifacts]
    its = [one for one in told if one.metadata["key"] == pairs.key]
    assert len({one.digest for one in its}) == 1 and len(its) == 4
    assert {one.description for one in its} == {None, "# A card, written later"}
    entries = its[0].manifest.entries
    assert {name: entry.ref for name, entry in entries.items()} == {
        "record.json": None,
        "metrics.json": None,
        "rows.parquet": (folder / "rows.parquet").resolve().as_uri(),
    }


# Failures -------------------------------------------------------------------------------------------------------------


def test_without_a_network_one_line_is_said_and_nothing_stops(
    story: MadeUp, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    """A family that is open when the network goes is finished in vain; at the report W&B is back and lacks nothing."""
    mirror = Guarded(runs_of(story))
    mirror.begin(next(node for node in story.nodes if node.name == "it1/policy"))
    server.gone = True
    for node in story.nodes:
        mirror.begin(node)
        mirror.update()
    said = "tracking: W&B failed (Timed out finishing run.); metrics.jsonl has every row, and `python -m src.main sync`"
    assert capsys.readouterr().err == f"{said} shows them later\n"
    server.gone = False
    mirror.report()
    mirror.close()
    each_row_once(server, story)
    other, server.gone = Guarded(runs_of(made_up(story.folder.parents[1] / "other"))), True
    other.report()
    other.close()
    assert "W&B failed (no route to W&B);" in capsys.readouterr().err


def test_a_run_that_fails_is_shown_as_failed_and_one_that_is_preempted_as_such(
    story: MadeUp, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGUSR1 is SLURM's warning: W&B gives a trial to the next agent. SIGTERM may be W&B's own stop."""
    marked = list[int]()
    monkeypatch.setattr(FakeRun, "mark_preempting", lambda _: marked.append(len(server.codes)), raising=False)
    for error in (None, ValueError(), Stopped(signal.SIGTERM), Stopped(signal.SIGUSR1)):
        mirror = Guarded(runs_of(story))
        mirror.begin(next(node for node in story.nodes if node.name == "it1/pairs"))
        try:
            if error:
                raise error
        except BaseException:
            mirror.close()
        else:
            mirror.close()
    assert server.codes == [0, 1, 143, 128 + signal.SIGUSR1] and marked == [3]


def test_a_key_is_found_in_the_environment_or_in_netrc_and_wandb_mode_wins(
    story: MadeUp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where W&B is disabled, or would wait for a key to be typed, the mirror is off."""
    for name in ("WANDB_BASE_URL", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for key, password, expected in (("k", "", "online"), ("", "secret", "online"), ("", "", "disabled")):
        monkeypatch.setenv("WANDB_API_KEY", key)
        login = f"machine {address().partition('//')[2]}\n  login user\n  password {password}\n" if password else ""
        (tmp_path / "netrc").write_text(login)
        assert (mode_of("auto"), mode_of("offline")) == (expected, "offline")
    mirror = WandB(project="p", entity=None, mode="online", group=None).open(point_of(story))
    assert isinstance(mirror, Off) and "tracking.mode: online wants a key of W&B;" in capsys.readouterr().err
    monkeypatch.setenv("WANDB_MODE", "disabled")
    point = point_of(story, "tracking=wandb")
    assert mode_of("auto") == "disabled" and isinstance(point.tracking.open(point), Off)
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert isinstance(point.tracking.open(point), Guarded)


def test_settings_that_w_and_b_refuses_are_one_line_and_end_nothing(
    story: MadeUp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    point = point_of(story, "tracking=wandb")
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    (tmp_path / "netrc").write_bytes(b"\xff\xfe")
    cases = {"the netrc file is no text": {}, "WANDB_MODE: banana is none of": {"WANDB_MODE": "banana"}}
    for said, variables in (cases | {"W&B's settings: silent": {"WANDB_SILENT": "banana"}}).items():
        with monkeypatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            wandb.teardown()  # its settings are read once a process
            assert isinstance(point.tracking.open(point), Off)
        (line,) = capsys.readouterr().err.splitlines()
        assert said in line and line.startswith("tracking: ")


# Later ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def logged_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "k")
    monkeypatch.setattr(module, "reachable", lambda address: True)


def write_config(point: Point) -> None:
    (point.folder / "config.yaml").write_text(point.settings)


@pytest.mark.usefixtures("logged_in")
def test_sync_shows_what_w_and_b_lacks_and_a_second_time_nothing(
    story: MadeUp, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    """The point that it reads from the folder is the run's own, whatever the command's words were."""
    point = point_of(story, "tracking=wandb", "tracking.mode=offline", "tracking.project=theirs")
    write_config(point)
    assert [node.key for node in read_point(point.folder).nodes] == [node.key for node in story.nodes]
    for _ in range(2):
        assert sync([f"runs={story.folder.parent}/*"], read_point) == 0
        each_row_once(server, story)
    assert {words["project"] for words in server.opened} == {"theirs"}
    assert capsys.readouterr().out == f"{story.folder}: shown\n" * 2
    assert list((story.folder / "wandb").glob("*run*")) == [], "W&B has it, the folder need not"


@pytest.mark.usefixtures("logged_in")
def test_sync_leaves_out_what_it_cannot_show_and_says_why(
    story: MadeUp, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_config(point_of(story, "tracking=wandb"))
    off = made_up(tmp_path / "off")
    write_config(point_of(off))
    moved = story.folder.with_name("moved")
    shutil.copytree(story.folder, moved)
    with pytest.raises(UserError, match="^sync: 2 run folders left out, the reasons are above"):
        sync([f"runs={off.folder},{moved},{story.folder}"], read_point)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{off.folder}: left out: its tracking= is not wandb"
    assert lines[1].startswith(f"{moved}: left out: its config.yaml is that of {story.folder};")
    assert lines[2] == f"{story.folder}: shown"


def test_sync_wants_a_key_a_server_and_one_word(story: MadeUp, monkeypatch: pytest.MonkeyPatch) -> None:
    write_config(point_of(story, "tracking=wandb"))
    words = [f"runs={story.folder}"]
    for wrong in (["again=true"], [*words, *words]):
        with pytest.raises(UserError, match=f"^sync: {wrong[-1]} is not one runs="):
            sync(wrong, read_point)
    monkeypatch.setattr(module, "has_key", lambda: False)
    with pytest.raises(UserError, match="^sync: not logged in to W&B; `wandb login`"):
        sync(words, read_point)
    monkeypatch.setattr(module, "has_key", lambda: True)
    monkeypatch.setattr(module, "reachable", lambda address: False)
    with pytest.raises(UserError, match="does not answer; the same command goes on later"):
        sync(words, read_point)
