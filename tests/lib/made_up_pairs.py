"""The stage that makes pairs, run on answers and rankings made by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tiny_run import typed

from src.kernel.rows import PAIRS, RANKING, RESPONSES, Row, read_rows, write_rows
from src.pairing.rules import BestWorst, Filters
from src.pairing.stage import Pair

PAIRWISE = typed("estimator=pairwise").estimator
EVERYTHING = Filters(drop_identical=False, min_margin=None, max_length_gap=None)


def stage(**changes: Any) -> Pair:
    """Best against worst, identical ones left out; `changes` are fields of the stage or of its filters."""
    filters = {name: changes.pop(name) for name in list(changes) if name in vars(EVERYTHING)}
    given = Filters(**(vars(EVERYTHING) | {"drop_identical": True} | filters))
    return Pair(**({"rule": BestWorst(), "filters": given, "estimator": PAIRWISE, "seed": 0} | changes))


def responses(prompt_id: str, answers: list[list[int]]) -> Row:
    """A RESPONSES row of these token ids."""
    rest = {"finish_reason": "stop", "seed": 0}
    made = [{"text": str(ids), "token_ids": ids, "source": f"from {ids}"} | rest for ids in answers]
    prompt = {"prompt_id": prompt_id, "messages": [], "source": "", "checks": "[]", "prompt_token_ids": [7]}
    return prompt | {"responses": made}


def run_stage(made: Pair, folder: Path, rows: list[Row], ranked: list[Row]) -> tuple[list[Row], Any]:
    """Pairs and metrics. `ranked` is scores or logits of each row; they are found by prompt, not by place."""
    places = [folder / name for name in ("responses", "ranking", "pairs")]
    for place in places:
        place.mkdir(parents=True, exist_ok=True)
    rest = {"truncated": [], "prompt_truncated": False, "terms": None}
    ranked = [one | {"prompt_id": row["prompt_id"]} | rest for row, one in zip(rows, ranked, strict=True)]
    write_rows(places[0], rows, RESPONSES)
    write_rows(places[1], reversed(ranked), RANKING)
    made(places[0], places[1], out=places[2])
    return read_rows(places[2], PAIRS), json.loads((places[2] / "metrics.json").read_text())


def pair_up(folder: Path, prompts: list[tuple[list[list[int]], Row]], **changes: Any) -> tuple[list[Row], Any]:
    """Run `stage(**changes)` on (answers, ranking) of each prompt."""
    rows = [responses(f"p{i}", answers) for i, (answers, _) in enumerate(prompts)]
    return run_stage(stage(**changes), folder, rows, [ranking for _, ranking in prompts])
