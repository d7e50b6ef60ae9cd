"""`score`: the numbers of a benchmark from what judges or lm-eval have already said, without a policy and offline."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from src.evaluation.benchmark import Measure, Numbers, Scoring
from src.experiment.plan import console
from src.experiment.point import Point
from src.kernel.config import UserError
from src.kernel.disk import write_atomic
from src.kernel.rows import as_json
from src.reporting.tables import number

GIVEN = ("from", "out")
"""Words of this verb; the others are the config's."""
CONFIDENCE, MIRROR = "held_out.confidence", "mirror"
"""Keys outside a benchmark that numbers go by; the second one stands before hub ids."""


def split_words(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """Part the words into the values of `from=` and `out=`, and the others. Raises UserError without `from=`."""
    given = dict(word.split("=", 1) for word in words if word.partition("=")[0] in GIVEN and "=" in word)
    if not given.get("from"):
        raise UserError(
            "from: say what to score: score benchmark=alpaca_eval from=annotations.json; several are joined by commas"
        )
    return given, [word for word in words if word.partition("=")[0] not in GIVEN]


def score(points: Sequence[Point], given: dict[str, str]) -> int:
    """Print the numbers of the chosen benchmark, and write them as JSON where `out=` says so; returns the exit code.

    Raises UserError for a word that sets what does not bear on the numbers.
    """
    if len(points) > 1:
        raise UserError("score: takes no sweep; leave out -m")
    run, words = points[0].run, points[0].overrides
    if len(run.benchmark) != 1:
        raise UserError("benchmark: score takes one, such as benchmark=mt_bench")
    ((name, benchmark),) = run.benchmark.items()
    if not isinstance(benchmark, Scoring):
        raise UserError(f"benchmark: {name} is measured on policies only, there are no files of it to score")
    _refuse_unread(words, name, benchmark.scored_by)
    paths = [Path(path) for path in given["from"].split(",")]
    for path in paths:
        if path.is_dir():
            raise UserError(f"from: {path}: is a folder; give the files that are meant, with commas between them")
        if not path.is_file():
            raise UserError(f"from: {path}: no such file")
    out = Path(given["out"]) if given.get("out") else None
    if out and not out.parent.is_dir():
        raise UserError(f"out: no folder {out.parent}")
    found = benchmark.score_files(name, paths, run.held_out.confidence)
    for label, numbers in found.items():
        _print(label, numbers, benchmark.measures)
    if out:
        write_atomic(out, (as_json(found)).encode())
        print(f"written: {out}")
    return 0


def _refuse_unread(words: Sequence[str], name: str, own: Sequence[str]) -> None:
    """Whoever sets a key expects other numbers."""
    read = [f"benchmark.{name}.{key}" for key in own] + [CONFIDENCE] + [MIRROR] * ("repo" in own)
    for key in (word.partition("=")[0].lstrip("+~") for word in words):
        choice = re.fullmatch(rf"benchmark|(benchmark@)?benchmark\.{re.escape(name)}", key)
        if not choice and not any(key == one or key.startswith(f"{one}.") for one in read):
            raise UserError(f"{key}: score does not go by it; it reads {', '.join(read)}")


def _print(label: str, numbers: Numbers, measures: Sequence[Measure]) -> None:
    """Main measures first, under their titles; then all others under their keys."""
    from rich.table import Table

    titled = {measure.key: measure for measure in measures}
    ends = {f"{key}_{end}" for key in numbers for end in ("low", "high")}
    keys = [*(key for key in titled if key in numbers), *(key for key in numbers if key not in {*titled, *ends})]
    table = Table("measure", title=label, title_justify="left")
    table.add_column("value", justify="right")
    table.add_column("interval", justify="right")
    for key in keys:
        digits = titled[key].digits if key in titled else 4
        interval = [number(numbers.get(f"{key}_{end}"), digits) for end in ("low", "high")]
        spread = f"[{interval[0]}, {interval[1]}]" if f"{key}_low" in numbers else ""
        table.add_row(titled[key].title if key in titled else key, _shown(numbers[key], digits), spread)
    console().print(table)


def _shown(value: float | None, digits: int) -> str:
    return str(value) if isinstance(value, int) else number(value, digits)
