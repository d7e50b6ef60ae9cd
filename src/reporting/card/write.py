"""Cards: the README.md of every trained policy, written at the edge from what is there.

A card is about its artifact and no part of it, so its record says nothing of it. The rule of who writes it: the last
run that has the policy, unless the card there shows more measurements than that run has. Of a start policy that is only
evaluated (`iter=0`) there is one in the run folder, by the same rule.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from src.experiment.run import Run
from src.kernel.artifact import Node
from src.kernel.disk import write_atomic
from src.kernel.locks import locked
from src.kernel.record import CARD, is_card
from src.kernel.store import Store
from src.reporting.card.facts import Facts, facts


def write_cards(run: Run, nodes: list[Node], store: Store, command: str, folder: Path | None = None) -> list[str]:
    """Write the cards that are missing or say something else; returns a line for each that cannot be written.

    `nodes` are all of the run, `command` is what a shell would be told, `folder` is the run's, None where it has none.
    Raises UserError for unreadable artifacts.
    """
    by_name, failures = {node.name: node for node in nodes}, []
    if not run.iter and folder and (told := facts(run, 0, by_name, store, command)) and told.results:
        failures += _written(folder / CARD, partial(_write_start, told, folder / CARD))
    for t in range(1, run.iter + 1):
        told = facts(run, t, by_name, store, command)
        if told is not None and CARD not in told.record["files"]:
            failures += _written(store.path(told.node) / CARD, partial(_write, told))
    return failures


def text(told: Facts) -> str:
    """The whole card."""
    from src.reporting.card.body import body
    from src.reporting.card.metadata import metadata

    return f"---\n{metadata(told).to_yaml()}\n---\n\n{body(told)}"


def _written(place: Path, write: Callable[[], None]) -> list[str]:
    try:
        write()
    except OSError as error:
        return [f"card: {place} cannot be written ({error.strerror or error}); all else is there"]
    return []


def _write_start(told: Facts, card: Path) -> None:
    from src.reporting.card.start import start_card

    shown, measurements = start_card(told)
    data = shown.encode(errors="replace")
    if _read(card) != data and _measurements(card) <= measurements:
        write_atomic(card, data)


def _write(told: Facts) -> None:
    from src.reporting.card.metadata import metadata

    card, data = told.store.path(told.node) / CARD, text(told).encode(errors="replace")
    if _read(card) == data:
        return
    lock = told.store.root / ".locks" / f"card-{told.node.key}.lock"
    with locked(lock, f"{card}: another process is writing it; waiting"):
        if _measurements(card) <= len(metadata(told).eval_results or ()):
            for leftover in card.parent.iterdir():  # of a process that was killed
                if is_card(leftover.name) and leftover != card:
                    leftover.unlink()
            write_atomic(card, data)


def _read(card: Path) -> bytes | None:
    return card.read_bytes() if card.exists() else None


def _measurements(card: Path) -> int:
    """How many a card shows; 0 of one that is missing, or that somebody else wrote."""
    from huggingface_hub import metadata_load
    from yaml import YAMLError

    try:
        (model,) = (metadata_load(card) or {})["model-index"]
        return sum(len(result["metrics"]) for result in model["results"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, YAMLError):
        return 0
