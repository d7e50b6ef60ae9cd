"""Servers in place of a ranker and of the policy."""

from __future__ import annotations

from answer_server import answering
from bad_asking import HERE, KEPT, impatient
from bad_inputs import Bad, Given, Setting
from judge_server import Step, serving

JUDGE = "ranker=llm_judge_points pairing=wpo_v1 iter=1 only=it1/ranking"
ENGINE = "hardware.engine.endpoint"
ANSWER = "iter=1 only=it1/responses engine@hardware.engine=openai"
UNREADABLE = "ranker.malformed_share_limit: … of 12 verdicts of gpt-4.1-mini-2025-04-14 are malformed, more than 0.2 of them, such as"
READ_AGAIN = "replies are kept: a mended ranker.verdict_pattern reads them without a request, another ranker.instruction or ranker.endpoint asks anew"


def judge(what: str, step: str | Step, told: str, code: int = 2) -> Bad:
    def given(setting: Setting) -> list[str]:
        server = setting.stack.enter_context(serving())
        server.script = lambda text, number: step
        return impatient("ranker.endpoint", server.url)

    begun = ("ranking",) if told.endswith(READ_AGAIN) else ()
    return Bad(what, JUDGE, told, code, given, ("policy", "prompts", "responses"), "run", begun)


def serves(root: str | None, name: str = "policy") -> Given:
    """The engine's server names `root` as the checkpoint of its only model, `policy`; `name` is asked for."""

    def given(setting: Setting) -> list[str]:
        server = setting.stack.enter_context(answering())
        server.root = root
        return [*impatient(ENGINE, server.url), f"{ENGINE}.model={name}"]

    return given


def engine(what: str, given: Given, told: str) -> Bad:
    return Bad(what, ANSWER, told, 2, given, ("policy", "prompts"), "run")


SERVED = [
    engine(
        "an engine whose server has another checkpoint",
        serves("models/another"),
        f"hardware.engine.source: {HERE} serves models/another, and the policy is …; start the server with that folder "
        "and the same command goes on, or name in source what gives the answers",
    ),
    engine(
        "an engine whose server has no such model",
        serves("models/another", "mine"),
        f"{ENGINE}.model: {HERE} serves no mine; name what it serves: policy",
    ),
    engine(
        "an engine whose server does not say what it serves",
        serves(None),
        f"{ENGINE}.base_url: {HERE} does not list its models (404), so nothing says that it serves the policy; does the "
        f"address end in /v1? Else start it with the policy's folder, and give that as {ENGINE}.model",
    ),
    judge("a judge that gives no verdict", "It is good.", f"{UNREADABLE} 'It is good.'; {READ_AGAIN}"),
    judge("a judge beyond its range", "7", f"{UNREADABLE} '7'; {READ_AGAIN}"),
    judge("a judge whose verdict is no number", "nan", f"{UNREADABLE} 'nan'; {READ_AGAIN}"),
    judge(
        "a judge that says nothing",
        Step(body='{"choices": [{"finish_reason": "stop", "message": {"content": null}}]}'),
        f"{UNREADABLE} ''; {READ_AGAIN}",
    ),
    judge(
        "a judge that refuses the text",
        Step(status=400, body="too long"),
        f"{UNREADABLE} 'refused: 400: too long'; mend ranker.endpoint as the server says, or shorten ranker.instruction or the answers",
    ),
    judge(
        "a judge that fails for good",
        Step(status=503, body="{}"),
        f"ranker.endpoint.base_url: {HERE} failed (503: {{}}), 2 times; look at the server; {KEPT}",
        3,
    ),
]
