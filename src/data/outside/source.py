"""Answers that the policy did not give: what a source of them is, and how they become candidates.

OUTSIDE rows answer some of the prompts of a prompts artifact, each once.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, ClassVar, Protocol, runtime_checkable

import pyarrow as pa
from pydantic import Field, PositiveInt

from src.data.collapse import collapse_warnings, signs
from src.kernel.artifact import Stage
from src.kernel.config import Free, Label, config
from src.kernel.rows import RESPONSES, read_rows, write_metrics, write_rows
from src.modeling.policy import answer_ids

OUTSIDE = pa.schema(
    {
        "prompt_id": pa.string(),
        "text": pa.string(),  # may be empty: it is counted when it is not added
        "finish_reason": pa.string(),  # "stop", or "length" (cut off)
        "seed": pa.uint64(),  # null where none is known
        "source": pa.string(),  # who gave it
    }
)


@runtime_checkable
class AnswerSource(Protocol):
    """Where answers come from that the policy did not give."""

    max_answer_tokens: int
    """Of the policy; a longer answer is not added, and counted."""

    def stage(self, key: str) -> Stage:
        """Reads prompts, writes OUTSIDE rows. `key` is where the source stands in the config, for messages.

        Raises UserError when what it reads is not there.
        """
        ...


COUNTS = ("found", "missing", "empty", "too_long", "same", "added")


@config
class AddAnswers:
    """Adds answers from elsewhere as further candidates beside the policy's own (WPO's hybrid data).

    In: the policy's responses, the policy, then OUTSIDE rows of each source. Out: RESPONSES rows; after a prompt's own
    answers come those of the sources, in their order, where they have one. `metrics.json` has of each source: prompts
    with an answer (found), without (missing), with an empty one (empty); of those found the too_long ones, which are
    left out, and the others (added), some of them the same as one of the policy's own; and signs of a collapse of all
    answers.
    """

    kind: ClassVar[str] = "responses"
    version: ClassVar[int] = 1
    resumable: ClassVar[bool] = False

    names: Free[Annotated[tuple[Label, ...], Field(strict=False)]]
    """Of the sources, for counts and messages."""
    limits: Annotated[tuple[PositiveInt, ...], Field(strict=False)]
    """Tokens of the longest answer that is added, a number a source."""

    def __call__(self, *inputs: Path, out: Path) -> None:
        from src.modeling.policy import load_tokenizer, stop_ids

        responses, policy, *outside = inputs
        rows = read_rows(responses, RESPONSES)
        policys = [{answer["text"] for answer in row["responses"]} for row in rows]
        tokenizer, stops = load_tokenizer(policy), stop_ids(policy)
        metrics: dict[str, float] = {}
        for name, limit, folder in zip(self.names, self.limits, outside, strict=True):
            answers = {answer["prompt_id"]: answer for answer in read_rows(folder, OUTSIDE)}
            counts = Counter[str]()
            for row, texts in zip(rows, policys, strict=True):
                answer = answers.get(row["prompt_id"])
                if answer is None or not answer["text"].strip():
                    counts["missing" if answer is None else "empty"] += 1
                    continue
                finished = answer["finish_reason"] == "stop"
                ids = answer_ids(tokenizer, row["messages"], answer["text"], stops, finished)
                counts["found"] += 1
                if len(ids) > limit:
                    counts["too_long"] += 1
                    continue
                counts["added"] += 1
                counts["same"] += answer["text"] in texts
                columns = ("text", "finish_reason", "seed", "source")
                row["responses"].append({column: answer[column] for column in columns} | {"token_ids": ids})
            print(
                f"answers {name}: {counts['added']:,} answers added to {len(rows):,} prompts; {counts['missing']:,} "
                f"missing, {counts['empty']:,} empty, {counts['too_long']:,} over {limit:,} tokens; "
                f"{counts['same']:,} the same as one of the policy's",
                flush=True,
            )
            metrics |= {f"{name}/{count}": counts[count] for count in COUNTS}
        metrics |= {"prompts": len(rows), "answers": sum(len(row["responses"]) for row in rows)} | signs(rows)
        write_rows(out, rows, RESPONSES)
        write_metrics(out, metrics)
        for line in collapse_warnings(metrics):
            print(f"answers: warning: {line}", flush=True)
