"""Measure how time and memory grow with answer length and pairs of a step: a table for docs/trainer.md.

make bench-growth
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
POINTS = [(8, 256), (8, 512), (2, 512)]
"""(pairs, max length). TRL takes up to 4 pairs a pass: as many as fit at the longest."""
CONTENDERS = ("ours", "trl", "trl_by_pair")
HEAD = ("pairs", "max length", "tokens per step", "ours", "TRL, a batch per pass", "TRL, a pair per pass")


def measure(pairs: int, max_length: int, more: list[str]) -> dict[str, Any]:
    words = f"--pairs {pairs} --max-length {max_length} --micro-pairs {min(pairs, 4)} --blocks 1 --steps 3"
    contenders = ("--contenders", *CONTENDERS)
    done = subprocess.run(
        [sys.executable, "-m", "bench.trainer", *words.split(), *contenders, *more],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    if not done.stdout:
        raise SystemExit(done.returncode)
    return json.loads(done.stdout.splitlines()[-1])


def row(pairs: int, max_length: int, found: dict[str, Any]) -> list[str]:
    """Return the cells of the table; a contender that died has a dash."""
    told = []
    for name in CONTENDERS:
        speed, peak = found[f"{name}_pairs_per_s"], found[f"{name}_peak_gb"]
        told.append(f"{pairs / speed:.1f} s, {peak:.1f} GB" if speed else "—")
    return [str(pairs), str(max_length), f"{found['tokens_a_step']:.0f}", *told]


def main() -> None:
    print(_line(HEAD), _line(["---"] * len(HEAD)), sep="\n")
    for pairs, max_length in POINTS:
        print(_line(row(pairs, max_length, measure(pairs, max_length, sys.argv[1:]))), flush=True)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
