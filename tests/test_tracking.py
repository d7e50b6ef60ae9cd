"""metrics.jsonl follows from the artifacts; W&B is a mirror of it that doubles nothing and loses nothing.

Run: python -m pytest -q tests/test_tracking.py
W&B works offline here; its own files are read back without its own reader.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from made_up_run import STEPS, made_up
from tiny_run import call, tiny

from src.artifact import WORK
from src.records import Row
from src.tracking import METRICS, Off, Tracking, WandB, _mode, metric_rows, run_id, write_metrics

OFFLINE = WandB(project="tests", entity=None, mode="offline")
SETTINGS = {"seed": 3, "method": {"eta": 1000.0}}


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


def test_what_no_iteration_owns_has_no_metrics(tmp_path: Path) -> None:
    story = made_up(tmp_path)
    outside = [node for node in story.nodes if not node.name.startswith("it")]
    assert {node.name for node in outside} >= {"base/policy", "base/answers", "held_out/prompts"}
    assert [metric_rows(node, story.store.path(node)) for node in outside] == [[]] * len(outside)


def test_an_id_follows_the_place_of_the_run(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    places = (tmp_path, tmp_path / "link", tmp_path / "x" / "..")
    assert len({run_id(place) for place in places}) == 1
    assert len({run_id(tmp_path), run_id(tmp_path / "x"), run_id(tmp_path, 1)}) == 3


# Off ---------------------------------------------------------------------------------------------------------------


def test_off_is_a_mirror_that_shows_nothing(tmp_path: Path) -> None:
    assert isinstance(Off(), Tracking) and isinstance(OFFLINE, Tracking)
    mirror = Off().open(tmp_path, SETTINGS)
    mirror.update()
    mirror.close()
    assert list(tmp_path.iterdir()) == []


# W&B ---------------------------------------------------------------------------------------------------------------


class Recorded(NamedTuple):
    """What one W&B file holds."""

    run_id: str
    project: str
    config: dict[str, Any]
    history: list[Row]


def logged(path: Path) -> Iterator[bytes]:
    """Records of a file in LevelDB's log format: 7 bytes of head, blocks of 32 KiB of (crc, length, type, data)."""
    data, position, parts = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, length, part = struct.unpack("<IHB", data[position : position + 7])
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        if part in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def recorded(path: Path) -> Recorded:
    from wandb.proto import wandb_internal_pb2 as proto

    found = Recorded("", "", {}, [])
    for data in logged(path):
        record: Any = proto.Record()  # pyright: ignore[reportAttributeAccessIssue]
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "run":
            found = found._replace(run_id=record.run.run_id, project=record.run.project)
            found.config.update({u.key: json.loads(u.value_json) for u in record.run.config.update})
        if record.WhichOneof("record_type") == "history":
            items = {".".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
            found.history.append(items)
    return found


@pytest.fixture
def wandb_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No network, and everything W&B writes beside the run goes here."""
    for name, folder in {"WANDB_CACHE_DIR": "cache", "WANDB_CONFIG_DIR": "config", "WANDB_DATA_DIR": "data"}.items():
        monkeypatch.setenv(name, str(tmp_path / folder))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    return tmp_path


def files(folder: Path) -> list[Path]:
    import wandb

    wandb.teardown()  # the file is written by another process; it is whole when that has ended
    return sorted(folder.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime_ns)


def written(folder: Path, rows: list[Row]) -> None:
    folder.mkdir(exist_ok=True)
    (folder / METRICS).write_text("".join(json.dumps(row) + "\n" for row in rows))


ROWS: list[Row] = [{"iteration": 1, "artifact": "policy/0a", "train/loss": i + 0.5, "train/step": i} for i in range(7)]


def test_a_run_that_goes_on_is_the_same_run_without_a_doubled_step(wandb_home: Path) -> None:
    """Three rows in two updates, then, as a process of its own would, four more."""
    folder = wandb_home / "some_run"
    for before, after in ((1, 3), (3, 7)):
        mirror = OFFLINE.open(folder, SETTINGS)
        for count in (before, after, after):
            written(folder, ROWS[:count])
            mirror.update()
        mirror.close()
        found = recorded(files(folder)[-1])
        assert (found.run_id, found.project) == (run_id(folder), "tests")
        assert {name: found.config[name] for name in SETTINGS} == SETTINGS
    first, second = (recorded(path).history for path in files(folder))
    assert [row["_step"] for row in first] == [0, 1, 2]
    assert [row["_step"] for row in second] == [3, 4, 5, 6]
    shown = [{name: row[name] for name in ROWS[0]} for row in first + second]
    assert shown == ROWS


def test_a_run_with_nothing_new_opens_no_run(wandb_home: Path) -> None:
    folder = wandb_home / "some_run"
    written(folder, ROWS)
    for _ in range(2):
        mirror = OFFLINE.open(folder, SETTINGS)
        mirror.update()
        mirror.close()
    assert len(files(folder)) == 1


def test_another_experiment_in_the_same_folder_is_another_run(wandb_home: Path) -> None:
    """Another eta: rows that look alike, of another artifact. Fewer rows, as after a lost one: the same run still."""
    folder = wandb_home / "some_run"
    other = [row | {"artifact": "policy/0b"} for row in ROWS]
    for rows in (ROWS[:3], ROWS[:1], ROWS[:4], other[:2], other[:3]):
        written(folder, rows)
        mirror = OFFLINE.open(folder, SETTINGS)
        mirror.update()
        mirror.close()
    found = [recorded(path) for path in files(folder)]
    assert [each.run_id for each in found] == [run_id(folder, number) for number in (0, 0, 1, 1)]
    assert [[row["_step"] for row in each.history] for each in found] == [[0, 1, 2], [3], [0, 1], [2]]


def test_a_step_made_again_after_a_kill_is_the_step_that_was_shown(wandb_home: Path) -> None:
    """Other last digits at another speed, and fewer rows for a while: the checkpoint was older than the last row."""
    folder = wandb_home / "some_run"
    timed = [[row | {"train/loss": s * 1e-7, "train/speed/seconds": s} for row in ROWS] for s in (1.0, 2.0)]
    for rows in (timed[0][:4], timed[1][:2], timed[1][:5]):
        written(folder, rows)
        mirror = OFFLINE.open(folder, SETTINGS)
        mirror.update()
        mirror.close()
    found = [recorded(path) for path in files(folder)]
    assert {each.run_id for each in found} == {run_id(folder)}
    assert [[row["_step"] for row in each.history] for each in found] == [[0, 1, 2, 3], [4]]
    assert found[1].history[0]["train/speed/seconds"] == 2.0


def test_a_failing_wandb_is_said_once_and_stops_nothing(
    wandb_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = wandb_home / "some_run"
    written(folder, ROWS)
    monkeypatch.setattr("wandb.init", lambda **_: 1 / 0)
    mirror = OFFLINE.open(folder, SETTINGS)
    mirror.update()
    mirror.update()
    mirror.close()
    assert capsys.readouterr().err.count("W&B failed (division by zero)") == 1
    assert not (folder / "wandb.json").exists(), "the next start shows these rows"


def test_a_real_run_is_mirrored_row_for_row_and_goes_on_where_it_was(llama: Path, wandb_home: Path) -> None:
    words = tiny(llama, wandb_home, "tracking=wandb", "tracking.mode=offline")
    words.remove("tracking=off")
    for iterations in (1, 2, 2):
        assert call(*words, f"iter={iterations}") == 0
    (folder,) = (wandb_home / "runs").iterdir()
    histories = [recorded(path) for path in files(folder)]
    assert {found.run_id for found in histories} == {run_id(folder)}
    assert len(histories) == 2  # the third run had nothing to show
    rows = [row for found in histories for row in found.history]
    assert [row["_step"] for row in rows] == list(range(len(rows)))
    expected = lines(folder)
    histogram = "pairs/win_histogram"
    for row, wanted in zip(rows, expected, strict=True):
        assert {name: row[name] for name in wanted if name != histogram} == {
            name: value for name, value in wanted.items() if name != histogram
        }
        if histogram in wanted:
            assert (row[f"{histogram}._type"], row[f"{histogram}.values"]) == ("histogram", wanted[histogram])
            assert (row[f"{histogram}.bins"][0], row[f"{histogram}.bins"][-1]) == (0, 1)
    assert histories[0].config["train"]["batch_pairs"] == 2
    assert [kind(row)[1] for row in expected].count("train") == 2 * 2  # 4 pairs, 2 a step, 2 iterations


@pytest.mark.parametrize(
    ("key", "netrc", "expected"), [("k", "", "online"), ("", "yes", "online"), ("", "", "offline")]
)
def test_a_key_is_found_in_the_environment_or_in_netrc_and_wandb_mode_wins(
    key: str, netrc: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_BASE_URL", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_API_KEY", key)
    file = tmp_path / "netrc"
    file.write_text("machine api.wandb.ai\n  login user\n  password secret\n" if netrc else "")
    os.chmod(file, 0o600)
    monkeypatch.setenv("NETRC", str(file))
    assert _mode() == expected
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert _mode() == "disabled"
