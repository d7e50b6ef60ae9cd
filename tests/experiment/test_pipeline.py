"""The real command on a tiny model: made once, resumed, swept, the same in every store.

Beside the size, only the model is other than in the default run: a random two-layer Llama.
"""

from __future__ import annotations

import shlex
import signal
from collections import Counter
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from tiny_run import World, call, contents, folders, metric_lines, tiny, typed
from toy_store import tree

from src.experiment.graph import nodes_of
from src.experiment.run_folder import LINKS
from src.kernel.config import Stopped
from src.kernel.record import damage, read_record
from src.kernel.store import Store
from src.launch.compose import build
from src.reporting import report as report_module


def times(place: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in place.rglob("*") if path.is_file()}


def test_everything_planned_is_there_whole_and_linked(finished: World) -> None:
    nodes, links = finished.nodes(), finished.folder / LINKS
    assert {str(path.relative_to(links)): path.resolve() for path in links.glob("*/*")} == {
        node.name: finished.store.path(node).resolve() for node in nodes
    }
    assert all(damage(finished.store.path(node)) == [] for node in nodes)
    assert len(finished.store.artifacts()) == len(nodes) and finished.store.leftovers() == []
    stored = OmegaConf.load(finished.folder / "config.yaml")
    assert build(stored) == typed(*finished.words, *folders(finished.place), "iter=2")  # pyright: ignore


def test_a_second_run_makes_nothing(finished: World, capsys: pytest.CaptureFixture[str]) -> None:
    before = times(finished.place)
    assert finished.run("iter=2", "hardware.devices.row_tokens=77") == 0, "other hardware has no part in it"
    shown = capsys.readouterr().out
    assert f"all {len(finished.store.artifacts())} artifacts are there; nothing to make" in shown
    assert (finished.folder / "summary.txt").read_text() in shown
    assert times(finished.place) == before


def test_one_more_iteration_makes_that_iteration_only(world: World) -> None:
    before, folder = contents(world.store), world.folder
    assert world.run("iter=3") == 0
    after = contents(world.store)
    assert {key: after[key] for key in before} == before and world.folder == folder
    names = {read_record(world.store.root / key)["name"] for key in after.keys() - before.keys()}
    assert {name.split("/")[0] for name in names} == {"it3"}
    assert "| iteration 3 |" in (folder / "report.md").read_text()


def test_fewer_iterations_make_nothing_and_report_what_was_asked_for_also_where_a_first_try_was_stopped(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise Stopped(signal.SIGINT)

    before = contents(world.store)
    with monkeypatch.context() as patch:
        patch.setattr(report_module, "write_report", stop)
        assert world.run("iter=1", "hardware.devices.row_tokens=77") == 130
    assert world.run("iter=1", "hardware.devices.row_tokens=77") == 0
    assert contents(world.store) == before
    files = ("report.md", "config.yaml", "command.txt")
    report, config, command = ((world.folder / name).read_text() for name in files)
    assert "iteration 2" not in report and "iter: 1\n" in config and "row_tokens=77" in command


def test_the_same_command_in_another_store_gives_the_same_bytes(finished: World, llama: Path, tmp_path: Path) -> None:
    other = World(tmp_path, tiny(llama, tmp_path))
    assert other.run("iter=2") == 0
    assert contents(other.store) == contents(finished.store)
    assert metric_lines(other.folder) == metric_lines(finished.folder)


def test_another_experiment_under_the_same_name_is_refused(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert world.run("name=mine", "iter=2") == 0  # all of it is in the store
    folder = world.place / "runs" / "mine"
    before = tree(folder)
    assert world.run("name=mine", "iter=1", "seed=1") == 2
    assert "seed was 0 and is 1" in capsys.readouterr().err and tree(folder) == before
    assert call("plan", *world.words, *folders(world.place), "name=mine", "iter=1", "seed=1") == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("refused as it is: name: ") for line in lines)
    assert any(line == "it1/responses: made again, because seed was 0 and is 1" for line in lines)
    assert tree(folder) == before


@pytest.mark.full
def test_another_experiment_takes_the_folder_over_with_replace(world: World, capsys: pytest.CaptureFixture) -> None:
    """Links and report are of one experiment: what the first had beyond the second's iterations goes, too."""
    folder = world.place / "runs" / "mine"
    assert world.run("name=mine", "iter=2") == 0
    first = (folder / "report.md").read_text()
    assert world.run("name=mine", "iter=1", "seed=1", "replace=true") == 0
    assert "replace=true" not in (folder / "command.txt").read_text()
    run = typed(*world.words, *folders(world.place), "iter=1", "seed=1")
    linked = {str(path.relative_to(folder / LINKS)): path.resolve() for path in (folder / LINKS).glob("*/*")}
    assert linked == {node.name: world.store.path(node) for node in nodes_of(run)}
    assert "iteration 2" not in (folder / "report.md").read_text()
    assert "it1/responses: made again, because seed was 0 and is 1\n" in capsys.readouterr().out
    assert world.run("name=mine", "iter=2", "replace=true") == 0
    assert "made again" not in capsys.readouterr().out, "the store has all of it"
    assert (folder / "report.md").read_text() == first
    assert world.run("name=mine", "iter=1") == 0 == world.run("name=mine", "iter=2", "hardware.devices.row_tokens=2")


# Sweeps ------------------------------------------------------------------------------------------------------------


def test_points_of_a_sweep_share_everything_before_training(llama: Path, tmp_path: Path) -> None:
    (cwd := tmp_path / "cwd").mkdir()
    assert call(*tiny(llama, tmp_path, "iter=1", "method.eta=10,1000", "--multirun"), cwd=cwd) == 0
    assert list(cwd.iterdir()) == []
    once = ["base/policy", "held_out/prompts"]
    once += [f"{scope}/{name}" for scope in ("base", "null") for name in ("answers", "answers_ranking")]
    once += [f"it1/{name}" for name in ("prompts", "responses", "ranking", "pairs", "reference")]
    twice = [f"it1/{name}" for name in ("policy", "answers", "answers_ranking", "evaluation", "divergence")]
    names = Counter(read_record(path)["name"] for path in Store(tmp_path / "store").artifacts())
    assert names == Counter(once + 2 * twice)
    runs = [folder for folder in (tmp_path / "runs").iterdir() if not folder.name.startswith("sweep-")]
    commands = [shlex.split((folder / "command.txt").read_text())[3:] for folder in runs]
    etas = [word for words in commands for word in words if word.startswith("method.eta")]
    assert sorted(etas) == ["method.eta=10", "method.eta=1000"]
    assert {typed(*words).folder.name for words in commands} == {folder.name for folder in runs}
