"""Whom an experiment follows where paper, public code and model card disagree: `+variant=paper`, `code` or `card`."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from typing import Any, Literal

from omegaconf import DictConfig, Node, OmegaConf

from src.kernel.config import UserError

Variant = Literal["paper", "code", "card"]
ORDER = ("card", "paper", "ours", "code")
"""Whom to follow where the variant's own source says nothing, and where no variant is chosen. `ours`: what we do where
only the code speaks, and what it does looks like an accident."""


def by_source(said: Mapping[str, Any], *, _root_: DictConfig) -> Any:
    """`${by_source:{paper:18,code:1}}` in YAML: what the chosen source says, else the first of `ORDER` that says it.

    It also works as a choice in a defaults list, where `_root_` holds the groups that are chosen. Raises ValueError
    for a source of another name, or none at all.
    """
    if not isinstance(said, Mapping) or not said or set(said) - set(ORDER):
        raise ValueError(f"by_source: {said}: wants {{source:value}} of {', '.join(ORDER)}")
    node = _root_._get_node("variant")
    chosen = node._value() if isinstance(node, Node) else None
    return next(said[source] for source in (chosen, *ORDER) if source and source in said)


def own_temporary() -> str:
    """`${own_temporary:}`: a folder of this user's among the temporary ones, for what Hydra leaves of a sweep."""
    return os.path.join(tempfile.gettempdir(), f"iterpref-{os.getuid()}")


def no_environment(*_: Any) -> str:
    """In place of OmegaConf's `${oc.env:NAME}`. Raises UserError: its value would be kept with the settings."""
    raise UserError('${oc.env:…} is refused, for settings are kept; let the shell put the value there: key="$NAME"')


def register() -> None:
    """Make them known to OmegaConf; as often as one likes."""
    OmegaConf.register_new_resolver("by_source", by_source, replace=True)
    OmegaConf.register_new_resolver("own_temporary", own_temporary, replace=True)
    OmegaConf.register_new_resolver("oc.env", no_environment, replace=True)
