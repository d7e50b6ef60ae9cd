"""IFEval: its questions, its numbers and their intervals, and a whole run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_run import call, tiny, typed

from src import records
from src.config import UserError
from src.data.reading import Source
from src.evaluation.ifeval.instructions import INSTRUCTIONS, read_questions
from src.evaluation.ifeval.questions import IFEvalQuestions
from src.evaluation.ifeval.scores import OFFICIAL as PUBLISHED
from src.evaluation.ifeval.scores import SCORES, IFEvalScores, digest, metrics

OFFICIAL = Path(__file__).parents[3] / "shared/data/ifeval/input_data.jsonl"
with_official = pytest.mark.skipif(not OFFICIAL.exists(), reason="the official prompts are not beside the checkout")


def row(number: int, **other: Any) -> dict[str, Any]:
    """As on the hub: values that an instruction does not have are null."""
    nulls = {"num_words": None, "relation": None, "language": None}
    return {
        "key": number,
        "prompt": f"Say {number} without commas.",
        "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
        "kwargs": [nulls, nulls | {"num_words": 2, "relation": "at least"}],
    } | other


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return path


def questions_of(path: Path, out: Path, first: int | None = None) -> Path:
    source = Source(path=str(path))
    out.mkdir()
    IFEvalQuestions(source=source, content=source.content(), first=first)(out=out)
    return out


def test_questions_keep_their_order_and_lose_their_nulls(tmp_path: Path) -> None:
    path = written(tmp_path / "q.jsonl", [row(7), row(3), row(5)])
    out = questions_of(path, tmp_path / "out", first=2)
    prompts = records.read_rows(out, records.PROMPTS)
    assert [one["messages"] for one in prompts] == [
        [{"role": "user", "content": f"Say {n} without commas."}] for n in (7, 3)
    ]
    found = read_questions(out)
    assert [name for name, _ in found] == [one["prompt_id"] for one in prompts]
    assert [one["key"] for _, one in found] == ["7", "3"]
    assert found[0][1]["kwargs"] == [{}, {"num_words": 2, "relation": "at least"}]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([row(1), row(1, prompt="another")], r"q\.jsonl:2: the same key as .*q\.jsonl:1"),
        ([row(1), row(2, prompt=row(1)["prompt"])], r"q\.jsonl:2: the same prompt as .*q\.jsonl:1"),
        ([{"key": 1, "prompt": "x"}], r"q\.jsonl:1: no instruction_id_list; a row of IFEval has key"),
        ([row(1, key=True)], "key: True is no number or text"),
        ([row(1, instruction_id_list=[])], "instruction_id_list: .* is no list of names"),
        ([row(1, kwargs=[{}])], "kwargs: must be a list of 2 objects"),
        ([row(1, instruction_id_list=["a:b", "c:d"])], "the checker knows no instruction 'a:b'"),
        ([row(1, kwargs=[{}, {"words": 2}])], "number_words cannot be checked with the kwargs {'words': 2}"),
        ([row(1, kwargs=[{}, {"relation": "about"}])], "number_words cannot be checked .* The supported relation"),
        ([row(1, prompt=" ")], "prompt: only white space"),
        ([row(1, prompt=["x"])], "prompt: a list, not text"),
    ],
)
def test_a_wrong_row_is_named(tmp_path: Path, rows: list[dict[str, Any]], said: str) -> None:
    path = written(tmp_path / "q.jsonl", rows)
    with pytest.raises(UserError, match=said):
        questions_of(path, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_a_value_that_the_checker_draws_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path / "q.jsonl", [row(9, kwargs=[{}, {"relation": "at least"}])])
    out = questions_of(path, tmp_path / "out")
    assert json.loads((out / "metrics.json").read_text()) == {"rows": 1, "instructions": 2, "drawn": 1}
    assert "the checker draws it: length_constraints:number_words of key 9" in capsys.readouterr().out


@with_official
def test_the_official_prompts_load_and_all_their_instructions_can_be_checked(tmp_path: Path) -> None:
    out = questions_of(OFFICIAL, tmp_path / "out")
    assert json.loads((out / "metrics.json").read_text()) == {"rows": 541, "instructions": 834, "drawn": 2}
    given = [json.loads(line) for line in OFFICIAL.read_text(encoding="utf-8").splitlines()]
    for (_, found), wanted in zip(read_questions(out), given, strict=True):
        assert found == wanted | {"key": str(wanted["key"])}


def answered(questions: Path, out: Path, texts: list[str]) -> Path:
    rows = [
        one
        | {"prompt_token_ids": [0]}
        | {
            "responses": [
                {
                    "text": text,
                    "token_ids": [1] * len(text),
                    "finish_reason": "stop" if number % 3 else "length",
                    "seed": 0,
                    "source": "policy",
                }
            ]
        }
        for number, (one, text) in enumerate(zip(records.read_rows(questions, records.PROMPTS), texts, strict=False))
    ]
    out.mkdir()
    records.write_rows(out, rows, records.RESPONSES)
    return out


WORDS = ("yes", "no,", "*bold*", "P.S.", "Das ist gut so", "HELLO THERE", '"quote"', "\n", "* item\n", "[name]", "***")


@with_official
@pytest.mark.full
def test_scores_are_those_of_lm_evals_own_task(tmp_path: Path) -> None:
    from langdetect import DetectorFactory
    from lm_eval.tasks.ifeval.utils import agg_inst_level_acc, process_results

    lots = np.random.default_rng()
    questions = questions_of(OFFICIAL, tmp_path / "questions")
    texts = [" ".join(lots.choice(WORDS, size=lots.integers(60))) for _ in range(541)]
    answers = answered(questions, tmp_path / "answers", texts)
    out = tmp_path / "out"
    out.mkdir()
    IFEvalScores(confidence=0.95, key="benchmark.mine")(questions, answers, out=out)
    DetectorFactory.seed = 0
    try:
        given = [json.loads(line) for line in OFFICIAL.read_text(encoding="utf-8").splitlines()]
        theirs = [process_results(one, [text]) for one, text in zip(given, texts, strict=True)]
    finally:
        DetectorFactory.seed = None
    ours = records.read_rows(out, SCORES)
    vague = {"1122", "1129"}  # their checker draws a letter
    same = [number for number, one in enumerate(ours) if one["item_id"] not in vague]
    assert len(same) == 539
    for number in same:
        assert ours[number]["score"] == theirs[number]["prompt_level_strict_acc"], ours[number]
        assert ours[number]["loose"] == theirs[number]["prompt_level_loose_acc"]
        assert ours[number]["followed"] == theirs[number]["inst_level_strict_acc"]
        assert ours[number]["followed_loose"] == theirs[number]["inst_level_loose_acc"]
    found = metrics([ours[number] for number in same], 0.95)
    for kind in ("strict", "loose"):
        prompts = [theirs[number][f"prompt_level_{kind}_acc"] for number in same]
        instructions = agg_inst_level_acc([theirs[number][f"inst_level_{kind}_acc"] for number in same])
        assert found[f"prompt_level_{kind}"] == pytest.approx(100 * np.mean(prompts))
        assert found[f"instruction_level_{kind}"] == pytest.approx(100 * instructions)
    both = found["prompt_level_strict"] + found["instruction_level_strict"]
    assert found["leaderboard_ifeval"] == pytest.approx(both / 2)


def verdict(followed: list[bool], group: str = "g") -> records.Row:
    return {
        "instructions": [f"{group}:{n}" for n in range(len(followed))],
        "followed": followed,
        "followed_loose": [True] * len(followed),
        "score": float(all(followed)),
        "loose": 1.0,
        "finish_reason": "stop" if followed[0] else "length",
        "tokens": 10 * len(followed),
    }


def test_numbers_of_a_few_verdicts() -> None:
    """4 prompts, 2 of them whole; 8 instructions, 5 followed."""
    rows = [verdict([True]), verdict([True, False, False], "h"), verdict([False, True]), verdict([True, True], "h")]
    found = metrics(rows, 0.95)
    assert (found["items"], found["instructions"]) == (4, 8)
    assert found["prompt_level_strict"] == 50
    assert found["instruction_level_strict"] == 62.5
    assert found["leaderboard_ifeval"] == 56.25
    assert found["prompt_level_loose"] == found["instruction_level_loose"] == 100
    assert found["finished"] == 0.75
    assert found["tokens"] == 20
    assert (found["strict/g"], found["strict/h"]) == (pytest.approx(200 / 3), 60)
    assert (found["instructions/g"], found["instructions/h"]) == (3, 5)
    # Wilson's interval of 2 of 4: (2 + z²/2 ± z √(1 + z²/4)) / (4 + z²)
    z = 1.959964
    half = z * (1 + z**2 / 4) ** 0.5
    assert found["prompt_level_strict_low"] == pytest.approx(100 * (2 + z**2 / 2 - half) / (4 + z**2), abs=1e-4)
    assert found["prompt_level_strict_high"] == pytest.approx(100 * (2 + z**2 / 2 + half) / (4 + z**2), abs=1e-4)


def test_instructions_of_a_prompt_are_drawn_together() -> None:
    """The slow twin: every prompt with all its instructions, drawn again and again."""
    lots = np.random.default_rng()
    rows = [
        verdict([bool(one)] * int(size))
        for one, size in zip(lots.random(60) < 0.4, lots.integers(1, 6, 60), strict=True)
    ]
    drawn = []
    for _ in range(4000):
        picked = [rows[number] for number in lots.integers(60, size=60)]
        drawn.append(100 * sum(sum(one["followed"]) for one in picked) / sum(len(one["followed"]) for one in picked))
    found = metrics(rows, 0.9)
    spread = float(np.std(drawn))
    assert found["instruction_level_strict_low"] == pytest.approx(np.quantile(drawn, 0.05), abs=0.25 * spread)
    assert found["instruction_level_strict_high"] == pytest.approx(np.quantile(drawn, 0.95), abs=0.25 * spread)


@with_official
def test_the_published_prompts_are_known_whatever_their_order(tmp_path: Path) -> None:
    """And are not, once a single one is missing, or another, or asks for something else."""
    rows = [json.loads(line) for line in OFFICIAL.read_text(encoding="utf-8").splitlines()]
    asked = [one | {"key": str(one["key"])} for one in rows]
    assert digest(asked) == digest(asked[::-1]) == PUBLISHED
    for other in (asked[1:], [*asked, asked[0]], [asked[0] | {"prompt": "x"}, *asked[1:]]):
        assert digest(other) != PUBLISHED
    assert digest([asked[0] | {"instruction_id_list": []}, *asked[1:]]) != PUBLISHED


def test_prompts_of_one_s_own_are_not_the_published_ones(tmp_path: Path) -> None:
    questions = questions_of(written(tmp_path / "q.jsonl", [row(7), row(3)]), tmp_path / "questions")
    for official, known in ((0, PUBLISHED), (2, digest(one for _, one in read_questions(questions)))):
        (out := tmp_path / f"out{official}").mkdir()
        answers = answered(questions, tmp_path / f"answers{official}", ["one", "two"])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("src.evaluation.ifeval.scores.OFFICIAL", known)
            IFEvalScores(confidence=0.95, key="benchmark.mine")(questions, answers, out=out)
        found = json.loads((out / "metrics.json").read_text())
        assert (found["official_items"], found["items"]) == (official, 2)


def test_a_single_prompt_has_an_interval() -> None:
    found = metrics([verdict([True])], 0.95)
    assert found["prompt_level_strict_low"] < found["prompt_level_strict"] == 100
    assert found["instruction_level_strict_low"] == 100


def test_a_prompt_without_an_answer_is_named(tmp_path: Path) -> None:
    questions = questions_of(written(tmp_path / "q.jsonl", [row(7), row(3)]), tmp_path / "questions")
    answers = answered(questions, tmp_path / "answers", ["only one"])
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(UserError, match="^benchmark.mine.max_prompt_tokens: the prompt of key 3 has more"):
        IFEvalScores(confidence=0.95, key="benchmark.mine")(questions, answers, out=out)
    assert not list(out.iterdir())


@pytest.mark.full
def test_a_run_of_the_start_policy_alone(llama: Path, tmp_path: Path) -> None:
    path = written(tmp_path / "ifeval.jsonl", [row(number) for number in range(3)])
    more = ["iter=0", "benchmark=ifeval", f"benchmark.ifeval.path={path}", "benchmark.ifeval.max_new_tokens=8"]
    words = [*tiny(llama, tmp_path / "run", *more), "only=base/ifeval/scores"]
    assert call(*words) == 0
    (scores,) = (tmp_path / "run/store/ifeval_scores").iterdir()
    found = json.loads((scores / "metrics.json").read_text())
    rows = records.read_rows(scores, SCORES)
    assert [one["item_id"] for one in rows] == ["0", "1", "2"]
    assert found["items"] == 3
    assert found["prompt_level_strict"] == pytest.approx(100 * np.mean([one["score"] for one in rows]))
    (answers,) = (tmp_path / "run/store/responses").iterdir()
    assert json.loads((answers / "record.json").read_text())["config"]["sampling"]["temperature"] == 0
    assert (next((tmp_path / "run/store/ifeval_questions").iterdir()) / INSTRUCTIONS).is_file()


def test_the_hub_is_asked_for_its_only_split_and_a_folder_is_a_mirror_of_it(tmp_path: Path) -> None:
    found = typed("iter=0", "benchmark=ifeval", "benchmark.ifeval.revision=abc").nodes()
    (asked,) = (node.stage for node in found if node.name == "ifeval/questions")
    assert isinstance(asked, IFEvalQuestions)
    assert (asked.source.path, asked.source.split) == ("google/IFEval", "train")
    assert asked.content == "google/IFEval@abc"
    written(tmp_path / "set/input.jsonl", [row(7), row(3)])
    benchmark = typed("iter=0", "benchmark=ifeval", f"benchmark.ifeval.path={tmp_path / 'set'}")
    (node,) = (node for node in benchmark.nodes() if node.name == "ifeval/questions")
    (tmp_path / "out").mkdir()
    node.stage(out=tmp_path / "out")
    assert [one["kwargs"][1] for _, one in read_questions(tmp_path / "out")] == 2 * [
        {"num_words": 2, "relation": "at least"}
    ]


def test_a_file_that_is_not_there_is_named(llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = tiny(llama, tmp_path / "run", "iter=0", "benchmark=ifeval", "benchmark.ifeval.path=none.jsonl")
    assert call("plan", *words) == 2
    assert "error: no file none.jsonl" in capsys.readouterr().err
