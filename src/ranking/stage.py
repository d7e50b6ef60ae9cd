"""Rank: a preference model compares the K answers of each prompt.

In: responses, then the folders of the ranker's own models. Out: RANKING rows, in the order of the responses, and
`metrics.json`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from src.kernel.artifact import WORK, Node, Takes
from src.kernel.cells import Cells
from src.kernel.config import Free, Label, UserError, config, fingerprint, naming
from src.kernel.processes import bar
from src.kernel.rows import NOT_FINITE, RANKING, RESPONSES, Row, read_rows, write_metrics, write_rows
from src.modeling.checkpoints import PublishedModel
from src.modeling.endpoint import Endpoint
from src.pairing.win_probability import intransitive_triads, lead

RANKER = "ranker"


@config
class Ranker(ABC):
    """A preference model; rankers inherit from it."""

    scalar: ClassVar[bool]
    """True: gives `scores`, comparable between answers that were scored separately. False: gives K x K `logits`."""

    name: Free[Label]
    place: Free[str] = RANKER
    """The ranker's config key, for messages; set when the run is built."""

    @property
    def models(self) -> tuple[PublishedModel, ...]:
        """Stages that bring the checkpoints it needs."""
        return ()

    @property
    def server(self) -> Endpoint | None:
        """The endpoint that is asked; None where this machine ranks."""
        return None

    def takes(self) -> Takes:
        """Return the devices that it computes on."""
        return Takes(f"{self.place}.device", cuda=False)

    def shared(self) -> Any:
        """Return what the cells depend on: a ranker may know it better than its whole config."""
        return fingerprint(self)

    def check_models(self, models: tuple[Path, ...]) -> None:  # noqa: B027 (a choice)
        """Raise UserError for models that will not do, without loading them."""

    @abstractmethod
    def rank(self, rows: list[Row], models: tuple[Path, ...], work: Path) -> list[Row]:
        """Return RANKING fields (without `prompt_id`) of RESPONSES rows, in their order; K may differ between prompts.

        `work` keeps progress, so that a killed process loses little: `work/cells` is shared with every
        artifact of an equal ranker, the rest is this artifact's own. The result must not depend on either.
        """
        ...


@config
class Rank:
    kind: ClassVar[str] = "ranking"
    version: ClassVar[int] = 3
    resumable: ClassVar[bool] = True

    ranker: Ranker

    def shared(self) -> Any:
        return self.ranker.shared()

    def takes(self) -> Takes:
        return self.ranker.takes()

    def check(self, node: Node) -> None:
        """Raise UserError where a model's own code may not run.

        Two rankers may share a checkpoint and not the trust in it, so each is asked for its own.
        """
        with naming(RANKER, self.ranker.place):
            for model in self.ranker.models:
                model.check_trusted()

    def asks(self) -> tuple[str, Endpoint] | None:
        """Return the key of the endpoint that is asked, and the endpoint; None for a ranker of this machine."""
        return (f"{self.ranker.place}.endpoint", server) if (server := self.ranker.server) else None

    def foresee(self, inputs: Sequence[Path | None], start: Path | None) -> str:
        """Raise UserError where the ranker's models are there and will not do."""
        models = tuple(model for model in inputs[1:] if model)
        if len(models) == len(inputs) - 1:
            with naming(RANKER, self.ranker.place):
                self.ranker.check_models(models)
        return ""

    def __call__(self, *inputs: Path, out: Path) -> None:
        rows = read_rows(inputs[0], RESPONSES)
        (out / WORK).mkdir(exist_ok=True)
        with naming(RANKER, self.ranker.place):
            ranked = self.ranker.rank(rows, inputs[1:], out / WORK)
            ranking = [checked(*each) | {"prompt_id": each[0]["prompt_id"]} for each in zip(rows, ranked, strict=True)]
        write_rows(out, ranking, RANKING)
        write_metrics(out, diagnose(rows, ranking))


def in_batches(rank: Callable[[list[Row]], list[Row]], rows: list[Row], prompts: int, work: Path) -> list[Row]:
    """Call `rank` with `prompts` rows at a time, and save each batch when it is done."""
    done = Cells(work)
    with bar("rank", len(rows), len(done.values), "prompt") as progress:
        for start in range(0, len(rows), prompts):
            todo = [i for i in range(start, min(start + prompts, len(rows))) if i not in done.values]
            if todo:
                ranked = rank([rows[i] for i in todo])
                done.add({i: checked(rows[i], row) for i, row in zip(todo, ranked, strict=True)})
                progress.update(len(todo))
    return [done.values[i] for i in range(len(rows))]


def weighted(weights: Mapping[str, float], terms: Mapping[str, Any], tau: float) -> Row:
    """Return RANKING's scores (answer,): the weighted sum of the terms, divided by tau."""
    score = np.sum([weight * np.asarray(terms[name]) for name, weight in weights.items()], axis=0)
    return {"logits": None, "scores": (score / tau).tolist()}


def listed(terms: Mapping[str, list[float]]) -> Row:
    """Return RANKING's column of the terms."""
    return {"terms": [{"name": name, "values": values} for name, values in sorted(terms.items())]}


def checked(row: Row, ranked: Row) -> Row:
    """Refuse scores that are not finite, before anything is trained on them."""
    if ranked["scores"]:
        values = {f"answer {i}": score for i, score in enumerate(ranked["scores"], 1)}
    else:
        lines = enumerate(ranked["logits"], 1)
        values = {f"answers {i} and {j}": c for i, line in lines for j, c in enumerate(line, 1) if i != j}
    for place, value in values.items():
        if value is None or not math.isfinite(value):
            message = f"it gave {NOT_FINITE} for prompt {row['prompt_id']}, {place}"
            raise UserError(f"ranker: {message}; look at that text, or let it compute in float32")
    return ranked


def diagnose(rows: list[Row], rankings: list[Row]) -> dict[str, float | None]:
    """Count and average over RESPONSES rows and their RANKING rows; null where nothing can be said.

    * position_bias: mean of (C_ij + C_ji) / 2, what being shown first is worth in logits (pairwise rankers only);
      position_bias_abs: mean of its absolute value
    * length_correlation: Pearson's r of an answer's mean lead over the others with its length, within prompts
    * malformed_verdicts, judge_input_tokens, judge_output_tokens: of LLM judges, whenever they were asked
    * first_place_flips: share of pairs of different texts whose winner depends on the order
    """
    cyclic = triads = identical = 0
    comparisons: list[tuple[float, float, bool]] = []
    leads: list[float] = []
    lengths: list[float] = []
    for row, ranking in zip(rows, rankings, strict=True):
        answers, logits, matrix = row["responses"], ranking["logits"], lead(ranking)
        identical += len(answers) - len({answer["text"] for answer in answers})
        of_prompt = intransitive_triads(matrix)
        cyclic, triads = cyclic + of_prompt[0], triads + of_prompt[1]
        for i, j in combinations(range(len(answers)), 2) if logits else ():
            comparisons.append((logits[i][j], logits[j][i], answers[i]["text"] != answers[j]["text"]))
        mean_lead, tokens = matrix.mean(1), np.array([len(answer["token_ids"]) for answer in answers], dtype=float)
        leads += (mean_lead - mean_lead.mean()).tolist()
        lengths += (tokens - tokens.mean()).tolist()
    forth, back, differ = np.array(comparisons, dtype=float).reshape(-1, 3).T
    lead_all, length_all = np.array(leads), np.array(lengths)
    norm = np.sqrt((lead_all**2).sum() * (length_all**2).sum())

    def mean(values: np.ndarray) -> float | None:
        return float(np.mean(values)) if len(values) else None

    def total(name: str) -> float | None:
        terms = [term for ranking in rankings for term in ranking["terms"] or [] if term["name"] == name]
        return float(sum(sum(term["values"]) for term in terms)) if terms else None

    return {
        "prompts": len(rows),
        "answers": sum(len(row["responses"]) for row in rows),
        "truncated_answers": sum(sum(ranking["truncated"]) for ranking in rankings),
        "truncated_prompts": sum(bool(ranking["prompt_truncated"]) for ranking in rankings),
        "identical_answers": identical,
        "intransitive_triads": float(cyclic / triads) if triads else None,
        "position_bias": mean((forth + back) / 2),
        "position_bias_abs": mean(np.abs(forth + back) / 2),
        "first_place_flips": mean((forth * back > 0)[differ > 0]),
        "length_correlation": float((lead_all * length_all).sum() / norm) if norm else None,
        "malformed_verdicts": total("malformed_verdicts"),
        "judge_input_tokens": total("judge_input_tokens"),
        "judge_output_tokens": total("judge_output_tokens"),
    }
