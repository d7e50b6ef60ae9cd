"""Generate: the policy answers each prompt K times.

In: prompts, policy. Out: RESPONSES rows, K answers each, in the order of the prompts, and `metrics.json`.
Answers are cells (src/kernel/cells.py): any number of processes, now or another day, make those that are missing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from pydantic import PositiveFloat, PositiveInt

from src.data.checks import collapse_warnings, signs
from src.generation.engine import Engine, Request, Sampling
from src.generation.fill import alone, beside_others, fill_cells, lacking, share_of
from src.kernel.artifact import WORK, Node, Takes
from src.kernel.cells import CELLS, Cells
from src.kernel.config import Free, UserError, config, fingerprint, naming
from src.kernel.rows import PROMPTS, RESPONSES, Row, read_rows, write_metrics, write_rows
from src.modeling.endpoint import Endpoint

KEY = "hardware.generation"
SAMPLING = "sampling"
SPELT = "marks_spelt"
"""The metric: prompts that spell a mark of the chat template which the tokenizer cannot tell from text."""


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
    """The config key of the sampling, for messages."""

    def shared(self) -> Any:
        """Return what two stages must have alike to share answers: not K, nor which prompts are too long."""
        settings = {k: v for k, v in fingerprint(self.sampling).items() if k not in ("K", "max_prompt_tokens")}
        return [settings, fingerprint(self.engine), self.seed, self.version]

    def takes(self) -> Takes:
        if self.engine.device != "cuda":
            return Takes(f"{KEY}.workers", cuda=False)
        devices = self.dealing.workers * self.engine.devices_each
        return Takes(f"{KEY}.workers", max(1, devices), devices)

    def check_here(self) -> None:
        """Raise UserError where the engine is not installed."""
        self.engine.check_installed()

    def check(self, node: Node) -> None:
        """Raise UserError where the engine cannot sample as the settings say."""
        with naming(SAMPLING, self.key):
            self.engine.check_sampling(self.sampling)

    def asks(self) -> tuple[str, Endpoint] | None:
        """Return the key of the endpoint that is asked, and the endpoint; None where this machine samples."""
        return ("hardware.engine.endpoint", server) if (server := self.engine.server) else None

    def foresee(self, inputs: Sequence[Path | None], start: Path) -> str:
        """Raise UserError where the policy's chat template refuses a prompt; a trained policy has that of `start`."""
        prompts, policy = inputs
        if prompts:
            check_chats(prompts, policy or start)
        return ""

    def __call__(self, *inputs: Path, out: Path) -> None:
        from src.modeling.policy import load_tokenizer, marks_as_text

        prompts, policy = inputs
        rows = read_rows(prompts, PROMPTS)
        requests, folder = self.requests(rows, policy), cells_of(out)
        with alone(folder):
            cells = self._fill(requests, policy, folder, out / WORK)
        answers: dict[str, list[Row]] = {}
        for request in requests:
            answer = cells.values[request.cell] | {"seed": request.seed, "source": self.engine.source}
            answers.setdefault(request.prompt_id, []).append(answer)
        token_ids = {request.prompt_id: request.token_ids for request in requests}
        full = [
            row | {"prompt_token_ids": token_ids[prompt], "responses": answers[prompt]}
            for row in rows
            if (prompt := row["prompt_id"]) in answers
        ]
        write_rows(out, full, RESPONSES)
        marks = marks_as_text(load_tokenizer(policy))
        spelt = spelling(full, marks)
        numbers = {"answers/prompts_too_long": len(rows) - len(full)} | summary(full) | {SPELT: len(spelt)}
        write_metrics(out, numbers)
        for line in collapse_warnings(numbers):
            print(f"generate: warning: {line}", flush=True)
        for line in spelling_warnings(numbers):
            print(f"generate: warning: {line} ({', '.join(marks)}; the first is prompt {spelt[0]})", flush=True)

    def fill(self, *inputs: Path, out: Path, part: int, parts: int) -> bool:
        """Make the cells of share `part` of `parts` (0 to parts - 1) that are missing; True where all are whole."""
        prompts, policy = inputs
        rows = read_rows(prompts, PROMPTS)
        requests, folder = self.requests(rows, policy), cells_of(out)
        name = f"{part + 1}of{parts}"
        with beside_others(folder, name):
            cells = self._fill(share_of(requests, part, parts), policy, folder, out / WORK / name)
        cells.refresh()
        return not lacking(requests, cells)

    def _fill(self, requests: list[Request], policy: Path, folder: Path, work: Path) -> Cells:
        workers, save_s = self.dealing.workers, self.dealing.save_seconds
        with naming(SAMPLING, self.key):
            return fill_cells(self.engine, policy, self.sampling, requests, folder, work, workers, save_s)

    def requests(self, rows: list[Row], policy: Path) -> list[Request]:
        """Return all that is asked, the longest prompts first, so that too little memory shows at once."""
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
        most = self.sampling.max_prompt_tokens
        kept = [(row, ids) for row, ids in rendered if len(ids) <= most]
        if not kept:
            raise UserError(f"{self.key}.max_prompt_tokens: no prompt has {most} or fewer; raise it")
        if len(kept) < len(rows):
            print(f"generate: {len(rows) - len(kept)} of {len(rows)} prompts are over max_prompt_tokens; left out")
        kept.sort(key=lambda each: (-len(each[1]), each[0]["prompt_id"]))
        return [
            Request(row["prompt_id"], k, row["messages"], ids, cell_seed(self.seed, row["prompt_id"], k))
            for row, ids in kept
            for k in range(self.sampling.K)
        ]


def cells_of(out: Path) -> Path:
    """Resolve the folder of the cells now: `out` may be gone when the wait for a turn is over."""
    (out / WORK / CELLS).mkdir(parents=True, exist_ok=True)
    return (out / WORK / CELLS).resolve()


def cell_seed(seed: int, prompt_id: str, k: int) -> int:
    """Return the 63-bit seed of answer k to a prompt."""
    digest = hashlib.sha256(f"{seed}/{prompt_id}/{k}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@cache
def check_chats(prompts: Path, policy: Path) -> None:
    """Raise UserError where the chat template of `policy` refuses a row of `prompts`, or its answers could not end."""
    from src.modeling.policy import chat_text, check_stops, load_tokenizer

    tokenizer = load_tokenizer(policy)
    check_stops(policy, tokenizer)
    for row in read_rows(prompts, PROMPTS):
        try:
            chat_text(tokenizer, row["messages"])
        except UserError as error:
            raise of_prompt(row, error) from None


def of_prompt(row: Row, error: UserError) -> UserError:
    """Add to an error the prompt that it is about and how that begins, so that it can be found in its file."""
    begins = ascii(row["messages"][-1]["content"][:40])
    return UserError(f"prompt {row['prompt_id']} of {row['source']} ({begins}…): {error}")


def summary(rows: list[Row]) -> dict[str, float]:
    """Sum up RESPONSES rows: counts, the mean and the most tokens of an answer, and shares.

    finished: answers that ended by themselves; distinct: different texts of a prompt, per answer; and signs of a
    collapse (src/data/checks.py).
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


def spelling(rows: Sequence[Row], marks: Sequence[str]) -> list[str]:
    """Return the ids of PROMPTS rows with such a mark in any of their turns."""
    return [
        row["prompt_id"] for row in rows if any(mark in turn["content"] for mark in marks for turn in row["messages"])
    ]


def spelling_warnings(metrics: Mapping[str, Any]) -> list[str]:
    """Return a line where there are such prompts."""
    if not (count := metrics.get(SPELT)):
        return []
    what = "spell a mark of the chat template that is ordinary text to the tokenizer, and may forge a turn"
    return [f"{count} of {metrics['prompts']} prompts {what}; take it out of them"]
