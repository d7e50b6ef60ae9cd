"""Answers that the policy did not give: from an endpoint or a file, put behind its own.

The golden keys hold what they change in a run, and what they do not.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from answer_server import IMPATIENT, KEY, AnswerServer, Said
from hydra.utils import instantiate
from tiny_generation import THREE, write_prompts
from tiny_run import composed

from src.data.outside import OUTSIDE, AddAnswers
from src.kernel.config import UserError
from src.kernel.rows import RESPONSES, Row, prompt_id, read_rows, write_rows
from src.modeling.policy import load_tokenizer, text_ids


def stage_of(kind: str, *overrides: str) -> Any:
    """Return the stage of conf/answers/<kind>.yaml in a run whose policy answers in 16 tokens."""
    words = [f"data.answers.x.{override}" for override in overrides]
    cfg = composed(f"+answers@data.answers.x={kind}", "sampling.max_new_tokens=16", *words)
    return instantiate(cfg.data.answers.x, _convert_="all").stage("data.answers.x")


def asking(url: str, *overrides: str) -> Any:
    return stage_of("endpoint", f"endpoint.base_url={url}", "source=gpt", *IMPATIENT, *overrides)


def chat(question: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}]


IDS = {question: prompt_id(chat(question)) for question in THREE}


def run_stage(stage: Any, place: Path) -> tuple[list[Row], dict[str, int]]:
    """Return rows and metrics for the three prompts."""
    (out := place / "out").mkdir(parents=True, exist_ok=True)
    stage(write_prompts(place / "prompts", THREE), out=out)
    return read_rows(out, OUTSIDE), json.loads((out / "metrics.json").read_text())


# An endpoint


def test_an_endpoint_is_asked_once_for_each_prompt(server: AnswerServer, tmp_path: Path) -> None:
    server.say = lambda body, _: Said(f"to {body['messages'][0]['content']}", "length" if body["seed"] % 2 else "stop")
    rows, counts = run_stage(asking(server.url), tmp_path)
    assert [(row["text"], row["source"]) for row in rows] == [(f"to {question}", "gpt") for question in THREE]
    assert {row["seed"] for row in rows} == {body.get("seed") for body in server.bodies} and len(server.bodies) == 3
    assert [row["finish_reason"] for row in rows] == ["length" if row["seed"] % 2 else "stop" for row in rows]
    assert counts == {"refused": 0, "filtered": 0, "input_tokens": 30, "output_tokens": 9}
    sent = {name: server.bodies[0][name] for name in ("model", "temperature", "top_p", "max_tokens")}
    assert sent == {"model": "gpt-4-turbo-2024-04-09", "temperature": 0.7, "top_p": 1.0, "max_tokens": 2048}
    assert server.keys == {f"Bearer {KEY}"}


def test_an_answer_is_paid_for_once_whatever_is_made_of_it() -> None:
    """Replies of another limit or name of the source are the same cells; those at another temperature are not."""
    first = asking("http://here").shared()
    assert asking("http://there", "source=another", "max_answer_tokens=3").shared() == first
    assert asking("http://here", "temperature=0.1").shared() != first != asking("http://here", "seed=1").shared()


def test_what_is_refused_or_filtered_is_missing_and_only_the_refused_is_asked_again(
    server: AnswerServer, tmp_path: Path
) -> None:
    replies = {"hi": Said("yes"), "ok?": Said("x", "content_filter")}
    server.say = lambda body, _: replies.get(body["messages"][0]["content"], Said(status=400, body="no"))
    rows, counts = run_stage(asking(server.url, "endpoint.concurrent=1"), tmp_path)
    assert [row["prompt_id"] for row in rows] == [IDS["hi"]] and len(server.bodies) == 3
    assert (counts["refused"], counts["filtered"]) == (1, 1)
    run_stage(asking(server.url), tmp_path)
    assert len(server.bodies) == 4


# A file


def answered(text: str | None) -> list[dict[str, str | None]]:
    return [{"role": "assistant", "content": text}]


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


FORMS: dict[str, tuple[Any, list[str]]] = {
    "messages and text": (lambda q, a: {"messages": chat(q), "answer": a}, []),
    "a named column of text": (lambda q, a: {"q": q, "said": a, "prompt": "no"}, ["prompt=q", "answer=said"]),
    "prompt_id": (lambda q, a: {"id": IDS.get(q, "0" * 16), "answer": a}, ["prompt_id=id"]),
    "UltraFeedback": (
        lambda q, a: {"prompt": q, "prompt_id": "f" * 64, "chosen": chat(q) + answered(a)},
        ["answer=chosen"],
    ),
    "a whole chat": (lambda q, a: {"messages": chat(q) + answered(a)}, ["answer=messages"]),
    "who answered": (lambda q, a: {"prompt": q, "answer": a, "by": "gpt"}, ["source=null", "source_column=by"]),
    "turns of the answer alone": (lambda q, a: {"prompt": q, "answer": answered(a)}, []),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_row_finds_its_prompt_in_every_form(form: str, tmp_path: Path) -> None:
    """Answers for two of three prompts, a second one for the first, and one for a prompt that nobody asks."""
    make, options = FORMS[form]
    rows = [make(*row) for row in [("ok?", "Yes."), ("else", "x"), ("hi", " Hello </s>"), ("ok?", "No.")]]
    path = written(tmp_path / "outside.jsonl", rows)
    answers, counts = run_stage(stage_of("file", f"path={path}", "source=gpt", *options), tmp_path)
    rest = {"finish_reason": "stop", "seed": None, "source": "gpt"}
    expected = {"hi": " Hello </s>", "ok?": "Yes."}
    assert answers == [{"prompt_id": IDS[question], "text": text} | rest for question, text in expected.items()]
    assert counts == {"rows": 4, "unused": 1, "doubled": 1}


def test_a_file_that_changed_since_the_plan_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "outside.jsonl", [{"prompt": "hi", "answer": "x"}])
    stage = stage_of("file", f"path={path}", "source=a")
    written(path, [{"prompt": "hi", "answer": "y"}])
    with pytest.raises(UserError, match="outside.jsonl changed since"):
        run_stage(stage, tmp_path)


# In a run


def test_answers_stand_behind_the_policys_own_in_its_tokens(llama: Path, tmp_path: Path, capsys: Any) -> None:
    """a answers the first prompt with more tokens than allowed, and the second. b is cut off twice, then empty."""
    tokenizer = load_tokenizer(llama)
    own = {"text": "so it is", "token_ids": [1, 2], "finish_reason": "length", "seed": 7, "source": "policy"}
    base = {"source": "x", "checks": "[]", "prompt_token_ids": [5], "responses": [own, own]}
    rows = [{"prompt_id": IDS[question], "messages": chat(question)} | base for question in THREE]
    texts = {"a": {"hi": "z" * 10, "what is it": " it </s>"}}
    texts["b"] = {"hi": "cut", "what is it": "so it is", "ok?": " \n"}
    for name, finish in (("responses", ""), ("a", "stop"), ("b", "length"), ("out", "")):
        (tmp_path / name).mkdir()
        rest = {"finish_reason": finish, "seed": None, "source": f"from {name}"}
        answers = [{"prompt_id": IDS[q], "text": text} | rest for q, text in texts.get(name, {}).items()]
        write_rows(tmp_path / name, answers, OUTSIDE)
    write_rows(tmp_path / "responses", rows, RESPONSES)
    stage = AddAnswers(names=("a", "b"), limits=(10, 9))
    stage(tmp_path / "responses", llama, tmp_path / "a", tmp_path / "b", out=tmp_path / "out")
    mixed = read_rows(tmp_path / "out", RESPONSES)
    assert [row | {"responses": row["responses"][:2]} for row in mixed] == rows
    added = [[(x["source"], x["text"], x["finish_reason"]) for x in row["responses"][2:]] for row in mixed]
    second = [("from a", " it </s>", "stop"), ("from b", "so it is", "length")]
    assert added == [[("from b", "cut", "length")], second, []]
    for answer in (answer for row in mixed for answer in row["responses"][2:]):
        end = [tokenizer.eos_token_id] * (answer["finish_reason"] == "stop")
        assert answer["token_ids"] == text_ids(tokenizer, answer["text"]) + end
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert [metrics[f"a/{count}"] for count in ("missing", "empty", "too_long", "added")] == [1, 0, 1, 1]
    assert [metrics[f"b/{count}"] for count in ("missing", "empty", "too_long", "added")] == [0, 1, 0, 2]
    assert (metrics["answers"], metrics["commonest"]) == (9, 1)
    assert "answers: warning: 3 of 3 prompts " in capsys.readouterr().out
