"""Train: gradient steps on one model against stored reference log-probabilities.

In: reference, policy. Out: a checkpoint folder (the next policy) and `metrics.jsonl` (one line an optimiser step; but
for the figures under `speed/` the same bytes however often the run was interrupted).
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from src.kernel.artifact import WORK, Node, Takes
from src.kernel.config import config
from src.methods.method import Method
from src.training.recipe import Devices, Recipe


@config
class Train:
    """Train a policy by `method`: in this process, or in several under DeepSpeed."""

    kind: ClassVar[str] = "policy"
    version: ClassVar[int] = 2
    resumable: ClassVar[bool] = True

    method: Method
    recipe: Recipe
    devices: Devices
    seed: int

    def takes(self) -> Takes:
        a_node = self.devices.count // self.devices.nodes
        return Takes("hardware.devices.count", self.devices.count, a_node, self.devices.device == "cuda")

    def check(self, node: Node) -> None:
        """Raises UserError where a step wants more pairs than there can be."""
        if node.work:
            self.recipe.check_pairs(node.work // self.recipe.epochs, "at most ")

    def __call__(self, *inputs: Path, out: Path) -> None:
        from src.training.checkpoints import check_layout
        from src.training.launch import train_in_processes
        from src.training.memory import check_memory
        from src.training.trainer import train

        reference, policy = inputs
        check_memory(policy, self.recipe, self.devices)
        check_layout(out / WORK, self.devices.layout)
        run = train if self.devices.deepspeed is None else train_in_processes
        run(self.method, self.recipe, self.devices, self.seed, reference, policy, out)
