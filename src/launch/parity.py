"""`parity`: the engine of a run beside transformers, on held-out prompts under the start policy."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any, cast

from rich.console import Console
from rich.table import Table

from src.experiment.graph import START
from src.experiment.point import Point
from src.generation.parity import Probeable, ask, compare, greedy, prompts_of
from src.kernel.config import UserError
from src.kernel.rows import PROMPTS, read_rows
from src.kernel.store import Store


def print_parity(point: Point) -> int:
    """Prints how `hardware.engine` compares; returns the exit code. Makes prompts and start policy if missing."""
    run = point.run
    engine = run.hardware.engine
    if not isinstance(engine, Probeable):
        raise UserError(
            f"hardware.engine: {type(engine).__name__} cannot tell log-probabilities of given answers; "
            "parity is for those that can, such as engine@hardware.engine=vllm"
        )
    store, nodes = Store(run.store), {node.name: node for node in point.nodes}
    rows = read_rows(store.make(nodes["held_out/prompts"]), PROMPTS)
    policy = store.make(nodes[START])
    sampling = greedy(run.sampling)
    requests = prompts_of(rows, policy, sampling.max_prompt_tokens)
    in_fp32: Any = dataclasses.replace(cast(Any, engine), dtype="float32")  # in bf16 noise can hide a doubled BOS
    with tempfile.TemporaryDirectory() as folder:
        told = ask(in_fp32, policy, sampling, requests, Path(folder))
    parity = compare(told, requests, policy, engine.device, sampling.max_new_tokens)
    table = Table("of the same prompts", "", title=f"{type(engine).__name__} in fp32 beside transformers")
    for what, number in (
        ("prompts", f"{parity.prompts}"),
        ("answer tokens", f"{parity.tokens}"),
        ("|Δlogp| a token, mean (nats)", f"{parity.mean:.2g}"),
        ("greedy answers equal", f"{parity.equal} of {parity.prompts}"),
    ):
        table.add_row(what, number)
    Console(width=None if Console().is_terminal else 160).print(table)
    for warning in parity.warnings:
        print(f"warning: {warning}")
    return 0
