"""The annotator's prompts are put to an endpoint: each once, and the reply is kept as soon as it is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import PositiveInt

from src.evaluation.alpaca_eval import library
from src.kernel.artifact import WORK
from src.kernel.cells import CELLS, Cells, cell_key
from src.kernel.config import Free, Share, UserError, config
from src.kernel.locks import turn
from src.kernel.progress import bar
from src.modeling.completions import Bill, Completion, in_flight, read_completion
from src.modeling.endpoint import Client, Refused
from src.ranking.replies import alternative
from src.ranking.verdicts import CHARACTERS_A_TOKEN, TRIAL, JudgeEndpoint

SENT_VERSION = 1
"""Raised when equal fields send another text or replies are kept otherwise."""
SHORT = 80
"""Characters of a reply that messages show."""


@config
class AlpacaEvalJudge:
    """Who is asked, and how."""

    endpoint: JudgeEndpoint
    top_logprobs: PositiveInt
    """Alternatives of the reply's token, whose probabilities are the preference."""
    failed_share_limit: Free[Share]
    """Of replies without a usable log-probability, which become null preferences; more of them end the stage."""

    def sent(self) -> dict[str, Any]:
        """JSON-able: what a reply depends on besides the prompt."""
        return {"sent_version": SENT_VERSION, "fields": self.fields()}

    def fields(self) -> dict[str, Any]:
        return self.endpoint.fields() | {"logprobs": True, "top_logprobs": self.top_logprobs}


class Asking:
    """Prompts, the endpoint, and the cells that hold its replies."""

    def __init__(self, judge: AlpacaEvalJudge, key: str, prompts: Sequence[str], out: Path) -> None:
        (out / WORK / CELLS).mkdir(parents=True, exist_ok=True)
        self.judge, self.key, self.folder = judge, key, out / WORK / CELLS
        self.chats = {prompt: library.chat(prompt) for prompt in prompts}
        self.found = 0
        """Replies and refusals; those that are failures are counted here before they are below."""
        self.failures: list[str] = []
        """What was said in place of an answer."""

    def replies(self) -> dict[str, library.Completion]:
        """Prompt -> reply; lacks what was refused, and has what cannot be read.

        One process asks at a time, so nothing is paid for twice. Raises UserError when too little can be read.
        """
        with turn(self.folder / ".lock", self.key, "asking", ends=True):
            cells = Cells(self.folder)
            missing = [prompt for prompt in self.chats if self._cell(prompt) not in cells.values]
            known = [cells.values[self._cell(prompt)] for prompt in self.chats if prompt not in set(missing)]
            self.found = len(known)
            self.failures += [one["text"] for one in known if not library.readable(_completion(one))]
            self._announce(missing)
            self._refuse()
            if missing:
                self._ask_all(missing, cells)
                self._refuse()
        found: dict[str, library.Completion] = {}
        for prompt in self.chats:
            if (cell := cells.values.get(self._cell(prompt))) is not None:
                found[prompt] = _completion(cell)
        return found

    def _cell(self, prompt: str) -> str:
        return cell_key(*(message["content"] for message in self.chats[prompt]))

    def _ask_all(self, missing: Sequence[str], cells: Cells) -> None:
        """Each reply is on disk before the next is looked at: they are paid for."""
        client = Client(self.judge.endpoint, f"{self.key}.endpoint")
        bill = Bill(client, self.key)
        try:
            with bar("judge", len(self.chats), self.found, "pair") as progress:
                for prompt, cell in in_flight(client, missing, lambda one: self._ask(client, one)):
                    progress.update()
                    self.found += 1
                    if isinstance(cell, Refused):
                        self.failures.append(f"refused: {cell}")
                    else:
                        if cell["tokens"]:  # else another server of this name may give them, and is asked
                            cells.add({self._cell(prompt): cell})
                        bill.add(Completion(cell["text"], None, "", cell["input_tokens"], cell["output_tokens"]))
                        if not library.readable(_completion(cell)):
                            self.failures.append(cell["text"])
        finally:
            client.close()
            bill.say()

    def _ask(self, client: Client, prompt: str) -> dict[str, Any]:
        self._refuse()  # before it is paid; what is in flight is waited for, and kept
        messages: Any = self.chats[prompt]
        return client.ask(
            lambda openai: _read(client.heard(openai.chat.completions.create(messages=messages, **self.judge.fields())))
        )

    def _refuse(self) -> None:
        """Raises UserError once the limit is certain to be passed, or when nothing can be read of a whole trial."""
        limit, total, failed = self.judge.failed_share_limit, len(self.chats), len(self.failures)
        found = self.found
        model = self.judge.endpoint.model
        if failed > limit * total:
            what = f"{failed} of {total} replies of {model} are no preference, more than {limit:g} of them"
        elif limit < 1 and failed == found >= TRIAL:
            what = f"none of the first {found} replies of {model} is a preference"
        else:
            return
        said = self.failures[-1][:SHORT]
        raise UserError(
            f"{self.key}.failed_share_limit: {what}, such as {said!r}; a preference is the log-probability of m and M "
            "in a reply of one token: does the server give `top_logprobs`? Replies that have any are kept, others are "
            "asked for anew"
        )

    def _announce(self, missing: Sequence[str]) -> None:
        endpoint = self.judge.endpoint
        letters = sum(len(message["content"]) for prompt in missing for message in self.chats[prompt])
        tokens = letters // CHARACTERS_A_TOKEN
        cost = endpoint.cost(tokens, len(missing) * (endpoint.max_tokens or 0))
        spent = f", about {tokens:,} input tokens" if missing else ""
        spent += f", cost about {cost:.4g}" if missing and cost is not None else ""
        known = len(self.chats) - len(missing)
        who = f"{endpoint.model} at {endpoint.host}"
        print(f"{self.key}: {who}: {len(missing)} pairs to judge, {known} known{spent}", flush=True)


def _read(found: Any) -> dict[str, Any]:
    """What is kept of a reply, JSON-able. Raises ValueError for what is no completion."""
    read = read_completion(found)
    content = getattr(getattr(found.choices[0], "logprobs", None), "content", None) or []
    if not isinstance(content, list):
        raise ValueError(f"not a completion with log-probabilities: {str(content)[:60]!r}")
    try:
        tokens = [[alternative(one) for one in getattr(token, "top_logprobs", None) or []] for token in content]
    except (AttributeError, TypeError) as error:
        raise ValueError(f"not a completion with log-probabilities: {error}") from error
    counts = {"input_tokens": read.input_tokens, "output_tokens": read.output_tokens}
    return {"text": read.text, "tokens": tokens} | counts


def _completion(cell: Mapping[str, Any]) -> library.Completion:
    return library.completion(cell["tokens"])
