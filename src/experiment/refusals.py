"""What is known to fail before any work, of what there is to make: for want of trust, of a key, or by its settings."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, Protocol, runtime_checkable

from src.data.outside.endpoint import AskAnswers
from src.generation.openai_engine import KEY as ENGINE
from src.generation.openai_engine import OpenAIEngine
from src.generation.stage import Generate
from src.kernel.artifact import Node
from src.kernel.config import UserError
from src.kernel.store import Store
from src.modeling.checkpoints import CheckpointWithCode
from src.modeling.endpoint import Endpoint
from src.ranking.stage import Rank, Ranker
from src.training.stage import Train

OPENAI = "api.openai.com"


@runtime_checkable
class Choosy(Protocol):
    """A ranker that not every device can be."""

    def check_device(self) -> None:
        """Raises UserError where its device cannot do what its settings say."""
        ...


@runtime_checkable
class Asks(Protocol):
    """A stage that asks a server about as often as its work says."""

    def asks(self) -> tuple[str, Endpoint]:
        """Key of the endpoint in the config, and the endpoint."""
        ...


class Asked(NamedTuple):
    key: str
    """Of the endpoint in the config."""
    endpoint: Endpoint
    requests: int
    """At most; 0: not known."""


def check_settings(nodes: Iterable[Node]) -> None:
    """Raises UserError where `nodes` bring a model whose code may not run, rank as no CPU can, or train nothing."""
    nodes = list(nodes)
    of_rankers = {model.name for node in nodes if isinstance(node.stage, Rank) for model in node.inputs}
    for node in nodes:
        stage = node.stage
        if isinstance(stage, CheckpointWithCode) and node.name not in of_rankers:
            stage.check_trusted()
        if isinstance(stage, Rank):
            with stage.naming():
                _check_ranker(stage.ranker, node.inputs)
        if isinstance(stage, Generate) and isinstance(stage.engine, OpenAIEngine):
            with stage.naming():
                stage.engine.check_sampling(stage.sampling)
        if isinstance(stage, Train) and node.work:
            stage.recipe.check_pairs(node.work // stage.recipe.epochs, "at most ")


def _check_ranker(ranker: Ranker, inputs: Iterable[Node]) -> None:
    """Two rankers may share a checkpoint and not the trust in it, so each is asked for its own."""
    for model in inputs:
        if isinstance(model.stage, CheckpointWithCode):
            model.stage.check_trusted()
    if isinstance(ranker, Choosy):
        ranker.check_device()


def check_keys(nodes: Iterable[Node], store: Store) -> None:
    """Raises UserError where `nodes` ask OpenAI's own servers and there is no key, or the environment cannot be used.

    Those that find replies in the store are passed over: it may have all that they need.
    """
    for asked in _asked(node for node in nodes if not _has_cells(node, store)):
        asked.endpoint.check_environment()
        if asked.endpoint.host == OPENAI and not os.environ.get("OPENAI_API_KEY", "").strip():
            raise UserError(
                f"OPENAI_API_KEY: not set, and {asked.key}.model {asked.endpoint.model} is asked at {OPENAI}; set it, "
                f"or {asked.key}.base_url for another server"
            )


def remarks(nodes: list[Node], store: Store, queued: bool = False) -> list[str]:
    """Lines for a plan in which `nodes` are to be made: what is asked of servers, and what would be refused.

    `queued`: in jobs, whose environment may have what this one lacks.
    """
    counts: dict[tuple[str, str], list[int]] = {}
    for asked in _asked(nodes):
        counts.setdefault((asked.endpoint.model, asked.endpoint.host), []).append(asked.requests)
    lines = [f"asks {model} at {host}: {_told(requests)}" for (model, host), requests in counts.items()]
    lines += [f"refused as it is: {line}" for line in _refusal(lambda: check_settings(nodes))]
    unless = "refused by its jobs, unless they have it" if queued else "refused as it is"
    return lines + [f"{unless}: {line}" for line in _refusal(lambda: check_keys(nodes, store))]


def _refusal(check: Callable[[], None]) -> list[str]:
    try:
        check()
    except UserError as error:
        return [str(error)]
    return []


def _told(requests: list[int]) -> str:
    if all(requests):
        return f"at most {sum(requests):,} requests"
    return f"{sum(requests):,} requests at most, and some whose number is not known"


def _has_cells(node: Node, store: Store) -> bool:
    cells = store.cells(node)
    if isinstance(node.stage, Asks) and not all(store.has(parent) for parent in node.inputs):
        return False  # its replies are shared by all policies, and this one has not answered yet
    return cells is not None and any(path.stat().st_size for path in cells.glob("*.jsonl"))


def _asked(nodes: Iterable[Node]) -> Iterator[Asked]:
    for node in nodes:
        stage, work = node.stage, int(node.work or 0)
        if isinstance(stage, Asks):
            yield Asked(*stage.asks(), work)
        elif isinstance(stage, AskAnswers):
            yield Asked(f"{stage.key}.endpoint", stage.asked.endpoint, node.rows or 0)
        elif isinstance(stage, Rank) and isinstance(endpoint := getattr(stage.ranker, "endpoint", None), Endpoint):
            yield Asked(f"{stage.key}.endpoint", endpoint, work)
        elif isinstance(stage, Generate) and isinstance(stage.engine, OpenAIEngine):
            yield Asked(ENGINE, stage.engine.endpoint, work)
