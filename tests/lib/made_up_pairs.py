"""The stage that makes pairs, run on answers and rankings made by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tiny_run import typed

from src.kernel.rows import PAIRS, RANKING, RESPONSES, Row, read_rows, write_rows
from src.pairing.rules import BestWorst, Filters
from src.pairing.stage import Pair

FILTERS = {"drop_identical": True, "min_margin": None, "max_length_gap": None}


def responses(prompt_id: str, answers: list[list[int]]) -> Row:
    """Return a RESPONSES row of these token ids."""
    rest = {"finish_reason": "stop", "seed": 0}
    rows = [{"text": str(ids), "token_ids": ids, "source": f"from {ids}"} | rest for ids in answers]
    prompt = {"prompt_id": prompt_id, "messages": [], "source": "", "checks": "[]", "prompt_token_ids": [7]}
    return prompt | {"responses": rows}


def run_stage(stage: Pair, folder: Path, rows: list[Row], ranked: list[Row]) -> tuple[list[Row], Any]:
    """Return pairs and metrics. `ranked` has scores or logits of each row; the stage finds them by prompt."""
    places = [folder / name for name in ("responses", "ranking", "pairs")]
    for place in places:
        place.mkdir(parents=True, exist_ok=True)
    rest = {"truncated": [], "prompt_truncated": False, "terms": None}
    ranked = [one | {"prompt_id": row["prompt_id"]} | rest for row, one in zip(rows, ranked, strict=True)]
    write_rows(places[0], rows, RESPONSES)
    write_rows(places[1], reversed(ranked), RANKING)
    stage(places[0], places[1], out=places[2])
    return read_rows(places[2], PAIRS), json.loads((places[2] / "metrics.json").read_text())


def pair_up(
    folder: Path, prompts: list[tuple[list[list[int]], Row]], rule: Any = None, **filters: Any
) -> tuple[list[Row], Any]:
    """Pair the answers of each prompt by its ranking: best against worst, identical ones left out."""
    rows = [responses(f"p{i}", answers) for i, (answers, _) in enumerate(prompts)]
    estimator = typed("estimator=pairwise").estimator
    stage = Pair(rule=rule or BestWorst(), filters=Filters(**FILTERS | filters), estimator=estimator, seed=0)
    return run_stage(stage, folder, rows, [ranking for _, ranking in prompts])
