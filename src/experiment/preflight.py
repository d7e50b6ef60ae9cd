"""What is known to fail before any work, or before the first answer: stages say what they need, ask and refuse."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

from src.experiment.run import Run
from src.generation.stage import Generate, of_prompt
from src.kernel.artifact import Computing, Node, Refusing
from src.kernel.config import UserError
from src.kernel.rows import PROMPTS, read_rows
from src.kernel.store import Store
from src.modeling.endpoint import Endpoint
from src.modeling.packing import refuse_unpackable
from src.modeling.policy import chat_text, check_stops, load_tokenizer, read_settings
from src.ranking.stage import Rank
from src.training.stage import Train

CPUINFO = Path("/proc/cpuinfo")
OPENAI = "api.openai.com"


@runtime_checkable
class Asks(Protocol):
    """A stage that may ask a server about as often as its work says."""

    def asks(self) -> tuple[str, Endpoint] | None:
        """Return the endpoint's key in the config, and the endpoint; None where no server is asked."""
        ...


class Asked(NamedTuple):
    """What a node asks of a server."""

    key: str
    """The endpoint's in the config."""
    endpoint: Endpoint
    requests: int
    """At most; 0: not known."""


def check_settings(nodes: Iterable[Node]) -> None:
    """Raises UserError where a stage of `nodes` knows that it will fail."""
    nodes = list(nodes)
    of_rankers = {model.key for node in nodes if isinstance(node.stage, Rank) for model in node.inputs}
    for node in nodes:
        if isinstance(node.stage, Refusing) and node.key not in of_rankers:  # those are the ranker's to check
            node.stage.check(node)


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
    """Return lines for a plan that makes `nodes`: what is asked of servers, and what would be refused.

    `queued`: in jobs, whose environment may have what this one lacks.
    """
    counts: dict[tuple[str, str], list[int]] = {}
    for asked in _asked(nodes):
        counts.setdefault((asked.endpoint.model, asked.endpoint.host), []).append(asked.requests)
    lines = [f"asks {model} at {host}: {_sum_up(requests)}" for (model, host), requests in counts.items()]
    lines += [f"refused as it is: {line}" for line in _refusal(lambda: check_settings(nodes))]
    unless = "refused by its jobs, unless they have it" if queued else "refused as it is"
    return lines + [f"{unless}: {line}" for line in _refusal(lambda: check_keys(nodes, store))]


def _refusal(check: Callable[[], None]) -> list[str]:
    try:
        check()
    except UserError as error:
        return [str(error)]
    return []


def _sum_up(requests: list[int]) -> str:
    if all(requests):
        return f"at most {sum(requests):,} requests"
    return f"{sum(requests):,} requests at most, and some whose number is not known"


def _asked(nodes: Iterable[Node]) -> Iterator[Asked]:
    for node in nodes:
        if isinstance(node.stage, Asks) and (asked := node.stage.asks()):
            yield Asked(*asked, int(node.work or 0))


def _has_cells(node: Node, store: Store) -> bool:
    cells = store.cells(node)
    if node.job == "judging" and not all(store.has(parent) for parent in node.inputs):
        return False  # its replies are shared by all policies, and this one has not answered yet
    return cells is not None and any(path.stat().st_size for path in cells.glob("*.jsonl"))


def check_machine(run: Run, nodes: list[Node]) -> None:
    """Raises UserError where `nodes` need CUDA devices that are not visible, or packages that are not there."""
    for node in nodes:
        if isinstance(node.stage, Generate):
            node.stage.check_here()
    needs = [stage.takes() for stage in (node.stage for node in nodes) if isinstance(stage, Computing)]
    needs = [need for need in needs if need.cuda]
    if not needs:
        return
    import torch

    present = torch.cuda.device_count()
    if present == 0:
        raise UserError("hardware: a CUDA device is asked for, none is present; try hardware=cpu")
    training = any(need.key == "hardware.devices.count" for need in needs)
    if training and run.hardware.devices.deepspeed is None and present > 1:
        raise UserError(f"hardware: {present} CUDA devices are visible, one is used; set CUDA_VISIBLE_DEVICES=0")
    for need in needs:
        if present < need.a_node:
            raise UserError(
                f"{need.key}: {need.a_node} a node, but {present} CUDA devices are visible; lower it, or choose the "
                "hardware of this machine"
            )


def slow_bf16(run: Run, nodes: list[Node]) -> str:
    """Return a line where the processor multiplies bf16 several times slower than fp32; empty for others."""
    devices = run.hardware.devices
    if (devices.device, devices.precision) != ("cpu", "bfloat16"):
        return ""
    if not any(isinstance(node.stage, Generate | Rank | Train) for node in nodes):
        return ""
    try:
        flags = set(CPUINFO.read_text().split())
    except OSError:  # no Linux
        return ""
    if flags & {"avx512_bf16", "amx_bf16"} or "flags" not in flags:  # other architectures name them otherwise
        return ""
    return "hardware: this processor has no bf16 instructions and is several times faster with hardware=cpu_fp32"


@runtime_checkable
class Demanding(Protocol):
    """A ranker that can say of its models, without loading them, that they will not do."""

    def check_models(self, models: tuple[Path, ...]) -> None:
        """Raises UserError."""
        ...


def check_early(nodes: Iterable[Node], start: Node, store: Store) -> None:
    """Raises UserError, before the first answer, for what would end the run after it was sampled.

    That is known once models and prompts are there: rankers that cannot rank, and prompts of later iterations that the
    chat template refuses. Policies take their template from `start`.
    """
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
