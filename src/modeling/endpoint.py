"""A model behind an OpenAI-compatible endpoint: its address and price, and a client that explains what goes wrong.

The openai client retries by itself: 408, 409, 429, 5xx, timeouts and lost connections, after the server's Retry-After
or 0.5 to 8 s. The key comes from OPENAI_API_KEY alone and goes into no file, message or record.
"""

from __future__ import annotations

import json
import math
import os
import re
import threading
import time
from collections.abc import Callable
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from src.kernel.config import Fault, Free, UserError, config

T = TypeVar("T")
OPENAI = "api.openai.com"
ELSEWHERE = "another server"
"""In keys of benchmarks, every address but OpenAI's: a server may move, and its replies stay known."""
NO_KEY = "none"
"""The key for a local server when there is none."""
LONGEST_WORD = 11
"""Characters of a key that may be a word of an honest answer, such as EMPTY or placeholder."""
ADDRESS = r"https?://(\[[\da-fA-F:]+\]|[^@\s?#/:]+)(:([1-5]?\d{1,4}|6[0-5]\d{3}))?(/[^@\s?#]*)?"
OF_ONE_REQUEST = (400, 413, 422)
"""Status codes that refuse one request, such as one whose text is longer than the model's context."""
PASSING = (408, 409, 429)
"""Status codes below 500 after which the client tries again."""


@config
class Endpoint:
    """A model behind HTTP."""

    model: str
    """The server's name for the model; one name should not mean two models, so a dated name is better than an alias."""
    base_url: Free[str | None]
    """Address such as http://localhost:8000/v1; null: OPENAI_BASE_URL, else OpenAI's. The key has the model's name."""
    extra_body: dict[str, Any]
    """Further fields of the request, as the server names them."""
    concurrent: Free[PositiveInt]
    """Requests in flight."""
    requests_per_minute: Free[PositiveFloat | None]
    """Most requests per minute, evenly spaced, retries included; null: no limit."""
    timeout_s: Free[PositiveFloat]
    """Longest silence of the server."""
    retries: Free[NonNegativeInt]
    """Further attempts of one request after 408, 409, 429, 5xx, timeouts, lost connections and unreadable answers."""
    input_price: Free[NonNegativeFloat | None]
    """Price of a million tokens, in the currency of the bill; null: unknown."""
    output_price: Free[NonNegativeFloat | None]

    def __post_init__(self) -> None:
        if self.base_url is not None and not re.fullmatch(ADDRESS, self.base_url):
            raise ValueError("base_url: give an address like http://localhost:8000/v1; the key is OPENAI_API_KEY's")

    def check_environment(self) -> None:
        """Raise UserError where the key or the address of the environment cannot be used."""
        _secret()
        address = os.environ.get("OPENAI_BASE_URL", "")
        if self.base_url is None and address and not re.fullmatch(ADDRESS, address):
            raise UserError("OPENAI_BASE_URL: no address like http://localhost:8000/v1; mend it, or unset it")

    @property
    def host(self) -> str:
        """Host and port of the address, without a user name."""
        address = self.base_url or os.environ.get("OPENAI_BASE_URL") or f"https://{OPENAI}/v1"
        return urlsplit(address).netloc.rpartition("@")[2]

    def cost(self, input_tokens: float, output_tokens: float) -> float | None:
        """Return the cost of so many tokens; None where a price is unknown."""
        if self.input_price is None or self.output_price is None:
            return None
        return (input_tokens * self.input_price + output_tokens * self.output_price) / 1e6

    def body(self, **named: Any) -> dict[str, Any]:
        """Return the fields of every request; those that are None are not sent."""
        fields = {name: value for name, value in named.items() if value is not None}
        return {"model": self.model, "extra_body": self.extra_body} | fields


@config
class JudgeEndpoint(Endpoint):
    """A judge behind HTTP, and how it is sampled."""

    temperature: NonNegativeFloat | None
    """null: not sent, for models that refuse it; so are `seed` and `max_tokens`."""
    seed: int | None
    max_tokens: PositiveInt | None
    """Most tokens of a reply."""

    def fields(self) -> dict[str, Any]:
        """Return the fields of every request."""
        return self.body(temperature=self.temperature, seed=self.seed, max_tokens=self.max_tokens)


@config
class BenchmarkJudge(JudgeEndpoint):
    """A judge whose numbers stand beside published ones: what another server says under its name is kept apart."""

    def source_version(self) -> str:
        return "" if self.host == OPENAI else ELSEWHERE


class Refused(Exception):
    """The endpoint does not answer this request; it may answer others."""


class Client:
    """An OpenAI client for any number of threads; `stop` ends their attempts. `key` is the endpoint's config key.

    At the end of its `with` it prints the bill.
    """

    def __init__(self, endpoint: Endpoint, key: str) -> None:
        from openai import DefaultHttpxClient, OpenAI

        endpoint.check_environment()
        self.endpoint, self.key, self.stop = endpoint, key, threading.Event()
        self._begun, self._lock, self._next = time.monotonic(), threading.Lock(), 0.0
        self._answers = self._input = self._output = 0
        timeout, hooks = endpoint.timeout_s, {"request": [self._await_turn], "response": [_refuse_unreadable]}
        http = DefaultHttpxClient(timeout=timeout, event_hooks=hooks)  # called at every attempt
        how: dict[str, Any] = {"base_url": endpoint.base_url, "timeout": timeout, "max_retries": endpoint.retries}
        self._client = OpenAI(api_key=_secret(), http_client=http, **how)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()
        cost = self.endpoint.cost(self._input, self._output)
        line = f"{self.key}: {self.endpoint.model} at {self.endpoint.host}: {self._answers:,} answers, "
        line += f"{self._input:,} input and {self._output:,} output tokens"
        line += "" if cost is None else f", cost {cost:.4g}"
        print(f"{line}, {time.monotonic() - self._begun:.1f} s", flush=True)

    def ask(self, request: Callable[[Any], Any], read: Callable[[Any], T]) -> T:
        """Return what `read` makes of the response of `request(openai.OpenAI)`.

        Raises Refused where the status is in OF_ONE_REQUEST, UserError for what concerns every request: Fault where the
        server has failed, or `read` raises an error: the openai client believes every JSON.
        """
        from openai import OpenAIError

        try:
            response = request(self._client)
            result, bill = read(response), billed(response)
        except (OpenAIError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
            raise self._explained(error) from None  # the cause may quote the key
        with self._lock:
            self._answers += hasattr(response, "choices")
            self._input += bill["input_tokens"]
            self._output += bill["output_tokens"]
        return result

    def _await_turn(self, request: Any) -> None:
        """Wait until 60 / `requests_per_minute` seconds after the turn before."""
        from openai import OpenAIError

        with self._lock:
            now = time.monotonic()
            start = max(now, self._next)
            self._next = start + 60 / (self.endpoint.requests_per_minute or math.inf)
        if self.stop.wait(start - now):
            raise OpenAIError("stopped")  # the client does not retry after an error of its own

    def _explained(self, error: Exception) -> Exception:
        """Return the error in one line: the key, what happened, and what to do."""
        from httpx2 import DecodingError
        from openai import APIConnectionError, APIStatusError, APITimeoutError

        status = error.status_code if isinstance(error, APIStatusError) else None
        text = error.response.text if isinstance(error, APIStatusError) else str(error.__cause__ or error)
        words = " ".join(without_key(text).split())[:200]
        if status in OF_ONE_REQUEST:
            return Refused(f"{status}: {words}")
        if isinstance(error, APITimeoutError):
            line = f".timeout_s: gave no answer within {self.endpoint.timeout_s:g} s; raise it or lower `concurrent`"
        elif isinstance(error, APIConnectionError) and not isinstance(error.__cause__, DecodingError):
            line = f".base_url: cannot be reached ({words}); is the server running, and this its address?"
        elif status is None:
            line = f".base_url: answered with no completion ({words}); does the address end in /v1?"
        elif status in (401, 403):
            line = f": refused the key ({status}); set OPENAI_API_KEY in the environment"
        elif status == 404:
            line = f".model: knows no {self.endpoint.model} ({words}); name one of its models, or mend `base_url`"
        elif status == 429:
            line = f".requests_per_minute: says it is too much ({words}); lower it or `concurrent`, or add credit"
        elif status >= 500:
            line = f".base_url: failed ({status}: {words}); look at the server"
        else:
            line = f".base_url: refused ({status}: {words}); is it the address of such an endpoint?"
        of_the_user = status is not None and status < 500 and status not in PASSING
        below, _, message = line.partition(": ")
        kept = "replies so far are kept, the same command resumes from them"
        line = f"{self.key}{below}: {self.endpoint.host} {message}; {kept}"
        return UserError(line) if of_the_user else Fault(line)


def billed(response: Any) -> dict[str, int]:
    """Return `input_tokens` and `output_tokens` as the server bills them; 0 where it does not say."""
    counts = [getattr(getattr(response, "usage", None), f"{name}_tokens", None) for name in ("prompt", "completion")]
    known = [count if isinstance(count, int) and 0 <= count < 2**63 else 0 for count in counts]
    return {"input_tokens": known[0], "output_tokens": known[1]}


def _refuse_unreadable(response: Any) -> None:
    """Raise a transport error for a reply without a completion, so that the client retries.

    Gateways send such with status 200: pages in HTML, or `{"error": ...}` when a provider is busy.
    """
    from httpx2 import DecodingError

    if response.status_code != 200:
        return
    try:
        body = json.loads(response.read())
    except (ValueError, RecursionError):
        body = None
    if not (isinstance(body, dict) and (body.get("choices") or "data" in body)):
        raise DecodingError(response.text, request=response.request)


def without_key(text: str) -> str:
    """Put a mark in place of the key, which a server may repeat; of nothing else, since replies are results."""
    return text.replace(secret, "***") if len(secret := _secret()) > LONGEST_WORD else text


def _secret() -> str:
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if not (key.isascii() and key.isprintable()):  # the HTTP library would show it in its complaint
        raise UserError("OPENAI_API_KEY: holds a character that no key has; copy it again")
    return key or NO_KEY
