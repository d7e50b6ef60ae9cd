"""Reference log-probabilities from an engine: those of the training code, in processes that can be killed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from plain_engine import HerePlainEngine
from tiny_run import call, typed
from vllm_results import ARCHITECTURES, Results, lengths, needs_vllm, pairs, vllm  # noqa: F401

from src.experiment.graph import nodes_of
from src.kernel.cells import Cells
from src.kernel.rows import PAIRS, REFERENCE, read_rows, write_rows
from src.training.engine_reference import TOGETHER, EngineReference
from src.training.reference import Reference

COLUMNS = ("ref_chosen_logp", "ref_rejected_logp")


def write_pairs(folder: Path, times: int = 1) -> Path:
    folder.mkdir(parents=True)
    blank: dict[str, Any] = {
        field.name: 0.5 if str(field.type) == "double" else 0 if str(field.type).startswith("int") else "x"
        for field in PAIRS
    }
    write_rows(folder, [blank | pair for pair in pairs() * times], PAIRS)
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
    return np.array([[row[column] for column in COLUMNS] for row in read_rows(out, REFERENCE)])


@needs_vllm
def test_vllm_tells_what_the_training_code_does(vllm: Results, tmp_path: Path) -> None:  # noqa: F811
    for architecture in ARCHITECTURES:
        ours = trained_code(vllm.policy(architecture), tmp_path / architecture)
        exact, rounded = (Cells(vllm.folder / f"{architecture}_{dtype}").values for dtype in ("float32", "bfloat16"))
        theirs, other = (np.array([cells[str(n)] for n in range(len(ours))]) for cells in (exact, rounded))
        np.testing.assert_allclose(theirs, ours, atol=1e-3, rtol=0)
        assert np.abs(other - ours).max() > 1e-3, "bf16 gives other numbers"


def test_the_reference_of_an_engine_is_that_of_the_training_code(mistral: Path, tmp_path: Path) -> None:
    """Of more pairs than are asked together."""
    many, out = write_pairs(tmp_path / "many", times=5), tmp_path / "out"
    assert len(pairs()) * 5 == TOGETHER + 8
    stage = EngineReference(
        lengths=lengths(), engine=HerePlainEngine(dtype="float32", device="cpu"), workers=1, nodes=1
    )
    stage(many, mistral, out=out)
    expected = trained_code(mistral, tmp_path)
    np.testing.assert_allclose(columns(out), np.tile(expected, (5, 1)), atol=1e-3, rtol=0)
    ours, theirs = (json.loads((f / "metrics.json").read_text()) for f in (out, tmp_path / "reference"))
    assert ours == {key: 5 * value for key, value in theirs.items()}
    assert theirs["prompts_cut"] and theirs["answers_cut"]


def test_the_option_changes_the_reference_and_nothing_before_it(capsys: pytest.CaptureFixture[str]) -> None:
    plain = {node.name: node for node in nodes_of(typed("iter=1"))}
    other = {node.name: node for node in nodes_of(typed("iter=1", "+engine@hardware.reference_engine=vllm_cpu"))}
    changed = {name for name in plain if plain[name].key != other[name].key}
    assert type(plain["it1/reference"].stage) is Reference and type(other["it1/reference"].stage) is EngineReference
    assert "it1/reference" in changed and "it1/policy" in changed
    assert not changed & {"it1/pairs", "it1/responses", "base/policy"}
    mute = "+hardware.reference_engine={_target_: plain_engine.MuteEngine, dtype: float32, device: cpu}"
    assert call("plan", mute) == 2
    assert capsys.readouterr().err.startswith("error: hardware.reference_engine: ")
