"""Numerical guards of training: the reference is the policy's own before the first step, and all is finite."""

from __future__ import annotations

import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from conftest import build_policy
from pytest import CaptureFixture, MonkeyPatch
from spoiled_models import weighing
from tiny_run import World
from tiny_training import LENGTHS, train_stage, write_pairs, write_reference
from torch import Tensor

from src.kernel import rows as kernel_rows
from src.kernel.artifact import WORK
from src.kernel.config import Fault, UserError
from src.kernel.rows import REFERENCE, ROWS, Row, read_rows, write_rows
from src.methods.method import PairLogps
from src.training.batch import Step
from src.training.guards import ASIDE, Guards
from src.training.recipe import DeepSpeed
from src.training.reference import Reference

PAIRS = 6
COLUMNS = ("ref_chosen_logp", "ref_rejected_logp")


@pytest.fixture(scope="module")
def reference(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_reference(tmp_path_factory.mktemp("reference"), llama, PAIRS)


def changed(reference: Path, folder: Path, change: Any) -> Path:
    """The rows of `reference` after `change`, which is given each."""
    rows = read_rows(reference, REFERENCE)
    for row in rows:
        change(row)
    folder.mkdir()
    write_rows(folder, rows, REFERENCE)
    return folder


def lengths_of(row: Row) -> list[int]:
    """Within the limits of training."""
    return [len(answer) for answer in LENGTHS.group(row).answers]


def shifted_by(nats_a_token: float) -> Any:
    """One side up and the other down: the mean of the log-ratios alone would show nothing."""

    def shift(row: Row) -> None:
        for sign, column, tokens in zip((1, -1), COLUMNS, lengths_of(row), strict=True):
            row[column] += sign * nats_a_token * tokens

    return shift


# The start ---------------------------------------------------------------------------------------------------------


PRECISIONS = pytest.mark.parametrize("precision", ["float32", pytest.param("bfloat16", marks=pytest.mark.full)])


@PRECISIONS
def test_the_policys_own_reference_passes_however_rows_are_cut(precision: Any, llama: Path, tmp_path: Path) -> None:
    """Made five pairs a row; trained on a pair a row, and on all in one."""
    own = write_reference(tmp_path / "own", llama, PAIRS, precision)
    for row_tokens in (1, 1000):
        stage = train_stage(batch_pairs=3, row_tokens=row_tokens, precision=precision)
        stage(own, llama, out=tmp_path / str(row_tokens))


@PRECISIONS
def test_another_models_reference_and_another_template_are_refused(precision: Any, llama: Path, tmp_path: Path) -> None:
    """The template: what was scored began with a token more than what is trained on."""
    other = build_policy(tmp_path / "other", "llama", seed=1)
    wrong = write_reference(tmp_path / "wrong", other, PAIRS, precision)
    doubled = write_reference(tmp_path / "doubled", llama, PAIRS, precision)
    stage = train_stage(batch_pairs=3, precision=precision)
    templated = changed(doubled, tmp_path / "templated", lambda row: row["prompt_token_ids"].insert(0, 7))
    for number, folder in enumerate((wrong, templated)):
        out = tmp_path / f"out{number}"
        with pytest.raises(Fault, match="wrong reference or wrong template") as refused:
            stage(folder, llama, out=out)
        assert str(refused.value).startswith(f"{folder}/rows.parquet: before the first step the policy is ")
        assert [path.name for path in out.iterdir()] == [WORK] and not list((out / WORK).iterdir())


def test_the_numbers_of_the_refusal_are_those_of_the_first_step(reference: Path, llama: Path, tmp_path: Path) -> None:
    """Log-ratios of both signs count; a tenth below the limit passes, a tenth above it does not."""
    above, below = (changed(reference, tmp_path / str(shift), shifted_by(shift)) for shift in (0.0011, 0.0009))
    with pytest.raises(Fault, match=r"is 0\.0011 nats a token .* \(at most 0\.001 in float32\)"):
        train_stage(batch_pairs=3)(above, llama, out=tmp_path / "refused")
    train_stage(batch_pairs=3)(below, llama, out=tmp_path / "out")


@pytest.mark.full
@pytest.mark.usefixtures("forked")
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
def test_two_processes_refuse_one_pair_of_the_first_step_together(reference: Path, llama: Path, tmp_path: Path) -> None:
    """One process alone has that pair; what is told is of all tokens of the step."""
    rows = read_rows(reference, REFERENCE)
    folder = changed(reference, tmp_path / "one", lambda row: row["prompt_id"] == "3" and shifted_by(0.5)(row))
    expected = 0.5 * sum(lengths_of(rows[3])) / sum(sum(lengths_of(row)) for row in rows)
    zero = DeepSpeed(stage=2, offload=False)
    stage = train_stage(batch_pairs=PAIRS, row_tokens=1, count=2, deepspeed=zero)
    (out := tmp_path / "out").mkdir()
    with pytest.raises(Fault, match=rf"is {re.escape(f'{expected:.3g}')} nats a token"):
        stage(folder, llama, out=out)
    assert not (out / "model.safetensors").exists()


# One row of a step, by itself


def logps(**changed: Any) -> PairLogps:
    """Two pairs, all at -4 of 4 tokens."""
    given = {name: torch.full((2,), -4.0) for name in PairLogps._fields[:4]}
    given |= {name: torch.full((2,), 4.0) for name in ("chosen_tokens", "rejected_tokens")}
    given |= {name: torch.full((2,), 0.5) for name in PairLogps._fields[6:]}
    return PairLogps(**{name: changed.get(name, values) for name, values in given.items()})


@pytest.fixture
def guards(tmp_path: Path) -> Guards:
    return Guards("float32", tmp_path, tmp_path / "reference", Accelerator(cpu=True))


NO_STEP = Step([], [], [])
COUNTED, FINE = torch.ones(2), torch.zeros(())


def spoilt(value: float) -> Tensor:
    return torch.tensor([-4.0, value])


def test_what_is_not_finite_is_named_by_its_cause_though_the_loss_may_hide_it(guards: Guards) -> None:
    """DPO's loss of a rejected answer at -inf is 0. Of the second of three rows; later steps are looked at too. A pair
    that does not count must be finite all the same."""
    uncounted = torch.tensor([1.0, 0.0])
    for change, counted, loss, named in (
        ({}, COUNTED, math.nan, "loss"),
        ({"policy_rejected": spoilt(-math.inf)}, COUNTED, 0.0, "log-probability under the policy"),
        ({"policy_chosen": spoilt(math.nan)}, COUNTED, math.nan, "log-probability under the policy"),
        ({"policy_chosen": spoilt(math.nan)}, uncounted, 0.0, "log-probability under the policy"),
        ({"ref_rejected": spoilt(-math.inf)}, COUNTED, 0.0, "log-probability under the reference"),
        ({"rejected_win": spoilt(math.nan), "ref_chosen": spoilt(math.nan)}, COUNTED, math.nan, "win probability"),
    ):
        for row, told in ((logps(), 0.0), (logps(**change), loss), (logps(), 0.0)):
            guards.add(row, counted, torch.tensor(told))
        with pytest.raises(UserError, match=f"^train: the {named} is not finite at step 7; its pairs are in .*{ASIDE}"):
            guards.end(NO_STEP, 7)
        guards.add(logps(), COUNTED, FINE)
        guards.end(NO_STEP, 8)


def test_policy_and_reference_are_compared_before_the_first_step_only(guards: Guards, tmp_path: Path) -> None:
    away = logps(policy_chosen=torch.full((2,), -5.0))
    for done in (1, 0):
        guards.add(away, COUNTED, FINE)
        if done:
            guards.end(NO_STEP, done)
    with pytest.raises(Fault, match=r"is 0\.125 nats a token"):  # 2 nats over 16 tokens
        guards.end(NO_STEP, 0)
    without = Guards("float32", tmp_path, None, guards.accelerator)
    without.add(away, COUNTED, FINE)
    without.end(NO_STEP, 0)


# What is kept aside ------------------------------------------------------------------------------------------------


def spoil_policy(llama: Path, folder: Path, token: int) -> Path:
    """A policy with one bad number: in the embedding of `token`."""

    def change(tensors: dict[str, Any]) -> None:
        tensors["model.embed_tokens.weight"][token, 3] = math.nan

    shutil.copytree(llama, folder)
    weighing(change)(folder)
    return folder


def a_token_of_one(rows: list[Row]) -> tuple[int, Row]:
    """A token id that one pair alone has, in its prompt."""
    for row in rows:
        for token in row["prompt_token_ids"]:
            others = [
                t for r in rows if r is not row for n in ("prompt", "chosen", "rejected") for t in r[f"{n}_token_ids"]
            ]
            if token not in others:
                return token, row
    raise AssertionError("no such token")


def test_the_pairs_kept_aside_give_the_same_again(reference: Path, llama: Path, tmp_path: Path) -> None:
    """All are in one row, where the bad number reaches nobody else's log-probabilities."""
    token, bad = a_token_of_one(read_rows(reference, REFERENCE))
    policy = spoil_policy(llama, tmp_path / "policy", token)
    stage = train_stage(batch_pairs=2, row_tokens=1000)
    inputs, said = reference, r"log-probability under the policy is not finite at step (\d); its pairs are in (\S+);"
    for attempt in ("first", "again"):
        with pytest.raises(UserError, match=said) as refused:
            stage(inputs, policy, out=tmp_path / attempt)
        aside = tmp_path / attempt / WORK / ASIDE
        assert str(aside / ROWS) in str(refused.value)
        assert bad["prompt_id"] in [row["prompt_id"] for row in read_rows(aside, REFERENCE)]
        assert not (tmp_path / attempt / "model.safetensors").exists()
        inputs = aside


# The reference -----------------------------------------------------------------------------------------------------


def test_a_policy_that_gives_nan_stops_the_reference_with_its_prompt(llama: Path, tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs", PAIRS)
    token, bad = a_token_of_one(read_rows(pairs, kernel_rows.PAIRS))
    policy = spoil_policy(llama, tmp_path / "policy", token)
    said = f"reference: the policy's log-probability is NaN or infinity for an answer to prompt {bad['prompt_id']}; "
    with pytest.raises(UserError, match=f"^{said}"):
        write_reference(tmp_path / "out", policy, PAIRS)


# Through the real command ------------------------------------------------------------------------------------------


def last_line(capsys: CaptureFixture[str]) -> str:
    err = capsys.readouterr().err
    assert "Traceback" not in err
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    return line


def test_a_reference_that_is_not_the_policys_ends_the_run_and_what_it_says_mends_it(
    world: World, tmp_path: Path, monkeypatch: MonkeyPatch, capsys: CaptureFixture[str]
) -> None:
    other, real = build_policy(tmp_path / "other", "llama", seed=1), Reference.__call__
    words = ["iter=1", "only=it1/policy", "hardware.devices.precision=float32", "ranker.precision=bfloat16"]
    with monkeypatch.context() as patch:
        patch.setattr(Reference, "__call__", lambda self, pairs, policy, out: real(self, pairs, other, out=out))
        assert world.run(*words) == 3
    told = re.match(r"error: (\S+)/rows\.parquet: before the first step the policy is ", last_line(capsys))
    assert told
    shutil.rmtree(told[1])
    assert world.run(*words) == 0
