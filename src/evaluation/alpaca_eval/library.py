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
    """Raises UserError where the library is not there."""
    if util.find_spec("alpaca_eval") is None:
        raise UserError("benchmark=alpaca_eval needs alpaca-eval: pip install 'iterpref[eval]', or `make install`")


def version() -> str:
    """Raises UserError like `check_installed`."""
    check_installed()
    return f"alpaca-eval {metadata.version('alpaca-eval')}"


def prompts(pairs: Sequence[Annotation]) -> list[str]:
    """Lists the annotator's prompts, in its order; equal outputs are a tie and need none.

    Which output is shown first is drawn from the instruction.
    """
    asked: list[str] = []

    def note(prompts: Sequence[str], **_: Any) -> dict[str, Any]:
        asked.extend(prompts)
        raise _Noted

    with contextlib.suppress(_Noted):
        _annotate(pairs, note)
    return asked


def preferences(pairs: Sequence[Annotation], replies: Mapping[str, Completion]) -> list[float | None]:
    """Returns a preference a pair, in their order, from 1 (output_1) to 2; None where the reply cannot be read.

    `replies`: prompt -> reply; a prompt without one is a failure too.
    """

    def answer(prompts: Sequence[str], **_: Any) -> dict[str, Any]:
        return {"completions_all": [replies.get(prompt, completion([])) for prompt in prompts]}

    rows = {row["instruction"]: row["preference"] for row in _annotate(pairs, answer)}
    found = [rows[pair.instruction] for pair in pairs]
    return [None if one is None or math.isnan(one) else float(one) for one in found]


def completion(tokens: Sequence[Sequence[tuple[str, float]]]) -> Completion:
    """Builds the library's completion from the alternatives of each token of a reply, with log-probabilities."""
    content = [{"top_logprobs": [{"token": text, "logprob": p} for text, p in one]} for one in tokens]
    return {"logprobs": {"content": content}}


def readable(reply: Completion) -> bool:
    """Says whether the annotator's parser makes a preference of it."""
    with _quiet():
        try:
            found = list(_consulted().fn_completion_parser(reply))
        except Exception:  # the library itself passes over whatever its parser raises
            return False
    return len(found) == 1 and not math.isnan(found[0])


def chat(prompt: str) -> Chat:
    """Splits the annotator's prompt into its two turns; an output that spells the marks of a turn stays text.

    The library splits at every such mark: an output could end its prompt, or break it.
    """
    template: str = _consulted().prompt_template
    system, _, _ = template.partition(USER)
    body = prompt.removeprefix(system + USER).strip().removesuffix(END).strip()
    told = system.strip().removeprefix(SYSTEM).removesuffix(END).strip()
    return [{"role": "system", "content": told}, {"role": "user", "content": body}]


class _Noted(Exception):
    """The prompts are known."""


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
    """Makes one for its template and its parser; it annotates nothing."""
    return _single(_annotator())


def _annotator() -> Any:
    """Makes a new one, for it remembers what it has annotated."""
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
