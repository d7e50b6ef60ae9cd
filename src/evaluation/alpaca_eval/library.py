"""alpaca-eval's own annotator, without its network, files and log: what it asks, and what it makes of replies."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from importlib import metadata, util
from typing import Any

from src.evaluation.alpaca_eval.files import Annotation
from src.kernel.config import UserError

ANNOTATOR = "weighted_alpaca_eval_gpt4_turbo"
SYSTEM, USER, END = "<|im_start|>system\n", "<|im_start|>user\n", "<|im_end|>"
"""Marks of the template's two turns."""
Chat = list[dict[str, str]]
Completion = dict[str, Any]
"""A choice as the library keeps it: {"logprobs": {"content": [{"top_logprobs": [{"token", "logprob"}, …]}]}}."""


def check_installed() -> None:
    """Raises UserError where the library is not installed."""
    if util.find_spec("alpaca_eval") is None:
        raise UserError("benchmark=alpaca_eval needs alpaca-eval: pip install 'iterpref[eval]', or `make install`")


def version() -> str:
    """Returns the library's name and version. Raises UserError where it is not installed."""
    check_installed()
    return f"alpaca-eval {metadata.version('alpaca-eval')}"


def prompts(pairs: Sequence[Annotation]) -> list[str]:
    """Returns the annotator's prompt for each pair that needs one, in its order: equal outputs are a tie unasked.

    The annotator draws from the instruction which output it shows first.
    """
    asked: list[str] = []

    def note(prompts: Sequence[str], **_: Any) -> dict[str, Any]:
        asked.extend(prompts)
        return {"completions_all": [completion([])] * len(prompts)}

    _annotate(pairs, note)
    return asked


def preferences(pairs: Sequence[Annotation], replies: Mapping[str, Completion]) -> list[float | None]:
    """Returns each pair's preference, from 1 (output_1) to 2; None where the annotator makes nothing of the reply.

    `replies`: prompt -> reply; a prompt may lack one.
    """

    def answer(prompts: Sequence[str], **_: Any) -> dict[str, Any]:
        return {"completions_all": [replies.get(prompt, completion([])) for prompt in prompts]}

    preference = {row["instruction"]: row["preference"] for row in _annotate(pairs, answer)}
    values = [preference[pair.instruction] for pair in pairs]
    return [None if value is None or math.isnan(value) else float(value) for value in values]


def completion(tokens: Sequence[Sequence[tuple[str, float]]]) -> Completion:
    """Makes the library's form of a reply from the alternatives of each of its tokens."""
    content = [{"top_logprobs": [{"token": text, "logprob": p} for text, p in one]} for one in tokens]
    return {"logprobs": {"content": content}}


def readable(reply: Completion) -> bool:
    """Says whether the annotator's parser makes a preference of it."""
    with _quiet():
        try:
            preferences = list(_consulted().fn_completion_parser(reply))
        except Exception:  # the library itself passes over whatever its parser raises
            return False
    return len(preferences) == 1 and not math.isnan(preferences[0])


def chat(prompt: str) -> Chat:
    """Returns the two turns of the annotator's prompt. Marks of a turn in an output are text.

    The library splits at every such mark: an output could end its prompt, or break it.
    """
    template: str = _consulted().prompt_template
    system, _, _ = template.partition(USER)
    body = prompt.removeprefix(system + USER).strip().removesuffix(END).strip()
    rules = system.strip().removeprefix(SYSTEM).removesuffix(END).strip()
    return [{"role": "system", "content": rules}, {"role": "user", "content": body}]


def _annotate(pairs: Sequence[Annotation], complete: Callable[..., dict[str, Any]]) -> list[dict[str, Any]]:
    annotator = _annotator()
    _single(annotator).fn_completions = complete
    rows = [
        {name: getattr(pair, name) for name in ("instruction", "output_1", "output_2", "generator_1", "generator_2")}
        for pair in pairs
    ]
    with _quiet():
        return annotator(rows, chunksize=None)


@cache
def _consulted() -> Any:
    """Returns an annotator for its template and its parser: it annotates nothing."""
    return _single(_annotator())


def _annotator() -> Any:
    """Makes a new annotator: one remembers what it has annotated."""
    check_installed()
    with _quiet():
        from alpaca_eval.annotators import PairwiseAnnotator

        # Its seed decides which output is shown first; 0 is the leaderboard's.
        return PairwiseAnnotator(annotators_config=ANNOTATOR, seed=0, caching_path=None)


def _single(annotator: Any) -> Any:
    (one,) = annotator.annotators.values()
    return one


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences the library: it sets the root logger's level, logs each call, draws a bar, uses what is deprecated."""
    root = logging.getLogger()
    level, disabled = root.level, root.manager.disable
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(disabled)
            root.setLevel(level)
