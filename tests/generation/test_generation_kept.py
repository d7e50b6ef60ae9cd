"""Answers that are kept: of a run that is killed and started again, and whole as they were asked for."""

from __future__ import annotations

import dataclasses
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

import pytest
from tiny_generation import ALONE, CODE, QUESTIONS, engine, generated, talker, write_prompts  # noqa: F401

from src.evaluation.held_out import Merge
from src.generation.engine import Answer, Answering, Engine, Keep, Request, Sampling
from src.generation.stage import Generate
from src.generation.transformers_engine import TransformersEngine
from src.kernel.artifact import WORK, Node
from src.kernel.cells import CELLS, value_of
from src.kernel.config import Device, UserError
from src.kernel.rows import RESPONSES, ROWS, read_rows
from src.kernel.store import Store

# ruff: noqa: F811

# Killed and started again


class PowerCut(Exception):
    pass


@dataclasses.dataclass
class Fragile(Engine):
    """The real engine, whose power is cut before answer number `dies_at`; notes what it was asked for."""

    inner: TransformersEngine
    dies_at: int | None = None
    spoils: dict[str, Any] = dataclasses.field(default_factory=dict)
    """What is wrong with the third answer."""
    asked: list[str] = dataclasses.field(default_factory=list)
    device: ClassVar[Device] = "cpu"

    def open(self, policy: Path, sampling: Sampling) -> Answering:
        opened, number = self.inner.open(policy, sampling), count()

        def answer(requests: list[Request], keep: Keep) -> None:
            def fragile(request: Request, answer: Answer) -> None:
                if (n := next(number)) == self.dies_at:
                    raise PowerCut
                keep(request, answer | self.spoils if n == 2 else answer)  # type: ignore[arg-type]

            self.asked += [request.cell for request in requests]
            opened(requests, fragile)

        return answer


CELL_COUNT = len(QUESTIONS) * CODE.K


def generate(fragile: Fragile, prompts: Path, policy: Path, out: Path, K: int = CODE.K) -> bytes:
    out.mkdir(exist_ok=True)
    Generate(sampling=dataclasses.replace(CODE, K=K), engine=fragile, seed=0, dealing=ALONE)(prompts, policy, out=out)
    return (out / ROWS).read_bytes()


def test_a_killed_run_makes_only_the_missing_answers_and_the_same_bytes(talker: Path, tmp_path: Path) -> None:
    prompts = write_prompts(tmp_path / "prompts", QUESTIONS)
    whole, first, second, third = (Fragile(engine(), dies_at=n) for n in (None, 7, None, None))
    expected = generate(whole, prompts, talker, tmp_path / "whole")
    with pytest.raises(PowerCut):
        generate(first, prompts, talker, tmp_path / "cut")
    assert not (tmp_path / "cut" / ROWS).exists()
    (torn,) = (tmp_path / "cut" / WORK / CELLS).glob("*.jsonl")
    with torn.open("a") as file:
        file.write('["torn by the power c')
    assert generate(second, prompts, talker, tmp_path / "cut") == expected
    assert (len(whole.asked), len(first.asked), len(second.asked)) == (CELL_COUNT, CELL_COUNT, CELL_COUNT - 7)

    lines = torn.read_text().splitlines()
    torn.write_text("\n".join(lines[:3] + lines[4:-1]) + "\n")
    assert generate(third, prompts, talker, tmp_path / "cut") == expected
    assert third.asked == [value_of(lines[3].encode())[0]]


def test_more_answers_and_more_prompts_make_the_new_ones_only(talker: Path, tmp_path: Path) -> None:
    """K = 3 -> 5 samples two more a prompt, 5 -> 3 none, more prompts theirs; all from the store's shared cells."""
    few, all_of_them = (write_prompts(tmp_path / f"prompts{n}", QUESTIONS[:n]) for n in (4, 6))
    asked = []
    for number, (prompts, k) in enumerate([(few, 3), (few, 5), (few, 3), (all_of_them, 5)]):
        fragile, out = Fragile(engine()), tmp_path / str(number)
        (out / WORK).mkdir(parents=True)
        (tmp_path / "shared").mkdir(exist_ok=True)
        (out / WORK / CELLS).symlink_to(tmp_path / "shared")
        generate(fragile, prompts, talker, out, k)
        asked.append(len(fragile.asked))
    assert asked == [12, 8, 0, 10]


def test_what_is_shared_depends_on_all_that_moves_an_answer(talker: Path, tmp_path: Path) -> None:
    def place(batch: int = 4, dtype: Any = "float32", seed: int = 0, policy: str = "a", **sampling: Any) -> Path | None:
        made = dataclasses.replace(CODE, **sampling)
        stage = Generate(sampling=made, engine=engine(batch, dtype), seed=seed, dealing=ALONE)
        before = Generate(sampling=CODE, engine=engine(), seed=ord(policy), dealing=ALONE)
        inputs = (Node("prompts", stage), Node("policy", before))
        return Store(tmp_path).cells(Node("responses", stage, inputs))

    assert place() == place(K=8) == place(max_prompt_tokens=7) == place(batch=64) is not None
    others = [
        place(temperature=0.8),
        place(top_p=1.0),
        place(max_new_tokens=11),
        place(seed=1),
        place(dtype="bfloat16"),
        place(policy="b"),
    ]
    assert len({place(), *others}) == 7


# What is handed on


def test_a_faulty_answer_is_not_kept(talker: Path, tmp_path: Path) -> None:
    for number, fault in enumerate(({"token_ids": []}, {"finish_reason": "abort"})):
        prompts, out = write_prompts(tmp_path / f"prompts{number}", QUESTIONS), tmp_path / f"out{number}"
        with pytest.raises(UserError, match=r"generate: prompt \w+, answer \d: "):
            generate(Fragile(engine(), spoils=fault), prompts, talker, out)
        again = Fragile(engine())
        generate(again, prompts, talker, out)
        assert len(again.asked) == CELL_COUNT - 2, "two were good"


def test_merge_puts_answers_side_by_side_and_refuses_those_to_other_prompts(talker: Path, tmp_path: Path) -> None:
    a, b = (generated(engine(), talker, tmp_path / str(seed), QUESTIONS[:3], seed=seed) for seed in (0, 1))
    Merge()(tmp_path / "0" / "out", tmp_path / "1" / "out", out=tmp_path)
    ab = read_rows(tmp_path, RESPONSES)
    assert [row["responses"] for row in ab] == [x["responses"] + y["responses"] for x, y in zip(a, b, strict=True)]
    assert [row | {"responses": []} for row in ab] == [row | {"responses": []} for row in a]
    generated(engine(), talker, tmp_path / "2", QUESTIONS[2::-1])
    with pytest.raises(UserError, match="answers other prompts than"):
        Merge()(tmp_path / "0" / "out", tmp_path / "2" / "out", out=tmp_path)
