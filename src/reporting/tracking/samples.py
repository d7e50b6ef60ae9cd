"""What W&B shows beside numbers: tables of sample prompts, histograms, the plots of the report.

A table an iteration, under one key, in the row of the artifact that it is of: it is logged once, and where it is shown
follows from where the row is. W&B's incremental tables count their parts in the process and, in a run that goes on,
find the parts before in the server's summary; offline that is not there, and the table would forget them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from src.evaluation.held_out import EVALUATION
from src.kernel.artifact import Node
from src.kernel.rows import PAIRS, RANKING, RESPONSES, ROWS, Row, last_user_message
from src.kernel.store import Store
from src.pairing.win_probability import Estimator

PROMPTS = 8
"""Of an iteration: the first ones."""
CHARACTERS = 2000
"""Of a text."""
TRAINING, HELD_OUT = "samples/training", "samples/held_out"


class Table(NamedTuple):
    columns: list[str]
    data: list[list[Any]]


class Samples:
    """Of a run, read from its artifacts."""

    def __init__(self, nodes: list[Node], store: Store, estimator: Estimator) -> None:
        self.paths = {node.name: store.path(node) for node in nodes}
        self.estimator = estimator

    def of(self, node: Node) -> dict[str, Table]:
        """What belongs into the row of a finished artifact; nothing where what it was made from is gone or damaged."""
        iteration, _, stage = node.name.partition("/")
        try:
            if stage == "pairs":
                return {TRAINING: self._training(int(iteration[2:]))}
            return {HELD_OUT: self._held_out(int(iteration[2:]))} if stage == "evaluation" else {}
        except (OSError, pa.ArrowException, LookupError):  # a row without its table, not a mirror that ends here
            return {}

    def _training(self, t: int) -> Table:
        """Each prompt with its answers, who beats whom, and the pair of the widest margin that it gave."""
        rows = first(self.paths[f"it{t}/responses"], RESPONSES)
        ids = [row["prompt_id"] for row in rows]
        rankings = {row["prompt_id"]: row for row in of_prompts(self.paths[f"it{t}/ranking"], RANKING, ids)}
        pairs = {row["prompt_id"]: row for row in sorted(self._pairs(t, ids), key=_margin)}
        most = max(len(row["responses"]) for row in rows)
        answers = [column for k in range(1, most + 1) for column in (f"answer {k}", f"P(answer {k} beats the policy)")]
        columns = ["iteration", "prompt_id", "prompt", *answers, "matrix", "chosen", "rejected"]
        columns += ["P(chosen beats the policy)", "P(rejected beats the policy)", "P(chosen beats rejected)"]
        data = [self._prompt(t, row, rankings[row["prompt_id"]], pairs.get(row["prompt_id"]), most) for row in rows]
        return Table(columns, data)

    def _pairs(self, t: int, ids: list[str]) -> list[Row]:
        names = ("prompt_id", "chosen_index", "rejected_index", "chosen_win", "rejected_win", "chosen_beats_rejected")
        schema = pa.schema([PAIRS.field(name) for name in names])
        return of_prompts(self.paths[f"it{t}/pairs"], schema, ids)

    def _prompt(self, t: int, row: Row, ranking: Row, pair: Row | None, most: int) -> list[Any]:
        matrix = self.estimator.matrix(ranking)
        texts = [cut(answer["text"]) for answer in row["responses"]]
        wins = self.estimator.win_rates(matrix).tolist()
        answers = [cell for both in zip(texts, wins, strict=True) for cell in both]
        answers += [None] * (2 * (most - len(texts)))
        shown = [texts[pair[f"{side}_index"]] for side in ("chosen", "rejected")] if pair else [None, None]
        numbers = (
            [pair[name] for name in ("chosen_win", "rejected_win", "chosen_beats_rejected")] if pair else [None] * 3
        )
        return [t, row["prompt_id"], cut(last_user_message(row)), *answers, grid(matrix), *shown, *numbers]

    def _held_out(self, t: int) -> Table:
        """The same prompts each iteration, answered by the start model, the policy before and the new one."""
        before = f"it{t - 1}" if t > 1 else "base"
        new, base, old = (first(self.paths[f"{name}/answers"], RESPONSES) for name in (f"it{t}", "base", before))
        ids = [row["prompt_id"] for row in new]
        wins = {row["prompt_id"]: row for row in of_prompts(self.paths[f"it{t}/evaluation"], EVALUATION, ids)}
        columns = ["iteration", "prompt_id", "prompt", "answer of the base", "answer of the previous policy"]
        columns += ["answer of the new policy", "P(new beats base)", "P(new beats previous)"]
        data = [
            [t, row["prompt_id"], cut(last_user_message(row))]
            + [cut(one["responses"][0]["text"]) for one in (base[i], old[i], row)]
            + [wins[row["prompt_id"]][name] for name in ("win_over_base", "win_over_previous")]
            for i, row in enumerate(new)
        ]
        return Table(columns, data)


def first(folder: Path, schema: pa.Schema) -> list[Row]:
    """The first rows, without reading the others."""
    with pq.ParquetFile(folder / ROWS) as file:
        batch = next(file.iter_batches(PROMPTS, columns=schema.names), None)
    return batch.to_pylist() if batch else []


def of_prompts(folder: Path, schema: pa.Schema, ids: list[str]) -> list[Row]:
    """Rows of these prompts."""
    return pq.read_table(folder / ROWS, columns=schema.names, filters=[("prompt_id", "in", ids)]).to_pylist()


def _margin(pair: Row) -> float:
    return pair["chosen_win"] - pair["rejected_win"]


def cut(text: str) -> str:
    left_out = len(text) - CHARACTERS
    return text if left_out <= 0 else f"{text[:CHARACTERS]} … [{left_out} more characters]"


def grid(matrix: np.ndarray) -> str:
    """P(answer of the row beats that of the column), a line a row."""
    return "\n".join(" ".join(f"{value:.2f}" for value in row) for row in matrix)


def plots_of(folder: Path) -> tuple[dict[str, Path], str]:
    """The pictures of a report, and a hash of all of them."""
    found = {path.stem: path for path in sorted(folder.glob("*.png"))}
    digest = hashlib.sha256()
    for name, path in found.items():
        digest.update(name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return found, digest.hexdigest()


def shown(row: Mapping[str, Any]) -> dict[str, Any]:
    """As W&B takes it: tables, and counts over [0, 1] as its histograms."""
    import wandb

    def one(key: str, value: Any) -> Any:
        if isinstance(value, Table):
            return wandb.Table(columns=list(value.columns), data=list(value.data))
        if not key.endswith("_histogram"):
            return value
        return wandb.Histogram(np_histogram=(np.array(value), np.linspace(0, 1, len(value) + 1)))

    return {key: one(key, value) for key, value in row.items()}
