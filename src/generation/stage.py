"""Generate: the policy answers each prompt K times.

In: prompts, policy. Out: RESPONSES rows, K answers each, in the order of the prompts, and `metrics.json`.
Answers are cells (src/kernel/cells.py): any number of processes, now or another day, make those that are missing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from pydantic import PositiveFloat, PositiveInt

from src.data.checks import collapse_warnings, signs
from src.generation.engine import Engine, Extra, Request, Sampling, Served
from src.generation.fill import Progress, cell, check_complete, compact, lacking, refuse_twofold, sample, sample_share
from src.generation.turns import alone, beside_others
from src.kernel.artifact import WORK, Node, Takes
from src.kernel.cells import CELLS, Cells
from src.kernel.config import Free, UserError, config, fingerprint, naming
from src.kernel.processes import Crew, run_in_processes
from src.kernel.rows import PROMPTS, RESPONSES, Row, kept_aside, read_rows, write_metrics, write_rows

TITLE = "generate"
KEY = "hardware.generation"
SAMPLING = "sampling"


@config
class Dealing:
    """The processes that share the answers; their number moves no answer."""

    workers: Free[PositiveInt]
    """Processes; each takes the engine's devices."""
    save_seconds: Free[PositiveFloat]
    """Seconds between two saves: what a killed process loses."""


@config
class Generate:
    """Samples K answers per prompt; answer k depends only on (seed, prompt, k), so K=5 is the start of K=8."""

    kind: ClassVar[str] = "responses"
    version: ClassVar[int] = 3
    resumable: ClassVar[bool] = True

    sampling: Sampling
    engine: Engine
    seed: int
    dealing: Free[Dealing]
    key: Free[str] = SAMPLING
    """Of the sampling in the config, for messages."""

    def shared(self) -> Any:
        """Returns what two stages must have alike to share answers: not K, nor which prompts are too long."""
        own = {k: v for k, v in fingerprint(self.sampling).items() if k not in ("K", "max_prompt_tokens")}
        return [own, fingerprint(self.engine), self.seed, self.version]

    def takes(self) -> Takes:
        if self.engine.device != "cuda":
            return Takes(f"{KEY}.workers", cuda=False)
        devices = self.dealing.workers * self.engine.devices_each
        return Takes(f"{KEY}.workers", max(1, devices), devices)

    def check_here(self) -> None:
        """Raises UserError where the engine is not installed."""
        if isinstance(self.engine, Extra):
            self.engine.check_installed("hardware.engine")

    def check(self, node: Node) -> None:
        """Raises UserError where the engine's server cannot sample as the settings say."""
        if isinstance(self.engine, Served):
            with self.naming():
                self.engine.check_sampling(self.sampling)

    def asks(self) -> tuple[str, Any] | None:
        """Returns the key of the endpoint that is asked, and the endpoint; None where this machine samples."""
        return ("hardware.engine.endpoint", self.engine.endpoint) if isinstance(self.engine, Served) else None

    def __call__(self, *inputs: Path, out: Path) -> None:
        from src.modeling.policy import load_tokenizer, marks_as_text

        prompts, policy = inputs
        rows = read_rows(prompts, PROMPTS)
        requests = self._requests(rows, policy)
        folder = _cells(out)
        with alone(folder), kept_aside(rows, PROMPTS, out / WORK):
            cells = self._fill(requests, policy, out / WORK, folder)

        def answer(r: Request, k: int) -> Row:
            return cells.values[cell(r.prompt_id, k)] | {"seed": r.seeds[k], "source": self.engine.source}

        asked = {r.prompt_id: r for r in requests}
        full = [
            row | {"prompt_token_ids": r.token_ids, "responses": [answer(r, k) for k in r.seeds]}
            for row in rows
            if (r := asked.get(row["prompt_id"]))
        ]
        write_rows(out, full, RESPONSES)
        check_complete(out, requests)
        marks = marks_as_text(load_tokenizer(policy))
        spelt = spelling(full, marks)
        numbers = {"answers/prompts_too_long": len(rows) - len(full)} | summary(full) | {SPELT: len(spelt)}
        write_metrics(out, numbers)
        for line in collapse_warnings(numbers):
            print(f"generate: warning: {line}", flush=True)
        for line in spelling_warnings(numbers):
            print(f"generate: warning: {line} ({', '.join(marks)}; the first is prompt {spelt[0]})", flush=True)

    def fill(self, *inputs: Path, out: Path, part: int, parts: int) -> bool:
        """Makes the cells of share `part` of `parts` (0 to parts - 1) that are missing; True where all are whole."""
        prompts, policy = inputs
        rows = read_rows(prompts, PROMPTS)
        requests = self._requests(rows, policy)
        name, folder = f"{part + 1}of{parts}", _cells(out)
        with beside_others(folder, name), kept_aside(rows, PROMPTS, out / WORK / name):
            cells = self._fill(requests[part::parts], policy, out / WORK / name, folder)
        cells.refresh()
        return not lacking(requests, cells)

    def _fill(self, requests: list[Request], policy: Path, work: Path, folder: Path) -> Cells:
        """Makes what is missing of `requests` in `folder`; returns all cells, those of others too."""
        cells = Cells(folder, compact)
        missing, total = lacking(requests, cells), sum(len(r.seeds) for r in requests)
        if missing:
            work.mkdir(parents=True, exist_ok=True)
            with self.naming():
                self._sample(missing, policy, work, cells, total)
        else:
            print(f"generate: all {total} answers are there")
        refuse_twofold(cells)
        return cells

    def naming(self) -> AbstractContextManager[None]:
        """Renames config keys in errors of engines, which know the sampling as `sampling`."""
        return naming(SAMPLING, self.key)

    def _requests(self, rows: list[Row], policy: Path) -> list[Request]:
        """Returns all that is asked, the longest prompts first, so that too little memory shows at once."""
        from src.modeling.policy import check_stops, check_vocabulary, load_tokenizer, render

        tokenizer = load_tokenizer(policy)
        check_stops(policy, tokenizer)
        rendered: list[tuple[Row, list[int]]] = []
        for row in rows:
            try:
                rendered.append((row, render(tokenizer, row["messages"])))
            except UserError as error:
                raise of_prompt(row, error) from None
        check_vocabulary(policy, (max(ids, default=0) for _, ids in rendered))
        most, ks = self.sampling.max_prompt_tokens, range(self.sampling.K)
        kept = [(row, ids) for row, ids in rendered if len(ids) <= most]
        if not kept:
            raise UserError(f"{self.key}.max_prompt_tokens: no prompt has {most} or fewer; raise it")
        if len(kept) < len(rows):
            print(f"generate: {len(rows) - len(kept)} of {len(rows)} prompts are over max_prompt_tokens; left out")
        requests = [
            Request(prompt := row["prompt_id"], row["messages"], ids, {k: cell_seed(self.seed, prompt, k) for k in ks})
            for row, ids in kept
        ]
        return sorted(requests, key=lambda r: (-len(r.token_ids), r.prompt_id))

    def _sample(self, missing: list[Request], policy: Path, work: Path, cells: Cells, total: int) -> None:
        dealing, engine = self.dealing, self.engine
        with Progress(total, cells, missing) as progress:
            if not engine.apart and (dealing.workers == 1 or not engine.devices_each):
                sample(engine, policy, self.sampling, missing, cells, dealing.save_seconds, progress)
                return
            crew = Crew(TITLE, dealing.workers, engine.device, engine.devices_each)
            arguments = (engine, policy.resolve(), self.sampling, missing, cells.folder, dealing.save_seconds)
            job = partial(sample_share, *arguments)
            run_in_processes(job, crew, work, progress.look)


def summary(rows: list[Row]) -> dict[str, float]:
    """Sums up RESPONSES rows: counts, the mean and the most tokens of an answer, and shares.

    finished: answers that ended by themselves; distinct: different texts, those of each prompt counted apart, an
    answer; and signs of a collapse (src/data/checks.py).
    """
    answers = [answer for row in rows for answer in row["responses"]]
    lengths = [len(answer["token_ids"]) for answer in answers]
    texts = sum(len({answer["text"] for answer in row["responses"]}) for row in rows)
    return {
        "prompts": len(rows),
        "answers": len(answers),
        "tokens": sum(lengths) / len(answers),
        "most_tokens": max(lengths),
        "finished": sum(answer["finish_reason"] == "stop" for answer in answers) / len(answers),
        "distinct": texts / len(answers),
        **signs(rows),
    }


def of_prompt(row: Row, error: UserError) -> UserError:
    """Adds to an error the prompt that it is about and how that begins, so that it can be found in its file."""
    begins = ascii(row["messages"][-1]["content"][:40])
    return UserError(f"prompt {row['prompt_id']} of {row['source']} ({begins}…): {error}")


def _cells(out: Path) -> Path:
    """Resolves the folder of the cells now: `out` may be gone when the wait for a turn is over."""
    (out / WORK / CELLS).mkdir(parents=True, exist_ok=True)
    return (out / WORK / CELLS).resolve()


def cell_seed(seed: int, prompt_id: str, k: int) -> int:
    """Returns the 63-bit seed of answer k to a prompt."""
    digest = hashlib.sha256(f"{seed}/{prompt_id}/{k}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


SPELT = "marks_spelt"
"""The metric: prompts that spell a mark of the chat template which the tokenizer cannot tell from text."""


def spelling(rows: Sequence[Row], marks: Sequence[str]) -> list[str]:
    """Returns the ids of PROMPTS rows with such a mark in any of their turns."""
    return [
        row["prompt_id"] for row in rows if any(mark in turn["content"] for mark in marks for turn in row["messages"])
    ]


def spelling_warnings(metrics: Mapping[str, Any]) -> list[str]:
    """Returns a line where there are such prompts, none for artifacts older than the metric."""
    if not (count := metrics.get(SPELT)):
        return []
    what = "spell a mark of the chat template that is ordinary text to the tokenizer, and may forge a turn"
    return [f"{count} of {metrics['prompts']} prompts {what}; take it out of them"]
