"""Numerical guards of training: the reference is the policy's own before the first step, and every number is finite."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from accelerate import Accelerator
from bad_models import weighing
from conftest import build_policy
from pytest import CaptureFixture, MonkeyPatch
from tiny_run import World
from tiny_training import step_sums, train_stage, write_pairs, write_reference

from src.kernel import rows as kernel_rows
from src.kernel.artifact import WORK
from src.kernel.config import Fault, UserError
from src.kernel.rows import REFERENCE, ROWS, Row, read_rows, write_rows
from src.methods.dpo import DPO
from src.modeling.policy import load_tokenizer
from src.training.metrics import WATCHED, check_start
from src.training.reference import Reference
from src.training.trainer import ASIDE

PAIRS = 6
METHOD = DPO(name="dpo", beta=0.1)


@pytest.fixture(scope="module")
def reference(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_reference(tmp_path_factory.mktemp("reference"), llama, PAIRS)


# The reference is the policy's own ---------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["float32", pytest.param("bfloat16", marks=pytest.mark.full)])
def test_only_the_policys_own_reference_passes_however_rows_are_cut(
    precision: Any, llama: Path, tmp_path: Path
) -> None:
    """References are made five pairs per row. Another template: one more token was scored than is trained on."""
    reference, templated = write_reference(tmp_path / "reference", llama, PAIRS, precision), tmp_path / "templated"
    for row_tokens in (1, 1000):
        stage = train_stage(batch_pairs=3, row_tokens=row_tokens, precision=precision)
        stage(reference, llama, out=tmp_path / str(row_tokens))
    rows = read_rows(reference, REFERENCE)
    templated.mkdir()
    write_rows(templated, [row | {"prompt_token_ids": [7, *row["prompt_token_ids"]]} for row in rows], REFERENCE)
    other = build_policy(tmp_path / "other", "llama", seed=1)
    for wrong in (templated, write_reference(tmp_path / "wrong", other, PAIRS, precision)):
        out = tmp_path / f"out of {wrong.name}"
        with pytest.raises(Fault, match=f"^{wrong}/rows.parquet: before the first step .* wrong template"):
            train_stage(batch_pairs=3, precision=precision)(wrong, llama, out=out)
        assert [path.name for path in out.iterdir()] == [WORK] and not list((out / WORK).iterdir())


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_log_ratios_of_both_signs_count_in_the_mean_and_by_themselves(sign: float, tmp_path: Path) -> None:
    """Answers of 4 tokens. Two of eight are shifted by `nats` a token of all; then one of a hundred, of its own."""

    def shift(nats: float, precision: Any) -> None:
        shifted = [("p", 16 * nats, 4), ("p", sign * 16 * nats, 4)]
        check_start([*shifted, *[("p", 0.0, 4)] * 6], precision, tmp_path)

    shift(0.0009, "float32")
    shift(0.05, "bfloat16")
    with pytest.raises(Fault, match=r"is 0\.0011 nats per token .*\(at most 0\.001 in float32\)"):
        shift(0.0011, "float32")
    with pytest.raises(Fault, match=r"is 0\.06 nats per token .*\(at most 0\.055 in bfloat16\)"):
        shift(0.06, "bfloat16")
    for nats, precision in ((0.0041, "float32"), (0.23, "bfloat16")):
        with pytest.raises(Fault, match="for an answer to prompt odd "):
            check_start([*[("p", 0.0, 4)] * 99, ("odd", sign * 4 * nats, 4)], precision, tmp_path)


def test_a_wrong_reference_ends_the_run_and_what_it_says_mends_it(
    world: World, tmp_path: Path, monkeypatch: MonkeyPatch, capsys: CaptureFixture[str]
) -> None:
    other, real = build_policy(tmp_path / "other", "llama", seed=1), Reference.__call__
    words = ["iter=1", "only=it1/policy", "hardware.devices.precision=float32", "ranker.precision=bfloat16"]
    with monkeypatch.context() as patch:
        patch.setattr(Reference, "__call__", lambda self, pairs, policy, out: real(self, pairs, other, out=out))
        assert world.run(*words) == 3
    output = capsys.readouterr().err
    folder = re.search(r"^error: (\S+)/rows\.parquet: before the first step the policy is ", output, re.MULTILINE)
    assert folder and "Traceback" not in output
    shutil.rmtree(folder[1])
    assert world.run(*words) == 0


# Every number is finite --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cause", "spoilt"),
    [
        ("log-probability under the policy", {"policy_rejected": -math.inf}),  # DPO's loss of it is 0
        ("log-probability under the policy", {"policy_chosen": math.nan}),
        ("log-probability under the reference", {"ref_rejected": -math.inf}),
        ("win probability", {"rejected_win": math.nan, "ref_chosen": math.nan}),
    ],
)
@pytest.mark.parametrize("counted", [1.0, 0.0])
def test_what_is_not_finite_is_named_by_its_cause(cause: str, spoilt: dict[str, float], counted: float) -> None:
    """In the second of three rows, and though the loss may hide it or the pair is a filler."""
    row = {name: [0.0, value] for name, value in spoilt.items()}
    sums = step_sums(METHOD, [1.0, counted], {}, row, {})
    assert next(name for name in WATCHED if not math.isfinite(sums[name])) == cause


def spoil_policy(llama: Path, folder: Path, rows: list[Row]) -> tuple[Path, str]:
    """Copy the policy with NaN in the embedding of a token that one prompt alone has; return also that prompt's id."""
    names = [f"{part}_token_ids" for part in ("prompt", "chosen", "rejected")]
    tokens = [{token for name in names for token in row[name]} for row in rows]
    token, row = next(
        (token, row)
        for i, row in enumerate(rows)
        for token in row["prompt_token_ids"]
        if all(token not in others for j, others in enumerate(tokens) if j != i)
    )

    def change(tensors: dict[str, Any]) -> None:
        tensors["model.embed_tokens.weight"][token, 3] = math.nan

    weighing(change)(Path(shutil.copytree(llama, folder)))
    return folder, row["prompt_id"]


def test_the_pairs_put_aside_give_the_same_again(reference: Path, llama: Path, tmp_path: Path) -> None:
    """All are in one row, where the bad number reaches no other pair's log-probabilities."""
    policy, prompt_id = spoil_policy(llama, tmp_path / "policy", read_rows(reference, REFERENCE))
    stage, start = train_stage(batch_pairs=2, row_tokens=1000), reference
    for attempt in ("first", "again"):
        out = tmp_path / attempt
        aside = out / WORK / ASIDE
        message = rf"log-probability under the policy is not finite at step \d; its pairs are in {aside / ROWS};"
        with pytest.raises(UserError, match=message):
            stage(start, policy, out=out)
        found = {row["prompt_id"]: row for row in pq.read_table(aside / ROWS).to_pylist()}
        seen, other = found.pop(prompt_id), found.popitem()[1]
        assert all(math.isnan(seen[name]) for name in ("policy_chosen_logp", "loss")) and math.isfinite(other["loss"])
        assert {len(row["chosen_token_ids"]) for row in (seen, other)} >= {
            row["chosen_tokens"] for row in (seen, other)
        }
        assert seen["chosen_text"] == load_tokenizer(llama).decode(seen["chosen_token_ids"])
        assert not (out / "model.safetensors").exists()
        start = aside


def test_a_policy_that_gives_nan_stops_the_reference_with_its_prompt(llama: Path, tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs", PAIRS)
    policy, prompt_id = spoil_policy(llama, tmp_path / "policy", read_rows(pairs, kernel_rows.PAIRS))
    with pytest.raises(UserError, match=f"^reference: .* is NaN or infinity for an answer to prompt {prompt_id}; "):
        write_reference(tmp_path / "out", policy, PAIRS)


def test_a_gradient_that_is_not_finite_stops_too(
    reference: Path, llama: Path, tmp_path: Path, monkeypatch: MonkeyPatch
) -> None:
    """The loss may be finite all the same; the last step would otherwise save what it made of the weights."""
    backward: Callable[..., None] = Accelerator.backward
    monkeypatch.setattr(Accelerator, "backward", lambda self, loss: backward(self, loss * math.inf))
    with pytest.raises(UserError, match=f"the gradient is not finite at step 0; its pairs are in .*{ASIDE}.*beta$"):
        train_stage()(reference, llama, out=tmp_path)
    assert not (tmp_path / "model.safetensors").exists()


def test_weights_that_the_last_step_has_ruined_are_not_stored(reference: Path, llama: Path, tmp_path: Path) -> None:
    """One step, so that no other step meets them, of a size that no config can ask for."""
    stage = train_stage(batch_pairs=PAIRS)
    object.__setattr__(stage.recipe, "lr", 1e38)
    with pytest.raises(UserError, match="NaN or infinity after the last step, .*; lower train.lr$"):
        stage(reference, llama, out=tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
