"""Reference log-probabilities from an engine: those of the training code, in processes that can be killed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from places import PYTHONPATH
from plain_engine import PlainEngine
from tiny_run import call, typed
from vllm_results import ARCHITECTURES, Results, lengths, needs_vllm, pairs, vllm  # noqa: F401

from src import records
from src.cells import Cells
from src.config import UserError
from src.training.engine_reference import TOGETHER, EngineReference
from src.training.reference import Reference

COLUMNS = ("ref_chosen_logp", "ref_rejected_logp")


def write_pairs(folder: Path, times: int = 1) -> Path:
    folder.mkdir()
    blank: dict[str, Any] = {
        field.name: 0.5 if str(field.type) == "double" else 0 if str(field.type).startswith("int") else "x"
        for field in records.PAIRS
    }
    records.write_rows(folder, [blank | pair for pair in pairs() * times], records.PAIRS)
    return folder


def trained_code(policy: Path, folder: Path, precision: str = "float32") -> np.ndarray:
    """What src/training/reference.py finds: (pair, side)."""
    stage = Reference(
        lengths=lengths(),
        precision=precision,  # pyright: ignore[reportArgumentType]
        device="cpu",
        batch_pairs=3,
        head_chunk=64,
        attention="segments",
    )
    out = folder / "reference"
    stage(write_pairs(folder / "pairs"), policy, out=out)
    return columns(out)


def columns(out: Path) -> np.ndarray:
    return np.array([[row[column] for column in COLUMNS] for row in records.read_rows(out, records.REFERENCE)])


@needs_vllm
@pytest.mark.full
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_vllm_tells_what_the_training_code_does(vllm: Results, architecture: str, tmp_path: Path) -> None:  # noqa: F811
    ours = trained_code(vllm.policy(architecture), tmp_path)
    cells = Cells(vllm.folder / f"{architecture}_float32").values
    theirs = np.array([cells[str(number)] for number in range(len(ours))])
    np.testing.assert_allclose(theirs, ours, atol=1e-3, rtol=0)
    rounded = Cells(vllm.folder / f"{architecture}_bfloat16").values
    assert np.abs(np.array([rounded[str(n)] for n in range(len(ours))]) - ours).max() > 1e-3  # it is another number


@pytest.fixture
def workers_find_this_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", PYTHONPATH)


def stage(**engine: Any) -> EngineReference:
    plain = PlainEngine(dtype="float32", device="cpu", **engine)
    return EngineReference(lengths=lengths(), engine=plain, workers=1, nodes=1)


@pytest.mark.full
def test_a_killed_one_goes_on_and_ends_with_the_rows_of_the_training_code(
    mistral: Path, tmp_path: Path, workers_find_this_file: None
) -> None:
    many, out = write_pairs(tmp_path / "many", times=5), tmp_path / "out"
    assert len(pairs()) * 5 == TOGETHER + 8
    with pytest.raises(UserError, match="ended with exit code 7"):
        stage(dies_after=2 * TOGETHER)(many, mistral, out=out)
    stage(dies_after=2 * 8)(many, mistral, out=out)  # it would die of any that it was asked again
    expected = trained_code(mistral, tmp_path)
    np.testing.assert_allclose(columns(out), np.tile(expected, (5, 1)), atol=1e-4, rtol=0)
    ours, theirs = (json.loads((f / "metrics.json").read_text()) for f in (out, tmp_path / "reference"))
    assert ours == {key: 5 * value for key, value in theirs.items()}
    assert theirs["prompts_cut"] and theirs["answers_cut"]


def test_it_is_off_by_default() -> None:
    assert {type(node.stage) for node in typed("iter=1").nodes() if node.stage.kind == "reference"} == {Reference}


def test_the_option_changes_the_reference_and_nothing_before_it() -> None:
    plain = {node.name: node for node in typed("iter=1").nodes()}
    other = {node.name: node for node in typed("iter=1", "+engine@hardware.reference_engine=vllm_cpu").nodes()}
    changed = {name for name in plain if plain[name].key != other[name].key}
    assert isinstance(other["it1/reference"].stage, EngineReference)
    assert "it1/reference" in changed and "it1/policy" in changed
    assert not changed & {"it1/pairs", "it1/responses", "base/policy"}


def test_an_engine_that_cannot_measure_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    mute = "+hardware.reference_engine={_target_: plain_engine.MuteEngine, dtype: float32, device: cpu}"
    assert call("plan", mute) == 2
    assert capsys.readouterr().err.startswith("error: hardware.reference_engine: ")
