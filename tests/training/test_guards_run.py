"""Numerical guards through the real command: one line and an exit code, or a warning at the end of the run."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from conftest import build_policy
from spoiled_models import nan
from tiny_run import PROMPTS, K, call, contents, folders, tiny

from src import records
from src.generation import draw
from src.ranking import embedded
from src.store import Store
from src.training.reference import Reference

pytestmark = pytest.mark.full
FLOAT32 = ["hardware.devices.precision=float32", "ranker.precision=bfloat16"]
"""The pairs stay those that have been made."""
FAULT, MISTAKE = 3, 2


class Here(NamedTuple):
    """A run of one iteration up to the pairs, in a store of its own."""

    place: Path
    words: list[str]
    said: pytest.CaptureFixture[str]

    @property
    def store(self) -> Store:
        return Store(self.place / "store")

    def run(self, *more: str) -> int:
        self.said.readouterr()
        return call(*self.words, *more)

    def refused(self, code: int, *more: str) -> str:
        """The one line that the command ends with; nothing is finished but what stands before."""
        before = contents(self.store)
        assert self.run(*more) == code
        err = self.said.readouterr().err
        assert "Traceback" not in err
        (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
        assert err.endswith(f"{line}\n")
        kinds = {kind.partition("/")[0] for kind in contents(self.store).keys() - before.keys()}
        assert kinds <= {"reference"}, "no policy"
        return line


@pytest.fixture(scope="module")
def begun(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    place = tmp_path_factory.mktemp("begun")
    words = tiny(llama, place, "iter=1")
    assert call(*words, "only=it1/pairs") == 0
    return place, words


@pytest.fixture
def here(begun: tuple[Path, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Here:
    shutil.copytree(begun[0] / "store", tmp_path / "store", symlinks=True)
    return Here(tmp_path, [*begun[1], *folders(tmp_path)], capsys)


# Policy and reference ----------------------------------------------------------------------------------------------


def another_policy(real: Callable[..., None], folder: Path) -> Callable[..., None]:
    other = build_policy(folder, "llama", seed=1)
    return lambda self, pairs, policy, out: real(self, pairs, other, out=out)


def another_template(real: Callable[..., None], folder: Path) -> Callable[..., None]:
    """The first token of every prompt stands there twice."""

    def scored(self: Reference, pairs: Path, policy: Path, out: Path) -> None:
        rows = records.read_rows(pairs, records.PAIRS)
        ids = [row["prompt_token_ids"] for row in rows]
        folder.mkdir()
        records.write_rows(
            folder,
            [row | {"prompt_token_ids": one[:1] + one} for row, one in zip(rows, ids, strict=True)],
            records.PAIRS,
        )
        real(self, folder, policy, out=out)
        found = records.read_rows(out, records.REFERENCE)
        rows = [row | {"prompt_token_ids": one} for row, one in zip(found, ids, strict=True)]
        records.write_rows(out, rows, records.REFERENCE)

    return scored


@pytest.mark.parametrize("wrong", [another_policy, another_template])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_reference_that_is_not_the_policys_ends_the_run_and_what_it_says_mends_it(
    wrong: Any, precision: str, here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["only=it1/policy", *(FLOAT32 if precision == "float32" else ())]
    with monkeypatch.context() as patch:
        patch.setattr(Reference, "__call__", wrong(Reference.__call__, tmp_path / "wrong"))
        line = here.refused(FAULT, *words)
    told = re.fullmatch(
        r"error: (\S+)/rows\.parquet: before the first step the policy is (\S+) nats a token from what is told here "
        rf"\(at most (\S+) in {precision}\): wrong reference or wrong template; delete that folder, .*",
        line,
    )
    assert told and float(told[2]) > float(told[3])
    shutil.rmtree(told[1])
    assert here.run(*words) == 0


# What is not finite ------------------------------------------------------------------------------------------------


def test_a_rate_that_is_too_high_ends_the_run_with_the_pairs_of_the_step(here: Here) -> None:
    """Weights of 1e30 after the second step, for the first has rate 0."""
    words = ["train.lr=1e30", "train.epochs=2", "train.schedule_epochs=2", "only=it1/policy"]
    line = here.refused(MISTAKE, *words, *FLOAT32)
    told = re.fullmatch(
        r"error: train: the (log-probability under the policy|gradient) is not finite at step [23]; its pairs are in "
        r"(\S+)/rows\.parquet; look at them, or lower train\.lr",
        line,
    )
    assert told and len(records.read_rows(Path(told[2]), records.REFERENCE)) == 2


def test_a_ranker_that_gives_nan_ends_the_run_with_prompt_and_answer(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = embedded._Judge._score  # pyright: ignore[reportPrivateUsage]

    def spoilt(self: Any, terms: Any) -> Any:
        found = real(self, terms)
        found[1] = float("nan")
        return found

    monkeypatch.setattr(embedded._Judge, "_score", spoilt)  # pyright: ignore[reportPrivateUsage]
    line = here.refused(MISTAKE, "only=it1/ranking", "ranker.tau=0.3", "sampling.K=3")
    told = re.fullmatch(
        r"error: ranker: it gave NaN or infinity for prompt ([0-9a-f]{16}), answer 2; .*; "
        r"what was read is in (\S+)/rows\.parquet",
        line,
    )
    assert told
    (row,) = records.read_rows(Path(told[2]), records.RESPONSES)
    assert row["prompt_id"] == told[1] and len(row["responses"]) == K


@pytest.mark.parametrize("workers", [1, 2])
def test_a_policy_that_gives_nan_ends_the_run_with_the_prompt_kept_aside(
    workers: int, llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a worker process nothing comes but its words."""
    broken = Path(shutil.copytree(llama, tmp_path / "broken"))
    nan("model.norm.weight")(broken)
    words = tiny(broken, tmp_path, "iter=1", "only=it1/responses", f"hardware.generation.workers={workers}")
    assert call(*words) == MISTAKE
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    told = re.search(r"gives NaN or infinity for prompt ([0-9a-f]{16}); .*; what was read is in (\S+)/rows\.par", line)
    assert told
    assert [row["prompt_id"] for row in records.read_rows(Path(told[2]), records.PROMPTS)] == [told[1]]


# Warnings ----------------------------------------------------------------------------------------------------------


def always(token: int) -> Callable[..., torch.Tensor]:
    return lambda logits, *_, **__: torch.full((len(logits),), token)


def test_answers_that_loop_are_told_by_the_stage_and_the_numbers(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight times the same token: of five sequences of four tokens four are repeated."""
    monkeypatch.setattr(draw, "draw", always(300))
    assert call(*tiny(llama, tmp_path, "iter=1", "only=it1/responses")) == 0
    out, answers = capsys.readouterr().out, PROMPTS * K
    said = [line for line in out.splitlines() if line.startswith("generate: warning: ")]
    assert said == [
        f"generate: warning: {answers} of {answers} answers go in circles (most 4-token sequences occurred before)",
        f"generate: warning: {answers} of {answers} answers were cut at the most tokens they may have",
        f"generate: warning: {PROMPTS} of {PROMPTS} prompts have the same text as each of their answers",
        f"generate: warning: {PROMPTS} of {PROMPTS} prompts have one and the same text among their answers",
    ]
    (made,) = (tmp_path / "store" / "responses").glob("*/metrics.json")
    numbers = json.loads(made.read_text())
    assert (numbers["looping"], numbers["alike"], numbers["commonest"], numbers["finished"]) == (1, 1, 1, 0)


def test_empty_answers_are_told_before_they_make_no_pair(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = json.loads((llama / "generation_config.json").read_text())
    monkeypatch.setattr(draw, "draw", always(settings["eos_token_id"]))
    assert call(*tiny(llama, tmp_path, "iter=1", "only=it1/pairs")) == MISTAKE
    told = capsys.readouterr()
    assert f"generate: warning: {PROMPTS * K} of {PROMPTS * K} answers are empty\n" in told.out
    assert "error: pairs: none is left: " in told.err


def test_a_run_says_at_its_end_what_was_wrong_and_its_metrics_have_it(here: Here) -> None:
    """Answers of the tiny model are all cut; a temperature of 0.001 makes every win certain."""
    assert here.run("estimator.tau=0.001", "hardware.devices.precision=float32") == 0
    out = here.said.readouterr().out.splitlines()
    (run,) = (here.place / "runs").iterdir()
    end = out.index(f"report: {run / 'report.md'}")
    told = [line.removeprefix("warning: ").partition(":")[0] for line in out[end - 5 : end]]
    assert told == ["it1/responses", "it1/pairs", "it1/answers", "base/answers", "null/answers"]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    known = {key: value for row in rows for key, value in row.items()}
    assert known["pairs/saturated"] > 0
    assert {"responses/empty", "responses/looping", "responses/alike", "answers/commonest"} <= known.keys()
