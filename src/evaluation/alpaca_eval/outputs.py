"""AlpacaEvalOutputs: a policy's answers as an official file of outputs, beside the baseline's.

In: RESPONSES with one answer a prompt, questions. Out: `model_outputs.json`, which is a submission to the leaderboard,
`reference_outputs.json` and `metrics.json`.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import ClassVar

from src.evaluation.alpaca_eval.annotations import (
    BASELINE,
    OUTPUTS,
    Output,
    instruction_id,
    read_outputs,
    shortened,
    write_rows,
)
from src.kernel.config import Free, UserError, config
from src.kernel.rows import RESPONSES, Row, read_rows, write_metrics


@config
class AlpacaEvalOutputs:
    kind: ClassVar[str] = "alpaca_eval_outputs"
    version: ClassVar[int] = 1
    resumable: ClassVar[bool] = False

    generator: str
    """What the file calls the policy."""
    key: Free[str]
    """Of the decoding in the config, for messages."""

    def __call__(self, *inputs: Path, out: Path) -> None:
        answers, questions = inputs
        given = {row["prompt_id"]: row["responses"] for row in read_rows(answers, RESPONSES)}
        asked = read_outputs(questions / BASELINE)
        missing = [row.instruction for row in asked if instruction_id(row.instruction) not in given]
        if missing:
            raise UserError(
                f"{self.key}.max_prompt_tokens: {len(missing)} of {len(asked)} instructions have more, so there is no "
                f"answer to them, the first {shortened(missing[0])}; raise it"
            )
        found = [(row, given[instruction_id(row.instruction)]) for row in asked]
        outputs = [self._output(row, answers) for row, answers in found]
        write_rows(out / OUTPUTS, outputs)
        shutil.copyfile(questions / BASELINE, out / BASELINE)
        numbers = {
            "items": len(outputs),
            "characters": sum(len(row.output) for row in outputs) / len(outputs),
            "finished": sum(answers[0]["finish_reason"] == "stop" for _, answers in found) / len(outputs),
            "empty": sum(not row.output for row in outputs) / len(outputs),
        }
        write_metrics(out, numbers)

    def _output(self, asked: Output, answers: list[Row]) -> Output:
        (answer,) = answers
        # The library strips too: a trailing newline is neither judged nor counted as length.
        return asked._replace(output=answer["text"].strip(), generator=self.generator)
