"""AddAnswers: answers from elsewhere become further candidates beside the policy's own (WPO's hybrid data).

In: the policy's responses, the policy, then OUTSIDE rows of each source. Out: RESPONSES rows; after a prompt's own
answers come those of the sources, in their order, where they have one. `metrics.json` has of each source: prompts with
an answer (found), without (missing), with an empty one (empty); of those found the too_long ones, which are left out,
and the others (added), some of them the same as one of the policy's own; and signs of a collapse of
all answers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field, PositiveInt

from src.data.collapse import signs, told
from src.data.outside.source import OUTSIDE
from src.kernel.config import Free, Label, config
from src.kernel.rows import RESPONSES, Row, read_rows, write_metrics, write_rows
from src.modeling.encoding import answer_ids

Encoder = Callable[[Row, Row], list[int]]
"""Of a RESPONSES row and an OUTSIDE row."""
ANSWERED = ("text", "finish_reason", "seed", "source")
COUNTS = ("found", "missing", "empty", "too_long", "same", "added")


@config
class AddAnswers:
    kind: ClassVar[str] = "responses"
    version: ClassVar[int] = 1
    resumable: ClassVar[bool] = False

    names: Free[Annotated[tuple[Label, ...], Field(strict=False)]]
    """Of the sources, for counts and messages."""
    limits: Annotated[tuple[PositiveInt, ...], Field(strict=False)]
    """Tokens of the longest answer that is added, a number a source."""

    def __call__(self, *inputs: Path, out: Path) -> None:
        responses, policy, *outside = inputs
        rows = read_rows(responses, RESPONSES)
        own = [{answer["text"] for answer in row["responses"]} for row in rows]
        encode, metrics = _encoder(policy), {}
        for name, limit, folder in zip(self.names, self.limits, outside, strict=True):
            answers = {answer["prompt_id"]: answer for answer in read_rows(folder, OUTSIDE)}
            counts = Counter[str]()
            for row, texts in zip(rows, own, strict=True):
                counts.update(_add(row, answers.get(row["prompt_id"]), limit, texts, encode))
            _say(name, limit, counts, len(rows))
            metrics |= {f"{name}/{count}": counts[count] for count in COUNTS}
        metrics |= {"prompts": len(rows), "answers": sum(len(row["responses"]) for row in rows)} | signs(rows)
        write_rows(out, rows, RESPONSES)
        write_metrics(out, metrics)
        for line in told(metrics):
            print(f"answers: warning: {line}", flush=True)


def _encoder(policy: Path) -> Encoder:
    from src.modeling.model import load_tokenizer, stop_ids

    tokenizer, stops = load_tokenizer(policy), stop_ids(policy)

    def encode(row: Row, answer: Row) -> list[int]:
        return answer_ids(tokenizer, row["messages"], answer["text"], stops, answer["finish_reason"] == "stop")

    return encode


def _add(row: Row, answer: Row | None, limit: int, own: set[str], encode: Encoder) -> list[str]:
    """Add the answer to the row unless there is a reason not to; returns what it counts as."""
    if answer is None:
        return ["missing"]
    if not answer["text"].strip():
        return ["empty"]
    ids = encode(row, answer)
    if len(ids) > limit:
        return ["found", "too_long"]
    row["responses"].append({name: answer[name] for name in ANSWERED} | {"token_ids": ids})
    return ["found", "added", *(["same"] if answer["text"] in own else [])]


def _say(name: str, limit: int, counts: Counter[str], prompts: int) -> None:
    left_out = f"{counts['missing']:,} missing, {counts['empty']:,} empty, {counts['too_long']:,} over {limit:,} tokens"
    added = f"{counts['added']:,} answers added to {prompts:,} prompts"
    print(f"answers {name}: {added}; {left_out}; {counts['same']:,} the same as one of the policy's", flush=True)
