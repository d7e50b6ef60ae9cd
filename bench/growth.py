"""How time and memory grow with the length of answers and with the pairs of a step: a table for docs/benchmarks.md.

make bench-growth
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
POINTS = [(8, 256), (8, 512), (2, 1024), (4, 1024)]
"""(pairs, max length); TRL takes up to 4 pairs a pass, as many as fit at the longest."""


def measure(pairs: int, max_length: int, more: list[str]) -> dict[str, Any]:
    words = f"--pairs {pairs} --max-length {max_length} --micro-pairs {min(pairs, 4)} --blocks 1 --steps 2"
    done = subprocess.run(
        [sys.executable, "-m", "bench.trainer", *words.split(), *more], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        raise SystemExit(done.returncode)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    print("| pairs | max length | tokens a step | ours, s | TRL, s | ratio | ours, GB | TRL, GB | ratio |")
    print("|---|---|---|---|---|---|---|---|---|")
    for pairs, max_length in POINTS:
        found = measure(pairs, max_length, sys.argv[1:])
        ours, trl = (pairs / found[f"{name}_pairs_per_s"] for name in ("ours", "trl"))
        print(
            f"| {pairs} | {max_length} | {found['ours_tokens_per_s'] * ours:.0f} | {ours:.1f} | {trl:.1f} | "
            f"{found['speed_ratio']:.2f} | {found['ours_peak_gb']:.1f} | {found['trl_peak_gb']:.1f} | "
            f"{found['memory_ratio']:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
