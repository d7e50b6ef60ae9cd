"""The openai engine: any OpenAI-compatible server, asked for many answers at a time.

`tokens` sends the prompt as the policy's token ids and has the sampled ids back (vLLM); `chat` sends the messages, the
server applies a template of its own, and the answer's text is put into the policy's tokens here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import Field

from src.generation.engine import Answer, Made, Request, Sampler, Sampling, shape_of
from src.kernel.config import Device, UserError, config
from src.modeling.asking import Bill, Completion, LimitName, in_flight, read_completion
from src.modeling.endpoint import Client, Endpoint, Refused
from src.modeling.policy import answer_ids, load_tokenizer, stop_ids, text_ids, turn_end

KEY = "hardware.engine.endpoint"
POLICY = "policy"
OPENAI = "api.openai.com"
UNSHAPED = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
"""Else vLLM and SGLang take these from the model's generation config, and it is not sampled as `sampling` says.

Likewise they would end an answer at ids that the policy's generation config does not name (`ignore_eos`)."""


@config
class OpenAIEngine:
    """Answers of a server that runs already. It must serve the iteration's policy, or be named in `source`."""

    apart: ClassVar[bool] = False
    code_version: ClassVar[int] = 1
    device: ClassVar[Device] = "cpu"
    devices_each: ClassVar[int] = 0

    endpoint: Endpoint
    ask: Literal["chat", "tokens"]
    """tokens: POST /completions with the prompt's ids. chat: POST /chat/completions with the messages."""
    source: Annotated[str, Field(min_length=1)]
    """policy: the server must say that it serves this very checkpoint folder. Else the name of what gives answers."""
    limit_name: LimitName

    def __post_init__(self) -> None:
        if self.ask == "tokens" and self.limit_name != "max_tokens":
            raise ValueError("limit_name: only a chat (ask=chat) has another name for max_tokens")

    def check_sampling(self, sampling: Sampling) -> None:
        """Raises UserError for what this server cannot sample with."""
        top_k, host = shape_of(sampling).top_k, self.endpoint.host
        if top_k is not None and host == OPENAI:
            raise UserError(
                f"sampling.top_k: {top_k}, but {host} knows no top_k; set it to null, or {KEY}.base_url to another"
            )

    def open(self, policy: Path, sampling: Sampling) -> Sampler:
        self.check_sampling(sampling)
        return _Sampler(self, policy, sampling)


class _Cell(NamedTuple):
    """An answer to ask for."""

    request: Request
    k: int
    seed: int


class _Sampler:
    def __init__(self, engine: OpenAIEngine, policy: Path, sampling: Sampling) -> None:
        self.engine, self.sampling, self.client = engine, sampling, Client(engine.endpoint, KEY)
        self.tokenizer, self.stops = load_tokenizer(policy), stop_ids(policy)
        self.encoded = 0
        """Answers whose sampled ids the server did not tell."""
        limit = {engine.limit_name: sampling.max_new_tokens}
        self.fields = engine.endpoint.body(**limit, temperature=sampling.temperature, top_p=sampling.top_p)
        if engine.ask == "tokens":
            own = UNSHAPED | {"return_token_ids": True, "stop_token_ids": sorted(self.stops), "ignore_eos": True}
            self.fields["extra_body"] = own | engine.endpoint.extra_body
        self._shape()
        if engine.source == POLICY:
            self._check_served(policy.resolve())

    def _shape(self) -> None:
        """Fields for what a PenalisedSampling adds."""
        shape = shape_of(self.sampling)
        if shape.penalised:
            self.fields |= {"presence_penalty": shape.presence, "frequency_penalty": shape.frequency}
        if shape.top_k is not None:
            self.fields["extra_body"] = self.fields["extra_body"] | {"top_k": shape.top_k}

    def answers(self, requests: list[Request]) -> Iterator[Made]:
        cells = [_Cell(request, k, seed) for request in requests for k, seed in request.seeds.items()]
        with closing(self.client), Bill(self.engine.endpoint, "generate") as bill:
            for cell, completion in in_flight(self.client, cells, self._ask):
                assert isinstance(completion, Completion)  # `_ask` raises what is refused
                bill.add(completion.input_tokens, completion.output_tokens)
                yield Made(cell.request.prompt_id, cell.k, self._answer(cell.request, completion))
        if self.encoded:
            print(f"generate: the server gave no token ids for {self.encoded} answers; their text was encoded")

    def _ask(self, cell: _Cell) -> Completion:
        """An answer of the policy cannot be missing: what is refused or filtered ends the run."""
        try:
            completion = self.client.ask(lambda openai: self._request(openai, cell), read_completion)
        except Refused as refused:
            raise self._mistake(cell, f"refuses it ({refused})", "leave it out of the prompts") from None
        if completion.finish_reason not in ("stop", "length"):
            what = f"ended the answer by {completion.finish_reason!r}"
            raise self._mistake(cell, what, "leave it out of the prompts")
        if completion.finish_reason == "length" and not (completion.token_ids or completion.text):
            raise self._mistake(cell, "said nothing in all the tokens it has", "raise sampling.max_new_tokens")
        return completion

    def _request(self, openai: Any, cell: _Cell) -> Any:
        if self.engine.ask == "tokens":
            return openai.completions.create(prompt=cell.request.token_ids, seed=cell.seed, **self.fields)
        return openai.chat.completions.create(messages=cell.request.messages, seed=cell.seed, **self.fields)

    def _answer(self, request: Request, completion: Completion) -> Answer:
        finished = completion.finish_reason == "stop"
        reason: Literal["stop", "length"] = "stop" if finished else "length"
        if self.engine.ask == "chat":
            ids = answer_ids(self.tokenizer, request.messages, completion.text, self.stops, finished)
            return Answer(completion.text, ids, reason)
        ids = completion.token_ids
        if ids is None:
            self.encoded += 1
            ids = text_ids(self.tokenizer, completion.text)
        if finished and not (ids and ids[-1] in self.stops):
            ids = [*ids, turn_end(self.tokenizer, self.stops)]
        text = self.tokenizer.decode(ids[:-1] if finished else ids, skip_special_tokens=True)
        return Answer(str(text), ids, reason)

    def _mistake(self, cell: _Cell, what: str, remedy: str) -> UserError:
        prompt = f"prompt {cell.request.prompt_id}, answer {cell.k}"
        return UserError(f"{KEY}: {prompt}: {self.engine.endpoint.host} {what}; {remedy}, the rest is kept")

    def _check_served(self, policy: Path) -> None:
        """Answers of another checkpoint would be taken for the policy's: each iteration needs its own server.

        A server that is asked for the folder by name says so itself; `transformers serve` lists other models.
        """
        endpoint = self.engine.endpoint
        if Path(endpoint.model).name == policy.name:
            return
        served = _served_models(self.client)
        if endpoint.model not in served:
            known = ", ".join(served) or "none"
            raise UserError(f"{KEY}.model: {endpoint.host} serves no {endpoint.model}; name what it serves: {known}")
        root = served[endpoint.model]
        if Path(root).name != policy.name:
            raise UserError(
                f"hardware.engine.source: {endpoint.host} serves {root}, and the policy is {policy}; start the server "
                f"with that folder and the same command goes on, or name in source what gives the answers"
            )


def _served_models(client: Client) -> dict[str, str]:
    """Returns what each model was loaded from, where the server says; else its name again."""

    def read(page: Any) -> dict[str, str]:
        return {model.id: str(getattr(model, "root", None) or model.id) for model in page.data}

    try:
        return client.ask(lambda openai: openai.models.list(), read, refusals=(404,))
    except Refused as refused:
        key, host = client.key, client.endpoint.host
        raise UserError(
            f"{key}.base_url: {host} does not list its models ({refused}), so nothing says that it serves the policy; "
            f"does the address end in /v1? Else start it with the policy's folder, and give that as {key}.model"
        ) from None
