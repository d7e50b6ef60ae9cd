"""MT-Bench: its questions, both turns of a conversation, what the judge is asked and replies, and a whole run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from answer_rows import answered, written
from answer_server import AnswerServer, Said, text_of
from bad_models import saying
from hydra.utils import instantiate
from judge_server import benchmark_judge
from omegaconf import OmegaConf
from places import ROOT, SHARED
from tiny_run import World, call, tiny

from src.evaluation.mt_bench import questions as stages
from src.evaluation.mt_bench.scores import Judge, averages, rating, read_judgments
from src.kernel.config import UserError
from src.kernel.rows import PROMPTS, RESPONSES, Row, read_rows

REAL = SHARED / "mt_bench"
RECORDED = REAL / "model_judgment" / "gpt-4_single_llama3-8b.jsonl"
CONF: Any = OmegaConf.load(ROOT / "conf" / "benchmark" / "mt_bench.yaml")
PUBLISHED: stages.Files = instantiate(CONF.files)
CATEGORIES = sorted(CONF.temperatures)
FIRSTS = range(81, 161, 10)
"""The first question of each category."""
KEY = "benchmark.mine"
"""The key of a benchmark under another name."""
Say = Callable[[int, int], str]
"""A policy: makes an answer of a question's id and the turn."""


def lines_of(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def question_of(row: Row) -> int:
    return int(row["source"].removeprefix(stages.SOURCE))


def made(stage: Any, out: Path, *inputs: Path) -> Path:
    out.mkdir(parents=True)
    stage(*inputs, out=out)
    return out


def questions(out: Path, first: int | None = None, files: stages.Files = PUBLISHED) -> Path:
    return made(stages.Questions(files=files, categories=CATEGORIES, first=first, key=KEY), out)


def conversation(place: Path, say: Say, first: int | None = 1) -> Path:
    """Make the artifacts of a policy `tiny`, each in a folder of its own; return that of its answers to both turns."""

    def answers_to(prompts: Path, turn: int) -> Path:
        rows = [answered(0, say(question_of(row), turn)) | row for row in read_rows(prompts, PROMPTS)]
        return written(place / f"responses_{turn}", rows, RESPONSES)

    asked = questions(place / "questions", first)
    one = answers_to(made(stages.FirstTurns(categories=CATEGORIES), place / "turn_1", asked), 1)
    two = answers_to(made(stages.SecondTurns(categories=CATEGORIES, key=KEY), place / "turn_2", one, asked), 2)
    return made(stages.Answers(model="tiny", key=KEY), place / "answers", asked, one, two)


# The files ---------------------------------------------------------------------------------------------------------


def test_the_package_has_80_questions_of_8_categories(tmp_path: Path) -> None:
    rows = read_rows(questions(tmp_path / "all"), stages.QUESTIONS)
    assert [row["question_id"] for row in rows] == list(range(81, 161))
    assert sorted({row["category"] for row in rows}) == CATEGORIES and len(CATEGORIES) == 8
    assert {row["question_id"] for row in rows if row["reference"]} == set(range(101, 131))
    some = read_rows(questions(tmp_path / "some", first=2), stages.QUESTIONS)
    assert some == [row for row in rows if row["question_id"] % 10 in (1, 2)]


@pytest.mark.parametrize(
    ("name", "change", "line"),
    [
        ("questions", lambda rows: rows[4].update(question_id=81), "questions.jsonl: question_id 81 is there 2 times"),
        ("questions", lambda rows: rows[3].update(turns=["one", ""]), "questions.jsonl:4: turns.1: "),
        ("questions", lambda rows: rows[3].update(category="law"), "^benchmark.mine.temperatures: .*<category>: law"),
        ("references", lambda rows: rows.pop(2), "references.jsonl: no answer to question 103"),
        ("judge_prompts", lambda rows: rows.pop(4), "judge_prompts.jsonl: no prompt single-v1"),
    ],
)
def test_a_bad_file_is_one_line(name: str, change: Callable[[list[Row]], Any], line: str, tmp_path: Path) -> None:
    names = ("questions", "references", "judge_prompts")
    paths = {one: shutil.copy(PUBLISHED.file(one), tmp_path / f"{one}.jsonl") for one in names}
    change(rows := lines_of(paths[name]))
    paths[name].write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=line):
        questions(tmp_path / "out", files=stages.Files(package=None, **{one: str(path) for one, path in paths.items()}))
    assert not list((tmp_path / "out").iterdir())


# The turns ---------------------------------------------------------------------------------------------------------


def test_the_second_turn_shows_the_policys_own_answer(tmp_path: Path) -> None:
    """Empty and cut-off answers go on as they are; white space around one is dropped, as in FastChat.

    Both turns are sampled with one seed into one folder of cells, by prompt_id: no two are alike.
    """
    texts = {91: "cut off in the mid", 101: "\n  padded {question} \t\n"}
    conversation(tmp_path, lambda question, turn: texts.get(question, ""), first=None)
    one, two = (read_rows(tmp_path / f"turn_{turn}", PROMPTS) for turn in (1, 2))
    assert len({row["prompt_id"] for row in [*one, *two]}) == 160
    for row, first, second in zip(read_rows(tmp_path / "questions", stages.QUESTIONS), one, two, strict=True):
        question, (ask, again) = row["question_id"], row["turns"]
        assert question_of(first) == question_of(second) == question
        said = [("user", ask), ("assistant", texts.get(question, "").strip()), ("user", again)]
        messages = [{"role": role, "content": text} for role, text in said]
        assert (first["messages"], second["messages"]) == (messages[:1], messages)


def test_answers_are_in_fastchats_format_and_the_judges_prompts_are_filled_in_once(tmp_path: Path) -> None:
    """No text is read as a placeholder. The system prompt is that of the prompt's name."""
    first = {question: "{answer} {ref_answer_1} {" if question > 100 else "" for question in FIRSTS}
    out = conversation(tmp_path, lambda question, turn: first[question] if turn == 1 else f"}} {question}")
    lines = lines_of(out / "model_answer" / "tiny.jsonl")
    assert [list(row) for row in lines] == [["question_id", "answer_id", "model_id", "choices", "tstamp"]] * 8
    assert {row["question_id"]: row["choices"] for row in lines} == {
        question: [{"index": 0, "turns": [text, f"}} {question}"]}] for question, text in first.items()
    }
    assert len({row["answer_id"] for row in lines}) == 8 and {row["model_id"] for row in lines} == {"tiny"}
    prompts = {row["name"]: row for row in lines_of(PUBLISHED.file("judge_prompts"))}
    rows = read_rows(out, stages.REQUESTS)
    assert [(row["question_id"], row["turn"]) for row in rows] == [(q, t) for q in FIRSTS for t in (1, 2)]
    for row in rows:
        question, both = row["question_id"], row["turn"] == 2
        referenced = question in (101, 111, 121)
        assert row["prompt"] == f"single-{'math-' if referenced else ''}v1{'-multi-turn' if both else ''}"
        assert row["system_prompt"] == prompts[row["prompt"]]["system_prompt"]
        assert first[question] in row["user_prompt"] and (f"}} {question}" in row["user_prompt"]) == both


# Recorded judgments of GPT-4 ---------------------------------------------------------------------------------------


def recorded_answers(model: str) -> dict[int, list[str]]:
    """Return both answers by question, cut out of the judge's prompt for the second turn."""
    texts = {row["question_id"]: row["turns"] for row in lines_of(REAL / "question.jsonl")}
    answers = {}
    for row in lines_of(RECORDED):
        if (row["model"], row["turn"]) == (model, 2):
            marks = [f"### User:\n{turn}\n\n### Assistant A:\n" for turn in texts[row["question_id"]]]
            both = row["user_prompt"].partition("<|The Start of Assistant A's Conversation with User|>\n\n")[2]
            first, _, second = both.removeprefix(marks[0]).partition(f"\n\n{marks[1]}")
            end = "\n\n<|The End of Assistant A's Conversation with User|>"
            answers[row["question_id"]] = [first, second.removesuffix(end)]
    return answers


@pytest.mark.skipif(not RECORDED.exists(), reason="no ../shared/data/mt_bench beside the checkout")
@pytest.mark.full
def test_the_judge_is_asked_what_gpt_4_was_asked(tmp_path: Path) -> None:
    """From FastChat's own files. Character for character, on both turns, with and without references: 330 prompts.

    And its ratings are read as FastChat read them, and averaged as published.
    """
    recorded = lines_of(RECORDED)
    assert [rating(row["judgment"]) for row in recorded] == [row["score"] for row in recorded]
    for name, stem in {"questions": "question", "references": "reference_answer_gpt-4"}.items():
        assert lines_of(PUBLISHED.file(name)) == lines_of(REAL / f"{stem}.jsonl"), name
    judgments = read_judgments([RECORDED])
    categories = {row["question_id"]: row["category"] for row in lines_of(REAL / "question.jsonl")}
    for name, average in {"Normal": 1302 / 166, "Griffin": 2.7}.items():
        model = f"Meta-Llama-3-8B-Instruct-{name}"
        assert averages(model, judgments[model, "gpt-4"], categories, 0.95)[0]["score"] == average
        answers = recorded_answers(model)
        out = conversation(tmp_path / name, lambda q, turn, answers=answers: answers[q][turn - 1], first=None)
        asked = {(row["question_id"], row["turn"]): row for row in read_rows(out, stages.REQUESTS)}
        assert len(asked) == 160
        for row in (row for row in recorded if row["model"] == model):
            ours = asked[row["question_id"], row["turn"]]
            assert ours["user_prompt"] == row["user_prompt"] and ours["prompt"] == row["judge"][1]


# The judge -------------------------------------------------------------------------------------------------------


def graded(body: dict[str, Any], number: int) -> str:
    """Rate a text by its length alone."""
    return f"It is long. Rating: [[{len(text_of(body)) % 10 + 1}]]"


@pytest.fixture
def server(server: AnswerServer) -> AnswerServer:
    server.say = graded
    return server


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 requests: both turns of the first question of each category."""
    return conversation(tmp_path_factory.mktemp("mt"), lambda question, turn: f"{turn} {question}")


def judged(url: str, answers: Path, out: Path, *words: str, limit: float = 0.05) -> tuple[list[Row], dict[str, int]]:
    """Return the judgments and counts in `out`, whose folder WORK keeps the replies of an earlier call."""
    out.mkdir(exist_ok=True)
    endpoint = benchmark_judge("mt_bench", url, *words)
    Judge(endpoint=endpoint, key="benchmark.mt_bench.judge", unrated_share_limit=limit)(answers, out=out)
    lines = lines_of(out / "model_judgment" / "gpt-4_single.jsonl")
    return lines, json.loads((out / "metrics.json").read_text())


def test_the_first_rating_in_double_brackets_counts() -> None:
    table = {"Rating: [[7]]": 7, "Rating: [[8.5]]": 8.5, "[[3]] at first, [[9]] later": 3, "[x] [2.5] [4]": 2.5}
    assert {reply: rating(reply) for reply in table} == table
    assert all(rating(reply) == -1 for reply in ("[[95]]", "[[7/10]]", "[[-3]]", "[[٧]]", "$ERROR$"))


def test_the_judge_is_asked_as_published(server: AnswerServer, answers: Path, tmp_path: Path) -> None:
    """The order of replies changes no byte."""
    (lines, counts), rows = judged(server.url, answers, tmp_path / "out"), read_rows(answers, stages.REQUESTS)
    asked = [[("system", row["system_prompt"]), ("user", row["user_prompt"])] for row in rows]
    messages = [[(turn["role"], turn["content"]) for turn in body.pop("messages")] for body in server.bodies]
    assert sorted(messages) == sorted(asked) and len(rows) == 16
    assert all(body == {"model": "gpt-4", "temperature": 0.0, "max_tokens": 2048} for body in server.bodies)
    for line, row in zip(lines, rows, strict=True):
        score = len(row["user_prompt"]) % 10 + 1
        assert all(line[name] == row[name] for name in ("question_id", "model", "user_prompt", "turn"))
        assert (line["judgment"], line["score"]) == (f"It is long. Rating: [[{score}]]", score)
        assert line["judge"] == ["gpt-4", row["prompt"]]
    assert counts == {"judgments": 16, "unrated": 0, "refused": 0, "input_tokens": 160, "output_tokens": 48}
    judged(server.url, answers, tmp_path / "again", "concurrent=1")
    for file in ("model_judgment/gpt-4_single.jsonl", "metrics.json"):
        assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "again" / file).read_bytes()


def test_replies_without_a_rating_are_kept_and_refused_texts_asked_again(
    server: AnswerServer, answers: Path, tmp_path: Path
) -> None:
    """They count as FastChat counts them. Three of 16 are within a limit of 0.2."""
    first, second, third, *_ = [row["user_prompt"] for row in read_rows(answers, stages.REQUESTS)]
    refusal = Said(status=400, body='{"error": {"message": "the text is too long"}}')
    odd = {**dict.fromkeys((first, second), Said("I would rather", "length")), third: refusal}
    server.say = lambda body, number: odd.get(text_of(body)) or graded(body, number)
    lines, counts = judged(server.url, answers, out := tmp_path / "out", limit=0.2)
    assert [(row["judgment"], row["score"]) for row in lines[:3]] == [("I would rather", -1)] * 2 + [("$ERROR$", -1)]
    assert (counts["unrated"], counts["refused"], counts["judgments"]) == (3, 1, 16)
    with pytest.raises(UserError, match="^benchmark.mt_bench.unrated_share_limit: 2 of 16 .* not a rating"):
        judged(server.url, answers, out)
    assert len(server.bodies) == 16
    server.say = graded
    assert judged(server.url, answers, out, limit=0.2)[0][2]["score"] > 0 and len(server.bodies) == 17


@pytest.mark.full
def test_a_policy_is_asked_twice_and_graded(llama: Path, server: AnswerServer, tmp_path: Path) -> None:
    """More questions later, or another limit, ask the judge for nothing that it has answered."""
    more = [f"judge.base_url={server.url}", "judge.retries=0", "judge.timeout_s=60.0", "first=1", "max_new_tokens=6"]
    saying(max_position_embeddings=8192)(long := Path(shutil.copytree(llama, tmp_path / "long")))
    words = tiny(long, tmp_path, "iter=0", "benchmark=mt_bench", *(f"benchmark.mt_bench.{word}" for word in more))
    assert call(*words) == 0
    world, place = World(tmp_path, words), "base/mt_bench"
    lines = lines_of(world.artifact(f"{place}/answers") / "model_answer" / "tiny-base.jsonl")
    turns: dict[int, Any] = {row["question_id"]: row["choices"][0]["turns"] for row in lines}
    assert len(server.bodies) == 16 and list(turns) == list(FIRSTS)
    for temperature in ("0", "0.1", "0.7"):
        for row in read_rows(world.artifact(f"{place}/turn_2_at_{temperature}"), RESPONSES):
            said = [row["messages"][1]["content"], row["responses"][0]["text"].strip()]
            assert turns[question_of(row)] == said
    judgments = lines_of(world.artifact(f"{place}/judgments") / "model_judgment" / "gpt-4_single.jsonl")
    for row in judgments:
        assert all(text in row["user_prompt"] for text in turns[row["question_id"]][: row["turn"]])
    score = world.metrics(f"{place}/scores")["score"]
    assert score == pytest.approx(sum(row["score"] for row in judgments) / 16)
    report = (world.folder / "report.md").read_text()
    assert f"{score:.2f}" in report and "published numbers: first, judge, max_new_tokens not as in conf" in report
    again = ["benchmark.mt_bench.judge.concurrent=1", "benchmark.mt_bench.unrated_share_limit=0.5"]
    assert call(*words, *again) == 0 and len(server.bodies) == 16
    assert call(*words, "benchmark.mt_bench.first=2") == 0 and len(server.bodies) == 32
