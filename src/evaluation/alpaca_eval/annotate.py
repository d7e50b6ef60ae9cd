"""Annotations of a policy's outputs: asked of a judge by alpaca-eval's own annotator, or read from a file.

Out: `annotations.json` in the official format, in the order of the questions, and `metrics.json`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from src.evaluation.alpaca_eval import library
from src.evaluation.alpaca_eval.asking import AlpacaEvalJudge, Asking
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
from src.kernel.config import Free, config
from src.kernel.rows import write_metrics
from src.modeling.endpoint import Endpoint


@config
class AlpacaEvalAnnotations:
    """In: outputs. A reply is a cell that depends on what is sent alone: no pair is paid for twice."""

    kind: ClassVar[str] = "alpaca_eval_annotations"
    version: ClassVar[int] = 1
    resumable: ClassVar[bool] = True

    judge: AlpacaEvalJudge
    key: Free[str]
    """Of the judge in the config, for messages."""

    def source_version(self) -> str:
        return library.version()

    def asks(self) -> tuple[str, Endpoint]:
        return f"{self.key}.endpoint", self.judge.endpoint

    def shared(self) -> Any:
        return self.judge.sent()

    def __call__(self, *inputs: Path, out: Path) -> None:
        pairs = paired(inputs[0])
        found = Asking(self.judge, self.key, library.prompts(pairs), out).replies()
        preferences = library.preferences(pairs, found)
        rows = [pair._replace(preference=one) for pair, one in zip(pairs, preferences, strict=True)]
        write_rows(out / ANNOTATIONS, rows)
        _write_counts(rows, out)


def paired(outputs: Path) -> list[Annotation]:
    """Of an artifact of outputs: what is to be judged, in the order of the questions."""
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


def _write_counts(rows: Sequence[Annotation], out: Path) -> None:
    failed = sum(row.preference is None for row in rows)
    write_metrics(out, {"items": len(rows), "failed": failed})
