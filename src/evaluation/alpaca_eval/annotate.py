"""Annotations of a policy's outputs: asked of a judge by alpaca-eval's own annotator, or read from a file.

Out: `annotations.json` in the official format, in the order of the questions, and `metrics.json`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import PositiveInt

from src.config import Free, UserError, YamlPath, config
from src.endpoint import Endpoint
from src.evaluation.alpaca_eval import library
from src.evaluation.alpaca_eval.annotations import (
    ANNOTATIONS,
    BASELINE,
    OUTPUTS,
    Annotation,
    expected,
    joined,
    official,
    read_annotations,
    read_outputs,
    write_rows,
)
from src.evaluation.alpaca_eval.asking import Asking, Judge


@config
class AlpacaEvalAnnotations:
    """In: outputs. A reply is a cell (src/cells.py) that depends on what is sent alone: no pair is paid for twice."""

    kind: ClassVar[str] = "alpaca_eval_annotations"
    version: ClassVar[int] = 1
    resumable: ClassVar[bool] = True

    judge: Judge
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


@config
class AlpacaEvalAnnotationFile:
    """In: questions, or nothing: then the 805 of the leaderboard are expected."""

    kind: ClassVar[str] = "alpaca_eval_annotations"
    version: ClassVar[int] = 1
    resumable: ClassVar[bool] = False

    path: Free[YamlPath]
    content: str
    """sha256 of the file."""
    first: PositiveInt | None
    """Of the expected instructions; null: all."""

    def __call__(self, *inputs: Path, out: Path) -> None:
        rows = read_joined(self.path, inputs[0] / BASELINE if inputs else None, self.first)
        write_rows(out / ANNOTATIONS, rows)
        _write_counts(rows, out)


def read_joined(path: Path, baseline: Path | None, first: int | None) -> list[Annotation]:
    """Annotations in the order of the baseline's outputs, where those are at hand, else of the 805 instructions.

    Rows behind the `first` instructions are left out. Raises UserError for rows that are missing, doubled or foreign,
    and where another output was judged than the baseline's.
    """
    if baseline is None:
        return joined(path, read_annotations(path), official())[:first]
    outputs = read_outputs(baseline)
    rows = read_annotations(path)
    wanted = expected(outputs)
    if first is not None:  # the questions were cut too
        known = {row.instruction for row in outputs}
        rows = [row for row in rows if row.instruction in known]
    found = joined(path, rows, wanted)
    others = sum(own.output != judged.output_1 for own, judged in zip(outputs, found, strict=True))
    if others:
        raise UserError(
            f"{path}: output_1 of {others} rows is not the output of {outputs[0].generator} in {baseline.name}; "
            "another baseline was judged"
        )
    return found


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
    (out / "metrics.json").write_text(json.dumps({"items": len(rows), "failed": failed}, indent=1) + "\n")
