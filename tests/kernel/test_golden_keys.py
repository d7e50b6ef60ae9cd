"""Nothing moved: the keys of all that can be composed, and the bytes of the tiny run, are the recorded ones.

`make golden` writes both files anew; review their diff like code. A change of keys makes every store useless.
"""

from __future__ import annotations

import json
import os
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tiny_run import ROOT, World, contents, typed

from src.experiment.graph import nodes_of

GOLDEN = ROOT / "tests" / "golden"
EXPERIMENTS = sorted(path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml"))
BENCHMARKS = sorted(path.stem for path in (ROOT / "conf" / "benchmark").glob("*.yaml"))


def golden(name: str, value: Any) -> Any:
    """Return what the file holds; with GOLDEN=1, write `value` there before."""
    if os.environ.get("GOLDEN"):
        (GOLDEN / name).write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")
    return json.loads((GOLDEN / name).read_text())


def keys(*words: str) -> dict[str, str]:
    return {node.name: node.key for node in nodes_of(typed(*words))}


def test_no_key_moved_golden(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compose the default run, each benchmark, each published system, and what each of its variants makes otherwise.

    Versions of packages that are part of a key are those that constraints.txt pins.
    """
    monkeypatch.setattr("src.evaluation.open_llm.benchmark.check_environment", lambda *_: "0")
    made = {"": keys()}
    for benchmark in BENCHMARKS:
        words = f"benchmark={benchmark}"
        made[words] = {name: key for name, key in keys(words).items() if name not in made[""]}
        assert made[words]
    for experiment in EXPERIMENTS:
        words = f"experiment={experiment}"
        made[words] = keys(words)
        for variant in ("paper", "code", "card"):
            other = keys(words, f"+variant={variant}")
            made[f"{words} +variant={variant}"] = {n: k for n, k in other.items() if made[words].get(n) != k}
    assert made == golden("keys.json", made)


@cache
def processor() -> str:
    """Others round matrix products in other places."""
    import torch

    lines = Path("/proc/cpuinfo").read_text()
    name = re.search(r"model name\s*: (.*)", lines)
    return f"{name[1] if name else '?'}, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"


def test_no_byte_of_the_tiny_run_moved_golden(finished: World) -> None:
    """Prompts are compared everywhere; numbers that are computed, on the processor of the record alone."""
    artifacts = contents(finished.store)
    names = {node.key: node.name for node in finished.nodes()}
    made = {names[place.split("/")[1]]: files for place, files in artifacts.items()}
    known = golden("tiny_run.json", {"processor": processor(), "artifacts": made})
    assert {name: sorted(files) for name, files in made.items()} == {
        name: sorted(files) for name, files in known["artifacts"].items()
    }
    assert [made[name] for name in made if name.endswith("prompts")] == [
        known["artifacts"][name] for name in made if name.endswith("prompts")
    ]
    if processor() == known["processor"]:
        assert made == known["artifacts"]
