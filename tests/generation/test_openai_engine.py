"""The openai engine against a scripted server on loopback: what is asked, what is made of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from answer_server import KEY, AnswerServer, Said, engine
from tiny_generation import THREE, generated

from src.generation.engine import PenalisedSampling, Sampling
from src.generation.stage import Dealing, cell_seed
from src.kernel.config import UserError, fingerprint
from src.kernel.rows import prompt_id
from src.modeling.policy import load_tokenizer, render, text_ids

PENALTIES: dict[str, Any] = {"top_k": 50, "presence_penalty": 0.1, "frequency_penalty": 0.1}
SAMPLING = Sampling(K=2, temperature=0.7, top_p=0.9, max_new_tokens=16, max_prompt_tokens=300)
CHAT, TOKENS = ("ask=chat", "source=gpt-4-turbo"), ("ask=tokens",)
CHATS = [[{"role": "user", "content": question}] for question in THREE]
Ask = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def server(server: AnswerServer, llama: Path) -> AnswerServer:
    """A server of the policy `llama`."""
    server.root = str(llama)
    return server


@pytest.fixture
def ask(server: AnswerServer, llama: Path, tmp_path: Path) -> Ask:
    """Ask for two answers to each of three questions, in a folder of its own unless `place` names one."""

    def answers(*words: str, sampling: Sampling = SAMPLING, place: str = "") -> list[dict[str, Any]]:
        folder = tmp_path / (place or f"run{len(list(tmp_path.iterdir()))}")
        dealing = Dealing(workers=1, save_seconds=1e-9)
        rows = generated(engine(server.url, *words), llama, folder, sampling=sampling, dealing=dealing)
        return [answer | {"prompt_id": row["prompt_id"]} for row in rows for answer in row["responses"]]

    return answers


def test_address_and_patience_are_in_no_key() -> None:
    one = engine("http://a:1/v1", "endpoint.concurrent=3")
    assert fingerprint(one) == fingerprint(engine("http://b:2/v1", "endpoint.retries=9"))
    for other in ("ask=chat", "source=x", "endpoint.model=y", "+endpoint.extra_body.top_k=3"):
        assert fingerprint(one) != fingerprint(engine("http://a:1/v1", other)), other


def test_a_chat_is_asked_with_its_messages_and_a_seed_a_cell(ask: Ask, server: AnswerServer, llama: Path) -> None:
    """JSON can spell half of a character, which no file can hold."""
    server.say = lambda body, number: Said("\ud800Yes </s>.", "stop" if body["messages"] == CHATS[0] else "length")
    answers = ask(*CHAT)
    assert server.paths == ["/v1/chat/completions"] * 6 and server.keys == {f"Bearer {KEY}"}
    sent = {k: server.bodies[0][k] for k in ("model", "max_tokens", "temperature", "top_p")}
    assert sent == {"model": "policy", "max_tokens": 16, "temperature": 0.7, "top_p": 0.9}
    seeds = {(chat[0]["content"], cell_seed(0, prompt_id(chat), k)) for chat in CHATS for k in (0, 1)}
    assert set(server.asked) == seeds and all(0 <= seed < 2**63 for _, seed in seeds)
    tokenizer = load_tokenizer(llama)
    for number, answer in enumerate(answers):
        ends = answer["prompt_id"] == prompt_id(CHATS[0])
        ids = text_ids(tokenizer, "?Yes </s>.") + [tokenizer.eos_token_id] * ends
        expected = {"text": "?Yes </s>.", "token_ids": ids, "finish_reason": "stop" if ends else "length"}
        expected |= {"seed": cell_seed(0, answer["prompt_id"], number % 2), "source": "gpt-4-turbo"}
        assert {name: answer[name] for name in expected} == expected


def test_tokens_go_out_as_the_policy_reads_them_and_come_back_as_they_were_sampled(
    ask: Ask, server: AnswerServer, llama: Path
) -> None:
    """The ids count, not the text that the server made of them. EOS is put back where the server keeps it to itself.

    A server that gives no ids has its text encoded.
    """
    tokenizer = load_tokenizer(llama)
    end, word = tokenizer.eos_token_id, text_ids(tokenizer, " the word")
    for reply, ids in (
        (Said("other", "stop", [70, 71, end]), [70, 71, end]),
        (Said("other", "stop", [70, 71]), [70, 71, end]),
        (Said("other", "stop", []), [end]),
        (Said("other", "length", [70]), [70]),
        (Said(" the word", "stop"), [*word, end]),
        (Said(" the word", "length"), word),
    ):
        server.say = lambda body, number, reply=reply: reply
        for answer in ask(*TOKENS):
            text = tokenizer.decode([token for token in ids if token != end])
            assert (answer["token_ids"], answer["text"], answer["source"]) == (ids, text, "policy")
            assert answer["finish_reason"] == reply.finish
    assert set(server.paths) == {"/v1/completions"}
    assert {tuple(body["prompt"]) for body in server.bodies} == {tuple(render(tokenizer, chat)) for chat in CHATS}
    body = server.bodies[0]
    assert body["return_token_ids"] is True and body["stop_token_ids"] == [end] and body["max_tokens"] == 16
    assert (body["top_k"], body["min_p"], body["repetition_penalty"]) == (-1, 0, 1)


def test_fields_of_the_server_s_own_are_the_user_s_and_penalties_are_sent_where_they_are_set(
    ask: Ask, server: AnswerServer
) -> None:
    server.say = lambda body, number: Said("x", "stop", [70])
    ask(*TOKENS, "+endpoint.extra_body={top_k: 5, user: me}")
    assert (server.bodies[-1]["top_k"], server.bodies[-1]["user"]) == (5, "me")
    ask(*CHAT, "limit_name=max_completion_tokens")
    assert server.bodies[-1]["max_completion_tokens"] == 16 and "max_tokens" not in server.bodies[-1]
    for words in (CHAT, TOKENS):
        ask(*words)
        assert not {"presence_penalty", "frequency_penalty"}.intersection(server.bodies[-1])
        ask(*words, sampling=PenalisedSampling(**vars(SAMPLING) | PENALTIES))
        assert {name: server.bodies[-1][name] for name in PENALTIES} == PENALTIES


def test_another_checkpoint_is_not_taken_for_the_policy(ask: Ask, server: AnswerServer) -> None:
    with pytest.raises(UserError, match=r"hardware.engine.endpoint.model: .* what it serves: policy"):
        ask(*TOKENS, "endpoint.model=other")
    server.root = "/models/it1"
    with pytest.raises(UserError, match=r"hardware.engine.source: .* serves /models/it1, not the policy "):
        ask(*TOKENS)
    assert not server.bodies


FOREVER: list[tuple[Any, str]] = [
    (Said(status=400, body='{"error": "too long"}'), r"hardware.engine.endpoint: prompt \w{16}, answer \d: .*too"),
    (Said("x", "content_filter"), r"prompt \w{16}, answer \d: .*'content_filter'"),
    (Said(None, "length"), r"prompt \w{16}, answer \d: .*max_new_tokens"),
    (Said(status=401, body="{}"), "hardware.engine.endpoint: .* key"),
]


@pytest.mark.parametrize(("reply", "line"), FOREVER)
def test_what_does_not_pass_ends_it_in_one_line_and_the_rest_is_kept(
    reply: Said, line: str, ask: Ask, server: AnswerServer, tmp_path: Path
) -> None:
    """Of six answers two come before the server falls; they are not asked for again, and the other four are."""
    server.say = lambda body, number: "yes" if number < 2 else reply
    with pytest.raises(UserError, match=line) as error:
        ask(*CHAT, "endpoint.concurrent=1", place="one")
    assert "\n" not in str(error.value) and len(server.bodies) == 3
    server.say = lambda body, number: "later"
    assert sorted(answer["text"] for answer in ask(*CHAT, place="one")) == ["later"] * 4 + ["yes"] * 2
    assert len(server.bodies) == 3 + 4
    assert KEY not in "".join(path.read_text(errors="replace") for path in tmp_path.rglob("*") if path.is_file())
