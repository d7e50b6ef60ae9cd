"""`parity`: the engine of a run beside transformers, on held-out prompts under the start policy."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any, cast

from rich.console import Console
from rich.table import Table

from src.experiment.graph import START, nodes_of
from src.experiment.run import Run
from src.generation.parity import Parity, Probeable, ask, compare, greedy, prompts_of
from src.kernel.config import UserError
from src.kernel.rows import PROMPTS, read_rows
from src.kernel.store import Store


def print_parity(run: Run) -> int:
    """Print how `hardware.engine` compares; returns the exit code. Makes prompts and start policy if missing."""
    engine = run.hardware.engine
    if not isinstance(engine, Probeable):
        raise UserError(
            f"hardware.engine: {type(engine).__name__} cannot tell log-probabilities of given answers; "
            "parity is for those that can, such as engine@hardware.engine=vllm"
        )
    store, nodes = Store(run.store), {node.name: node for node in nodes_of(run)}
    rows = read_rows(store.make(nodes["held_out/prompts"]), PROMPTS)
    policy = store.make(nodes[START])
    sampling = greedy(run.sampling)
    requests = prompts_of(rows, policy, sampling.max_prompt_tokens)
    for dtype in dict.fromkeys(("float32", engine.dtype)):  # in bf16 alone, noise can hide a doubled BOS
        asked: Any = dataclasses.replace(cast(Any, engine), dtype=dtype)
        with tempfile.TemporaryDirectory() as folder:
            told = ask(asked, policy, sampling, requests, Path(folder))
        parity = compare(told, requests, policy, dtype, engine.device, sampling.max_new_tokens)
        _print(parity, type(engine).__name__, dtype)
    return 0


def _print(parity: Parity, engine: str, dtype: str) -> None:
    count = parity.prompts
    table = Table(title=f"{engine} in {dtype} beside transformers", title_justify="left")
    table.add_column("of the same prompts")
    table.add_column("found", justify="right")
    for what, found in (
        ("prompts", f"{count}"),
        ("answer tokens", f"{parity.tokens}"),
        ("|Δlogp| a token, mean (nats)", f"{parity.mean:.2g}"),
        ("the same, largest", f"{parity.largest:.2g}"),
        (f"transformers in {dtype} beside fp32, mean", f"{parity.noise:.2g}"),
        ("mean at which to warn", f"{parity.limit:.2g}"),
        ("greedy answers equal", f"{count - len(parity.differs_at)} of {count}"),
        ("first tokens that differ", ", ".join(map(str, sorted(parity.differs_at))) or "none"),
        ("prompts as the chat template has them", f"{parity.templated} of {count}"),
        ("prompts that begin with one BOS", f"{count - parity.wrong_bos} of {count}"),
    ):
        table.add_row(what, found)
    Console(width=None if Console().is_terminal else 160).print(table)
    for warning in parity.warnings:
        print(f"warning: {warning}")
