"""`score`: the numbers of a benchmark from what judges or lm-eval have written, without a policy and offline."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from pydantic import TypeAdapter

from src.evaluation.benchmark import Measure, Numbers, Scoring
from src.evaluation.results import departs, headed
from src.experiment.point import Point
from src.kernel.config import UserError
from src.kernel.disk import check_place, write_atomic
from src.kernel.rows import as_json
from src.reporting.tables import Column, table_of, terminal

FILES = ("from", "out")
"""Words of this verb, which name files; the others are the config's."""


def split_words(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """Part the words into the values of `from=` and `out=`, and the others. Raises UserError without `from=`."""
    named = [word.split("=", 1) for word in words if word.partition("=")[0] in FILES and "=" in word]
    files = dict(named)
    if len(named) > len(files):
        raise UserError("from, out: said twice; several files are joined by commas: from=a.json,b.json")
    if not files.get("from"):
        example = "score benchmark=alpaca_eval from=annotations.json"
        raise UserError(f"from: say what to score: {example}; several are joined by commas")
    return files, [word for word in words if word.partition("=")[0] not in FILES]


def score(points: Sequence[Point], files: dict[str, str]) -> int:
    """Print the numbers of the chosen benchmark, and write them as JSON to `out=`; return the exit code.

    Files that `out=` has written are shown side by side.
    """
    if len(points) > 1:
        raise UserError("score: takes no sweep; leave out -m")
    run = points[0].run
    if len(run.benchmark) != 1:
        raise UserError("benchmark: score takes one, such as benchmark=mt_bench")
    ((name, benchmark),) = run.benchmark.items()
    if not isinstance(benchmark, Scoring):
        raise UserError(f"benchmark: {name} is measured on policies only, there are no files of it to score")
    paths = [Path(path) for path in files["from"].split(",")]
    for path in paths:
        if not os.path.isfile(path):
            raise UserError(f"from: no file {path}; several are joined by commas")
    out = Path(files.get("out", "-"))
    check_place("out", out.parent)
    if os.path.lexists(out) and not os.path.isfile(out):  # a device would be replaced
        raise UserError(f"out: {out} is there and no file; name another")
    written = {path: _written(path) for path in paths}
    shown = {f"{path}: {title}": numbers for path, one in written.items() for title, numbers in one.items()}
    if not all(written.values()):
        scores = benchmark.score_files(name, paths, run.held_out.confidence)
        reasons = [(departs(benchmark, one.numbers, asked=False), one.departs) for one in scores]
        titles = [headed(one.label, ", ".join(filter(None, why))) for one, why in zip(scores, reasons, strict=True)]
        shown = dict(zip(titles, (one.numbers for one in scores), strict=True))
    if not shown:
        raise UserError(f"from: {files['from']}: there is nothing to score; name a file with rows")
    print("\n".join(f"{number}: {title}" for number, title in enumerate(shown, 1)))
    print(_table([*shown.values()], benchmark.measures))
    if files.get("out"):
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(out, as_json(shown).encode())
        print(f"written: {out}")
    return 0


def _written(path: Path) -> dict[str, Numbers]:
    """Read what `out=` has written; nothing of any other file."""
    try:
        return TypeAdapter(dict[str, Numbers]).validate_json(path.read_bytes())
    except ValueError:
        return {}


def _table(scores: Sequence[Numbers], measures: Sequence[Measure]) -> str:
    """Return a column a model: measures of published tables under their titles, then all others by their keys."""
    present = {key: value for numbers in reversed(scores) for key, value in numbers.items()}
    columns = [Column(one.title, one.key, one.digits) for one in measures if one.key in present]
    others = [key for key in present if key not in {one.key for one in columns} and not key.endswith(("_low", "_high"))]
    columns += [Column(key, key, 0 if isinstance(present[key], int) else 4) for key in others]
    return terminal("", table_of(pd.DataFrame(scores, [f"{number}" for number in range(1, len(scores) + 1)]), columns))
