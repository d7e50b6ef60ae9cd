"""The progress of a generation, and how a cell is called."""

from __future__ import annotations

import time
from typing import Self

from src.generation.contract import Answer, Made, Request
from src.kernel.cells import Cells
from src.kernel.progress import bar

LOOK_S = 1.0
"""Between two looks at what other processes have written."""
SAMPLE_S = 60.0
"""Between two answers that are shown."""
SHOWN = 160
"""Characters of one."""


def cell(prompt_id: str, k: int) -> str:
    """The key of an answer."""
    return f"{prompt_id}/{k}"


class Counter:
    """The progress of a generation: answers and tokens a second, time left, and now and then an answer."""

    def __init__(self, total: int, cells: Cells, requests: list[Request]) -> None:
        self._cells = cells
        self._prompts = {r.prompt_id: r.messages[-1]["content"] for r in requests}
        self._wanted = {cell(r.prompt_id, k) for r in requests for k in r.seeds}
        self._bar = bar("generate", total, total - len(self._wanted), "answer")
        self._tokens = 0
        self._begun = self._shown = time.monotonic()
        self._looked = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._count_others()
        self._bar.close()

    def look(self) -> None:
        """What other processes have added since."""
        if time.monotonic() - self._looked < LOOK_S:
            return
        self._looked = time.monotonic()
        self._count_others()

    def _count_others(self) -> None:
        for key in self._cells.refresh():
            if key in self._wanted:
                prompt_id, _, k = key.partition("/")
                self.add(Made(prompt_id, int(k), Answer(**self._cells.values[key])))

    def add(self, made: Made) -> None:
        now = time.monotonic()
        self._tokens += len(made.answer.token_ids)
        self._bar.set_postfix_str(f"{self._tokens / (now - self._begun):.0f} tokens/s", refresh=False)
        self._bar.update()
        if now - self._shown > SAMPLE_S:
            self._shown = now
            prompt, answer = (" ".join(t.split())[:SHOWN] for t in (self._prompts[made.prompt_id], made.answer.text))
            self._bar.write(f"generate: {prompt!r} -> {answer!r}")
