"""Servers that should answer or judge and do not: what words or a key can mend is 2, what a server has done is 3."""

from __future__ import annotations

from answer_server import Script, answering
from bad_asking import ASKED, HERE, KEPT, WHERE, away, environment, impatient
from bad_inputs import Bad, Fine, Given, Setting, Table
from bad_served import SERVED
from judge_server import Step

MINE = "+answers@data.answers.mine=endpoint"
ASK = f"iter=1 only=it1/outside_mine {MINE}"
V1 = "does the address end in /v1?"


def asks(script: Script, scheme: str = "http", path: str = "/v1") -> Given:
    """Answers from elsewhere are asked of a server that does this."""

    def given(setting: Setting) -> list[str]:
        server = setting.stack.enter_context(answering())
        server.say = script
        return impatient(ASKED, f"{scheme}://127.0.0.1:{server.server_port}{path}")

    return given


def moved(setting: Setting) -> list[str]:
    """To a page that answers whatever is asked, as a log-in does."""
    server = setting.stack.enter_context(answering())
    server.say = lambda body, number: Step(status=302, body="", headers={"location": f"{server.url}/models"})
    return impatient(ASKED, server.url)


def ask(what: str, given: Given | Step, where: str, told: str, code: int = 3, twice: bool | None = None) -> Bad:
    """`twice`: it was tried again, as everything is that another try may mend."""
    given = asks(lambda body, number, step=given: step) if isinstance(given, Step) else given
    tried = ", 2 times" if (code == 3 if twice is None else twice) else ""
    what_happened, _, remedy = told.rpartition("; ")
    line = f"{ASKED}{where}: {what_happened}{tried}; {remedy}; {KEPT}"
    return Bad(what, ASK, line, code, given, ("prompts",), "run")


BY_ANOTHER = '{"model": "gpt-3", "choices": [{"finish_reason": "stop", "message": {"content": "an answer"}}]}'
NO_SUCH = '{"error": {"message": "no such model"}}'
ROWS = [
    ask(
        "a server that is down",
        away("http://127.0.0.1:9/v1"),
        ".base_url",
        f"127.0.0.1:9 cannot be reached ([Errno 111] Connection refused); {WHERE}",
    ),
    ask(
        "a host that there is not",
        away("http://no-such-host.invalid/v1"),
        ".base_url",
        f"no-such-host.invalid cannot be reached (…); {WHERE}",
    ),
    ask(
        "https at a server without it",
        asks(lambda body, number: "", "https"),
        ".base_url",
        f"{HERE} cannot be reached ([SSL: …] …); {WHERE}",
    ),
    ask(
        "a server that says nothing",
        Step(hang=True),
        ".timeout_s",
        f"{HERE} gave no answer within 0.5 s; raise it or lower `concurrent`",
    ),
    ask(
        "a connection that is cut",
        Step(body="{", headers={"content-length": "9"}),
        ".base_url",
        f"{HERE} cannot be reached (peer closed connection …); {WHERE}",
    ),
    ask(
        "a server that fails for good",
        Step(status=500, body="<html>oh no</html>"),
        ".base_url",
        f"{HERE} failed (500: <html>oh no</html>); look at the server",
    ),
    ask(
        "a server that says for good that it is too much",
        Step(status=429, body='{"error": "slow down"}'),
        ".requests_per_minute",
        f'{HERE} says it is too much (429: {{"error": "slow down"}}); lower it or `concurrent`, or add credit',
    ),
    ask(
        "a server that wants an hour's wait",
        Step(status=429, body="{}", headers={"retry-after": "3600"}),
        ".requests_per_minute",
        f"{HERE} says it is too much (429: {{}}); lower it or `concurrent`, or add credit",
        twice=False,
    ),
    ask(
        "JSON that is cut off",
        Step(body='{"id": "x", "choi'),
        ".base_url",
        f"{HERE} answered with no completion (Unterminated string …); {V1}",
    ),
    ask(
        "a page in place of JSON",
        Step(body="<html>", headers={"content-type": "text/html"}),
        ".base_url",
        f"{HERE} answered with no completion (…); {V1}",
    ),
    ask(
        "no choice in the answer",
        Step(body='{"choices": []}'),
        ".base_url",
        f"{HERE} answered with no completion (…); {V1}",
    ),
    ask(
        "a server whose answer is a number",
        Step(body='{"choices": [{"message": {"content": 3}}]}'),
        ".base_url",
        f"{HERE} answered with no completion (…); {V1}",
    ),
    ask(
        "an error in place of an answer",
        Step(body='{"error": "busy"}'),
        ".base_url",
        f"{HERE} answered with no completion (…); {V1}",
    ),
    ask("a redirect to a page", moved, ".base_url", f"{HERE} answered with no completion (…); {V1}"),
    ask(
        "a key that is refused",
        Step(status=401, body="{}"),
        "",
        f"{HERE} refused the key (401); set OPENAI_API_KEY in the environment",
        2,
    ),
    ask(
        "a key without leave",
        Step(status=403, body="{}"),
        "",
        f"{HERE} refused the key (403); set OPENAI_API_KEY in the environment",
        2,
    ),
    ask(
        "a model that the server does not have",
        Step(status=404, body=NO_SUCH),
        ".model",
        f"{HERE} knows no gpt-4-turbo-2024-04-09 (404: {NO_SUCH}); name one of its models, or mend `base_url`",
        2,
    ),
    ask(
        "an address without /v1",
        asks(lambda body, number: Step(status=404, body="Not Found"), path=""),
        ".model",
        f"{HERE} knows no gpt-4-turbo-2024-04-09 (404: Not Found); name one of its models, or mend `base_url`",
        2,
    ),
    ask(
        "an address that takes no requests",
        Step(status=405, body="{}"),
        ".base_url",
        f"{HERE} refused (405: {{}}); is it the address of such an endpoint?",
        2,
    ),
    Bad(
        "a setting that the server refuses",
        ASK,
        f"data.answers.mine: {HERE} refused the first 4 prompts, such as by '400: no such field'; mend data.answers.mine as the server says",
        2,
        asks(lambda body, number: Step(status=400, body="no such field")),
        ("prompts",),
        "run",
    ),
    Bad(
        "no key",
        f"iter=1 {MINE}",
        f"OPENAI_API_KEY: not set, and {ASKED}.model gpt-4-turbo-2024-04-09 is asked at api.openai.com; set it, or {ASKED}.base_url for another server",
        2,
        environment(None),
        verb="run",
    ),
    Bad(
        "a key that is none",
        f"iter=1 {MINE}",
        "OPENAI_API_KEY: holds a character that no key has; copy it again",
        2,
        environment("sk-\xe9"),
        verb="run",
    ),
    Bad(
        "an address in the environment that is none",
        f"iter=1 {MINE}",
        "OPENAI_BASE_URL: no address like http://localhost:8000/v1; mend it, or unset it",
        2,
        environment("sk-x", "localhost:8000"),
        verb="run",
    ),
    Bad(
        "an address without http://",
        f"{MINE} {ASKED}.base_url=localhost:8000",
        f"{ASKED}: base_url: give an address like http://localhost:8000/v1; the key is OPENAI_API_KEY's",
    ),
    Bad(
        "a port that is none",
        f"{MINE} {ASKED}.base_url=http://localhost:80000/v1",
        f"{ASKED}: base_url: Port out of range 0-65535; mend the number behind the colon",
    ),
    *SERVED,
]
FINE = (
    Fine(
        "a server that fails now and then",
        "it is asked again, after a wait that grows",
        words=ASK,
        given=asks(lambda body, number: f"answer {number}" if number % 2 else Step(status=503, body="{}")),
    ),
    Fine(
        "a server that names another model in its replies than was asked for",
        "they are counted and a warning says so: gateways have names of their own. A date or an owner makes no other model",
        words=ASK,
        given=asks(lambda body, number: Step(body=BY_ANOTHER)),
    ),
    Fine(
        "a server that refuses some of the prompts",
        "they are counted, and have no answer from it",
        words=ASK,
        given=asks(lambda body, number: f"answer {number}" if number % 2 else Step(status=400, body="{}")),
    ),
)
ENDPOINTS = Table(
    "Servers that answer or judge",
    "The tiny run, with a wait of hundredths of a second before the one retry. What has come is kept: nothing is paid for twice.",
    ROWS,
    FINE,
)
