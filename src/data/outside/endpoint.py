"""Answers from elsewhere that a chat model gives when it is asked.

In: prompts. Out: OUTSIDE rows in the order of the prompts, and `metrics.json`. An answer is a cell that
depends on the prompt and on what is asked of whom, not on the policy: it is paid for once, whatever else changes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from src.data.collapse import collapse_warnings, outside_signs
from src.data.outside.source import OUTSIDE
from src.kernel.artifact import WORK, Stage
from src.kernel.cells import CELLS, Cells
from src.kernel.config import Free, UserError, config
from src.kernel.locks import turn
from src.kernel.progress import bar
from src.kernel.rows import PROMPTS, Row, read_rows, write_rows
from src.modeling.completions import Bill, Completion, LimitName, fields, in_flight, read_completion
from src.modeling.endpoint import Client, Endpoint, Refused

TRIAL = 20
"""Prompts after which a server that has refused all of them is asked no more."""
CHARACTERS_A_TOKEN = 4
"""Of English text; a rough estimate, said before anything is spent."""
WHOLE = ("stop", "length")


@config
class AnswerEndpoint:
    """A chat model behind an OpenAI-compatible endpoint, asked once for each prompt."""

    endpoint: Endpoint
    source: Annotated[str, Field(min_length=1)]
    """Who gives the answers, such as the model's name."""
    temperature: NonNegativeFloat | None
    """null: not sent, for models that refuse it; so are the next three."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None
    max_tokens: PositiveInt | None
    """Of an answer, as the server counts them."""
    seed: NonNegativeInt | None
    limit_name: LimitName
    max_answer_tokens: PositiveInt

    def stage(self, key: str) -> Stage:
        return AskAnswers(asked=self, key=key)

    def fields(self) -> dict[str, Any]:
        """Of every request."""
        return fields(self.endpoint, (self.limit_name, self.max_tokens), self.temperature, self.top_p)

    def seed_of(self, prompt_id: str) -> int | None:
        """63 bits."""
        if self.seed is None:
            return None
        return int.from_bytes(hashlib.sha256(f"{self.seed}/{prompt_id}".encode()).digest()[:8], "big") >> 1


@config
class AskAnswers:
    kind: ClassVar[str] = "outside"
    version: ClassVar[int] = 1
    resumable: ClassVar[bool] = True

    asked: AnswerEndpoint
    key: Free[str]

    def asks(self) -> tuple[str, Endpoint]:
        return f"{self.key}.endpoint", self.asked.endpoint

    def shared(self) -> Any:
        """What is said of an answer later does not change it."""
        return [self.asked.fields(), self.asked.seed, self.version]

    def __call__(self, *inputs: Path, out: Path) -> None:
        rows = read_rows(inputs[0], PROMPTS)
        (out / WORK / CELLS).mkdir(parents=True, exist_ok=True)
        with turn(out / WORK / CELLS / ".lock", self.key, "asking", ends=True):
            cells = Cells(out / WORK / CELLS)
            missing = [row for row in rows if row["prompt_id"] not in cells.values]
            self._announce(missing, len(rows) - len(missing))
            if missing:
                self._ask_all(missing, cells, len(rows))
        found = [(row["prompt_id"], cells.values[row["prompt_id"]]) for row in rows if row["prompt_id"] in cells.values]
        whole = [self._row(*one) for one in found if one[1]["finish_reason"] in WHOLE]
        counts = {
            "refused": len(rows) - len(found),
            "filtered": sum(cell["finish_reason"] not in WHOLE for _, cell in found),
            "cut_off": sum(cell["finish_reason"] == "length" for _, cell in found),
            "input_tokens": sum(cell["input_tokens"] for _, cell in found),
            "output_tokens": sum(cell["output_tokens"] for _, cell in found),
            **outside_signs([row["text"] for row in whole], len(rows)),
        }
        write_rows(out, whole, OUTSIDE)
        (out / "metrics.json").write_text(json.dumps(counts, indent=1) + "\n")
        for line in collapse_warnings(counts):
            print(f"{self.key}: warning: {line}", flush=True)

    def _row(self, prompt_id: str, cell: dict[str, Any]) -> Row:
        asked = self.asked
        own = {"prompt_id": prompt_id, "seed": asked.seed_of(prompt_id), "source": asked.source}
        return own | {name: cell[name] for name in ("text", "finish_reason")}

    def _ask_all(self, rows: list[Row], cells: Cells, total: int) -> None:
        """Each answer is on disk before the next is looked at: they are paid for."""
        client = Client(self.asked.endpoint, f"{self.key}.endpoint")
        bill, refusals = Bill(client, self.key), []
        try:
            with bar("ask", total, total - len(rows), "answer") as progress:
                for row, found in in_flight(client, rows, lambda row: self._ask(client, row)):
                    progress.update()
                    if isinstance(found, Refused):
                        refusals.append(str(found))
                        self._refuse(refusals, len(cells.values), len(rows))
                        continue
                    bill.add(found)
                    cells.add({row["prompt_id"]: _kept(found)})
        finally:
            client.close()
            bill.say()
        if refusals:
            print(f"{self.key}: {len(refusals)} prompts were refused, such as by {refusals[0]!r}", flush=True)

    def _ask(self, client: Client, row: Row) -> Completion:
        seed = self.asked.seed_of(row["prompt_id"])
        more = {} if seed is None else {"seed": seed}
        return client.ask(
            lambda openai: read_completion(
                client.heard(openai.chat.completions.create(messages=row["messages"], **self.asked.fields(), **more))
            )
        )

    def _refuse(self, refusals: Sequence[str], known: int, asked: int) -> None:
        """Raises UserError for a server that takes none of the texts: something else is wrong than they are."""
        if not known and len(refusals) >= min(TRIAL, asked):
            raise UserError(
                f"{self.key}: {self.asked.endpoint.host} refused the first {len(refusals)} prompts, such as by "
                f"{refusals[0]!r}; mend {self.key} as the server says"
            )

    def _announce(self, missing: list[Row], known: int) -> None:
        endpoint = self.asked.endpoint
        letters = sum(len(message["content"]) for row in missing for message in row["messages"])
        cost = endpoint.cost(letters // CHARACTERS_A_TOKEN, len(missing) * (self.asked.max_tokens or 0))
        without = "at most about" if self.asked.max_tokens else "without answers about"
        spent = f", about {letters // CHARACTERS_A_TOKEN:,} input tokens" if missing else ""
        spent += f", cost {without} {cost:.4g}" if missing and cost is not None else ""
        who = f"{endpoint.model} at {endpoint.host}"
        print(f"{self.key}: {who}: {len(missing):,} prompts to ask, {known:,} answers known{spent}", flush=True)


def _kept(found: Completion) -> dict[str, Any]:
    return {name: value for name, value in found._asdict().items() if name != "token_ids"}
