"""What would end the run once answers are sampled and policies are trained, told before the first answer.

It is known as soon as models and prompts are there: prompts of later iterations that the chat template refuses, and
rankers that cannot rank.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol, runtime_checkable

from src.generation.stage import Generate, of_prompt
from src.kernel.artifact import Node
from src.kernel.config import UserError
from src.kernel.rows import PROMPTS, read_rows
from src.kernel.store import Store
from src.modeling.packing import refuse_unpackable
from src.modeling.policy import chat_text, check_stops, load_tokenizer, read_settings
from src.ranking.stage import Rank
from src.training.stage import Train


@runtime_checkable
class Demanding(Protocol):
    """A ranker that can say of its models, without loading them, that they will not do."""

    def check_models(self, models: tuple[Path, ...]) -> None:
        """Raises UserError."""
        ...


def check_early(nodes: Iterable[Node], start: Node, store: Store) -> None:
    """Raises UserError for what is to be made of `nodes`; policies take their chat template from `start`."""
    missing = [node for node in nodes if not store.has(node)]
    for node in missing:
        if isinstance(node.stage, Rank) and all(map(store.has, node.inputs[1:])):
            _check_ranker(node.stage, tuple(store.path(model) for model in node.inputs[1:]))
    prompts = {node.inputs[0].key: node.inputs[0] for node in missing if _answers(node, start)}
    if store.has(start):
        policy = store.path(start)
        if any(isinstance(node.stage, Train) for node in missing):
            refuse_unpackable(read_settings(policy))
        _check_chats([store.path(node) for node in prompts.values() if store.has(node)], policy)


def _answers(node: Node, start: Node) -> bool:
    """Whether prompts are answered by `start` or by what is trained from it."""
    if not isinstance(node.stage, Generate):
        return False
    policy = node.inputs[1]
    return policy.key == start.key or isinstance(policy.stage, Train)


_checked: set[tuple[object, ...]] = set()
"""Rankers and their models that this process has looked at: every iteration has the same."""


def _check_ranker(stage: Rank, models: tuple[Path, ...]) -> None:
    ranker = stage.ranker
    if isinstance(ranker, Demanding) and (repr(ranker), models) not in _checked:
        with stage.naming():
            ranker.check_models(models)
        _checked.add((repr(ranker), models))


def _check_chats(prompts: list[Path], policy: Path) -> None:
    tokenizer = load_tokenizer(policy)
    check_stops(policy, tokenizer)
    for folder in prompts:
        for row in read_rows(folder, PROMPTS):
            try:
                chat_text(tokenizer, row["messages"])
            except UserError as error:
                raise of_prompt(row, error) from None
