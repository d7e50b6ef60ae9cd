"""index.html: one file with everything in it. All text that comes from runs is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib.resources import files
from string import Template

from src.reporting.compare import tables
from src.reporting.compare.benchmarks import NOTE, contrasts, contrasts_table, results_table
from src.reporting.compare.costs import Cost, Shared
from src.reporting.compare.gather import Damaged, Folder
from src.reporting.compare.headline import NOTHING, LeftOut, headline, warnings
from src.reporting.compare.palette import variables
from src.reporting.compare.plots import Section
from src.reporting.compare.points import Comparison
from src.reporting.compare.significance import Difference
from src.reporting.compare.svg import Picture
from src.reporting.compare.tables import Cell, Table
from src.reporting.compare.varied import COPY, short_names, shown, sign

TEXT = {"run", "benchmark", "measure", "device", "from → to", "where", "verdict", "state", "artifact", "kind", "key",
        "made from", "commit", "reason"}  # fmt: skip
"""Columns of words, which begin at the left."""
UNREAD = "Could not be read"


def write_page(
    found: Comparison,
    differences: Sequence[Difference],
    costs: Sequence[Cost],
    shared: Sequence[Shared],
    plots: Sequence[Section],
    left_out: LeftOut = NOTHING,
) -> str:
    sections = [
        ("Results", _results(found)),
        *([(UNREAD, _table(unread(left_out.damaged), UNREAD))] if left_out.damaged else []),
        *([("Over seeds", _over_seeds(found))] if found.seeded else []),
        ("Plots", "".join(_plots(section) for section in plots)),
        ("Do neighbours differ?", _significance(differences)),
        *([("Benchmarks", _benchmarks(found))] if any(run.benchmarks for run in found.runs) else []),
        ("Costs", _costs(found, costs)),
        ("What was shared", _shared(shared)),
        ("Runs", "".join(_run(run) for run in found.runs)),
        ("How the numbers were made", how(found)),
    ]
    contents = "".join(f'<li><a href="#{_anchor(title)}">{escape(title)}</a></li>' for title, _ in sections)
    body = "".join(
        f'<section aria-labelledby="{_anchor(title)}"><h2 id="{_anchor(title)}">{escape(title)}</h2>{text}</section>\n'
        for title, text in sections
    )
    template = Template(files("src.reporting.compare").joinpath("page.html").read_text())
    return template.substitute(
        title=escape(found.title),
        light=variables(dark=False),
        dark=variables(dark=True),
        headline=_headline(found, differences, left_out),
        contents=contents,
        sections=body,
    )


def _anchor(title: str) -> str:
    return "".join(letter for letter in title.lower().replace(" ", "-") if letter.isalpha() or letter == "-")


def _headline(found: Comparison, differences: Sequence[Difference], left_out: LeftOut) -> str:
    lead = "".join(f'<p class="lead">{escape(line)}</p>' for line in headline(found, differences))
    return lead + "".join(f'<p class="quiet">{escape(line)}</p>' for line in cautions(found, left_out))


def cautions(found: Comparison, left_out: LeftOut) -> list[str]:
    """What a reader must know, and what the numbers are of."""
    count = len(left_out.damaged)
    are = "is" if count == 1 else "are"
    unread = f"{count} of {len(found.runs) + count} runs could not be read and {are} left out."
    return [*warnings(found), *left_out.not_begun, *[unread] * bool(count), facts(found)]


def unread(damaged: Sequence[Damaged]) -> Table:
    return Table(["run", "reason"], [[Cell(run.name), Cell(run.reason)] for run in damaged], [0] * len(damaged))


def facts(found: Comparison) -> str:
    """What all runs have in common, of the settings that are usual to name."""
    names = short_names(list(found.varied.same))
    usual = [key for key in tables.ALWAYS if key in found.varied.same]
    same = ", ".join(f"{sign(names[key])} {shown(found.varied.same[key])}" for key in usual)
    return f"{len(found.runs)} runs, {len(found.points)} points. The same in all: {same or 'nothing that is usual'}."


def _table(table: Table, name: str, best: int | None = None, sortable: bool = True) -> str:
    heads = "".join(f'<th scope="col"{_side(head)}>{escape(head)}</th>' for head in table.headings)
    rows = "".join(
        _row(table, row, point, best == i) for i, (row, point) in enumerate(zip(table.rows, table.points, strict=True))
    )
    kind = ' class="sortable"' if sortable else ""
    return (
        f'<div class="box" tabindex="0" role="region" aria-label="{escape(name)}"><table{kind}>'
        f"<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _row(table: Table, row: list[Cell], point: int, best: bool) -> str:
    marked = (f' data-point="{point}"' if point else "") + (' class="best"' if best else "")
    cells = "".join(
        _cell(cell, head, "th" if i == 0 else "td")
        for i, (cell, head) in enumerate(zip(row, table.headings, strict=True))
    )
    return f"<tr{marked}>{cells}</tr>\n"


def _cell(cell: Cell, head: str, tag: str) -> str:
    scope = ' scope="row"' if tag == "th" else ""
    sort = "" if cell.sort is None else f' data-sort="{escape(str(cell.sort))}"'
    return f"<{tag}{scope}{_side(head)}{sort}>{escape(cell.text)}</{tag}>"


def _side(head: str) -> str:
    return ' class="word"' if head in TEXT else ""


def _results(found: Comparison) -> str:
    point, t = found.best(found.yardsticks[0]) if found.yardsticks else (None, 0)
    rows = [i for i, row in enumerate(found.rows) if row.point is point and row.iteration == t and not found.seeded]
    note = "A row a run and iteration; ± is half the interval over held-out prompts."
    point_at = ' <span class="pointed">Point at a row to see it drawn.</span>'
    bound = "".join(
        f" {escape(key)} varies only together with {escape(found.names[axis])}: what each does cannot be told."
        for key, axis in found.varied.bound.items()
    )
    copies = " Runs of equal settings are told apart by “copy”." if COPY in found.varied.axes else ""
    return f'<p class="quiet">{note}{point_at}{bound}{copies}</p>' + _table(
        tables.results(found), "Results", rows[0] if rows else None
    )


def _over_seeds(found: Comparison) -> str:
    note = "Mean over the seeds of a point; ± is half the interval over seeds, which has the luck of a whole run in it."
    return f'<p class="quiet">{note}</p>' + _table(tables.over_seeds(found), "Means over seeds")


def _plots(section: Section) -> str:
    figures = "".join(map(_figure, section.pictures))
    return (
        f'<h3>{escape(section.title)}</h3><p class="quiet">{escape(section.note)}</p><div class="plots">{figures}</div>'
    )


def _figure(picture: Picture) -> str:
    scrolled = (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(picture.caption)}">{picture.svg}</div>'
        if picture.wide
        else picture.svg
    )
    wide = ' class="wide"' if picture.wide else ""
    return f"<figure{wide}>{scrolled}<figcaption>{escape(picture.caption)}</figcaption></figure>"


def _significance(differences: Sequence[Difference]) -> str:
    if not differences:
        return '<p class="quiet">No two points differ in one key alone, and none has two iterations.</p>'
    tested = [sum(d.paired is not None for d in differences if d.over == over) for over in ("prompts", "seeds")]
    seeds = f" {tested[1]} more are paired by seed: each pair of runs is one observation." if tested[1] else ""
    note = (
        f"Neighbours differ in one key alone, by values next to each other. {tested[0]} are paired by prompt: the same "
        f"held-out prompt answered by both.{seeds} p is of Student's t test, or of the sign test where all "
        "differences are the same, corrected after Holm for all tests of its kind in this table; below 0.05 it "
        "is said to differ. A test by prompt says nothing of another seed."
    )
    return f'<p class="quiet">{escape(note)}</p>' + _table(
        tables.significance(differences), "Differences of neighbours"
    )


def _benchmarks(found: Comparison) -> str:
    tested = contrasts(found)
    below = _table(contrasts_table(tested), "Differences on benchmarks") if tested else ""
    return _table(results_table(found), "Benchmarks") + f'<p class="quiet">{escape(NOTE)}</p>' * bool(tested) + below


def _costs(found: Comparison, costs: Sequence[Cost]) -> str:
    note = (
        "Hours of one device: the seconds in the artifacts' records times the devices they were made on. Own: what "
        "no other run here uses. Part: what is shared, divided by the runs that use it. Alone: had it shared nothing."
    )
    return (
        f"<p>{escape(tables.cost_sentence(found, costs))}</p>"
        f'<p class="quiet">{escape(note)}</p>{_table(tables.cost(found, costs), "Costs")}'
    )


def _shared(rows: Sequence[Shared]) -> str:
    if not rows:
        return '<p class="quiet">Nothing: no artifact is used by two of these runs.</p>'
    return f'<p class="quiet">Hours of one device.</p>{_table(tables.shared(rows), "Shared artifacts")}'


def _run(run: Folder) -> str:
    """The command that makes it again, and which artifact was made from which."""
    names = {f"{artifact.kind}/{artifact.key}": artifact.name for artifact in reversed(run.artifacts.values())}
    rows = []
    for artifact in run.artifacts.values():
        parents = [f"{parent['kind']}/{parent['key']}" for parent in artifact.record.get("inputs", [])]
        made_from = ", ".join(dict.fromkeys(names.get(parent, parent) for parent in parents)) or "–"
        seconds = artifact.record.get("seconds")
        commit = str(artifact.record.get("commit", "–"))
        rows.append([Cell(artifact.name), Cell(f"{artifact.kind}/{artifact.key}"), Cell(made_from),
                     tables.number(seconds, 1), Cell(commit[:9] + "+dirty" * commit.endswith("+dirty"))])  # fmt: skip
    table = Table(["artifact", "key", "made from", "seconds", "commit"], rows, [0] * len(rows))
    return (
        f"<details><summary>{escape(run.name)} <small>{escape(run.state)}</small></summary>"
        f"<p><code>{escape(run.command or 'no command.txt')}</code></p>"
        f"{_table(table, f'Artifacts of {run.name}', sortable=False)}</details>\n"
    )


def how(found: Comparison) -> str:
    confidence = " or ".join(f"{value:.0%}" for value in sorted({run.confidence for run in found.runs}))
    lines = [
        "The win rate of a policy is its mean win probability over the base (the start policy) on held-out prompts, "
        f"under the run's own ranker and estimator, with its {confidence} Student-t interval over prompts.",
        "Win rates are compared only where held-out prompts, base policy, sampling of the answers, ranker and "
        "estimator are the same, by keys and records of the artifacts. Another seed draws other answers of that base.",
        "The KL is measured at every token of the policy's own answers, in nats a token. Finished: the share of "
        "answers that end by themselves. Null: the base against itself, other seeds; its interval should contain 0.5.",
        "η is 1/β for methods that have a β.",
        "Everything is read from the run folders and the records of their artifacts; nothing is computed by a model.",
        "compare.csv has every number in full precision, compare.md the tables, plots/ the pictures at 200 dpi.",
    ]
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"
