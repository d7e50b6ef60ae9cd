"""Generate: the policy answers each prompt K times.

In: prompts, policy. Out: RESPONSES rows, K answers each, in the order of the prompts, and `metrics.json`.
An answer is a cell (src/kernel/cells.py). Any number of processes, now or another day, make the cells that are missing,
each of them once. Cells are saved now and then, so that a kill loses seconds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import PositiveFloat, PositiveInt

from src.data.checks import collapse_warnings, prompts_with_marks, summary
from src.generation.engine import Answer, Engine, Request, Sampling
from src.kernel.artifact import WORK, Node, Takes
from src.kernel.cells import CELLS, Cells
from src.kernel.config import Free, UserError, config, fingerprint, naming
from src.kernel.disk import turn
from src.kernel.processes import bar, run_in_processes
from src.kernel.rows import PROMPTS, RESPONSES, Row, read_rows, write_metrics, write_rows
from src.kernel.store import LOCK
from src.modeling.checkpoints import start_of
from src.modeling.policy import chat_text, check_files, check_tokenizer, load_tokenizer, marks_as_text, stop_ids

SAMPLING, POLICY = "sampling", "policy"
DOING = "making answers of this kind"
_turn = partial(turn, name="generate", doing=DOING)


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
        key = "hardware.generation.workers"
        if self.engine.device != "cuda":
            return Takes(key, cuda=False)
        devices = self.dealing.workers * self.engine.devices_each
        return Takes(key, devices, devices)

    def check_here(self) -> None:
        """Raise UserError where the engine is not installed."""
        self.engine.check_installed()

    def check(self, node: Node) -> None:
        """Raise UserError where the engine cannot sample as the settings say, or the start policy cannot answer."""
        with naming(SAMPLING, self.key):
            self.engine.check_sampling(self.sampling)
        if folder := start_of(node.inputs[1]).here():
            most = self.sampling.max_prompt_tokens + self.sampling.max_new_tokens
            check_files(folder, most, f"{self.key}.max_new_tokens", "max_prompt_tokens")

    def foresee(self, inputs: Sequence[Path | None], start: Path | None) -> str:
        """Raise UserError where the policy's chat template refuses a prompt, or its answers could not end.

        A policy that is not trained yet has the template of `start`.
        """
        prompts, policy = inputs[0], inputs[1] or start
        if policy is None:
            return ""
        tokenizer = load_tokenizer(policy)
        stop_ids(policy)
        check_tokenizer(policy, tokenizer)
        for row in read_rows(prompts, PROMPTS) if prompts else ():
            with naming_prompt(row):
                chat_text(tokenizer, row["messages"])
        return ""

    def __call__(self, *inputs: Path, out: Path) -> None:
        prompts, policy = inputs
        rows = read_rows(prompts, PROMPTS)
        requests, folder = self.requests(rows, policy), cells_of(out)
        with hold_all(folder):
            cells = self._fill(requests, policy, folder, out / WORK)
        answers: dict[str, list[Row]] = {}
        for request in requests:
            answer = cells.values[request.cell] | {"seed": request.seed, "source": POLICY}
            answers.setdefault(request.prompt_id, []).append(answer)
        token_ids = {request.prompt_id: request.token_ids for request in requests}
        full = [
            row | {"prompt_token_ids": token_ids[prompt], "responses": answers[prompt]}
            for row in rows
            if (prompt := row["prompt_id"]) in answers
        ]
        write_rows(out, full, RESPONSES)
        forged = prompts_with_marks(full, marks_as_text(load_tokenizer(policy)))
        numbers = {"answers/prompts_too_long": len(rows) - len(full)} | summary(full) | {"marks_spelt": len(forged)}
        write_metrics(out, numbers)
        for line in collapse_warnings(numbers):
            print(f"generate: warning: {line}", flush=True)
        if forged:
            what = "with a mark of the chat template that the tokenizer treats as text, which may forge a turn"
            print(f"generate: warning: prompts {what}: {len(forged)}; take them out, such as {forged[0]}", flush=True)

    def fill(self, *inputs: Path, out: Path, part: int, parts: int) -> bool:
        """Make the cells of share `part` of `parts` (0 to parts - 1) that are missing; True where all are whole."""
        prompts, policy = inputs
        requests, folder = self.requests(read_rows(prompts, PROMPTS), policy), cells_of(out)
        name = f"{part + 1}of{parts}"
        with hold_share(folder, name):
            cells = self._fill(share_of(requests, part, parts), policy, folder, out / WORK / name)
        cells.refresh()
        return not lacking(requests, cells)

    def requests(self, rows: list[Row], policy: Path) -> list[Request]:
        """Return all that is asked, the longest prompts first, so that too little memory shows at once."""
        from src.modeling.policy import check_vocabulary, render

        tokenizer, most = load_tokenizer(policy), self.sampling.max_prompt_tokens
        rendered: list[tuple[Row, list[int]]] = []
        for row in rows:
            with naming_prompt(row):
                rendered.append((row, render(tokenizer, row["messages"])))
        check_vocabulary(policy, (max(ids, default=0) for _, ids in rendered))
        kept = [(row, ids) for row, ids in rendered if len(ids) <= most]
        if not kept:
            raise UserError(f"{self.key}.max_prompt_tokens: all prompts are longer than {most}; raise it")
        if len(kept) < len(rows):
            print(f"generate: prompts over max_prompt_tokens, left out: {len(rows) - len(kept)} of {len(rows)}")
        kept.sort(key=lambda each: (-len(each[1]), each[0]["prompt_id"]))
        return [
            Request(row["prompt_id"], k, ids, cell_seed(self.seed, row["prompt_id"], k))
            for row, ids in kept
            for k in range(self.sampling.K)
        ]

    def _fill(self, requests: list[Request], policy: Path, folder: Path, work: Path) -> Cells:
        """Make the missing answers to `requests`; return all cells of `folder`. `work` is for files of processes."""
        cells = Cells(folder, compact)
        missing = lacking(requests, cells)
        if not missing:
            print(f"generate: all {len(requests)} answers are there")
            return cells
        with bar("generate", len(requests), len(requests) - len(missing), "answer") as progress:
            engine, workers = self.engine, self.dealing.workers
            if not engine.own_process and workers == 1:
                self._sample(missing, policy, cells, progress.update)
            else:
                work.mkdir(parents=True, exist_ok=True)
                wanted = {request.cell for request in missing}
                job = partial(self._sample_share, missing, policy.resolve(), folder)

                def count_new() -> None:
                    progress.update(len(wanted.intersection(cells.refresh())))

                run_in_processes(job, "generate", workers, engine.device, engine.devices_each, work, count_new)
        return cells

    def _sample_share(self, requests: list[Request], policy: Path, folder: Path, number: int, count: int) -> None:
        """Sample the share of worker `number` of `count`."""
        if mine := share_of(requests, number, count):
            self._sample(mine, policy, Cells(folder, compact, read=False), lambda _: None)

    def _sample(self, requests: list[Request], policy: Path, cells: Cells, progress: Callable[[int], Any]) -> None:
        """Sample into `cells`. Answers are saved every `save_seconds`, and whatever ends the sampling."""
        missing = {request.cell for request in requests}
        with cells.saving(self.dealing.save_seconds) as save:

            def keep(request: Request, answer: Answer) -> None:
                tokens, end = len(answer["token_ids"]), answer["finish_reason"]
                if not tokens or end not in ("stop", "length"):
                    which = f"prompt {request.prompt_id}, answer {request.k}: {tokens} tokens, ended by {end!r}"
                    remedy = f"leave the prompt out or raise {self.key}.max_new_tokens, the rest is kept"
                    raise UserError(f"generate: {which}; {remedy}")
                missing.remove(request.cell)
                save(request.cell, answer)
                progress(1)

            self.engine.open(policy, self.sampling)(requests, keep)
        if missing:
            raise RuntimeError(f"generate: the engine left out {len(missing)} requests, such as {min(missing)}")


# Cells --------------------------------------------------------------------------------------------------------------


def cells_of(out: Path) -> Path:
    """Resolve the folder of the cells now: `out` may be gone when the wait for a turn is over."""
    (out / WORK / CELLS).mkdir(parents=True, exist_ok=True)
    return (out / WORK / CELLS).resolve()


@contextmanager
def hold_all(folder: Path) -> Iterator[None]:
    """Hold all cells in `folder`, so that nothing is made twice.

    Waits for everybody else, shares too; nobody begins meanwhile.
    """
    with _turn(folder / LOCK):
        for share in sorted(folder.glob(f"{LOCK}-*")):
            with _turn(share):
                pass
        yield


@contextmanager
def hold_share(folder: Path, share: str) -> Iterator[None]:
    """Hold a share of the cells in `folder`. Other shares may begin meanwhile.

    Waits for who holds all, and for an earlier start of the same share (a requeued task's old self).
    """
    lock = folder / f"{LOCK}-{share}"
    while True:
        with ExitStack() as held:
            with _turn(folder / LOCK):
                free = held.enter_context(turn(lock, "generate", waits=False))
            if free:
                yield
                return
        with _turn(lock):
            pass


def compact(answer: Any) -> Any:
    """Keep token ids in memory at 4 bytes each."""
    return answer | {"token_ids": np.array(answer["token_ids"], np.int32)}


def lacking(requests: list[Request], cells: Cells) -> list[Request]:
    """Return the requests whose answers are not there."""
    return [request for request in requests if request.cell not in cells.values]


def share_of(requests: list[Request], number: int, count: int) -> list[Request]:
    """Return share `number` of `count`: all requests of each `count`-th prompt."""
    numbers = {prompt_id: n for n, prompt_id in enumerate(dict.fromkeys(r.prompt_id for r in requests))}
    return [request for request in requests if numbers[request.prompt_id] % count == number]


def cell_seed(seed: int, prompt_id: str, k: int) -> int:
    """Return the 63-bit seed of answer k to a prompt."""
    digest = hashlib.sha256(f"{seed}/{prompt_id}/{k}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@contextmanager
def naming_prompt(row: Row) -> Iterator[None]:
    """Name the prompt in a UserError of the body, and how it begins, so that it can be found in its file."""
    try:
        yield
    except UserError as error:
        begins = ascii(row["messages"][-1]["content"][:40])
        raise UserError(f"prompt {row['prompt_id']} of {row['source']} ({begins}…): {error}") from None
