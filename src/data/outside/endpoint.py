"""Answers from elsewhere that a chat model gives when it is asked.

In: prompts. Out: OUTSIDE rows in the order of the prompts, and `metrics.json`. An answer is a cell that
depends on the prompt and on what is asked of whom, not on the policy: it is paid for once, whatever else changes.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from src.data.collapse import collapse_warnings, outside_signs
from src.data.outside.source import OUTSIDE
from src.kernel.artifact import WORK, Stage
from src.kernel.cells import CELLS
from src.kernel.config import Free, config
from src.kernel.rows import PROMPTS, Row, read_rows, write_metrics, write_rows
from src.modeling.asking import Asking, Cell, LimitName, read_completion
from src.modeling.endpoint import Endpoint

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
        """The fields of every request."""
        limit = {self.limit_name: self.max_tokens}
        return self.endpoint.body(**limit, temperature=self.temperature, top_p=self.top_p)

    def seed_of(self, prompt_id: str) -> int | None:
        """Returns a seed of 63 bits for a prompt's answer."""
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
        rows, asked = read_rows(inputs[0], PROMPTS), self.asked
        asking = Asking[Row](
            endpoint=asked.endpoint,
            endpoint_key=f"{self.key}.endpoint",
            title=self.key,
            request=self._request,
            read=_read,
            wanted="an answer",
            remedy=f"mend {self.key} as the server says",
        )
        cells, refused = asking.ask({row["prompt_id"]: row for row in rows}, out / WORK / CELLS)
        whole = [
            {"prompt_id": key, "seed": asked.seed_of(key), "source": asked.source}
            | {name: cell[name] for name in ("text", "finish_reason")}
            for key, cell in ((row["prompt_id"], cells.get(row["prompt_id"])) for row in rows)
            if cell and cell["finish_reason"] in WHOLE
        ]
        counts = {
            "refused": len(refused),
            "filtered": len(cells) - len(whole),
            "cut_off": sum(cell["finish_reason"] == "length" for cell in cells.values()),
            "input_tokens": sum(cell["input_tokens"] for cell in cells.values()),
            "output_tokens": sum(cell["output_tokens"] for cell in cells.values()),
            **outside_signs([row["text"] for row in whole], len(rows)),
        }
        write_rows(out, whole, OUTSIDE)
        write_metrics(out, counts)
        for line in collapse_warnings(counts):
            print(f"{self.key}: warning: {line}", flush=True)

    def _request(self, row: Row) -> dict[str, Any]:
        seed = self.asked.seed_of(row["prompt_id"])
        return self.asked.fields() | {"messages": row["messages"]} | ({} if seed is None else {"seed": seed})


def _read(response: Any) -> Cell:
    cell = read_completion(response)._asdict()
    del cell["token_ids"]
    return cell
