"""Generate: the policy answers each prompt K times.

In: prompts, policy. Out: RESPONSES rows, K answers each, in the order of the prompts, and `metrics.json`.
Answers are cells (src/kernel/cells.py): any number of processes, now or another day, make those that are missing.
"""

from __future__ import annotations

import hashlib
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from pydantic import PositiveFloat, PositiveInt

from src.data.collapse import signs, told
from src.generation.complete import check_complete, refuse_twofold
from src.generation.contract import Engine, Request, Sampling
from src.generation.counter import Counter
from src.generation.forged import SPELT, said_spelt, shown, spelling
from src.generation.sample import cell, compact, lacking, sample, sample_share
from src.generation.turns import alone, beside_others
from src.kernel.artifact import WORK
from src.kernel.cells import CELLS, Cells
from src.kernel.config import Free, UserError, config, fingerprint, naming
from src.kernel.processes import Crew, run_in_processes
from src.kernel.rows import PROMPTS, RESPONSES, Row, kept_aside, read_rows, write_metrics, write_rows

TITLE = "generate"
KEY = "hardware.generation"
SAMPLING = "sampling"


@config
class Dealing:
    """Among whom the answers are dealt; moves none of them."""

    workers: Free[PositiveInt]
    """Processes; each takes the engine's devices."""
    nodes: Free[PositiveInt]
    """Machines they are on; more than one are reached through srun."""
    save_seconds: Free[PositiveFloat]
    """Between two saves: what a killed process loses."""

    def __post_init__(self) -> None:
        if self.workers % self.nodes:
            raise ValueError(f"workers: {self.workers} cannot be spread evenly over nodes={self.nodes}")


@config
class Generate:
    """Sample K answers per prompt; answer k depends only on (seed, prompt, k), so K=5 is the start of K=8."""

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
        """How many answers there are and which prompts are too long moves no answer."""
        own = {k: v for k, v in fingerprint(self.sampling).items() if k not in ("K", "max_prompt_tokens")}
        return [own, fingerprint(self.engine), self.seed, self.version]

    def __call__(self, *inputs: Path, out: Path) -> None:
        from src.modeling.model import load_tokenizer, marks_as_text

        prompts, policy = inputs
        rows = read_rows(prompts, PROMPTS)
        requests = self._requests(rows, policy)
        folder = _cells(out)
        with alone(folder), kept_aside(rows, PROMPTS, out / WORK):
            cells = self._fill(requests, policy, out / WORK, folder)
        asked = {r.prompt_id: r for r in requests}
        full = [
            row | {"prompt_token_ids": r.token_ids, "responses": self._responses(r, cells)}
            for row in rows
            if (r := asked.get(row["prompt_id"]))
        ]
        write_rows(out, full, RESPONSES)
        check_complete(out, requests)
        marks = marks_as_text(load_tokenizer(policy))
        spelt = spelling(full, marks)
        numbers = {"answers/prompts_too_long": len(rows) - len(full)} | summary(full) | {SPELT: len(spelt)}
        write_metrics(out, numbers)
        for line in told(numbers) + [line + shown(spelt, marks) for line in said_spelt(numbers)]:
            print(f"generate: warning: {line}", flush=True)

    def fill(self, *inputs: Path, out: Path, part: int, parts: int) -> bool:
        """Make the cells of share `part` of `parts` (0 to parts - 1) that are missing; True where all are whole."""
        prompts, policy = inputs
        rows = read_rows(prompts, PROMPTS)
        requests = self._requests(rows, policy)
        name, folder = f"{part + 1}of{parts}", _cells(out)
        with beside_others(folder, name), kept_aside(rows, PROMPTS, out / WORK / name):
            cells = self._fill(requests[part::parts], policy, out / WORK / name, folder)
        cells.refresh()
        return not lacking(requests, cells)

    def _fill(self, requests: list[Request], policy: Path, work: Path, folder: Path) -> Cells:
        """Make what is missing of `requests` in `folder`; returns all cells, those of others too."""
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
        """Engines know the sampling as `sampling`."""
        return naming(SAMPLING, self.key)

    def _requests(self, rows: list[Row], policy: Path) -> list[Request]:
        """All that is asked, the longest prompts first: too little memory shows at once."""
        from src.modeling.model import check_stops, check_vocabulary, load_tokenizer

        tokenizer = load_tokenizer(policy)
        check_stops(policy, tokenizer)
        rendered = [(row, self._render(tokenizer, row)) for row in rows]
        check_vocabulary(policy, (max(ids, default=0) for _, ids in rendered))
        most = self.sampling.max_prompt_tokens
        kept = [(row, ids) for row, ids in rendered if len(ids) <= most]
        if not kept:
            raise UserError(f"{self.key}.max_prompt_tokens: no prompt has {most} or fewer; raise it")
        if len(kept) < len(rows):
            print(f"generate: {len(rows) - len(kept)} of {len(rows)} prompts are over max_prompt_tokens; left out")
        requests = [Request(row["prompt_id"], row["messages"], ids, self._seeds(row["prompt_id"])) for row, ids in kept]
        return sorted(requests, key=lambda r: (-len(r.token_ids), r.prompt_id))

    def _render(self, tokenizer: Any, row: Row) -> list[int]:
        from src.modeling.model import render

        try:
            return render(tokenizer, row["messages"])
        except UserError as error:
            raise of_prompt(row, error) from None

    def _seeds(self, prompt_id: str) -> dict[int, int]:
        return {k: cell_seed(self.seed, prompt_id, k) for k in range(self.sampling.K)}

    def _sample(self, missing: list[Request], policy: Path, work: Path, cells: Cells, total: int) -> None:
        dealing, engine = self.dealing, self.engine
        with Counter(total, cells, missing) as counter:
            if not engine.apart and (dealing.workers == 1 or not engine.devices_each):
                sample(engine, policy, self.sampling, missing, cells, dealing.save_seconds, counter)
                return
            crew = Crew(TITLE, KEY, dealing.workers, dealing.nodes, engine.device, engine.devices_each)
            where = (policy.resolve(), self.sampling, missing, cells.folder, dealing.save_seconds)
            job = partial(sample_share, engine, *where)
            run_in_processes(job, crew, work, counter.look)
        cells.await_keys([cell(r.prompt_id, k) for r in missing for k in r.seeds], TITLE)

    def _responses(self, request: Request, cells: Cells) -> list[Row]:
        return [
            cells.values[cell(request.prompt_id, k)] | {"seed": seed, "source": self.engine.source}
            for k, seed in request.seeds.items()
        ]


def summary(rows: list[Row]) -> dict[str, float]:
    """Of RESPONSES rows: counts, the mean and the most tokens of an answer, and shares.

    finished: answers that ended by themselves; distinct: different texts, those of each prompt counted apart, an
    answer; and signs of a collapse (src/data/collapse.py).
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
    """The mistake, with the prompt that it is about and how that begins, so that it can be found in its file."""
    begins = ascii(row["messages"][-1]["content"][:40])
    return UserError(f"prompt {row['prompt_id']} of {row['source']} ({begins}…): {error}")


def _cells(out: Path) -> Path:
    """Where they lie, now: `out` may be gone when the wait for a turn is over."""
    (out / WORK / CELLS).mkdir(parents=True, exist_ok=True)
    return (out / WORK / CELLS).resolve()


def cell_seed(seed: int, prompt_id: str, k: int) -> int:
    """63-bit seed of answer k to a prompt."""
    digest = hashlib.sha256(f"{seed}/{prompt_id}/{k}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
