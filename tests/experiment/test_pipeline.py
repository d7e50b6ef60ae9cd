"""The real command on a tiny model: made once, resumed, swept, the same in every store.

Beside the size, only the model is other than in the default run: a random two-layer Llama.
"""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from tiny_run import PROMPTS, ROOT, K, World, call, contents, folders, metric_lines, tiny, typed

from src.experiment.graph import nodes_of
from src.experiment.run_folder import LINKS
from src.kernel import rows as kernel_rows
from src.kernel.record import damage, read_record
from src.kernel.rows import RANKING, REFERENCE, RESPONSES, read_rows
from src.kernel.store import Store
from src.launch.compose import build
from src.reporting import report as report_module


def times(place: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in place.rglob("*") if path.is_file()}


def names(store: Store) -> Counter[str]:
    return Counter(read_record(path)["name"] for path in store.artifacts())


def test_everything_planned_is_there_whole_and_linked(finished: World) -> None:
    nodes = nodes_of(typed(*finished.words, *folders(finished.place), "iter=2"))
    assert {str(p.relative_to(finished.folder / LINKS)) for p in (finished.folder / LINKS).glob("*/*")} == {
        node.name for node in nodes
    }
    for node in nodes:
        assert finished.artifact(node.name).resolve() == finished.store.path(node).resolve()
        assert damage(finished.store.path(node)) == []
    assert len(list(finished.store.artifacts())) == len(nodes)
    assert finished.store.leftovers() == []


def test_rows_go_through_the_stages_in_one_order(finished: World) -> None:
    for t in (1, 2):
        schemas = {"prompts": kernel_rows.PROMPTS, "responses": RESPONSES, "ranking": RANKING}
        rows = {name: read_rows(finished.artifact(f"it{t}/{name}"), s) for name, s in schemas.items()}
        ids = {name: [row["prompt_id"] for row in some] for name, some in rows.items()}
        assert ids["prompts"] == ids["responses"] == ids["ranking"]
        assert len(ids["prompts"]) == PROMPTS
        assert all(len(row["responses"]) == K for row in rows["responses"])
        assert all(len(row["scores"]) == K for row in rows["ranking"])
        pairs = read_rows(finished.artifact(f"it{t}/reference"), REFERENCE)
        by_id = {row["prompt_id"]: row for row in rows["responses"]}
        for pair in pairs:
            answers = by_id[pair["prompt_id"]]["responses"]
            assert pair["chosen_token_ids"] == answers[pair["chosen_index"]]["token_ids"]


def test_the_run_folder_holds_the_config_that_made_it(finished: World) -> None:
    stored = OmegaConf.load(finished.folder / "config.yaml")
    assert build(stored) == typed(*finished.words, *folders(finished.place), "iter=2")  # pyright: ignore
    assert (finished.folder / "command.txt").read_text().startswith("python -m src.main ")


def test_the_report_says_what_the_evaluation_found(finished: World) -> None:
    report, summary = ((finished.folder / name).read_text() for name in ("report.md", "summary.txt"))
    for t in (1, 2):
        metrics = finished.metrics(f"it{t}/evaluation")
        cells = [f"{metrics[k]:.3f} [{metrics[k + '_low']:.3f}, {metrics[k + '_high']:.3f}]"
                 for k in ("win_over_base", "win_over_previous")]  # fmt: skip
        assert f"| iteration {t} | {cells[0]} | {cells[1]} |" in report
    assert finished.metrics("it1/evaluation")["null_win"] == finished.metrics("it2/evaluation")["null_win"]
    assert f"{finished.metrics('it2/divergence')['kl_per_token']:.4f}" in report
    pictures = re.findall(r"\]\((plots/\w+\.png)\)", report)
    assert len(pictures) == len(set(pictures)) >= 4
    assert all((finished.folder / picture).is_file() for picture in pictures)
    assert report.splitlines()[2] in summary.splitlines()  # the headline


def test_a_second_run_makes_nothing(finished: World, capsys: pytest.CaptureFixture[str]) -> None:
    before = times(finished.place)
    assert finished.run("iter=2", "hardware.devices.row_tokens=77") == 0, "other hardware has no part in it"
    shown = capsys.readouterr().out
    assert f"all {len(list(finished.store.artifacts()))} artifacts are there; nothing to make" in shown
    assert (finished.folder / "summary.txt").read_text() in shown
    assert times(finished.place) == before


def test_one_more_iteration_makes_that_iteration_only(world: World) -> None:
    before, folder = contents(world.store), world.folder
    assert world.run("iter=3") == 0
    assert world.folder == folder
    after = contents(world.store)
    made = {key: after[key] for key in after.keys() - before.keys()}
    assert {key: after[key] for key in before} == before
    assert {read_record(world.store.root / key)["name"].split("/")[0] for key in made} == {"it3"}
    assert "| iteration 3 |" in (folder / "report.md").read_text()


def test_fewer_iterations_make_nothing_and_report_what_was_asked_for(world: World) -> None:
    before = contents(world.store)
    assert world.run("iter=1", "hardware.devices.row_tokens=77") == 0
    assert contents(world.store) == before
    report, config, command = (
        (world.folder / name).read_text() for name in ("report.md", "config.yaml", "command.txt")
    )
    assert "iteration 2" not in report and "iter: 1\n" in config and "row_tokens=77" in command


def test_the_same_command_in_another_store_gives_the_same_bytes(finished: World, llama: Path, tmp_path: Path) -> None:
    other = World(tmp_path, tiny(llama, tmp_path))
    assert other.run("iter=2") == 0
    assert contents(other.store) == contents(finished.store)
    assert metric_lines(other.folder) == metric_lines(finished.folder)


def test_a_run_stopped_before_its_report_writes_it_when_started_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(report_module, "write_report", stop)
        assert world.run("iter=1") == 130
    assert world.run("iter=1") == 0
    assert "| iteration 2 |" not in (world.folder / "report.md").read_text()


@pytest.mark.full
def test_another_experiment_under_the_same_name_takes_the_folder_over(world: World) -> None:
    """Links and report are of one experiment: what the first had beyond the second's iterations goes, too."""
    folder = world.place / "runs" / "mine"
    assert world.run("name=mine", "iter=2") == 0  # all of it is kept in the store
    first = (folder / "report.md").read_text()
    assert world.run("name=mine", "iter=1", "seed=1") == 0
    run = typed(*world.words, *folders(world.place), "iter=1", "seed=1")
    linked = {str(p.relative_to(folder / LINKS)): p.resolve() for p in (folder / LINKS).glob("*/*")}
    assert linked == {node.name: world.store.path(node) for node in nodes_of(run)}
    assert "iteration 2" not in (folder / "report.md").read_text()
    assert world.run("name=mine", "iter=2") == 0
    assert (folder / "report.md").read_text() == first


@pytest.mark.full
def test_prompts_that_changed_under_the_same_config_are_another_report(world: World) -> None:
    held_out = world.place / "held_out.jsonl"
    words, rows = ["name=mine", "iter=1", f"data.held_out_file={held_out}"], held_out.read_text()
    report = world.place / "runs" / "mine" / "report.md"
    assert world.run(*words) == 0
    first = report.read_text()
    held_out.write_text(rows.replace("what is it", "what was it"))
    assert world.run(*words) == 0
    assert "what was it" in report.read_text()
    held_out.write_text(rows)
    assert world.run(*words) == 0
    assert report.read_text() == first


# Sweeps ------------------------------------------------------------------------------------------------------------


def test_points_of_a_sweep_share_everything_before_training(llama: Path, tmp_path: Path) -> None:
    (cwd := tmp_path / "cwd").mkdir()
    assert call(*tiny(llama, tmp_path, "iter=1", "method.eta=10,1000", "--multirun"), cwd=cwd) == 0
    assert list(cwd.iterdir()) == []
    once = ["base/answers", "base/answers_ranking", "null/answers", "null/answers_ranking", "held_out/prompts"]
    once += [f"it1/{name}" for name in ("prompts", "responses", "ranking", "pairs", "reference")]
    twice = [f"it1/{name}" for name in ("policy", "answers", "answers_ranking", "evaluation", "divergence")]
    base = {"base/policy": 1}
    assert names(Store(tmp_path / "store")) == Counter(dict.fromkeys(once, 1) | dict.fromkeys(twice, 2) | base)
    folders = [folder for folder in (tmp_path / "runs").iterdir() if not folder.name.startswith("sweep-")]
    asked = [shlex.split((folder / "command.txt").read_text())[3:] for folder in folders]
    assert len(folders) == 2
    assert sorted(word for words in asked for word in words if word.startswith("method.eta")) == [
        "method.eta=10",
        "method.eta=1000",
    ]
    assert {typed(*words).folder.name for words in asked} == {folder.name for folder in folders}


# Kills -------------------------------------------------------------------------------------------------------------


@pytest.mark.faults
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_run_asked_to_stop_says_how_it_goes_on(number: signal.Signals, finished: World, tmp_path: Path) -> None:
    words = [sys.executable, "-u", "-m", "src.main", *finished.words, *folders(tmp_path), "iter=1"]
    with subprocess.Popen(words, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert any("it1/responses" in line for line in process.stdout), "it ended before it was asked to"
        process.send_signal(number)
        _, said = process.communicate(timeout=100)
    assert process.returncode == 128 + number
    # A library's thread that was just being started may leave half a line before it.
    assert said.splitlines()[-1].endswith(f"stopped by {number.name}; the same command goes on from here")
    assert "Traceback" not in said
