"""The bytes of the tiny run are the recorded ones; test_experiments.py has the keys of all that can be composed."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from golden_files import golden
from tiny_run import World, contents


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
