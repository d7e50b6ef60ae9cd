"""Answers that the policy did not give: of an endpoint or a file, put behind its own, and carried to the report."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from answer_server import IMPATIENT, KEY, AnswerServer, Said, answering
from hydra.utils import instantiate
from tiny_generation import THREE, write_prompts
from tiny_run import composed, tiny

from src.data.outside import OUTSIDE, AddAnswers, AnswerSource
from src.experiment.graph import nodes_of
from src.kernel.artifact import Node
from src.kernel.config import UserError, config
from src.kernel.rows import RESPONSES, Row, prompt_id, read_rows, write_rows
from src.kernel.store import Store
from src.launch.compose import build
from src.modeling.policy import load_tokenizer, text_ids

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def server() -> Iterator[AnswerServer]:
    with answering() as server:
        yield server


def source(kind: str, *overrides: str) -> Any:
    """The source of conf/answers/<kind>.yaml in a run of seed 0 whose policy answers in 16 tokens."""
    own = [f"data.answers.x.{override}" for override in overrides]
    cfg = composed(f"+answers@data.answers.x={kind}", "sampling.max_new_tokens=16", *own)
    return instantiate(cfg.data.answers.x, _convert_="all")


def asking(url: str, *overrides: str) -> Any:
    return source("endpoint", f"endpoint.base_url={url}", "source=gpt", *IMPATIENT, *overrides)


def chat(question: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}]


IDS = {question: prompt_id(chat(question)) for question in THREE}


def asked_of(asked: Any, place: Path) -> tuple[list[Row], dict[str, int]]:
    """The rows and numbers that a source gives to the three prompts."""
    (out := place / "out").mkdir(parents=True, exist_ok=True)
    asked.stage("data.answers.x")(write_prompts(place / "prompts", THREE), out=out)
    return read_rows(out, OUTSIDE), json.loads((out / "metrics.json").read_text())


# An endpoint


def test_an_endpoint_is_asked_once_for_each_prompt(server: AnswerServer, tmp_path: Path, capsys: Capture) -> None:
    server.say = lambda body, _: Said(f"to {body['messages'][0]['content']}", "length" if body["seed"] % 2 else "stop")
    asked = asking(server.url, "endpoint.input_price=1.0", "endpoint.output_price=2.0")
    found, counts = asked_of(asked, tmp_path)
    assert [(row["text"], row["source"]) for row in found] == [(f"to {q}", "gpt") for q in THREE]
    assert {row["seed"] for row in found} == {seed for _, seed in server.asked} and len(server.bodies) == 3
    assert [row["finish_reason"] for row in found] == ["length" if row["seed"] % 2 else "stop" for row in found]
    assert all(0 <= row["seed"] < 2**63 for row in found)
    assert counts == {"refused": 0, "filtered": 0, "input_tokens": 30, "output_tokens": 9}
    sent = {k: server.bodies[0][k] for k in ("model", "temperature", "top_p", "max_tokens")}
    assert sent == {"model": "gpt-4-turbo-2024-04-09", "temperature": 0.7, "top_p": 1.0, "max_tokens": 2048}
    assert "3 answers, 30 input and 9 output tokens, cost 4.8e-05" in capsys.readouterr().out
    assert server.keys == {f"Bearer {KEY}"}


def test_an_answer_is_paid_for_once_whatever_is_made_of_it(server: AnswerServer, tmp_path: Path) -> None:
    """Another policy, limit or name of the source is another artifact, and no request; another temperature is."""
    store = Store(tmp_path / "store")

    def rows(*words: str) -> list[Row]:
        stage = asking(server.url, *words).stage("data.answers.x")
        node = Node("it1/outside_x", stage, (Node("it1/prompts", ThreePrompts()),))
        return read_rows(store.make(node), OUTSIDE)

    store.make(Node("it1/prompts", ThreePrompts()))
    first = rows()
    assert [row | {"source": "gpt"} for row in rows("source=another", "max_answer_tokens=3")] == first
    assert len(server.bodies) == 3
    rows("temperature=0.1")
    assert len(server.bodies) == 6


@config
class ThreePrompts:
    kind: ClassVar[str] = "prompts"
    version: ClassVar[int] = 1
    resumable: ClassVar[bool] = False

    def __call__(self, *inputs: Path, out: Path) -> None:
        write_prompts(out, THREE)


def test_what_is_refused_or_filtered_is_missing_and_only_the_refused_is_asked_again(
    server: AnswerServer, tmp_path: Path
) -> None:
    def say(body: dict[str, Any], _: int) -> Said:
        question = body["messages"][0]["content"]
        return {"hi": Said("yes"), "ok?": Said("x", "content_filter")}.get(question, Said(status=400, body="no"))

    server.say = say
    found, counts = asked_of(asking(server.url, "endpoint.concurrent=1"), tmp_path)
    assert [row["prompt_id"] for row in found] == [IDS["hi"]] and len(server.bodies) == 3
    assert (counts["refused"], counts["filtered"]) == (1, 1)
    asked_of(asking(server.url), tmp_path)
    assert len(server.bodies) == 4


# A file


def answered(text: str | None) -> list[dict[str, str | None]]:
    return [{"role": "assistant", "content": text}]


def written(folder: Path, rows: list[dict[str, Any]], name: str = "outside.jsonl") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(folder: Path, rows: list[dict[str, Any]], *more: str, name: str = "outside.jsonl") -> tuple[list[Row], Any]:
    """OUTSIDE rows and counts that such a file gives to the three prompts."""
    who = [] if any("source_column" in word for word in more) else ["source=gpt"]
    found = source("file", f"path={written(folder, rows, name)}", *who, *more)
    assert isinstance(found, AnswerSource)
    return asked_of(found, folder)


FORMS: dict[str, tuple[Any, list[str]]] = {
    "prompt and text": (lambda q, a: {"prompt": q, "answer": a}, []),
    "messages and text": (lambda q, a: {"messages": chat(q), "answer": a}, []),
    "a named column of text": (lambda q, a: {"q": q, "said": a, "prompt": "no"}, ["prompt=q", "answer=said"]),
    "prompt_id": (lambda q, a: {"id": IDS.get(q, "0" * 16), "answer": a}, ["prompt_id=id"]),
    "UltraFeedback's chosen": (
        lambda q, a: {"prompt": q, "prompt_id": "f" * 64, "chosen": chat(q) + answered(a), "messages": chat(q)},
        ["answer=chosen"],
    ),
    "a whole chat": (lambda q, a: {"messages": chat(q) + answered(a)}, ["answer=messages"]),
    "turns of the answer alone": (lambda q, a: {"prompt": q, "answer": answered(a)}, []),
}


def test_a_row_finds_its_prompt_in_every_form(tmp_path: Path) -> None:
    """Answers for two of three prompts, a second one for the first, and one for a prompt that nobody asks."""
    for number, (form, (make, options)) in enumerate(FORMS.items()):
        rows = [make(*row) for row in [("ok?", "Yes."), ("else", "x"), ("hi", " Hello </s>"), ("ok?", "No.")]]
        name = f"outside.{('jsonl', 'parquet')[number % 2]}"
        found, counts = read(tmp_path / str(number), rows, *options, name=name)
        shown = [(row["prompt_id"], row["text"], row["finish_reason"], row["seed"], row["source"]) for row in found]
        expected = [(IDS["hi"], " Hello </s>", "stop", None, "gpt"), (IDS["ok?"], "Yes.", "stop", None, "gpt")]
        assert shown == expected, form
        assert (counts["rows"], counts["unused"], counts["doubled"]) == (4, 1, 1), form


def test_a_column_may_say_who_answered_and_null_is_an_empty_answer(tmp_path: Path) -> None:
    rows = [{"prompt": "hi", "answer": None, "by": "a"}, {"prompt": "ok?", "answer": answered(None), "by": "b"}]
    found, _ = read(tmp_path, rows, "source_column=by")
    assert [(row["text"], row["source"]) for row in found] == [("", "a"), ("", "b")]


MISTAKES: list[tuple[dict[str, Any], list[str], str]] = [
    ({"prompt": "hi"}, [], "no column 'answer'"),
    ({"answer": "x"}, [], "no column 'prompt' or 'messages'"),
    ({"prompt": "hi", "answer": "x"}, ["prompt=q"], "no column 'q'"),
    ({"prompt": "hi", "answer": chat("x")}, [], "answer: "),
    ({"prompt_id": "f" * 64, "answer": "x"}, ["prompt_id=prompt_id"], "no prompt_id of this store"),
    ({"prompt": 3, "answer": "x"}, [], "prompt: 3 is no text"),
    ({"prompt": "hi", "answer": "x", "by": ""}, ["source_column=by"], "by: ''"),
]


def test_a_mistake_is_one_line_with_its_place(tmp_path: Path) -> None:
    fine = {"prompt": "hi", "q": "hi", "answer": "x", "by": "b", "prompt_id": IDS["hi"]}
    for row, options, line in MISTAKES:
        with pytest.raises(UserError, match=f"outside.jsonl:2: [^\n]*{line}[^\n]*$"):
            read(tmp_path, [row | fine, row], *options)


def test_a_file_that_is_not_there_or_changed_or_answers_nothing_is_refused(tmp_path: Path) -> None:
    asked = write_prompts(tmp_path / "prompts", THREE)
    with pytest.raises(UserError, match="^data.answers.x.path: "):
        source("file", f"path={tmp_path}/none.jsonl", "source=a").stage("data.answers.x")
    path = written(tmp_path, [{"prompt": "HI", "answer": "x"}])
    stage = source("file", f"path={path}", "source=a").stage("data.answers.x")
    with pytest.raises(UserError, match="none of the 1 rows of "):
        stage(asked, out=tmp_path)
    written(tmp_path, [{"prompt": "hi", "answer": "x"}])
    with pytest.raises(UserError, match="outside.jsonl changed since"):
        stage(asked, out=tmp_path)


# In a run


def test_they_stand_behind_the_policy_s_own_in_its_tokens(llama: Path, tmp_path: Path, capsys: Capture) -> None:
    """Three prompts; source a answers the first twice as long as allowed and the second; b is cut off, same, empty."""
    tokenizer, own = load_tokenizer(llama), "so it is"
    end = tokenizer.eos_token_id
    one = {"text": own, "token_ids": [1, 2], "finish_reason": "length", "seed": 7, "source": "policy"}
    base = {"source": "x", "checks": "[]", "prompt_token_ids": [5], "responses": [one, one]}
    rows = [{"prompt_id": IDS[q], "messages": chat(q)} | base for q in THREE]
    a = {"hi": "z" * 10, "what is it": " it </s>"}
    b = {"hi": "cut", "what is it": own, "ok?": " \n"}
    for name, texts in (("a", a), ("b", b)):
        (folder := tmp_path / name).mkdir()
        finish = "stop" if name == "a" else "length"
        write_rows(
            folder,
            [
                {"prompt_id": IDS[q], "text": text, "finish_reason": finish, "seed": None, "source": f"from {name}"}
                for q, text in texts.items()
            ],
            OUTSIDE,
        )
    (responses := tmp_path / "responses").mkdir()
    write_rows(responses, rows, RESPONSES)
    (out := tmp_path / "out").mkdir()
    AddAnswers(names=("a", "b"), limits=(10, 9))(responses, llama, tmp_path / "a", tmp_path / "b", out=out)
    mixed = read_rows(out, RESPONSES)
    assert [row | {"responses": row["responses"][:2]} for row in mixed] == rows
    added = [[(x["source"], x["text"], x["finish_reason"]) for x in row["responses"][2:]] for row in mixed]
    assert added == [[("from b", "cut", "length")], [("from a", " it </s>", "stop"), ("from b", own, "length")], []]
    ids = [answer["token_ids"] for row in mixed for answer in row["responses"][2:]]
    expected = [text_ids(tokenizer, text) for text in ("cut", " it </s>", own)]
    assert ids == [expected[0], [*expected[1], end], expected[2]]
    assert json.loads((out / "metrics.json").read_text()) == {
        **{"a/missing": 1, "a/empty": 0, "a/too_long": 1, "a/added": 1},
        **{"b/missing": 0, "b/empty": 1, "b/too_long": 0, "b/added": 2},
        **{"prompts": 3, "answers": 9, "empty": 0, "looping": 0, "alike": 1 / 3, "commonest": 1},
    }
    assert capsys.readouterr().out.count("warning") == 1, "the last prompt alone has a single text"


def test_answers_change_what_is_ranked_and_not_what_is_sampled_or_held_out(llama: Path, tmp_path: Path) -> None:
    rows = [{"prompt": "x", "answer": "y"}]
    words = [f"data.answers.gpt.path={written(tmp_path, rows)}", "data.answers.gpt.source=gpt"]

    def keys(*more: str) -> dict[str, str]:
        run = build(composed("iter=1", *tiny(llama, tmp_path), *more))
        return {node.name: node.key for node in nodes_of(run)}

    without, mixed = keys(), keys("+answers@data.answers.gpt=file", *words)
    assert mixed["it1/own_responses"] == without["it1/responses"] != mixed["it1/responses"]
    same = {"it1/prompts", "base/policy", "held_out/prompts", "base/answers", "null/answers", "base/answers_ranking"}
    assert all(mixed[name] == without[name] for name in same) and mixed["it1/ranking"] != without["it1/ranking"]
    written(tmp_path, [{"prompt": "x", "answer": "z"}])
    changed = keys("+answers@data.answers.gpt=file", *words)
    assert {name for name in mixed if changed[name] != mixed[name]} == {
        name for name in mixed if name.startswith("it1/") and name not in ("it1/prompts", "it1/own_responses")
    }
