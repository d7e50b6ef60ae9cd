"""What `only` and `part` choose of a run's artifacts."""

from __future__ import annotations

from src.experiment.run import Run
from src.kernel.artifact import Divisible, Node, with_ancestors
from src.kernel.config import UserError


def wanted_of(run: Run, nodes: list[Node], alone: bool = False) -> list[Node]:
    """Return what `only` names and, unless `alone`, what that needs; all nodes without `only`."""
    chosen = chosen_of(run, nodes)
    if not chosen or alone:
        return chosen or nodes
    needed = {node.key for node in with_ancestors(*chosen)}
    return [node for node in nodes if node.key in needed]  # models and prompts before answers, as in a whole run


def chosen_of(run: Run, nodes: list[Node]) -> list[Node]:
    """Return what `only` names. Raises UserError where there is none such, or `part` has no meaning for it."""
    by_name = {node.name: node for node in nodes}
    for name in run.wanted:
        if name not in by_name:
            raise UserError(f"only: no artifact is called {name}; there are {', '.join(by_name)}")
        if run.part and not isinstance(by_name[name].stage, Divisible):
            parted = ", ".join(node.name for node in nodes if isinstance(node.stage, Divisible))
            raise UserError(f"part: {name} is made as a whole; made in parts are {parted}")
    return [node for node in nodes if node.name in run.wanted]
