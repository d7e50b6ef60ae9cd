"""The judges that ask a scripted server, and what rankers rank."""

from __future__ import annotations

import re
from typing import Any

from answer_server import IMPATIENT, from_group, text_of
from hydra.utils import instantiate

from src.kernel.rows import Row


def judge(kind: str, url: str, *overrides: str) -> Any:
    """Make the ranker of conf/ranker/llm_judge_<kind>.yaml."""
    words = (f"endpoint.base_url={url}", *IMPATIENT, *overrides)
    return instantiate(from_group("ranker", f"llm_judge_{kind}", *words), _convert_="all")


def benchmark_judge(name: str, url: str, *overrides: str) -> Any:
    """Make the judge of conf/benchmark/<name>.yaml."""
    place = "endpoint." if name == "alpaca_eval" else ""
    words = [f"benchmark.{name}.judge.{word}" for word in (f"{place}base_url={url}", *overrides)]
    return instantiate(from_group("benchmark", name, *words).benchmark[name].judge, _convert_="all")


def row(question: str, answers: list[str]) -> Row:
    chat = [{"role": "user", "content": question}]
    return {"prompt_id": question, "messages": chat, "responses": [{"text": text} for text in answers]}


def numbered(count: int) -> list[str]:
    """Make as many different answers."""
    return [str(i) for i in range(count)]


def longer_wins(body: dict[str, Any], number: int) -> str:
    """Answer as a judge that prefers length."""
    first, second = (between(text_of(body), f"answer {letter}") for letter in "AB")
    return "A" if len(first) > len(second) else "B" if len(first) < len(second) else "tie"


def between(text: str, mark: str) -> str:
    """Return the text that an instruction shows between the marks of this name."""
    match = re.search(rf"^\[{mark} \w{{8}}\]\n(.*?)\n\[end of {mark} ", text, re.DOTALL | re.MULTILINE)
    assert match
    return match[1]


def terms(ranking: Row) -> dict[str, list[float]]:
    return {term["name"]: term["values"] for term in ranking["terms"]}
