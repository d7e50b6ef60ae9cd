"""What is known to fail before any work, of what there is to make: for want of trust, of a key, or by its settings."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol, runtime_checkable

from src.artifact import Node
from src.checkpoints import CheckpointWithCode
from src.config import UserError
from src.endpoint import Endpoint
from src.generation.openai_engine import KEY as ENGINE
from src.generation.openai_engine import OpenAIEngine
from src.generation.stage import Generate
from src.outside.endpoint import AskAnswers
from src.ranking.stage import Rank

OPENAI = "api.openai.com"


@runtime_checkable
class Choosy(Protocol):
    """A ranker that not every device can be."""

    def check_device(self) -> None:
        """Raises UserError where its device cannot do what its settings say."""
        ...


class Asked(NamedTuple):
    key: str
    """Of the endpoint in the config."""
    endpoint: Endpoint
    requests: int
    """At most; 0: not known."""


def check_settings(nodes: Iterable[Node]) -> None:
    """Raises UserError where `nodes` bring a checkpoint whose code may not be run, or rank as no CPU can."""
    for stage in (node.stage for node in nodes):
        if isinstance(stage, CheckpointWithCode):
            stage.check_trusted()
        if isinstance(stage, Rank) and isinstance(stage.ranker, Choosy):
            stage.ranker.check_device()


def check_keys(nodes: Iterable[Node]) -> None:
    """Raises UserError where `nodes` ask OpenAI's own servers and there is no key."""
    for asked in _asked(nodes):
        if asked.endpoint.host == OPENAI and not os.environ.get("OPENAI_API_KEY", "").strip():
            raise UserError(
                f"OPENAI_API_KEY: not set, and {asked.key}.model {asked.endpoint.model} is asked at {OPENAI}; set it, "
                f"or {asked.key}.base_url for another server"
            )


def remarks(nodes: list[Node]) -> list[str]:
    """Lines for a plan in which `nodes` are to be made: what is asked of servers, and what would be refused."""
    counts: Counter[tuple[str, str]] = Counter()
    for asked in _asked(nodes):
        counts[asked.endpoint.model, asked.endpoint.host] += asked.requests
    lines = [f"asks {model} at {host}: {_at_most(count)}" for (model, host), count in counts.items()]
    for check in (check_settings, check_keys):
        try:
            check(nodes)
        except UserError as error:
            lines.append(f"refused as it is: {error}")
    return lines


def _at_most(requests: int) -> str:
    return f"at most {requests:,} requests" if requests else "how many requests is not known"


def _asked(nodes: Iterable[Node]) -> Iterator[Asked]:
    for node in nodes:
        stage, work = node.stage, int(node.work or 0)
        if isinstance(stage, AskAnswers):
            yield Asked(f"{stage.key}.endpoint", stage.asked.endpoint, node.rows or 0)
        elif isinstance(stage, Rank) and isinstance(endpoint := getattr(stage.ranker, "endpoint", None), Endpoint):
            yield Asked("ranker.endpoint", endpoint, work)
        elif isinstance(stage, Generate) and isinstance(stage.engine, OpenAIEngine):
            yield Asked(ENGINE, stage.engine.endpoint, work)
