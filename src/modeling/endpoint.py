"""An OpenAI-compatible endpoint: where a model is asked, and how patiently; what is asked is the asker's.

The key comes from OPENAI_API_KEY alone and goes into no file, message or record.
"""

from __future__ import annotations

import math
import os
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from itertools import count
from typing import Any, TypeVar
from urllib.parse import urlsplit

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from src.kernel.config import Fault, Free, UserError, config

T = TypeVar("T")
NO_KEY = "none"
"""What a local server is shown when there is no key."""
PASSING = (408, 409, 429)
"""Answers below 500 that another attempt may mend."""
_ADDED = re.compile(r"[-@:_](\d{3,}[\d-]*|latest|main|[0-9a-f]{7,40})")
"""What a server may add to the name of the model that it was asked for: a date, a number of three digits, a commit."""
OF_THE_TEXT = (400, 413, 422)
"""Answers that refuse one request, such as one whose text is longer than the model's context."""


@config
class Endpoint:
    """A model behind HTTP."""

    model: str
    """Identifies it; one name should not mean two models, so a dated name is better than an alias."""
    base_url: Free[str | None]
    """Such as http://localhost:8000/v1; null: OPENAI_BASE_URL, else OpenAI's. Not in the key: the model's name is."""
    extra_body: dict[str, Any]
    """Further fields of the request, as the server names them."""
    concurrent: Free[PositiveInt]
    """Requests in flight."""
    requests_per_minute: Free[PositiveFloat | None]
    """At most, retries included and evenly spaced; null: no limit."""
    timeout_s: Free[PositiveFloat]
    """Without a sign of the server."""
    retries: Free[NonNegativeInt]
    """Of one request, after 408, 409, 429, 5xx, timeouts, lost connections and unreadable answers."""
    backoff_s: Free[PositiveFloat]
    """First wait; doubles at each retry, less up to half of it by chance, and is at least the server's Retry-After."""
    longest_wait_s: Free[PositiveFloat]
    """Waits grow no longer; a server that asks for more ends the stage."""
    input_price: Free[NonNegativeFloat | None]
    """Of a million tokens, in the currency of the bill; null: unknown."""
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
        """Raises UserError for a key or an address of the environment that cannot be ones."""
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
        """None where a price is unknown."""
        if self.input_price is None or self.output_price is None:
            return None
        return (input_tokens * self.input_price + output_tokens * self.output_price) / 1e6


class Refused(Exception):
    """The endpoint does not answer this request; it may answer others."""


class Client:
    """Any number of threads may ask; `stop` ends their waiting.

    `key` is the config key of the endpoint, for messages.
    """

    def __init__(self, endpoint: Endpoint, key: str) -> None:
        from openai import OpenAI

        endpoint.check_environment()
        self.endpoint, self.key = endpoint, key
        self.stop = threading.Event()
        self.retries = 0
        self._secret = _secret()
        self._others = Counter[str]()
        self._pace = Pace(endpoint.requests_per_minute)
        self._lock = threading.Lock()
        address, timeout = endpoint.base_url, endpoint.timeout_s
        # Its own retries would be neither counted nor paced.
        self._client = OpenAI(api_key=self._secret, base_url=address, timeout=timeout, max_retries=0)

    def close(self) -> None:
        self._client.close()
        if self._others:
            asked, host, total = self.endpoint.model, self.endpoint.host, self._others.total()
            names = f"{min(self._others)[:80]!r}" + f" and {len(self._others) - 1} others" * (len(self._others) > 1)
            told = f"asked for {asked}, {host} named {names} in {total} replies"
            print(f"{self.key}.model: warning: {told}; is that the model you mean?", flush=True)
            self._others.clear()

    def heard(self, found: T) -> T:
        """A completion; that another model gave it than was asked, by its own words, is counted and told at the end."""
        told = getattr(found, "model", None)
        if isinstance(told, str) and not same_model(self.endpoint.model, told):
            with self._lock:
                self._others[told] += 1
        return found

    def ask(self, request: Callable[[Any], T]) -> T:
        """What `request` makes of an `openai.OpenAI`; it raises ValueError for an answer that cannot be read.

        Raises Refused for this request, UserError for what concerns every request: Fault where the server has failed.
        """
        (found,) = self.ask_unless(request, lambda: False)
        return found

    def ask_unless(self, request: Callable[[Any], T], unless: Callable[[], bool]) -> tuple[T, ...]:
        """Nothing once `unless` says that it need not be asked: it is called before the wait for a turn and after."""
        from openai import OpenAIError

        for attempt in count():
            if unless():
                return ()
            if self.stop.wait(self._pace.wait_s()):
                raise UserError("stopped")
            if unless():
                return ()
            try:
                return (request(self._client),)
            except (OpenAIError, ValueError, RecursionError) as error:  # the last one: of brackets in brackets
                wait_s = self._wait_s(error, attempt)
                if wait_s is None or self.stop.wait(wait_s):
                    raise self._explained(error, attempt + 1) from None  # the cause may quote the key
            with self._lock:
                self.retries += 1
        raise AssertionError

    def _wait_s(self, error: Exception, attempt: int) -> float | None:
        """Seconds before the next attempt; None when there shall be none."""
        from openai import APIStatusError

        answered = isinstance(error, APIStatusError)
        passing = not answered or error.status_code >= 500 or error.status_code in PASSING
        if not passing or attempt >= self.endpoint.retries:
            return None
        longest = self.endpoint.longest_wait_s
        backoff = min(longest, self.endpoint.backoff_s * 2.0 ** min(attempt, 30)) * random.uniform(0.5, 1)
        asked = retry_after_s(error.response.headers.get("retry-after", "")) if answered else 0.0
        return max(backoff, asked) if asked <= longest else None

    def _explained(self, error: Exception, attempts: int) -> Exception:
        from openai import APIStatusError

        answered = isinstance(error, APIStatusError)
        said = self._clean(f"{error.status_code}: {error.response.text}" if answered else str(error.__cause__ or error))
        if answered and error.status_code in OF_THE_TEXT:
            return Refused(said)
        key, what, remedy = _complaint(error, said, self.endpoint)
        tried = f", {attempts} times" if attempts > 1 else ""
        kept = "replies so far are kept, the same command goes on from them"
        mistake = UserError if answered and _is_of_the_user(error.status_code) else Fault
        return mistake(f"{self.key}{key}: {self.endpoint.host} {what}{tried}; {remedy}; {kept}")

    def _clean(self, text: str) -> str:
        """One short line without the key, which servers quote."""
        return " ".join((text if self._secret == NO_KEY else text.replace(self._secret, "***")).split())[:200]


def same_model(asked: str, told: str) -> bool:
    """Whether two names may mean one model: without owners and folders, and but for what is added at the end.

    A server that names none says nothing.
    """
    short, long = sorted((name.rstrip("/").rpartition("/")[2].lower() for name in (asked, told)), key=len)
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
        """How long the caller has to wait for its turn, which it has taken."""
        with self._lock:
            now = time.monotonic()
            start = max(now, self._next)
            self._next = start + self._gap_s
            return start - now


def retry_after_s(header: str) -> float:
    """Seconds of a Retry-After header, in seconds or as a date; 0 for none and for what cannot be read."""
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(header).timestamp() - time.time()
        except ValueError:
            return 0.0
    return max(0.0, seconds) if not math.isnan(seconds) else 0.0


def _is_of_the_user(status: int) -> bool:
    """Whether another key, model or address is wanted, rather than a server that works: exit code 2, not 3."""
    return status < 500 and status not in PASSING


def _complaint(error: Exception, said: str, endpoint: Endpoint) -> tuple[str, str, str]:
    """Key below the endpoint's, what happened, what to do."""
    from openai import APIConnectionError, APIStatusError, APITimeoutError

    if isinstance(error, APITimeoutError):
        return ".timeout_s", f"gave no answer within {endpoint.timeout_s:g} s", "raise it or lower `concurrent`"
    if isinstance(error, APIConnectionError):
        return ".base_url", f"cannot be reached ({said})", "is the server running, and this its address?"
    if not isinstance(error, APIStatusError):
        return ".base_url", f"answered with no completion ({said})", "does the address end in /v1?"
    if error.status_code in (401, 403):
        return "", f"refused the key ({error.status_code})", "set OPENAI_API_KEY in the environment"
    if error.status_code == 404:
        return ".model", f"knows no {endpoint.model} ({said})", "name one of its models, or mend `base_url`"
    if error.status_code == 429:
        return ".requests_per_minute", f"says it is too much ({said})", "lower it or `concurrent`, or add credit"
    if error.status_code >= 500:
        return ".base_url", f"failed ({said})", "look at the server"
    return ".base_url", f"refused ({said})", "is it the address of such an endpoint?"
