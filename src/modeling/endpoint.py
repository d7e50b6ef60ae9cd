"""A model behind an OpenAI-compatible endpoint: its address and price, and a client that explains what goes wrong.

The openai client retries by itself: 408, 409, 429, 5xx, timeouts and lost connections, after the server's Retry-After
or 0.5 to 8 s. The key comes from OPENAI_API_KEY alone and goes into no file, message or record.
"""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import urlsplit

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from src.kernel.config import Fault, Free, UserError, config

T = TypeVar("T")
NO_KEY = "none"
"""The key for a local server when there is none."""
_ADDED = re.compile(r"[-@:_](\d{3,}[\d-]*|latest|main|[0-9a-f]{7,40})")
"""What a server may add to a model's name: a date, a number of at least three digits, a commit."""
Refusals = tuple[int, ...]
OF_ONE_REQUEST: Refusals = (400, 413, 422)
"""Status codes that refuse one request, such as one whose text is longer than the model's context."""
PASSING = (408, 409, 429)
"""Status codes below 500 after which the client tries again."""


@config
class Endpoint:
    """A model behind HTTP."""

    model: str
    """The server's name for the model; one name should not mean two models, so a dated name is better than an alias."""
    base_url: Free[str | None]
    """Such as http://localhost:8000/v1; null: OPENAI_BASE_URL, else OpenAI's. Not in the key: the model's name is."""
    extra_body: dict[str, Any]
    """Further fields of the request, as the server names them."""
    concurrent: Free[PositiveInt]
    """Requests in flight."""
    requests_per_minute: Free[PositiveFloat | None]
    """Most requests a minute, evenly spaced, retries included; null: no limit."""
    timeout_s: Free[PositiveFloat]
    """Longest silence of the server."""
    retries: Free[NonNegativeInt]
    """Further attempts of one request after 408, 409, 429, 5xx, timeouts, lost connections and unreadable answers."""
    input_price: Free[NonNegativeFloat | None]
    """Price of a million tokens, in the currency of the bill; null: unknown."""
    output_price: Free[NonNegativeFloat | None]

    def __post_init__(self) -> None:
        if self.base_url is None:
            return
        if not re.fullmatch(r"https?://[^@\s?#]+", self.base_url):
            raise ValueError("base_url: give an address like http://localhost:8000/v1; the key is OPENAI_API_KEY's")
        try:
            urlsplit(self.base_url).port  # noqa: B018  raises ValueError for what is no port
        except ValueError as error:
            raise ValueError(f"base_url: {error}; mend the number behind the colon") from None

    def check_environment(self) -> None:
        """Raises UserError where the key or the address of the environment cannot be used."""
        _secret()
        address = os.environ.get("OPENAI_BASE_URL", "")
        if self.base_url is None and address and not re.fullmatch(r"https?://[^@\s]+", address):
            raise UserError("OPENAI_BASE_URL: no address like http://localhost:8000/v1; mend it, or unset it")

    @property
    def host(self) -> str:
        """Name and port, without what a URL may carry besides."""
        parts = urlsplit(self.base_url or os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1")
        return f"{parts.hostname}:{parts.port}" if parts.port else f"{parts.hostname}"

    def cost(self, input_tokens: float, output_tokens: float) -> float | None:
        """Returns None where a price is unknown."""
        if self.input_price is None or self.output_price is None:
            return None
        return (input_tokens * self.input_price + output_tokens * self.output_price) / 1e6

    def body(self, **named: Any) -> dict[str, Any]:
        """The fields of every request; those that are None are not sent."""
        given = {name: value for name, value in named.items() if value is not None}
        return {"model": self.model, "extra_body": self.extra_body} | given


@config
class JudgeEndpoint(Endpoint):
    """A judge behind HTTP, and how it is sampled."""

    temperature: NonNegativeFloat | None
    """null: not sent, for models that refuse it; so are `seed` and `max_tokens`."""
    seed: int | None
    max_tokens: PositiveInt | None
    """Most tokens of a reply."""

    def fields(self) -> dict[str, Any]:
        """The fields of every request."""
        return self.body(temperature=self.temperature, seed=self.seed, max_tokens=self.max_tokens)


class Refused(Exception):
    """The endpoint does not answer this request; it may answer others."""


class Client:
    """An OpenAI client for any number of threads; `stop` ends their attempts. `key` is the endpoint's config key."""

    def __init__(self, endpoint: Endpoint, key: str) -> None:
        from openai import DefaultHttpxClient, OpenAI

        endpoint.check_environment()
        self.endpoint, self.key, self.stop = endpoint, key, threading.Event()
        self._secret = _secret()
        self._pace = Pace(endpoint.requests_per_minute)
        self._other_models = Counter[str]()
        address, timeout, retries = endpoint.base_url, endpoint.timeout_s, endpoint.retries
        hooks = {"request": [self._await_turn], "response": [_refuse_unreadable]}  # called at every attempt
        http = DefaultHttpxClient(timeout=timeout, event_hooks=hooks)
        self._client = OpenAI(
            api_key=self._secret, base_url=address, timeout=timeout, max_retries=retries, http_client=http
        )

    def close(self) -> None:
        """Closes the connections, and warns if the server named another model than it was asked for."""
        self._client.close()
        if self._other_models:
            asked, host, total = self.endpoint.model, self.endpoint.host, self._other_models.total()
            names = ", ".join(f"{name[:80]!r}" for name in sorted(self._other_models)[:3])
            replies = f"asked for {asked}, {host} named {names} in {total} replies"
            print(f"{self.key}.model: warning: {replies}; is that the model you mean?", flush=True)
            self._other_models.clear()

    def ask(self, request: Callable[[Any], Any], read: Callable[[Any], T], refusals: Refusals = OF_ONE_REQUEST) -> T:
        """Returns what `read` makes of the response of `request(openai.OpenAI)`.

        Raises Refused where the status is in `refusals`, UserError for what concerns every request: Fault where the
        server has failed, or `read` raises an error: the openai client believes every JSON.
        """
        from openai import OpenAIError

        try:
            response = request(self._client)
        except (OpenAIError, ValueError, RecursionError) as error:  # the last one: brackets in brackets
            raise self._explained(error, refusals) from None  # the cause may quote the key
        model = getattr(response, "model", None)
        if isinstance(model, str) and not same_model(self.endpoint.model, model):
            self._other_models[model] += 1
        try:
            return read(response)
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise self._explained(error, refusals) from None

    def _await_turn(self, request: Any) -> None:
        from openai import OpenAIError

        if self.stop.wait(self._pace.wait_s()):
            raise OpenAIError("stopped")  # the client does not retry after an error of its own

    def _explained(self, error: Exception, refusals: Refusals) -> Exception:
        from openai import APIStatusError

        status = error.status_code if isinstance(error, APIStatusError) else None
        text = error.response.text if isinstance(error, APIStatusError) else str(error.__cause__ or error)
        said = " ".join((text if self._secret == NO_KEY else text.replace(self._secret, "***")).split())[:200]
        if status in refusals:
            return Refused(f"{status}: {said}")
        key, what, remedy = _complaint(error, status, said, self.endpoint)
        of_the_user = status is not None and status < 500 and status not in PASSING
        kept = "replies so far are kept, the same command goes on from them"
        return (UserError if of_the_user else Fault)(f"{self.key}{key}: {self.endpoint.host} {what}; {remedy}; {kept}")


def _refuse_unreadable(response: Any) -> None:
    """Turns an answer without a completion or a list into a failed transfer, which the client tries again.

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


def _complaint(error: Exception, status: int | None, said: str, endpoint: Endpoint) -> tuple[str, str, str]:
    """Returns the key below the endpoint's, what happened, and what to do."""
    from httpx2 import DecodingError
    from openai import APIConnectionError, APITimeoutError

    if isinstance(error, APITimeoutError):
        return ".timeout_s", f"gave no answer within {endpoint.timeout_s:g} s", "raise it or lower `concurrent`"
    if isinstance(error, APIConnectionError) and not isinstance(error.__cause__, DecodingError):
        return ".base_url", f"cannot be reached ({said})", "is the server running, and this its address?"
    if status is None:
        return ".base_url", f"answered with no completion ({said})", "does the address end in /v1?"
    if status in (401, 403):
        return "", f"refused the key ({status})", "set OPENAI_API_KEY in the environment"
    if status == 404:
        return ".model", f"knows no {endpoint.model} ({said})", "name one of its models, or mend `base_url`"
    if status == 429:
        return ".requests_per_minute", f"says it is too much ({said})", "lower it or `concurrent`, or add credit"
    if status >= 500:
        return ".base_url", f"failed ({status}: {said})", "look at the server"
    return ".base_url", f"refused ({status}: {said})", "is it the address of such an endpoint?"


def same_model(asked: str, named: str) -> bool:
    """Whether two names may mean one model: without owners and folders, and but for what is added at the end."""
    short, long = sorted((name.rstrip("/").rpartition("/")[2].lower() for name in (asked, named)), key=len)
    return long == short or not short or (long.startswith(short) and bool(_ADDED.fullmatch(long[len(short) :])))


def _secret() -> str:
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if not (key.isascii() and key.isprintable()):  # the HTTP library would show it in its complaint
        raise UserError("OPENAI_API_KEY: holds a character that no key has; copy it again")
    return key or NO_KEY


class Pace:
    """Starting times at least 60 / `per_minute` seconds apart."""

    def __init__(self, per_minute: float | None) -> None:
        self._gap_s = 60 / per_minute if per_minute else 0.0
        self._next = 0.0
        self._lock = threading.Lock()

    def wait_s(self) -> float:
        """Takes the next turn, and returns the seconds until then."""
        with self._lock:
            now = time.monotonic()
            start = max(now, self._next)
            self._next = start + self._gap_s
            return start - now
