"""A judge grades the answers: each request once, by many threads, and every reply kept as it comes.

In: answers. Out: `model_judgment/<judge>_single.jsonl` in FastChat's format, and `metrics.json`. A reply is a cell
that depends on what is asked of whom alone, so it is paid for once, whichever policy or run asks. What
is kept is the reply, not the rating.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from src.evaluation.mt_bench.files import HIGHEST, MODEL_JUDGMENTS, REQUESTS, UNRATED
from src.kernel.artifact import WORK
from src.kernel.cells import CELLS, Cells, cell_key
from src.kernel.config import Free, Share, UserError, config
from src.kernel.locks import turn
from src.kernel.progress import bar
from src.kernel.rows import Row, read_rows, write_metrics
from src.modeling.completions import Bill, Completion, in_flight, read_completion
from src.modeling.endpoint import Client, Endpoint, Refused
from src.ranking.verdicts import CHARACTERS_A_TOKEN, SHORT, TRIAL, JudgeEndpoint

RATINGS = (re.compile(r"\[\[([0-9]+\.?[0-9]*)\]\]"), re.compile(r"\[([0-9]+\.?[0-9]*)\]"))
"""As asked for, and where there is none so, as a judge may write it; the first in a reply counts."""
NO_REPLY = "$ERROR$"
"""FastChat's judgment where the endpoint gave none."""


def rating(judgment: str) -> int | float:
    """From 0 to HIGHEST; UNRATED where there is none. Above, FastChat would count it: a misprint moves a mean far."""
    found = next(filter(None, (pattern.search(judgment) for pattern in RATINGS)), None)
    if found is None:
        return UNRATED
    number = float(found[1]) if "." in found[1] else int(found[1])
    return number if number <= HIGHEST else UNRATED


class _Counts(NamedTuple):
    """Of replies and refusals so far."""

    found: int
    unrated: int
    example: str
    """Of what is no rating."""


@config
class Judge:
    """Grades each answer by itself."""

    kind: ClassVar[str] = "mt_bench_judgments"
    version: ClassVar[int] = 1
    resumable: ClassVar[bool] = True

    endpoint: JudgeEndpoint
    key: Free[str]
    """Of the judge in the config, for messages."""
    unrated_share_limit: Free[Share]
    """More replies without a rating end it; 1: none do."""

    def shared(self) -> Any:
        return [self.endpoint.fields(), self.version]

    def asks(self) -> tuple[str, Endpoint]:
        return self.key, self.endpoint

    def __call__(self, *inputs: Path, out: Path) -> None:
        rows = read_rows(inputs[0], REQUESTS)
        (out / WORK / CELLS).mkdir(parents=True, exist_ok=True)
        with turn(out / WORK / CELLS / ".lock", self.key, "asking the judge", ends=True):
            cells = Cells(out / WORK / CELLS)
            requests = {_key(row): row for row in rows}
            missing = [key for key in requests if key not in cells.values]
            self._announce([requests[key] for key in missing], len(requests) - len(missing))
            self._refuse_useless(requests, cells, {})
            refusals = self._ask_all(missing, requests, cells) if missing else {}
            self._refuse_useless(requests, cells, refusals)
        judged = [self._judgment(row, cells.values.get(_key(row))) for row in rows]
        (out / MODEL_JUDGMENTS).mkdir(exist_ok=True)
        file = out / MODEL_JUDGMENTS / f"{self.endpoint.model.replace('/', '--')}_single.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in judged))
        used = [cells.values[key] for key in requests if key in cells.values]
        numbers = {
            "judgments": len(judged),
            "unrated": sum(row["score"] == UNRATED for row in judged),
            "refused": len(refusals),
            "input_tokens": sum(cell["input_tokens"] for cell in used),
            "output_tokens": sum(cell["output_tokens"] for cell in used),
        }
        write_metrics(out, numbers)

    def _judgment(self, row: Row, cell: Mapping[str, Any] | None) -> Row:
        """FastChat's times are the clock's; these are the same whenever it is made."""
        said = cell["text"] if cell else NO_REPLY
        return {
            "question_id": row["question_id"],
            "model": row["model"],
            "judge": [self.endpoint.model, row["prompt"]],
            "user_prompt": row["user_prompt"],
            "judgment": said,
            "score": rating(said),
            "turn": row["turn"],
            "tstamp": 0,
        }

    def _ask_all(self, missing: list[str], requests: Mapping[str, Row], cells: Cells) -> dict[str, str]:
        """What was refused, and why. Each reply is on disk before the next is looked at: they are paid for."""
        client = Client(self.endpoint, self.key)
        bill, refusals = Bill(client, self.key), dict[str, str]()

        def ask(key: str) -> Completion:
            self._refuse_useless(requests, cells, refusals)  # before it is paid; what is in flight is waited for
            return client.ask(lambda openai: self._reply(client, openai, requests[key]))

        try:
            with bar("judge", len(requests), len(requests) - len(missing), "request") as progress:
                for key, found in in_flight(client, missing, ask):
                    progress.update()
                    if isinstance(found, Refused):
                        refusals[key] = str(found)
                        continue
                    bill.add(found)
                    cells.add({key: found._asdict() | {"token_ids": None}})
        finally:
            client.close()
            bill.say()
        return refusals

    def _reply(self, client: Client, openai: Any, row: Row) -> Completion:
        texts = (("system", row["system_prompt"]), ("user", row["user_prompt"]))
        messages = [{"role": role, "content": text} for role, text in texts]
        found = openai.chat.completions.create(messages=messages, **self.endpoint.fields())
        return read_completion(client.heard(found))

    def _refuse_useless(self, asked: Collection[str], cells: Cells, refusals: Mapping[str, str]) -> None:
        """Raises UserError once the limit is certain to be passed, or when nothing can be read of a whole trial."""
        counts, limit, who = _count(asked, cells, refusals), self.unrated_share_limit, self.endpoint.model
        if counts.unrated > limit * len(asked):
            what = f"{counts.unrated} of {len(asked)} replies of {who} hold no rating, more than {limit:g} of them"
        elif limit < 1 and counts.unrated == counts.found >= TRIAL:
            what = f"none of the first {counts.found} replies of {who} holds a rating"
        else:
            return
        remedy = "look at the server, take another judge" if refusals else "take another judge"
        raise UserError(
            f"{self.key}: {what}, such as {counts.example!r}; {remedy}, or raise "
            f"{self.key.rpartition('.')[0]}.unrated_share_limit: replies are kept, and asked for no more"
        )

    def _announce(self, missing: list[Row], known: int) -> None:
        endpoint, longest = self.endpoint, self.endpoint.max_tokens
        letters = sum(len(row["system_prompt"]) + len(row["user_prompt"]) for row in missing)
        tokens = letters // CHARACTERS_A_TOKEN
        cost = endpoint.cost(tokens, len(missing) * (longest or 0))
        most = "at most about" if longest else "without replies about"
        spent = f", about {tokens:,} input tokens" if missing else ""
        spent += f", cost {most} {cost:.4g}" if missing and cost is not None else ""
        who = f"{endpoint.model} at {endpoint.host}"
        print(f"{self.key}: {who}: {len(missing)} requests to make, {known} replies known{spent}", flush=True)


def _key(row: Row) -> str:
    return cell_key(row["system_prompt"], row["user_prompt"])


def _count(asked: Collection[str], cells: Cells, refusals: Mapping[str, str]) -> _Counts:
    replies = [cells.values[key]["text"] for key in asked if key in cells.values]
    bad = [text for text in replies if rating(text) == UNRATED]
    complaints = [f"refused: {said}" for said in list(refusals.values())]
    example = next(iter(bad + complaints), "")
    return _Counts(len(replies) + len(complaints), len(bad) + len(complaints), example[-SHORT:])
