"""Answers that the policy did not give: asked of an endpoint, counted, and put behind its own."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

import pytest
from answer_server import AnswerServer, Said
from asked_engine import QUESTIONS, prompts
from judge_server import KEY, Step
from outside_answers import IDS, asked_of, asking, chat, server  # noqa: F401
from tiny_run import ROOT, typed

from src import attempts, records
from src.artifact import WORK, Node, Sharing
from src.attempts import locked
from src.cells import CELLS, Cells
from src.config import UserError, config
from src.generation.encoding import text_ids
from src.model import load_tokenizer
from src.outside.add import AddAnswers
from src.outside.source import OUTSIDE
from src.records import Row
from src.store import Store

# ruff: noqa: F811


def test_an_endpoint_that_says_nothing_is_told(
    server: AnswerServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.say = lambda body, number: "" if number else "an answer"
    _, counts = asked_of(asking(server.url, "endpoint.concurrent=1"), tmp_path)
    assert counts["empty"] == 2 / 3 and counts["answers"] == counts["prompts"] == 3
    assert "data.answers.x: warning: 2 of 3 answers are empty\n" in capsys.readouterr().out


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
from outside_answers import asked_of, asking
asked_of(asking({url!r}, "endpoint.concurrent=1", "endpoint.timeout_s=60.0"), Path({place!r}))
"""


@pytest.mark.full
def test_a_killed_process_asks_only_for_what_was_in_flight(server: AnswerServer, tmp_path: Path) -> None:
    server.say = lambda body, number: "yes" if number < 2 else Step(hang=True)
    code = KILLED.format(tests=str(ROOT / "tests" / "lib"), url=server.url, place=str(tmp_path))
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
    assert added == [[("from b", "cut", "length")], [("from a", " it </s>", "stop"), ("from b", own, "length")], []]
    ids = [answer["token_ids"] for row in mixed for answer in row["responses"][2:]]
    expected = [text_ids(tokenizer, text) for text in ("cut", " it </s>", own)]
    assert ids == [expected[0], [*expected[1], end], expected[2]]
    assert json.loads((out / "metrics.json").read_text()) == {
        **{"a/found": 2, "a/missing": 1, "a/empty": 0, "a/too_long": 1, "a/same": 0, "a/added": 1},
        **{"b/found": 2, "b/missing": 0, "b/empty": 1, "b/too_long": 0, "b/same": 1, "b/added": 2},
        **{"prompts": 3, "answers": 9, "empty": 0, "looping": 0, "alike": 1 / 3, "commonest": 1},
    }
    said = capsys.readouterr().out
    assert "answers a: 1 answers added to 3 prompts; 1 missing, 0 empty, 1 over 10 tokens; 0 the same as one of" in said
    assert "answers: warning: 3 of 3 prompts have one and the same text among their answers\n" in said
    assert said.count("warning") == 1, "the last prompt alone has a single text"


def test_a_seed_or_another_sampling_pays_for_nothing_again() -> None:
    """As the config has it: neither the run's seed nor its sampling says what is asked of an endpoint."""
    words = ["+answers@data.answers.gpt=endpoint"]
    asked = []
    for more in ([], ["seed=1"], ["sampling=wpo"], ["iter=2", "method=dpo"]):
        (node,) = [node for node in typed(*words, *more).nodes() if node.name == "it1/outside_gpt"]
        assert isinstance(node.stage, Sharing)
        asked.append(node.stage.shared())
    assert asked[1:] == asked[:-1]
