"""Annotations of a policy's outputs by alpaca-eval's own annotator, without its network, files and log.

The library makes the prompts and reads the replies; the requests are ours.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from pydantic import PositiveInt

from src.evaluation.alpaca_eval import files
from src.evaluation.alpaca_eval.files import Annotation, Output, read_official
from src.evaluation.benchmark import version_of
from src.kernel.artifact import WORK, Stage
from src.kernel.cells import CELLS, cell_key
from src.kernel.config import Free, Share, config
from src.kernel.rows import write_metrics
from src.modeling.asking import Cell, ask_all, read_completion, read_tokens
from src.modeling.endpoint import BenchmarkJudge, Endpoint

SENT_VERSION = 1
"""Raised when equal fields send another text or replies are kept otherwise."""
ANNOTATOR = "weighted_alpaca_eval_gpt4_turbo"
SYSTEM, USER, END = "<|im_start|>system\n", "<|im_start|>user\n", "<|im_end|>"
"""Marks of the two turns in the annotator's template."""
Chat = list[dict[str, str]]


@config
class AlpacaEvalJudge:
    """Who is asked, and how."""

    endpoint: BenchmarkJudge
    top_logprobs: PositiveInt
    """Alternatives of the reply's token, whose probabilities are the preference."""
    failed_share_limit: Free[Share]
    """Largest share of replies without a usable log-probability, which become null preferences."""

    def fields(self) -> dict[str, Any]:
        """Return the fields of every request."""
        return self.endpoint.fields() | {"logprobs": True, "top_logprobs": self.top_logprobs}


@config
class AlpacaEvalAnnotations(Stage):
    """In: outputs. Out: `annotations.json` in the official format, in the order of the questions, and `metrics.json`.

    A reply is a cell that depends on what is sent alone: no pair is paid for twice.
    """

    kind: ClassVar[str] = "alpaca_eval_annotations"
    resumable: ClassVar[bool] = True

    judge: AlpacaEvalJudge
    key: Free[str]
    """The judge's config key, for messages."""

    def source_version(self) -> str:
        return version_of("alpaca-eval")

    def asks(self) -> tuple[str, Endpoint]:
        return f"{self.key}.endpoint", self.judge.endpoint

    def shared(self) -> Any:
        return {"sent_version": SENT_VERSION, "fields": self.judge.fields(), "by": self.judge.endpoint.source_version()}

    def __call__(self, *inputs: Path, out: Path) -> None:
        pairs = paired(inputs[0])
        prompts, _ = annotate(pairs, {})
        chats = {prompt: chat_of(prompt) for prompt in prompts}
        keys = {prompt: cell_key(*(turn["content"] for turn in chat)) for prompt, chat in chats.items()}
        cells = ask_all(
            {keys[prompt]: chat for prompt, chat in chats.items()},
            lambda chat: self.judge.fields() | {"messages": chat},
            self.judge.endpoint,
            f"{self.key}.endpoint",
            out / WORK / CELLS,
            read=lambda reply: (
                read_completion(reply) | {"tokens": [token.alternatives for token in read_tokens(reply)]}
            ),
            description="a preference",
            is_usable=usable,
            is_kept=lambda cell: bool(cell["tokens"]),  # another server of this name may give them
            limit_key=f"{self.key}.failed_share_limit",
            limit=self.judge.failed_share_limit,
            remedy="a preference is the log-probability of m and M in a reply of one token: does the server give "
            "`top_logprobs`? Replies that have any are kept, others are asked for anew",
        )
        _, preferences = annotate(pairs, {prompt: cells[key] for prompt, key in keys.items() if key in cells})
        judged = [replace(pair, preference=value) for pair, value in zip(pairs, preferences, strict=True)]
        files.write_json(out / files.ANNOTATIONS, judged)
        write_metrics(out, {"items": len(pairs), "failed": preferences.count(None)})


def paired(outputs: Path) -> list[Annotation]:
    """Read what is to be judged from an artifact of outputs, in the order of the questions."""
    baseline = read_official(outputs / files.BASELINE, Output)
    ids = [files.instruction_id(row.instruction) for row in baseline]
    answers = files.joined(outputs / files.OUTPUTS, read_official(outputs / files.OUTPUTS, Output), ids)
    return [
        Annotation(one.instruction, one.output, one.generator, one.dataset, two.output, two.generator, ANNOTATOR, None)
        for one, two in zip(baseline, answers, strict=True)
    ]


# The library --------------------------------------------------------------------------------------------------------


def usable(cell: Cell) -> bool:
    """Say whether the annotator makes a preference of a reply: of one token, with the probability of m or M."""
    return len(cell["tokens"]) == 1 and any(text in ("m", "M") for text, _ in cell["tokens"][0])


def annotate(pairs: Sequence[Annotation], replies: Mapping[str, Cell]) -> tuple[list[str], list[float | None]]:
    """Return the annotator's prompts, and each pair's preference from 1 (output_1) to 2.

    `replies`: prompt -> reply; None is the preference where there is none, or the annotator makes nothing of it.
    Equal outputs are a tie unasked. The annotator draws from the instruction which output it shows first.
    """
    asked: list[str] = []

    def complete(prompts: Sequence[str], **_: Any) -> dict[str, Any]:
        asked.extend(prompts)
        completions = []
        for prompt in prompts:
            tokens = replies[prompt]["tokens"] if prompt in replies else []
            content = [{"top_logprobs": [{"token": text, "logprob": p} for text, p in token]} for token in tokens]
            completions.append({"logprobs": {"content": content}})
        return {"completions_all": completions}

    names = ("instruction", "output_1", "output_2", "generator_1", "generator_2")
    rows = [{name: getattr(pair, name) for name in names} for pair in pairs]
    with _quiet():
        from alpaca_eval.annotators import PairwiseAnnotator

        # A new one, since it remembers. Its seed decides which output is shown first; 0 is the leaderboard's.
        annotator = PairwiseAnnotator(annotators_config=ANNOTATOR, seed=0, caching_path=None)
        (single,) = annotator.annotators.values()
        single.fn_completions = complete
        annotated = annotator(rows, chunksize=None)
    preferences = {row["instruction"]: row["preference"] for row in annotated}
    values = [preferences[pair.instruction] for pair in pairs]
    return asked, [None if value is None or math.isnan(value) else float(value) for value in values]


def chat_of(prompt: str) -> Chat:
    """Return the two turns of the annotator's prompt. Marks of a turn in an output are text.

    The library splits at every such mark: an output could end its prompt, or break it.
    """
    system, _, user = prompt.partition(USER)
    texts = {"system": system.strip().removeprefix(SYSTEM), "user": user}
    return [{"role": role, "content": text.strip().removesuffix(END).strip()} for role, text in texts.items()]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the library: it sets the root logger's level, logs each call, draws a bar, uses what is deprecated."""
    root = logging.getLogger()
    level, disabled = root.level, root.manager.disable
    with warnings.catch_warnings(action="ignore"), contextlib.redirect_stderr(io.StringIO()):
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(disabled)
            root.setLevel(level)
