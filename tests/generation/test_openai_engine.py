"""The openai engine against a scripted server on loopback: what is asked, what is made of it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from answer_server import KEY, AnswerServer, Said, answering, engine
from tiny_generation import THREE, generated

from src.generation.engine import Engine, PenalisedSampling, Sampling
from src.generation.stage import Dealing, cell_seed
from src.kernel.artifact import WORK
from src.kernel.cells import CELLS, Cells
from src.kernel.config import UserError, fingerprint
from src.kernel.rows import Row, prompt_id
from src.modeling.policy import load_tokenizer, render, text_ids

PENALTIES: dict[str, Any] = {"top_k": 50, "presence_penalty": 0.1, "frequency_penalty": 0.1}
SAMPLING = Sampling(K=2, temperature=0.7, top_p=0.9, max_new_tokens=16, max_prompt_tokens=300)
SHAPED = PenalisedSampling(**vars(SAMPLING) | PENALTIES)
DEALING = Dealing(workers=1, save_seconds=1e-9)
made = partial(generated, sampling=SAMPLING, dealing=DEALING)


def answers(rows: list[Row]) -> list[dict[str, Any]]:
    return [answer for row in rows for answer in row["responses"]]


def tokens_engine(server: AnswerServer, llama: Path, *more: str) -> Any:
    server.root = str(llama)
    return engine(server.url, "ask=tokens", *more)


def chat_engine(server: AnswerServer, *more: str) -> Any:
    return engine(server.url, "ask=chat", "source=gpt-4-turbo", *more)


@pytest.fixture
def server() -> Iterator[AnswerServer]:
    with answering() as server:
        yield server


def test_it_is_an_engine_whose_address_and_patience_are_in_no_key() -> None:
    one = engine("http://a:1/v1", "endpoint.concurrent=3")
    assert isinstance(one, Engine) and one.source == "policy" and not one.apart and one.device == "cpu"
    assert fingerprint(one) == fingerprint(engine("http://b:2/v1", "endpoint.retries=9"))
    for other in ("ask=chat", "source=x", "endpoint.model=y", "+endpoint.extra_body.top_k=3"):
        assert fingerprint(one) != fingerprint(engine("http://a:1/v1", other)), other


def test_a_chat_is_asked_with_its_messages_and_a_seed_a_cell(server: AnswerServer, llama: Path, tmp_path: Path) -> None:
    server.say = lambda body, number: Said("Yes </s>.", "stop" if body["messages"][0]["content"] == "hi" else "length")
    rows = made(chat_engine(server), llama, tmp_path)
    assert server.paths == ["/v1/chat/completions"] * 6
    sent = {k: server.bodies[0][k] for k in ("model", "max_tokens", "temperature", "top_p")}
    assert sent == {"model": "policy", "max_tokens": 16, "temperature": 0.7, "top_p": 0.9}
    expected = {(q, cell_seed(0, prompt_id([{"role": "user", "content": q}]), k)) for q in THREE for k in (0, 1)}
    assert set(server.asked) == expected and all(0 <= seed < 2**63 for _, seed in expected)
    tokenizer = load_tokenizer(llama)
    said = text_ids(tokenizer, "Yes </s>.")
    for row in rows:
        ends = row["messages"][0]["content"] == "hi"
        for k, answer in enumerate(row["responses"]):
            assert answer["token_ids"] == said + [tokenizer.eos_token_id] * ends
            assert (answer["text"], answer["finish_reason"]) == ("Yes </s>.", "stop" if ends else "length")
            assert (answer["seed"], answer["source"]) == (cell_seed(0, row["prompt_id"], k), "gpt-4-turbo")
    assert server.keys == {f"Bearer {KEY}"}


def test_tokens_go_out_as_the_policy_reads_them_and_come_back_as_they_were_sampled(
    server: AnswerServer, llama: Path, tmp_path: Path
) -> None:
    """The ids count, not the text that the server made of them; EOS is there where it was sampled."""
    tokenizer = load_tokenizer(llama)
    end = tokenizer.eos_token_id
    server.say = lambda body, _: Said("other", "stop", [70, 71, end]) if body["seed"] % 2 else Said("?", "length", [70])
    rows = made(tokens_engine(server, llama), llama, tmp_path)
    assert server.paths == ["/v1/completions"] * 6
    assert {tuple(body["prompt"]) for body in server.bodies} == {
        tuple(render(tokenizer, [{"role": "user", "content": q}])) for q in THREE
    }
    body = server.bodies[0]
    assert body["return_token_ids"] is True and body["stop_token_ids"] == [end] and body["max_tokens"] == 16
    assert (body["top_k"], body["min_p"], body["repetition_penalty"]) == (-1, 0, 1)
    for answer in answers(rows):
        odd = answer["seed"] % 2
        assert answer["token_ids"] == ([70, 71, end] if odd else [70])
        assert answer["text"] == tokenizer.decode([70, 71] if odd else [70])
        assert answer["finish_reason"] == ("stop" if odd else "length") and answer["source"] == "policy"


def test_without_sampled_ids_the_text_is_encoded(server: AnswerServer, llama: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(llama)
    server.say = lambda body, number: Said(" the word", "stop" if number % 2 else "length")
    rows = made(tokens_engine(server, llama), llama, tmp_path)
    for answer in answers(rows):
        ends = [tokenizer.eos_token_id] if answer["finish_reason"] == "stop" else []
        assert answer["token_ids"] == text_ids(tokenizer, " the word") + ends and answer["text"] == " the word"


def test_an_end_that_the_server_keeps_to_itself_is_put_back(server: AnswerServer, llama: Path, tmp_path: Path) -> None:
    end = load_tokenizer(llama).eos_token_id
    server.say = lambda body, number: Said("x", "stop", [70] if number else [])
    rows = made(tokens_engine(server, llama), llama, tmp_path)
    assert {tuple(answer["token_ids"]) for answer in answers(rows)} == {(end,), (70, end)}


def test_fields_of_the_server_s_own_are_the_user_s(server: AnswerServer, llama: Path, tmp_path: Path) -> None:
    server.say = lambda body, _: Said("x", "stop", [70])
    made(tokens_engine(server, llama, "+endpoint.extra_body={top_k: 5, user: me}"), llama, tmp_path)
    assert (server.bodies[0]["top_k"], server.bodies[0]["user"]) == (5, "me")
    made(chat_engine(server, "limit_name=max_completion_tokens"), llama, tmp_path / "chat")
    assert server.bodies[-1]["max_completion_tokens"] == 16 and "max_tokens" not in server.bodies[-1]


def test_another_checkpoint_is_not_taken_for_the_policy(server: AnswerServer, llama: Path, tmp_path: Path) -> None:
    asked = tokens_engine(server, llama)
    server.root = "/models/it1"
    with pytest.raises(UserError, match="hardware.engine.source: .* serves /models/it1, and the policy is "):
        made(asked, llama, tmp_path)
    with pytest.raises(UserError, match="hardware.engine.endpoint.model: .* what it serves: policy"):
        made(tokens_engine(server, llama, "endpoint.model=other"), llama, tmp_path)
    assert not server.bodies


FOREVER: list[tuple[Any, str]] = [
    (Said(status=400, body='{"error": "too long"}'), r"hardware.engine.endpoint: prompt {id}, answer \d: .*too"),
    (Said("x", "content_filter"), r"prompt {id}, answer \d: .*'content_filter'"),
    (Said("x", None), r"prompt {id}, answer \d: "),
    (Said(None, "length"), r"prompt {id}, answer \d: .*max_new_tokens"),
    (Said(status=401, body="{}"), "hardware.engine.endpoint: .* key"),
]


def test_what_does_not_pass_ends_it_in_one_line_and_the_rest_is_kept(
    server: AnswerServer, llama: Path, tmp_path: Path
) -> None:
    """Of six answers two come before the server falls; they are not asked for again, and the other four are."""
    ids = "|".join(prompt_id([{"role": "user", "content": q}]) for q in THREE)
    for number, (step, line) in enumerate(FOREVER):
        before, place = len(server.bodies), tmp_path / str(number)
        server.say = lambda body, number, first=before, step=step: step if number >= first + 2 else "yes"
        asked = chat_engine(server, "endpoint.concurrent=1")
        with pytest.raises(UserError, match=line.replace("{id}", f"({ids})")) as error:
            made(asked, llama, place)
        assert "\n" not in str(error.value)
        before = len(server.bodies)
        server.say = lambda body, number: "later"
        rows = made(asked, llama, place)
        assert sorted(answer["text"] for answer in answers(rows)) == ["later"] * 4 + ["yes"] * 2
        assert len(server.bodies) == before + 4
    assert KEY not in "".join(path.read_text(errors="replace") for path in tmp_path.rglob("*") if path.is_file())


def test_what_is_in_flight_when_it_fails_is_paid_for_and_kept(
    server: AnswerServer, llama: Path, tmp_path: Path
) -> None:
    """Two requests at a time: the one beside that which fails is answered later, and not asked for again."""
    failed = threading.Event()

    def say(body: dict[str, Any], number: int) -> str | Said:
        if number == 0:
            failed.wait(30)
            return "late"
        failed.set()
        return Said(status=401, body="{}")

    server.say = say
    asked = chat_engine(server, "endpoint.concurrent=2")
    with pytest.raises(UserError, match="refused the key"):
        made(asked, llama, tmp_path)
    assert [cell["text"] for cell in Cells(tmp_path / "out" / WORK / CELLS).values.values()] == ["late"]
    server.say = lambda body, number: "yes"
    assert sorted(answer["text"] for answer in answers(made(asked, llama, tmp_path))) == ["late"] + ["yes"] * 5
    assert len(set(server.asked)) == 6 and server.asked.count(server.asked[0]) == 1


def test_half_a_character_is_no_crash(server: AnswerServer, llama: Path, tmp_path: Path) -> None:
    body = json.dumps({"choices": [{"message": {"content": "\ud800a"}, "finish_reason": "stop"}]})
    server.say = lambda _, number: Said(body=body)
    assert {answer["text"] for answer in answers(made(chat_engine(server), llama, tmp_path))} == {"?a"}


def test_a_server_is_sent_penalties_and_top_k(server: AnswerServer, llama: Path, tmp_path: Path) -> None:
    server.root, server.say = str(llama), lambda body, number: Said("x", "stop", [70])
    for words in (("ask=chat", "source=other"), ("ask=tokens",)):
        made(engine(server.url, *words), llama, tmp_path / words[0], sampling=SHAPED)
        assert {name: server.bodies[-1][name] for name in PENALTIES} == PENALTIES
        made(engine(server.url, *words), llama, tmp_path / f"{words[0]} plain")
        assert not {"presence_penalty", "frequency_penalty"}.intersection(server.bodies[-1])
        assert server.bodies[-1].get("top_k", -1) == -1
