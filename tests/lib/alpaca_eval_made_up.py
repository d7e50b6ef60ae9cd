"""AlpacaEval's files, made up, and a judge that compares lengths."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from answer_server import AnswerServer, Said

INSTRUCTIONS = [f"Made up {i}: say <b>{'so ' * i}</b> in {i + 2} words." for i in range(6)]


def outputs(path: Path, texts: list[str], generator: str = "baseline", instructions: list[str] = INSTRUCTIONS) -> Path:
    """A file of outputs in the official format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        {"instruction": one, "output": text, "generator": generator, "dataset": "made_up"}
        for one, text in zip(instructions, texts, strict=True)
    ]
    path.write_text(json.dumps(rows))
    return path


def longer(server: AnswerServer, number: int) -> Said:
    """A judge who prefers the longer output with probability 3/4, and gives a third token a tenth of all."""
    first, second = shown(server.bodies[number])
    p = 0.75 if len(first) > len(second) else 0.25
    return Said("m", top={"m": math.log(0.9 * p), "M": math.log(0.9 * (1 - p)), "The": math.log(0.1)})


def shown(body: dict[str, Any]) -> list[str]:
    """The two outputs, in the order in which the judge reads them."""
    return re.findall(r'"output": """(.*?)"""\n', body["messages"][1]["content"], re.DOTALL)
