"""Official files are read and joined on the instruction; what does not fit is named, and scored is what does."""

from __future__ import annotations

import json
import math
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from alpaca_eval_made_up import GAMED, INSTRUCTIONS, SHARED, annotation, baseline, gamed, outputs, real, written

from src.config import UserError
from src.evaluation.alpaca_eval import annotations
from src.evaluation.alpaca_eval import gamed as gamed_file
from src.evaluation.alpaca_eval.annotations import (
    expected,
    instruction_id,
    joined,
    official_ids,
    read_annotations,
    read_joined,
    read_outputs,
    write_rows,
)
from src.evaluation.alpaca_eval.gamed import read_gamed
from src.evaluation.alpaca_eval.length_control import of_baseline, win_rate
from src.evaluation.alpaca_eval.score import score_file

LEADERBOARD = {"FuseChat-Gemma-2-9B-Instruct": 70.1811, "vicuna-7b-v1.5__with_glm_preference": 7.6169}


@pytest.fixture
def six(monkeypatch: pytest.MonkeyPatch) -> None:
    """The made-up instructions are the official ones."""
    ids = tuple(instruction_id(one) for one in INSTRUCTIONS)
    for module in (annotations, gamed_file):
        monkeypatch.setattr(module, "official_ids", lambda: ids)


def annotated(path: Path, preferences: list[float | None], **columns: Any) -> Path:
    rows = [annotation(one, p) | columns for one, p in zip(INSTRUCTIONS, preferences, strict=True)]
    return written(path, rows)


@real
def test_the_instructions_are_the_805_in_the_canonical_order() -> None:
    rows = json.loads((SHARED / "alpaca_eval_805_prompts.json").read_text())
    assert [row["index"] for row in rows] == list(range(805))
    assert [instruction_id(row["instruction"]) for row in rows] == list(official_ids())
    assert len(set(official_ids())) == 805


@real
@pytest.mark.full
@pytest.mark.parametrize("file", LEADERBOARD)
def test_an_official_file_is_scored_offline(file: str, tmp_path: Path) -> None:
    """To what the leaderboard says; and the same when its rows are shuffled, as far as the fit is stable."""
    path = SHARED / f"annotations/{file}.json"
    found = score_file(path, GAMED, SHARED / "model_outputs/gpt4_1106_preview.json")
    assert found.metrics["length_controlled_winrate"] == pytest.approx(LEADERBOARD[file], abs=0.01)
    assert found.metrics["official_items"] == found.metrics["items"] == found.metrics["n_total"] == 805
    rows = json.loads(path.read_text())
    random.Random(0).shuffle(rows)
    assert score_file(written(tmp_path / "shuffled.json", rows), GAMED) == found
    with pytest.raises(UserError, match="1 of 805 instructions missing, the first number .* preference null"):
        score_file(written(tmp_path / "short.json", rows[1:]), GAMED)


@real
@pytest.mark.parametrize("path", sorted(SHARED.glob("model_outputs/*.json")), ids=lambda path: path.stem)
def test_official_outputs_are_written_as_they_are_read(path: Path, tmp_path: Path) -> None:
    rows = read_outputs(path)
    write_rows(tmp_path / "again.json", rows)
    assert read_outputs(tmp_path / "again.json") == rows and len(rows) == 805
    raw = [{name: row[name] for name in ("instruction", "output", "generator", "dataset")} for row in _json(path)]
    assert _json(tmp_path / "again.json") == raw


def _json(path: Path) -> Any:
    return json.loads(path.read_text())


def test_annotations_are_written_as_they_are_read(tmp_path: Path) -> None:
    """0 is a tie of old files; NaN, null and the library's -1 are failures."""
    path = annotated(tmp_path / "a.json", [0, 1.5, math.nan, None, -1, 1.25])
    rows = read_annotations(path)
    assert [row.preference for row in rows] == [1.5, 1.5, None, None, None, 1.25]
    write_rows(tmp_path / "b.json", rows)
    assert read_annotations(tmp_path / "b.json") == rows
    assert "NaN" not in (tmp_path / "b.json").read_text()


@pytest.mark.parametrize("seed", range(3))
def test_rows_are_joined_on_the_instruction(seed: int, tmp_path: Path) -> None:
    """In any order of the file, with equal outputs: by hand, each row is looked for."""
    rows = read_annotations(annotated(tmp_path / "a.json", [1, 1.2, 1.4, 1.6, 1.8, 2]))
    shuffled = random.Random(seed).sample(rows, 6)
    wanted = expected(read_outputs(baseline(tmp_path / "base.json")))
    found = joined(tmp_path / "a.json", shuffled, wanted)
    assert found == [next(row for row in shuffled if row.instruction == one) for one in INSTRUCTIONS]


def _without(rows: list[Any]) -> list[Any]:
    return rows[:2] + rows[4:]


MISTAKES: dict[str, tuple[Any, str]] = {
    "missing": (_without, "2 of 6 instructions missing, the first 'Made up 2: say <b>so so </b> in 4 words.*null"),
    "doubled": (lambda rows: [*rows, rows[1]], "1 instructions more than once, the first 'Made up 1: say"),
    "foreign": (lambda rows: [*rows, annotation("Who? " * 30, 1)], r"1 row of it no instruction.*'(Who\? ){12}…'"),
    "only almost": (
        lambda rows: [rows[0] | {"instruction": rows[0]["instruction"] + " "}, *rows[1:]],
        "1 row of it no instruction",
    ),
    "out of range": (lambda rows: [annotation("x", 2.5)], r"row 0.*preference: 2.5 is not from 1 .* to 2"),
    "text": (lambda rows: [annotation("x", "1")], "preference: '1' is not from"),  # pyright: ignore
    "a lacking column": (lambda rows: [{"instruction": "x"}], r"row 0 \(from 0\) lacks output_1, generator_1"),
    "no list": (lambda rows: {"rows": rows}, "no list of rows; the official format is"),
    "no rows": (lambda rows: [], "no list of rows"),
    "no text": (lambda rows: [annotation("x", 1) | {"output_2": None}], "output_2: None is no text"),
    "half a character": (lambda rows: [annotation("x", 1, "\ud83d")], "output_1: holds half of a character"),
    "two models": (lambda rows: [rows[0] | {"generator_2": "b"}, *rows[1:]], "generator_2: b, model in one file"),
    "two annotators": (lambda rows: [rows[0] | {"annotator": "b"}, *rows[1:]], "annotator: b, weighted"),
    "another baseline": (
        lambda rows: [row | {"output_1": "c"} for row in rows],
        "6 rows is not the output of baseline",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_file_that_does_not_fit_is_named(mistake: str, tmp_path: Path) -> None:
    change, line = MISTAKES[mistake]
    rows = [annotation(one, 1.5) for one in INSTRUCTIONS]
    path = written(tmp_path / "made.json", change(rows))
    with pytest.raises(UserError, match=f"^{re.escape(str(path))}: .*{line}") as error:
        read_joined(path, outputs(tmp_path / "base.json", ["a"] * 6), None)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "told"), [("[", "cannot be read as JSON"), (b"\xff\xfe", "no text"), (None, "cannot be read as JSON")]
)
def test_a_file_that_cannot_be_read(content: str | bytes | None, told: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UserError, match=f"x.json: {told}"):
        read_outputs(path)


def test_what_is_scored_without_length_control(tmp_path: Path) -> None:
    """Nothing but the annotations is needed; by hand: shares 1, 0.5, 0.25, 0, 0.25, and one failure."""
    path = annotated(tmp_path / "a.json", [2, 0, 1.25, 1, 1.25, None], output_1="é" * 3)
    found = score_file(path, baseline=outputs(tmp_path / "base.json", ["é" * 3] * 6))
    numbers, won = found.metrics, np.array([1, 0.5, 0.25, 0, 0.25])
    error = 100 * np.std(won, ddof=1) / math.sqrt(5)
    assert numbers["win_rate"] == pytest.approx(40) and numbers["standard_error"] == pytest.approx(error)
    assert numbers["win_rate_low"] == pytest.approx(40 - 1.959964 * error)
    assert numbers["win_rate_high"] == pytest.approx(40 + 1.959964 * error)
    counts = {"n_wins": 1, "n_wins_base": 3, "n_draws": 1, "n_total": 5, "items": 6, "failed": 1}
    assert {name: numbers[name] for name in counts} == counts
    assert (numbers["avg_length"], numbers["avg_length_baseline"], numbers["official_items"]) == (2, 3, 0)
    assert not [name for name in numbers if "length_controlled" in name or name.startswith("lc_")]
    assert [row["score"] for row in found.rows] == won.tolist() and found.fit is None
    assert [row["item_id"] for row in found.rows] == [instruction_id(one) for one in INSTRUCTIONS[:5]]
    assert {row["glm_preference"] for row in found.rows} == {None}


@pytest.mark.usefixtures("six")
def test_difficulty_follows_the_instruction_and_not_the_row(tmp_path: Path) -> None:
    """Rows in another order, and one that failed: the same predictions, and a mean over all six."""
    columns = [{"output_2": "b" * n} for n in (1, 5, 2, 9, 4, 7)]
    rows = [
        annotation(one, p) | c for one, p, c in zip(INSTRUCTIONS, (2, 1, 1.75, None, 1.5, 1.1), columns, strict=True)
    ]
    table = gamed(tmp_path / "gamed.csv", 6)
    found = score_file(written(tmp_path / "a.json", rows), table)
    assert score_file(written(tmp_path / "b.json", rows[::-1]), table) == found
    control, fitted = read_gamed(table), found.fit
    assert fitted is not None and fitted["C"] is not None
    chances = [
        1 / (1 + math.exp(-(fitted["difficulty"] * control.difficulty[instruction_id(one)] + fitted["model"])))
        for one in INSTRUCTIONS
    ]
    assert found.metrics["length_controlled_winrate"] == pytest.approx(100 * np.mean(chances))
    shown = {row["item_id"]: row["glm_preference"] for row in found.rows}
    assert len(shown) == 5
    for one, chance in zip(INSTRUCTIONS, chances, strict=True):
        assert shown.get(instruction_id(one), chance) == pytest.approx(chance)


@pytest.mark.usefixtures("six")
def test_the_baseline_against_itself_is_50(tmp_path: Path) -> None:
    path = annotated(tmp_path / "a.json", [1.5] * 6, generator_2="baseline", output_2="a")
    found = score_file(path, gamed(tmp_path / "gamed.csv", 6)).metrics
    assert (found["win_rate"], found["length_controlled_winrate"], found["lc_standard_error"]) == (50, 50, 0)
    assert of_baseline(6).win_rate == 50 and win_rate(np.full(6, 1.5)).n_draws == 6


ODD = {
    "all won": ([2] * 6, "bb"),
    "all lost": ([1] * 6, "bb"),
    "of one length": ([2, 1, 1.5, 2, 1, 1.25], "a"),
    "one known": ([1.5, None, None, None, None, None], "bb"),
    "nothing but ties": ([1.5] * 6, ""),
}


@pytest.mark.usefixtures("six")
@pytest.mark.parametrize("kind", ODD)
def test_numbers_are_finite_whatever_was_judged(kind: str, tmp_path: Path) -> None:
    preferences, output = ODD[kind]
    path = annotated(tmp_path / "a.json", preferences, output_2=output)
    found = score_file(path, gamed(tmp_path / "gamed.csv", 6))
    values = [*found.metrics.values(), *(found.fit or {}).values()]
    assert all(map(math.isfinite, values)) and "length_controlled_winrate_low" in found.metrics


def test_difficulty_is_known_of_official_instructions_alone(tmp_path: Path) -> None:
    path = annotated(tmp_path / "a.json", [1.5] * 6)
    with pytest.raises(UserError, match="difficulty of 6 instructions is not known, the first 'Made up 0"):
        score_file(path, gamed(tmp_path / "gamed.csv", 805), outputs(tmp_path / "base.json", ["a"] * 6))


def test_nothing_but_failures_cannot_be_scored(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="failed on every row"):
        score_file(annotated(tmp_path / "a.json", [None] * 6), baseline=outputs(tmp_path / "b.json", ["a"] * 6))


TABLES = {
    "a lacking column": ("index,preference\n0,1\n", "lacks the columns std_delta_len, instruction_difficulty"),
    "a lacking number": ("{head}0,1,1\n", "not a readable table of numbers"),
    "no number": ("{head}0,x,1,1\n", "not a readable table of numbers"),
    "NaN": ("{head}0,1,nan,1\n", "a number is missing or infinite"),
    "no rows": ("{head}", "no rows in it"),
    "another index": ("{head}6,1,1,1\n", "row 0 .*: index: 6 is none from 0 to 5"),
    "no preference": ("{rows}0,1.5,1,0\n", "preference: must be from 0"),
    "a missing instruction": ("{head}0,1,1,0\n", "5 of 6 instructions missing, the first 1"),
    "two difficulties": ("{rows}3,1,1,9\n", "row 6 .*: instruction 3 has another difficulty before"),
}


@pytest.mark.usefixtures("six")
@pytest.mark.parametrize("table", TABLES)
def test_a_table_of_gamed_baselines_that_cannot_be_used(table: str, tmp_path: Path) -> None:
    content, line = TABLES[table]
    head = "index,preference,std_delta_len,instruction_difficulty\n"
    rows = head + "".join(f"{i},0.5,1,0\n" for i in range(6))
    (path := tmp_path / "gamed.csv").write_text(content.format(head=head, rows=rows))
    with pytest.raises(UserError, match=line):
        read_gamed(path)
