"""`compare runs=...`: run folders side by side, as a page, tables and pictures in a folder of their own."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jinja2

from src.experiment.selection import folders, not_begun, swept
from src.kernel.config import UserError, meant
from src.kernel.disk import check_place, remove, remove_temporaries, write_atomic
from src.kernel.processes import legible
from src.reporting.compare import tables
from src.reporting.compare.plots import Section, draw
from src.reporting.compare.points import Comparison, Point, compare_folders, short, symbol
from src.reporting.compare.read import USUAL, Table
from src.reporting.compare.significance import ITERATION, Difference, benchmark_differences, win_rate_differences
from src.reporting.tables import literal, terminal

WORDS = ("runs", "out", "title")
FILES, PLOTS = ("compare.csv", "index.html", "compare.md"), "plots"


def compare(words: Sequence[str]) -> int:
    """Write the comparison that the words ask for and print its results; return the exit code.

    Raises UserError for words that it does not know, for runs of which none can be compared, and where it cannot write.
    """
    options = dict[str, str]()
    for word in words:
        key, _, value = word.partition("=")
        if key not in WORDS or not value:
            hint = "" if key in WORDS else meant(key, WORDS)
            raise UserError(f"{word}: {hint}compare takes {'=…, '.join(WORDS)}=…, each with a value")
        if key in options:
            raise UserError(f"{key}: said twice; several run folders are joined by commas")
        options[key] = value
    if "runs" not in options:
        raise UserError("runs: missing; give run folders (runs=runs/*) or the name of a sweep (runs=eta)")
    runs = options["runs"]
    chosen = folders(runs)
    names = sorted(folder.resolve().name for folder in chosen)
    name = swept(runs) or hashlib.sha256("\n".join(names).encode(errors="surrogateescape")).hexdigest()[:8]
    title = legible(options.get("title", f"{name}: {len(chosen)} runs compared"))
    out = Path(options.get("out", chosen[0].parent / f"compare-{name}"))
    check_place("out", out)
    if others := {path.name for path in out.glob("[!.]*")} - {*FILES, PLOTS}:
        raise UserError(f"out: {out} holds {min(others)}, which is of no comparison; choose another folder")
    comparison = compare_folders(chosen, title, not_begun(runs))
    win_rates, plots = win_rate_differences(comparison), draw(comparison)
    texts = render(comparison, win_rates, benchmark_differences(comparison), plots)
    files = {out / file: text.encode() for file, text in texts.items()}
    files |= {out / PLOTS / f"{each.name}.png": each.png for section in plots for each in section.pictures}
    (out / PLOTS).mkdir(parents=True, exist_ok=True)
    remove_temporaries(out)
    last = out / "compare.md"
    made = re.findall(r"\(plots/([\w.-]+\.png)\)", last.read_text(errors="replace")) if last.exists() else []
    for path in {out / PLOTS / name for name in made} - files.keys():  # of the last comparison
        remove(path)
    for path, data in files.items():
        write_atomic(path, data)
    results = tables.results(comparison).drop(columns="state", errors="ignore")
    benchmarks = tables.benchmarks(comparison)
    shown = {title: results} | ({"Benchmarks": benchmarks} if len(benchmarks) else {})
    lines = [*(terminal(*each) for each in shown.items()), *headline(comparison, win_rates), *cautions(comparison)]
    print("\n".join([*lines, *(f"wrote: {out / name}" for name in (*texts, PLOTS))]))
    return 0


class Part(NamedTuple):
    """A section of the page and of compare.md; index.html.jinja has what is said of each."""

    title: str
    table: Table
    note: str = ""
    best: int | None = None
    """The row of the table that is set in bold."""

    @property
    def anchor(self) -> str:
        return self.title.lower().replace(" ", "-").rstrip("?")


def render(
    comparison: Comparison, win_rates: Sequence[Difference], benchmarks: Sequence[Difference], plots: Sequence[Section]
) -> dict[str, str]:
    """Return each file's text by its name. In the page and in compare.md all text that comes from runs is escaped."""
    bound = comparison.varied.bound.items()
    together = [f"{key} varies only together with {comparison.names[axis]}" for key, axis in bound]
    note = " ".join(f"{sentence}: their effects cannot be separated." for sentence in together)
    row = None
    if comparison.measurements and not comparison.seeded:
        point, t = best(comparison.measurements[0])
        measured = [(each.point, each.step.iteration if each.step else 0) for each in comparison.rows]
        row = measured.index((point, t))
    results = [
        Part("Results", tables.results(comparison), note, row),
        Part("Over seeds", tables.over_seeds(comparison)),
    ]
    rest = [
        Part("Do neighbours differ?", tables.differences(win_rates)),
        Part("Benchmarks", tables.benchmarks(comparison)),
        Part("Do neighbours differ on benchmarks?", tables.differences(benchmarks)),
        Part("Costs", *tables.costs(comparison)),
    ]
    context = {
        "title": comparison.title,
        "headline": headline(comparison, win_rates),
        "cautions": cautions(comparison),
        "results": [part for part in results if len(part.table)],
        "rest": [part for part in rest if len(part.table)],
        "plots": plots,
        "runs": comparison.runs,
        "confidence": " or ".join(f"{value:.0%}" for value in sorted({run.confidence for run in comparison.runs})),
    }
    texts = {FILES[0]: tables.as_csv(comparison)}
    for name in FILES[1:]:
        options = {"undefined": jinja2.StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
        options["autoescape"] = name == "index.html"  # Markdown is escaped by `literal`
        environment = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), **options)
        environment.filters |= {"literal": literal, "markdown": tables.as_markdown, "text_columns": tables.text_columns}
        texts[name] = environment.get_template(f"{name}.jinja").render(context)
    return {name: legible(text) for name, text in texts.items()}


# Sentences -----------------------------------------------------------------------------------------------------------


def best(points: Sequence[Point]) -> tuple[Point, int]:
    """Return the point and iteration with the highest win rate; of equal ones the first."""
    point = max(points, key=lambda point: point.best[0])
    return point, point.best[1]


def headline(comparison: Comparison, differences: Sequence[Difference]) -> list[str]:
    """Write a sentence or two for each set of points that can be compared; the first is the most numerous."""
    groups, sentences = comparison.measurements, list[str]()
    if len(groups) > 1:
        sentences.append(f"The runs are measured in {len(groups)} ways, whose win rates cannot be compared.")
    for points in groups:
        point, t = best(points)
        win = point.win(t)
        assert win
        verdict = "beats" if win.low > 0.5 else "does not beat"
        among = f" of {len(points)} comparable points" if len(groups) > 1 else ""
        name = comparison.name(point) if point.values else "the run"
        sentence = f"Best{among}: {name}, iteration {t}, {verdict} the base: win rate {win.mean:.3f} "
        judge, other = point.runs[0].judges
        sentence += f"[{win.low:.3f}, {win.high:.3f}] over {win.number} {win.over}" + (
            f", by {judge}." if judge else "."
        )
        if second := point.win(t, second=True):
            sentence += f" By {other}, the second judge: {second.mean:.3f} [{second.low:.3f}, {second.high:.3f}]."
        kind = "seeds" if len(point.runs) > 1 else "prompts"
        neighbours = [each for each in differences if each.over == kind and each.pair.key != ITERATION and each.paired]
        steps = {each.pair.step: each.differs for each in neighbours if each.pair.has(point, t)}
        if steps:
            differs = [step for step, different in steps.items() if different]
            sentence += f" It differs from {len(differs) or 'none'} of its {len(steps)} neighbours"
            sentence += f" ({', '.join(differs)})" if differs else ""
            sentence += f" at the 5% level, paired by {kind[:-1]} and corrected for all comparisons by {kind[:-1]}."
        sentences.append(sentence)
    return sentences


def cautions(comparison: Comparison) -> list[str]:
    """Write what a reader must know before believing a number, and what all runs have in common."""
    runs, points = comparison.runs, len(comparison.points)
    rehearsed = sum(run.rehearsed for run in runs)
    waiting = sum(run.state != "finished" for run in runs)
    measured = [step.numbers for run in runs for step in run.steps]
    nulls = {(each["null_win_low"], each["null_win_high"]) for each in measured if "null_win_low" in each}
    missed = sum(not low <= 0.5 <= high for low, high in nulls)
    seconds = {str(step.second.measurement) for run in runs for step in run.steps if step.second}
    usual = [(USUAL[key], value) for key, value in comparison.varied.same.items() if key in tables.ALWAYS]
    same = ", ".join(f"{symbol(name)} {short(value)}" for name, value in usual) or "nothing that is usual"
    sentences = {
        f"The best of {points} points is partly luck: expect it to be lower with other seeds.": points > 1,
        "One seed a point: policies are compared, not settings; seed=0,1,2 would tell settings apart.": points > 1
        and not comparison.seeded,
        "Tests by prompt or item compare two policies and say nothing of another seed.": comparison.seeded,
        f"{missed} of {len(nulls)} nulls (the base against itself) do not contain 0.5 in their interval.": missed,
        "The second judge, or what it saw, differs between runs: its win rates cannot be compared.": len(seconds) > 1,
        f"{rehearsed} of {len(runs)} runs are rehearsals with random weights: their numbers mean nothing.": rehearsed,
        f"{waiting} of {len(runs)} runs are unfinished: what they have is shown.": waiting,
        **dict.fromkeys(comparison.missing, True),
        f"{len(runs)} runs, {points} points. The same in all: {same}.": True,
    }
    return [sentence for sentence, holds in sentences.items() if holds]
