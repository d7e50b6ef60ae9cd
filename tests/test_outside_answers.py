"""Answers that the policy did not give: read or asked, counted, put behind its own, and carried through to the pairs.

Run: python -m pytest -q tests/test_outside_answers.py
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from answer_server import IMPATIENT, AnswerServer, Said, answering
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from judge_server import KEY, Step
from test_openai_engine import QUESTIONS, prompts
from tiny_run import ROOT, composed, typed

from src import attempts, records
from src.artifact import WORK, Node, Sharing, Store
from src.attempts import locked
from src.cells import CELLS, Cells
from src.config import UserError, config
from src.generation.encoding import text_ids
from src.model import load_tokenizer
from src.outside.add import AddAnswers
from src.outside.source import OUTSIDE, AnswerSource
from src.records import Row


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


def answered(text: str | None) -> list[dict[str, str | None]]:
    return [{"role": "assistant", "content": text}]


IDS = {question: records.prompt_id(chat(question)) for question in QUESTIONS}


def written(folder: Path, rows: list[dict[str, Any]], name: str = "outside.jsonl") -> Path:
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
    (out := folder / "out").mkdir(exist_ok=True)
    found.stage("data.answers.x")(prompts(folder / "prompts"), out=out)
    return records.read_rows(out, OUTSIDE), json.loads((out / "metrics.json").read_text())


FORMS: dict[str, tuple[Any, list[str]]] = {
    "prompt and text": (lambda q, a: {"prompt": q, "answer": a}, []),
    "messages and text": (lambda q, a: {"messages": chat(q), "answer": a}, []),
    "a named column of text": (lambda q, a: {"q": q, "said": a, "prompt": "no"}, ["prompt=q", "answer=said"]),
    "a named column of turns": (lambda q, a: {"q": chat(q), "answer": a}, ["messages=q"]),
    "prompt_id": (lambda q, a: {"id": IDS.get(q, "0" * 16), "answer": a}, ["prompt_id=id"]),
    "UltraFeedback's chosen": (
        lambda q, a: {"prompt": q, "prompt_id": "f" * 64, "chosen": chat(q) + answered(a), "messages": chat(q)},
        ["answer=chosen"],
    ),
    "a whole chat": (lambda q, a: {"messages": chat(q) + answered(a)}, ["answer=messages"]),
    "turns of the answer alone": (lambda q, a: {"prompt": q, "answer": answered(a)}, []),
}


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize("form", FORMS)
def test_a_row_finds_its_prompt_in_every_form(form: str, suffix: str, tmp_path: Path) -> None:
    """Answers for two of three prompts, a second one for the first, and one for a prompt that nobody asks."""
    make, options = FORMS[form]
    rows = [make(*row) for row in [("ok?", "Yes."), ("else", "x"), ("hi", " Hello </s>"), ("ok?", "No.")]]
    found, counts = read(tmp_path, rows, *options, name=f"outside.{suffix}")
    shown = [(row["prompt_id"], row["text"], row["finish_reason"], row["seed"], row["source"]) for row in found]
    assert shown == [(IDS["hi"], " Hello </s>", "stop", None, "gpt"), (IDS["ok?"], "Yes.", "stop", None, "gpt")]
    assert counts == {"rows": 4, "unused": 1, "doubled": 1}


def test_a_column_may_say_who_answered_and_null_is_an_empty_answer(tmp_path: Path) -> None:
    rows = [{"prompt": "hi", "answer": None, "by": "a"}, {"prompt": "ok?", "answer": answered(None), "by": "b"}]
    found, _ = read(tmp_path, rows, "source_column=by")
    assert [(row["text"], row["source"]) for row in found] == [("", "a"), ("", "b")]


def test_csv_and_folders_are_read_too(tmp_path: Path) -> None:
    (parts := tmp_path / "parts").mkdir()
    (parts / "a.csv").write_text('prompt,answer\nhi,"Hello, you"\n')
    written(parts, [{"prompt": "ok?", "answer": "Yes."}], "b.jsonl")
    stage = source("file", f"path={parts}").stage("data.answers.x")
    stage(prompts(tmp_path / "prompts"), out=tmp_path)
    shown = [(row["text"], row["source"]) for row in records.read_rows(tmp_path, OUTSIDE)]
    assert shown == [("Hello, you", "parts"), ("Yes.", "parts")]


MISTAKES: dict[str, tuple[dict[str, Any], list[str], str]] = {
    "no answer": ({"prompt": "hi"}, [], "no column 'answer'; name the right one below data.answers.x"),
    "no prompt": ({"answer": "x"}, [], "no column 'messages'; name"),
    "no such prompt": ({"prompt": "hi", "answer": "x"}, ["prompt=q"], "no column 'q'; name"),
    "the user last": ({"prompt": "hi", "answer": chat("x")}, [], "answer: the last turn is not the assistant's"),
    "a number": ({"prompt": "hi", "answer": 3}, [], "answer: int, neither text nor a list of turns"),
    "a foreign id": ({"prompt_id": "f" * 64, "answer": "x"}, ["prompt_id=prompt_id"], "no prompt_id of this store"),
    "no prompt text": ({"prompt": 3, "answer": "x"}, [], "prompt: 3 is no text"),
    "no source": ({"prompt": "hi", "answer": "x", "by": ""}, ["source_column=by"], "by: '' names no source"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_with_its_line(mistake: str, tmp_path: Path) -> None:
    row, options, line = MISTAKES[mistake]
    with pytest.raises(UserError, match=f"outside.jsonl:2: .*{line}") as error:
        read(
            tmp_path,
            [row | {"prompt": "hi", "q": "hi", "answer": "x", "by": "b", "prompt_id": IDS["hi"]}, row],
            *options,
        )
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_or_changed_or_answers_nothing_is_refused(tmp_path: Path) -> None:
    asked = prompts(tmp_path / "prompts")
    with pytest.raises(UserError, match="^data.answers.x.path: no file"):
        source("file", f"path={tmp_path}/none.jsonl", "source=a").stage("data.answers.x")
    path = written(tmp_path, [{"prompt": "HI", "answer": "x"}])
    stage = source("file", f"path={path}", "source=a").stage("data.answers.x")
    with pytest.raises(UserError, match="none of the 1 rows of .* answers any of 3 prompts"):
        stage(asked, out=tmp_path)
    written(tmp_path, [{"prompt": "hi", "answer": "x"}])
    with pytest.raises(UserError, match="outside.jsonl changed since the run was started"):
        stage(asked, out=tmp_path)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["source=a", "prompt=q", "prompt_id=i"], "prompt_id and prompt: name one of them"),
        (["source=a", "source_column=b"], "source and source_column: name one of them"),
        (["source=a", "subset=b"], "subset: only a data set has one"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(words: list[str], line: str) -> None:
    with pytest.raises(InstantiationException, match=line):
        source("file", "path=x.jsonl", *words)


def asked_of(asked: Any, place: Path) -> tuple[list[Row], dict[str, int]]:
    (out := place / "out").mkdir(parents=True, exist_ok=True)
    asked.stage("data.answers.x")(prompts(place / "prompts"), out=out)
    return records.read_rows(out, OUTSIDE), json.loads((out / "metrics.json").read_text())


def test_an_endpoint_is_asked_once_for_each_prompt(
    server: AnswerServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.say = lambda body, _: Said(f"to {body['messages'][0]['content']}", "length" if body["seed"] % 2 else "stop")
    asked = asking(server.url, "endpoint.input_price=1.0", "endpoint.output_price=2.0")
    found, counts = asked_of(asked, tmp_path)
    assert [(row["text"], row["source"]) for row in found] == [(f"to {q}", "gpt") for q in QUESTIONS]
    assert {row["seed"] for row in found} == {seed for _, seed in server.asked} and len(server.bodies) == 3
    assert [row["finish_reason"] for row in found] == ["length" if row["seed"] % 2 else "stop" for row in found]
    assert all(0 <= row["seed"] < 2**63 for row in found)
    assert counts["input_tokens"] == 30 and counts["prompts"] == 3 and counts["refused"] == counts["filtered"] == 0
    sent = {k: server.bodies[0][k] for k in ("model", "temperature", "top_p", "max_tokens")}
    assert sent == {"model": "gpt-4-turbo-2024-04-09", "temperature": 0.7, "top_p": 1.0, "max_tokens": 2048}
    said = capsys.readouterr().out
    assert "3 prompts to ask, 0 answers known, about 3 input tokens, cost at most about 0.01229" in said
    assert "3 answers, 0 retries, 30 input and 9 output tokens, cost 4.8e-05" in said
    assert server.keys == {f"Bearer {KEY}"}


def test_what_is_null_is_not_sent(server: AnswerServer, tmp_path: Path) -> None:
    words = ("temperature=null", "top_p=null", "max_tokens=null", "seed=null", "limit_name=max_completion_tokens")
    found, _ = asked_of(asking(server.url, *words), tmp_path)
    assert set(server.bodies[0]) == {"model", "messages"} and [row["seed"] for row in found] == [None] * 3


def test_an_answer_is_paid_for_once_whatever_is_made_of_it(server: AnswerServer, tmp_path: Path) -> None:
    """Another policy, limit or name of the source is another artifact, and no request; another temperature is."""
    store = Store(tmp_path / "store")

    def rows(*words: str) -> list[Row]:
        stage = asking(server.url, *words).stage("data.answers.x")
        node = Node("it1/outside_x", stage, (Node("it1/prompts", ThreePrompts()),))
        return records.read_rows(store.make(node), OUTSIDE)

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
        prompts(out)


def test_what_is_refused_or_filtered_is_missing_and_only_the_refused_is_asked_again(
    server: AnswerServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def say(body: dict[str, Any], _: int) -> Said | Step:
        question = body["messages"][0]["content"]
        return {"hi": Said("yes"), "ok?": Said("x", "content_filter")}.get(question, Step(status=400, body="no"))

    server.say = say
    found, counts = asked_of(asking(server.url, "endpoint.concurrent=1"), tmp_path)
    assert [row["prompt_id"] for row in found] == [IDS["hi"]] and len(server.bodies) == 3
    assert (counts["refused"], counts["filtered"]) == (1, 1)
    assert "1 prompts were refused, such as by '400: no'" in capsys.readouterr().out
    asked_of(asking(server.url), tmp_path)
    assert len(server.bodies) == 4


def test_a_server_that_refuses_everything_ends_it(server: AnswerServer, tmp_path: Path) -> None:
    server.say = lambda body, number: Step(status=400, body="no max_tokens")
    with pytest.raises(UserError, match="^data.answers.x: .* refused the first 3 prompts, such as by '400: no max_tok"):
        asked_of(asking(server.url), tmp_path)


def test_a_failing_server_is_named_by_its_key_and_answers_are_kept(server: AnswerServer, tmp_path: Path) -> None:
    server.say = lambda body, number: "yes" if number == 0 else Step(status=401, body=f"key {KEY}")
    with pytest.raises(UserError, match="^data.answers.x.endpoint: .* refused the key") as error:
        asked_of(asking(server.url, "endpoint.concurrent=1"), tmp_path)
    assert KEY not in str(error.value)
    before = len(server.bodies)
    server.say = lambda body, number: "later"
    found, _ = asked_of(asking(server.url), tmp_path)
    assert sorted(row["text"] for row in found) == ["later", "later", "yes"] and len(server.bodies) == before + 2


KILLED = """
import sys; sys.path[:0] = [{tests!r}]
from pathlib import Path
from test_outside_answers import asked_of, asking
asked_of(asking({url!r}, "endpoint.concurrent=1", "endpoint.timeout_s=60.0"), Path({place!r}))
"""


@pytest.mark.slow
def test_a_killed_process_asks_only_for_what_was_in_flight(server: AnswerServer, tmp_path: Path) -> None:
    server.say = lambda body, number: "yes" if number < 2 else Step(hang=True)
    code = KILLED.format(tests=str(ROOT / "tests"), url=server.url, place=str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT) as process:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            if len(server.bodies) == 3 and len(Cells(tmp_path / "out" / WORK / CELLS).values) == 2:
                break
            time.sleep(0.05)
        process.kill()
    assert len(Cells(tmp_path / "out" / WORK / CELLS).values) == 2
    in_flight = server.asked[2]
    server.say = lambda body, number: "later"
    found, _ = asked_of(asking(server.url), tmp_path)
    assert sorted(row["text"] for row in found) == ["later", "yes", "yes"] and server.asked[3:] == [in_flight]


def test_whoever_asks_and_gives_no_sign_of_life_is_taken_over(
    server: AnswerServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(attempts, "BEAT_S", 0.1)
    monkeypatch.setattr(attempts, "LEASE_S", 0.5)
    with locked(tmp_path / "out" / WORK / CELLS / ".lock", ""):
        found, _ = asked_of(asking(server.url), tmp_path)
    assert len(found) == len(server.bodies) == 3
    assert capsys.readouterr().err.splitlines()[:2] == [
        "data.answers.x: another process is asking; waiting",
        "data.answers.x: no sign of life of another process; taking over",
    ]


def test_they_stand_behind_the_policy_s_own_in_its_tokens(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three prompts; source a answers the first twice as long as allowed and the second; b is cut off, same, empty."""
    tokenizer, own = load_tokenizer(llama), "so it is"
    end = tokenizer.eos_token_id
    one = {"text": own, "token_ids": [1, 2], "finish_reason": "length", "seed": 7, "source": "policy"}
    base = {"source": "x", "checks": "[]", "prompt_token_ids": [5], "responses": [one, one]}
    rows = [{"prompt_id": IDS[q], "messages": chat(q)} | base for q in QUESTIONS]
    a = {"hi": "z" * 10, "what is it": " it </s>"}
    b = {"hi": "cut", "what is it": own, "ok?": " \n"}
    for name, texts in (("a", a), ("b", b)):
        (folder := tmp_path / name).mkdir()
        finish = "stop" if name == "a" else "length"
        records.write_rows(
            folder,
            [
                {"prompt_id": IDS[q], "text": text, "finish_reason": finish, "seed": None, "source": f"from {name}"}
                for q, text in texts.items()
            ],
            OUTSIDE,
        )
    (responses := tmp_path / "responses").mkdir()
    records.write_rows(responses, rows, records.RESPONSES)
    (out := tmp_path / "out").mkdir()
    AddAnswers(names=("a", "b"), limits=(10, 9))(responses, llama, tmp_path / "a", tmp_path / "b", out=out)
    mixed = records.read_rows(out, records.RESPONSES)
    assert [row | {"responses": row["responses"][:2]} for row in mixed] == rows
    added = [[(x["source"], x["text"], x["finish_reason"]) for x in row["responses"][2:]] for row in mixed]
    assert added == [
        [("from b", "cut", "length")],
        [("from a", " it </s>", "stop"), ("from b", own, "length")],
        [],
    ]
    ids = [answer["token_ids"] for row in mixed for answer in row["responses"][2:]]
    expected = [text_ids(tokenizer, text) for text in ("cut", " it </s>", own)]
    assert ids == [expected[0], [*expected[1], end], expected[2]]
    assert json.loads((out / "metrics.json").read_text()) == {
        **{"a/found": 2, "a/missing": 1, "a/empty": 0, "a/too_long": 1, "a/same": 0, "a/added": 1},
        **{"b/found": 2, "b/missing": 0, "b/empty": 1, "b/too_long": 0, "b/same": 1, "b/added": 2},
    }
    said = capsys.readouterr().out
    assert "answers a: 1 answers added to 3 prompts; 1 missing, 0 empty, 1 over 10 tokens; 0 the same as one of" in said


def test_a_seed_or_another_sampling_pays_for_nothing_again() -> None:
    """As the config has it: neither the run's seed nor its sampling says what is asked of an endpoint."""
    words = ["+answers@data.answers.gpt=endpoint"]
    asked = []
    for more in ([], ["seed=1"], ["sampling=wpo"], ["iter=2", "method=dpo"]):
        (node,) = [node for node in typed(*words, *more).nodes() if node.name == "it1/outside_gpt"]
        assert isinstance(node.stage, Sharing)
        asked.append(node.stage.shared())
    assert asked[1:] == asked[:-1]
