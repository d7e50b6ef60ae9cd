"""Annotations of a policy's outputs: asked of a judge as alpaca-eval's own annotator does.

Out: `annotations.json` in the official format, in the order of the questions, and `metrics.json`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import PositiveInt

from src.evaluation.alpaca_eval import library
from src.evaluation.alpaca_eval.files import (
    ANNOTATIONS,
    BASELINE,
    OUTPUTS,
    Annotation,
    expected,
    joined,
    read_outputs,
    write_rows,
)
from src.kernel.artifact import WORK
from src.kernel.cells import CELLS, cell_key
from src.kernel.config import Free, Share, config
from src.kernel.rows import write_metrics
from src.modeling.asking import ask_all, read_completion, read_tokens
from src.modeling.endpoint import Endpoint, JudgeEndpoint

SENT_VERSION = 1
"""Raised when equal fields send another text or replies are kept otherwise."""


@config
class AlpacaEvalJudge:
    """Who is asked, and how."""

    endpoint: JudgeEndpoint
    top_logprobs: PositiveInt
    """Alternatives of the reply's token, whose probabilities are the preference."""
    failed_share_limit: Free[Share]
    """Largest share of replies without a usable log-probability, which become null preferences."""

    def fields(self) -> dict[str, Any]:
        """The fields of every request."""
        return self.endpoint.fields() | {"logprobs": True, "top_logprobs": self.top_logprobs}


@config
class AlpacaEvalAnnotations:
    """In: outputs. A reply is a cell that depends on what is sent alone: no pair is paid for twice."""

    kind: ClassVar[str] = "alpaca_eval_annotations"
    version: ClassVar[int] = 1
    resumable: ClassVar[bool] = True

    judge: AlpacaEvalJudge
    key: Free[str]
    """The judge's config key, for messages."""

    def source_version(self) -> str:
        return library.version()

    def asks(self) -> tuple[str, Endpoint]:
        return f"{self.key}.endpoint", self.judge.endpoint

    def shared(self) -> Any:
        return {"sent_version": SENT_VERSION, "fields": self.judge.fields()}

    def __call__(self, *inputs: Path, out: Path) -> None:
        pairs = paired(inputs[0])
        chats = {prompt: library.chat(prompt) for prompt in library.prompts(pairs)}
        keys = {prompt: cell_key(*(turn["content"] for turn in chat)) for prompt, chat in chats.items()}
        cells, _ = ask_all(
            {keys[prompt]: chat for prompt, chat in chats.items()},
            lambda chat: self.judge.fields() | {"messages": chat},
            self.judge.endpoint,
            f"{self.key}.endpoint",
            out / WORK / CELLS,
            read=lambda reply: (
                read_completion(reply) | {"tokens": [token.alternatives for token in read_tokens(reply)]}
            ),
            wanted="a preference",
            usable=lambda cell: library.readable(library.completion(cell["tokens"])),
            kept=lambda cell: bool(cell["tokens"]),  # another server of this name may give them
            limit_key=f"{self.key}.failed_share_limit",
            limit=self.judge.failed_share_limit,
            remedy="a preference is the log-probability of m and M in a reply of one token: does the server give "
            "`top_logprobs`? Replies that have any are kept, others are asked for anew",
        )
        replies = {prompt: library.completion(cells[key]["tokens"]) for prompt, key in keys.items() if key in cells}
        preferences = library.preferences(pairs, replies)
        _write([pair._replace(preference=one) for pair, one in zip(pairs, preferences, strict=True)], out)


def paired(outputs: Path) -> list[Annotation]:
    """Reads what is to be judged from an artifact of outputs, in the order of the questions."""
    baseline = read_outputs(outputs / BASELINE)
    own = joined(outputs / OUTPUTS, read_outputs(outputs / OUTPUTS), expected(baseline))
    return [
        Annotation(
            instruction=one.instruction,
            output_1=one.output,
            generator_1=one.generator,
            dataset=one.dataset,
            output_2=two.output,
            generator_2=two.generator,
            annotator=library.ANNOTATOR,
            preference=None,
        )
        for one, two in zip(baseline, own, strict=True)
    ]


def _write(rows: Sequence[Annotation], out: Path) -> None:
    write_rows(out / ANNOTATIONS, rows)
    write_metrics(out, {"items": len(rows), "failed": sum(row.preference is None for row in rows)})
