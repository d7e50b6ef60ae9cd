"""A row that somebody else wrote becomes a PROMPTS row, or an error that says where and what to do."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from typing import Any

from src.data import checks
from src.data.formats import Placed
from src.kernel.config import UserError, config
from src.kernel.rows import Row, prompt_id

ROLES = ("system", "user", "assistant")
Messages = list[dict[str, str]]


class _Refused(Exception):
    """What is wrong with a row."""


@config
class Columns:
    """Which column holds the prompt. Neither named: `prompt` where a row has it, else `messages`."""

    prompt: str | None = None
    """Of text: what the user says."""
    messages: str | None = None
    """Of turns, `[{"role": "user", "content": "…"}]`, or the same as JSON text; the last one is the user's."""

    def __post_init__(self) -> None:
        if self.prompt is not None and self.messages is not None:
            raise ValueError("prompt and messages: name one of them, and leave the other null")

    @property
    def wanted(self) -> tuple[str, ...]:
        """Those to read."""
        named = self.prompt or self.messages
        return (*((named,) if named else ("prompt", "messages")), "source", "checks")

    def prompt_row(self, placed: Placed, label: str) -> Row:
        """The PROMPTS row; `label` is the source of a row that names none. Raises UserError in one line."""
        place, row = placed
        try:
            messages = self._messages(row)
            _check_characters([m["content"] for m in messages], "the prompt")
            return {
                "prompt_id": prompt_id(messages),
                "messages": messages,
                "source": _source(row.get("source")) or label,
                "checks": json.dumps(_checks(row.get("checks")), ensure_ascii=False),
            }
        except _Refused as refused:
            raise UserError(f"{place}: {refused}") from None

    def _messages(self, row: Row) -> Messages:
        named = self.prompt or self.messages
        turns = self.messages is not None or (named is None and row.get("prompt") is None and "messages" in row)
        name = named or ("messages" if turns else "prompt")
        if name not in row:
            known = repr(named) if named else "'prompt' or 'messages'"
            mend = "name the one that holds the prompt in data.prompt or data.messages (data=local)"
            raise _Refused(f"no column {known}; {mend}")
        return _turns(name, row[name]) if turns else _one_turn(name, row[name])


def same_text(messages: Messages) -> str:
    """32 hex digits, equal for prompts that differ in case, white space or Unicode form (NFKC) only."""
    said = [[m["role"], _normalised(m["content"])] for m in messages]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:32]


def _normalised(text: str) -> str:
    """Normal form twice: folding ß under an accent leaves it."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(folded.split())


def _one_turn(name: str, value: Any) -> Messages:
    if isinstance(value, list):
        raise _Refused(f"{name}: a list, not text; a column of turns is named by data.messages={name} (data=local)")
    return [{"role": "user", "content": _said(name, "user", value)}]


def _turns(name: str, value: Any) -> Messages:
    if isinstance(value, str):
        value = _parsed(name, value)
    if not isinstance(value, list) or not value:
        raise _Refused(f"{name}: {_shown(value)} is no list of turns; give it at least the user's")
    messages = [_turn(f"{name}: turn {number}", turn) for number, turn in enumerate(value, 1)]
    if messages[-1]["role"] != "user":
        role = messages[-1]["role"]
        raise _Refused(f"{name}: the last turn is by {role!r}, must be the user's; take the answer off")
    return messages


def _turn(name: str, turn: Any) -> dict[str, str]:
    if not isinstance(turn, dict) or not {"role", "content"} <= turn.keys():
        raise _Refused(f"{name}: {_shown(turn)} is no object with role and content")
    if turn["role"] not in ROLES:
        raise _Refused(f"{name}: unknown role {_shown(turn['role'])}; the roles are {', '.join(ROLES)}")
    other = next((key for key, value in turn.items() if key not in ("role", "content") and value is not None), None)
    if other is not None:
        raise _Refused(f"{name}: {_shown(other)} would be lost, a turn is role and content; take it off")
    return {"role": turn["role"], "content": _said(name, turn["role"], turn["content"])}


def _said(name: str, role: str, content: Any) -> str:
    """Only the user has to say something."""
    if not isinstance(content, str):
        raise _Refused(f"{name}: {_shown(content)} is no text; write text or delete the row")
    if role == "user" and not content.strip():
        what = "only white space" if content else "empty"
        raise _Refused(f"{name}: {what}; write the prompt or delete the row")
    return content


def _source(value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise _Refused(f"source: {_shown(value)} is no text; write who wrote the prompt, or leave it out")
    _check_characters([value or ""], "source")
    return value


def _checks(value: Any) -> list[dict[str, Any]]:
    found = _parsed("checks", value) if isinstance(value, str) and value else value or []
    if not isinstance(found, list) or not all(isinstance(check, dict) for check in found):
        mend = "write a list of objects with kind, or leave it out"
        raise _Refused(f"checks: {_shown(found)} is no list of checks; {mend}")
    for check in found:
        try:
            checks.validate(check)
        except ValueError as error:
            raise _Refused(f"checks: {error}") from None
    _check_characters([json.dumps(found, ensure_ascii=False)], "checks")
    return found


def _parsed(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _Refused(f"{name}: {_shown(text)} is no JSON ({error}); mend it or delete the row") from None


def _check_characters(texts: list[str], name: str) -> None:
    """JSON can spell half of a character, which no file of text can hold."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            half = ascii(text[error.start])
            raise _Refused(f"{name}: {half} is half of a character (a lone surrogate); take it out") from None


def _shown(value: Any) -> str:
    """On one line, and no longer than helps."""
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
