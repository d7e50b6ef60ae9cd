"""Whom an experiment follows where paper, public code and model card disagree: `+variant=paper`, `code` or `card`."""

from __future__ import annotations

from typing import Any, Literal, get_args

from omegaconf import DictConfig, Node, OmegaConf

Variant = Literal["paper", "code", "card"]
ORDER: tuple[Variant, ...] = ("card", "paper", "code")
"""Whom to follow where the variant's own source says nothing, and where no variant is chosen."""


def by_source(said: DictConfig, *, _root_: DictConfig) -> Any:
    """`${by_source:{paper:18,code:1}}` in YAML: what the chosen source says, else the first of `ORDER` that says it.

    It also works as a choice in a defaults list, where `_root_` holds the groups that are chosen. Raises ValueError
    for a source of another name, or none at all.
    """
    strange = set(said) - set(get_args(Variant))
    if strange or not said:
        raise ValueError(
            f"by_source: knows {', '.join(get_args(Variant))}, not {', '.join(map(str, strange)) or 'none'}"
        )
    node = _root_._get_node("variant")
    chosen = node._value() if isinstance(node, Node) else None
    return next(said[source] for source in (chosen, *ORDER) if source and source in said)


def register() -> None:
    """Make it known to OmegaConf; as often as one likes."""
    OmegaConf.register_new_resolver("by_source", by_source, replace=True)
