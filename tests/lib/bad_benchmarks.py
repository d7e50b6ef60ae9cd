"""Benchmarks whose questions are not what they should be, or whose judges do not answer."""

from __future__ import annotations

import json
from typing import Any

from alpaca_eval_made_up import baseline, outputs
from answer_server import answering
from bad_asking import HERE, KEPT, WHERE, away, environment, impatient
from bad_inputs import Bad, Given, Setting, Table
from judge_server import Step

from src.evaluation.mt_bench.benchmark import PUBLISHED_FILES
from src.packages import package_folder

IFEVAL = "iter=0 benchmark=ifeval"
ALPACA = "iter=0 benchmark=alpaca_eval benchmark.alpaca_eval.length_control=false"
MT_BENCH = "iter=0 benchmark=mt_bench benchmark.mt_bench.first=1 benchmark.mt_bench.max_new_tokens=2"
ASKED = {"alpaca_eval": "benchmark.alpaca_eval.judge.endpoint", "mt_bench": "benchmark.mt_bench.judge"}
WORDS = {"alpaca_eval": ALPACA, "mt_bench": MT_BENCH}
MADE = {
    "alpaca_eval": ("alpaca_eval_outputs", "alpaca_eval_questions", "policy", "responses"),
    "mt_bench": ("mt_bench_answers", *["mt_bench_prompts"] * 6, "mt_bench_questions", "policy", *["responses"] * 6),
}
QUESTION = {"question_id": 81, "category": "writing", "turns": ["Who?", "Why?"]}
INSTRUCTION = {"key": 1, "prompt": "No commas.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}


def ifeval(*rows: dict[str, Any]) -> Given:
    def given(setting: Setting) -> list[str]:
        file = setting.at / "ifeval.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return [f"benchmark.ifeval.path={file}"]

    return given


def mt_bench(*rows: dict[str, Any]) -> Given:
    package = PUBLISHED_FILES.package or ""

    def given(setting: Setting) -> list[str]:
        environment("sk-x")(setting)
        file = setting.at / "questions.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        places = {
            name: package_folder(package, "files") / getattr(PUBLISHED_FILES, name)
            for name in ("references", "judge_prompts")
        }
        own = [f"benchmark.mt_bench.files.{name}={place}" for name, place in places.items()]
        return ["benchmark.mt_bench.files.package=null", f"benchmark.mt_bench.files.questions={file}", *own]

    return given


def compared(setting: Setting) -> list[str]:
    return [f"benchmark.alpaca_eval.baseline={baseline(setting.at / 'base.json')}"]


def twice(setting: Setting) -> list[str]:
    file = outputs(setting.at / "base.json", ["yes", "no"], instructions=["Why?", "Why?"])
    return [f"benchmark.alpaca_eval.baseline={file}"]


def judging(name: str, given: Step | Given) -> Given:
    """The judge of the benchmark is a server that does this at every request."""

    def arrange(setting: Setting) -> list[str]:
        more = compared(setting) if name == "alpaca_eval" else []
        if not isinstance(given, Step):
            return [*more, *(word.replace("data.answers.mine.endpoint", ASKED[name]) for word in given(setting) or [])]
        server = setting.stack.enter_context(answering())
        server.say = lambda body, number: given
        return [*more, *impatient(ASKED[name], server.url)]

    return arrange


def judge(name: str, what: str, given: Step | Given, told: str, code: int = 3) -> Bad:
    line = f"{ASKED[name]}{told}; {KEPT}"
    return Bad(f"a judge of {name} {what}", WORDS[name], line, code, judging(name, given), MADE[name], "run")


def judges(name: str) -> list[Bad]:
    lower = "lower it or `concurrent`, or add credit"
    model = {"alpaca_eval": "gpt-4-1106-preview", "mt_bench": "gpt-4"}[name]
    return [
        judge(
            name,
            "that is down",
            away("http://127.0.0.1:9/v1"),
            f".base_url: 127.0.0.1:9 cannot be reached ([Errno 111] Connection refused), 2 times; {WHERE}",
        ),
        judge(
            name,
            "that says for good that it is too much",
            Step(status=429, body="{}"),
            f".requests_per_minute: {HERE} says it is too much (429: {{}}), 2 times; {lower}",
        ),
        judge(
            name,
            "that refuses the key",
            Step(status=401, body="{}"),
            f": {HERE} refused the key (401); set OPENAI_API_KEY in the environment",
            2,
        ),
        judge(
            name,
            "that the server does not have",
            Step(status=404, body="{}"),
            f".model: {HERE} knows no {model} (404: {{}}); name one of its models, or mend `base_url`",
            2,
        ),
    ]


DOUBLED = [
    Bad(
        "two questions of ifeval with one key",
        IFEVAL,
        "…/ifeval.jsonl:2: the same key as …/ifeval.jsonl:1; delete one of the rows",
        given=ifeval(INSTRUCTION, INSTRUCTION | {"prompt": "No commas!"}),
        made=("policy",),
        verb="run",
    ),
    Bad(
        "a question of ifeval that stands there twice",
        IFEVAL,
        "…/ifeval.jsonl:2: the same prompt as …/ifeval.jsonl:1; delete one of the rows",
        given=ifeval(INSTRUCTION, INSTRUCTION | {"key": 2}),
        made=("policy",),
        verb="run",
    ),
    Bad(
        "two questions of mt_bench with one id",
        MT_BENCH,
        "…/questions.jsonl:2: question 81 was at …/questions.jsonl:1 already; delete one of them",
        given=mt_bench(QUESTION, QUESTION | {"turns": ["Where?", "Why?"]}),
        made=("policy",),
        verb="run",
    ),
    Bad(
        "an instruction of alpaca_eval that stands there twice",
        ALPACA,
        "…/base.json: 1 instructions more than once, the first 'Why?'; delete all but one row of each",
        given=twice,
        verb="run",
    ),
]
BENCHMARKS = Table(
    "Benchmarks",
    "The tiny run's start policy (`iter=0`). Files of questions are read before anything is sampled; a judge is asked when "
    "there are answers, which are kept, as its replies are.",
    [*DOUBLED, *judges("alpaca_eval"), *judges("mt_bench")[:2]],
)
