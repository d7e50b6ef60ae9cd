"""What AlpacaEval asks, and what its length control was fitted to besides the model.

AlpacaEvalQuestions: PROMPTS rows, and `reference_outputs.json` with the baseline's outputs, in the official format.
AlpacaEvalGamed: `gamed.csv`, which carries the difficulty of the instructions too.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import ClassVar

from pydantic import PositiveInt

from src.evaluation.alpaca_eval.annotations import BASELINE, instruction_id, read_outputs, write_rows
from src.evaluation.alpaca_eval.gamed import GAMED, read_gamed
from src.evaluation.alpaca_eval.hub_file import HubFile
from src.kernel import rows as kernel_rows
from src.kernel.config import config
from src.kernel.rows import PROMPTS


@config
class AlpacaEvalQuestions:
    """The instructions of a file of outputs, in its order, or the first of them."""

    kind: ClassVar[str] = "alpaca_eval_questions"
    version: ClassVar[int] = 1
    resumable: ClassVar[bool] = False

    baseline: HubFile
    """Outputs of the model that all are compared with."""
    first: PositiveInt | None
    """Null: all."""

    def __call__(self, *inputs: Path, out: Path) -> None:
        asked = read_outputs(self.baseline.fetch())[: self.first]
        prompts = [
            {
                "prompt_id": instruction_id(row.instruction),
                "messages": [{"role": "user", "content": row.instruction}],
                "source": row.dataset,
                "checks": "[]",
            }
            for row in asked
        ]
        kernel_rows.write_rows(out, prompts, PROMPTS)
        write_rows(out / BASELINE, asked)


@config
class AlpacaEvalGamed:
    """The baseline told to be short, or long, judged against itself."""

    kind: ClassVar[str] = "alpaca_eval_gamed"
    version: ClassVar[int] = 1
    resumable: ClassVar[bool] = False

    file: HubFile

    def __call__(self, *inputs: Path, out: Path) -> None:
        path = self.file.fetch()
        read_gamed(path)
        shutil.copyfile(path, out / GAMED)
