"""A judge grades the answers: each request once, and every reply kept as it comes.

In: answers. Out: `model_judgment/<judge>_single.jsonl` in FastChat's format, and `metrics.json`. A reply is a cell
that depends on what is asked of whom alone, so it is paid for once, whichever policy or run asks. What
is kept is the reply, not the rating.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, ClassVar

from src.evaluation.mt_bench.files import HIGHEST, MODEL_JUDGMENTS, REQUESTS, UNRATED
from src.kernel.artifact import WORK
from src.kernel.cells import CELLS, cell_key
from src.kernel.config import Free, Share, config
from src.kernel.rows import Row, read_rows, write_metrics
from src.modeling.asking import Cell, ask_all
from src.modeling.endpoint import Endpoint, JudgeEndpoint

RATINGS = (re.compile(r"\[\[([0-9]+\.?[0-9]*)\]\]"), re.compile(r"\[([0-9]+\.?[0-9]*)\]"))
"""As asked for, and where there is none so, as a judge may write it; the first in a reply counts."""
NO_REPLY = "$ERROR$"
"""FastChat's judgment where the endpoint gave none."""


def rating(judgment: str) -> int | float:
    """From 0 to HIGHEST; UNRATED where there is none. Above, FastChat would count it: a misprint moves a mean far."""
    match = next(filter(None, (pattern.search(judgment) for pattern in RATINGS)), None)
    if match is None:
        return UNRATED
    number = float(match[1]) if "." in match[1] else int(match[1])
    return number if number <= HIGHEST else UNRATED


@config
class Judge:
    """Grades each answer by itself."""

    kind: ClassVar[str] = "mt_bench_judgments"
    version: ClassVar[int] = 1
    resumable: ClassVar[bool] = True

    endpoint: JudgeEndpoint
    key: Free[str]
    """The judge's config key, for messages."""
    unrated_share_limit: Free[Share]
    """Largest share of replies without a rating; 1: any."""

    def shared(self) -> Any:
        return [self.endpoint.fields(), self.version]

    def asks(self) -> tuple[str, Endpoint]:
        return self.key, self.endpoint

    def __call__(self, *inputs: Path, out: Path) -> None:
        rows = read_rows(inputs[0], REQUESTS)
        keys = [cell_key(row["system_prompt"], row["user_prompt"]) for row in rows]
        cells, refused = ask_all(
            dict(zip(keys, rows, strict=True)),
            self._request,
            self.endpoint,
            self.key,
            out / WORK / CELLS,
            wanted="a rating",
            usable=lambda cell: rating(cell["text"]) != UNRATED,
            limit_key=f"{self.key.rpartition('.')[0]}.unrated_share_limit",
            limit=self.unrated_share_limit,
            remedy="take another judge or raise the limit: replies are kept, and asked for no more",
        )
        judged = [self._judgment(row, cells.get(key)) for key, row in zip(keys, rows, strict=True)]
        (out / MODEL_JUDGMENTS).mkdir(exist_ok=True)
        file = out / MODEL_JUDGMENTS / f"{self.endpoint.model.replace('/', '--')}_single.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in judged))
        numbers = {
            "judgments": len(judged),
            "unrated": sum(row["score"] == UNRATED for row in judged),
            "refused": len(refused),
            "input_tokens": sum(cell["input_tokens"] for cell in cells.values()),
            "output_tokens": sum(cell["output_tokens"] for cell in cells.values()),
        }
        write_metrics(out, numbers)

    def _request(self, row: Row) -> dict[str, Any]:
        texts = (("system", row["system_prompt"]), ("user", row["user_prompt"]))
        return self.endpoint.fields() | {"messages": [{"role": role, "content": text} for role, text in texts]}

    def _judgment(self, row: Row, cell: Cell | None) -> Row:
        """FastChat's times are the clock's; these are the same whenever it is made."""
        judgment = cell["text"] if cell else NO_REPLY
        return {
            "question_id": row["question_id"],
            "model": row["model"],
            "judge": [self.endpoint.model, row["prompt"]],
            "user_prompt": row["user_prompt"],
            "judgment": judgment,
            "score": rating(judgment),
            "turn": row["turn"],
            "tstamp": 0,
        }
