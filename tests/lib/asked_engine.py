"""Three prompts for the openai engine, and what the stage makes of its answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from answer_server import AnswerServer, engine

from src import records
from src.generation.contract import Sampling
from src.generation.stage import Dealing, Generate

SAMPLING = Sampling(K=2, temperature=0.7, top_p=0.9, max_new_tokens=16, max_prompt_tokens=300)
QUESTIONS = ("hi", "what is it", "ok?")


def prompts(folder: Path, questions: tuple[str, ...] = QUESTIONS) -> Path:
    folder.mkdir(exist_ok=True)
    chats = [[{"role": "user", "content": question}] for question in questions]
    rows = [{"prompt_id": records.prompt_id(c), "messages": c, "source": "x", "checks": "[]"} for c in chats]
    records.write_rows(folder, rows, records.PROMPTS)
    return folder


def generate(asked: Any, seed: int = 0) -> Generate:
    return Generate(sampling=SAMPLING, engine=asked, seed=seed, dealing=Dealing(workers=1, nodes=1, save_seconds=1e-9))


def made(asked: Any, llama: Path, place: Path, questions: tuple[str, ...] = QUESTIONS) -> list[records.Row]:
    """The rows of a generation; what it saved stays in `place`."""
    (out := place / "out").mkdir(parents=True, exist_ok=True)
    generate(asked)(prompts(place / "prompts", questions), llama, out=out)
    return records.read_rows(out, records.RESPONSES)


def answers(rows: list[records.Row]) -> list[dict[str, Any]]:
    return [answer for row in rows for answer in row["responses"]]


def tokens_engine(server: AnswerServer, llama: Path, *more: str) -> Any:
    server.root = str(llama)
    return engine(server.url, "ask=tokens", *more)


def chat_engine(server: AnswerServer, *more: str) -> Any:
    return engine(server.url, "ask=chat", "source=gpt-4-turbo", *more)
