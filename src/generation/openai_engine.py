"""The openai engine: any OpenAI-compatible server, asked for many answers at a time.

`tokens` sends the prompt as the policy's token ids and has the sampled ids back (vLLM); `chat` sends the messages, the
server applies a template of its own, and the answer's text is put into the policy's tokens here.
"""

from __future__ import annotations

from pathlib import Path
from threading import Lock
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from src.generation.engine import Answer, Answering, Engine, Keep, Request, Sampling
from src.kernel.config import Device, UserError, config
from src.modeling.asking import Cell, LimitName, in_flight, read_completion
from src.modeling.endpoint import OPENAI, Client, Endpoint, Refused
from src.modeling.policy import answer_ids, load_tokenizer, stop_ids, text_ids, turn_end

KEY = "hardware.engine.endpoint"
POLICY = "policy"
UNSHAPED = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "ignore_eos": True}
"""Without these fields, vLLM and SGLang take the values of the model's generation config.

Without `ignore_eos` they would end an answer at ids that the policy's generation config does not name."""


@config
class OpenAIEngine(Engine):
    """Answers of a server that runs already. It must serve the iteration's policy, or be named in `source`."""

    code_version: ClassVar[int] = 1
    device: ClassVar[Device] = "cpu"  # pyright: ignore
    devices_each: ClassVar[int] = 0

    endpoint: Endpoint
    ask: Literal["chat", "tokens"]
    """tokens: POST /completions with the prompt's ids; where the server gives no ids back, its text is encoded.

    chat: POST /chat/completions with the messages."""
    source: Annotated[str, Field(min_length=1)]
    """policy: the server must say that it serves this very checkpoint folder. Else the name of what gives answers."""
    limit_name: LimitName

    def __post_init__(self) -> None:
        if self.ask == "tokens" and self.limit_name != "max_tokens":
            raise ValueError("limit_name: only ask=chat has another name for max_tokens")

    @property
    def server(self) -> Endpoint:
        return self.endpoint

    def check_sampling(self, sampling: Sampling) -> None:
        if sampling.top_k is not None and self.endpoint.host == OPENAI:
            remedy = f"set it to null, or {KEY}.base_url to another server"
            raise UserError(f"sampling.top_k: {sampling.top_k}, but {OPENAI} knows no top_k; {remedy}")

    def open(self, policy: Path, sampling: Sampling) -> Answering:
        tokenizer, stops, lock = load_tokenizer(policy), stop_ids(policy), Lock()
        fields = self._fields(sampling, stops)

        def answer_of(request: Request, reply: Cell) -> Answer:
            finished, text, ids = reply["finish_reason"] == "stop", reply["text"], reply["token_ids"]
            if self.ask == "chat":
                ids = answer_ids(tokenizer, request.messages, text, stops, finished) if text or finished else []
            else:
                ids = text_ids(tokenizer, text) if ids is None else ids
                if finished and not (ids and ids[-1] in stops):
                    ids = [*ids, turn_end(tokenizer, stops)]
                text = str(tokenizer.decode(ids[:-1] if finished else ids, skip_special_tokens=True))
            return {"text": text, "token_ids": ids, "finish_reason": reply["finish_reason"]}

        def answer(requests: list[Request], keep: Keep) -> None:
            def ask(request: Request) -> None:
                try:
                    reply = client.ask(lambda openai: self._ask(openai, request, fields), _read)
                except Refused as refused:
                    said = f"{self.endpoint.host} refuses it ({refused}); leave it out of the prompts, the rest is kept"
                    raise UserError(f"{KEY}: prompt {request.prompt_id}, answer {request.k}: {said}") from None
                with lock:  # tokenizers are not for two threads
                    keep(request, answer_of(request, reply))

            with Client(self.endpoint, KEY) as client:
                if self.source == POLICY:
                    self._check_served(client, policy.resolve())
                in_flight(client, requests, ask)

        return answer

    def _fields(self, sampling: Sampling, stops: set[int]) -> dict[str, Any]:
        """Return the fields of every request."""
        limit = {self.limit_name: sampling.max_new_tokens}
        fields = self.endpoint.body(**limit, temperature=sampling.temperature, top_p=sampling.top_p)
        extra = UNSHAPED | {"return_token_ids": True, "stop_token_ids": sorted(stops)} if self.ask == "tokens" else {}
        fields["extra_body"] = extra | self.endpoint.extra_body | sampling.further()
        return fields

    def _ask(self, openai: Any, request: Request, fields: dict[str, Any]) -> Any:
        if self.ask == "tokens":
            return openai.completions.create(prompt=request.token_ids, seed=request.seed, **fields)
        return openai.chat.completions.create(messages=request.messages, seed=request.seed, **fields)

    def _check_served(self, client: Client, policy: Path) -> None:
        """Raise UserError unless the server serves `policy`: each iteration needs a server of its own.

        A server that is asked for the folder by name says so itself; `transformers serve` lists other models.
        """
        model, host = self.endpoint.model, self.endpoint.host
        if Path(model).name == policy.name:
            return
        served = client.ask(lambda openai: openai.models.list(), _served_models)
        if model not in served:
            raise UserError(f"{KEY}.model: {host} serves no {model}; name what it serves: {', '.join(served)}")
        if Path(served[model]).name != policy.name:
            remedy = "start it with that folder and the same command resumes, or name in source what gives the answers"
            raise UserError(f"hardware.engine.source: {host} serves {served[model]}, not the policy {policy}; {remedy}")


def _read(response: Any) -> Cell:
    """Read a completion with its sampled `token_ids`, None where the server does not give them."""
    ids = getattr(response.choices[0], "token_ids", None)
    if ids is not None and not all(isinstance(token, int) and 0 <= token < 2**31 for token in ids):
        raise ValueError(f"not token ids: {ids!r:.60}")
    return read_completion(response) | {"token_ids": ids}


def _served_models(page: Any) -> dict[str, str]:
    """Return what each model was loaded from, where the server says; else its name again."""
    return {model.id: str(getattr(model, "root", None) or model.id) for model in page.data}
