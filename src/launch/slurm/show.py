"""What is shown of jobs: the arrays of a plan, and how far each stage of each point is."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from src.experiment.plan import console
from src.experiment.point import Point
from src.experiment.run_folder import is_reported
from src.experiment.sweep import Sweep
from src.launch.slurm import client
from src.launch.slurm.ledger import Alive, Ledger, Made, Submission, alone
from src.launch.slurm.script import Jobs
from src.launch.slurm.site import Resources, Shape, shape
from src.launch.slurm.submit import REST, Plan

LOOK_S = 5.0
WIDEST = 8
"""Points that have a column each; of more the states are counted."""
LISTED = 20
WAITING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT")
"""States of jobs that do not run."""
STATES = ("done", "running", "queued", "failed", "cancelled", "left")
CANCELLED = "cancelled"
"""In the ledger: no job, but the end of what one was to submit."""
_Element = tuple[str, int]
"""Token and index."""


def print_arrays(planned: Plan, jobs: Jobs) -> None:
    table = Table(title="job arrays", title_justify="left")
    for heading in ("array", "jobs", "waits for", "of each job"):
        table.add_column(heading, justify="right" if heading == "jobs" else "left")
    for array in planned.arrays:
        waits = [f"all of {other.name}" if index is None else f"{other.name}[{index}]" for other, index in array.named]
        waits += [f"{other.name}, one to one" for other in array.matched] + [f"job {job}" for job in array.running]
        shown = ", ".join(waits[:3]) + (f" and {len(waits) - 3} more" if len(waits) > 3 else "")
        run = planned.sweep.points[next(iter(array.elements.values())).task.point].run
        resources = jobs.resources[array.job]
        needs = shape(array.job, run, resources)
        where = resources.partition or jobs.site.partition
        table.add_row(
            array.name, str(len(array.elements)), shown, _wants(needs, resources) + f", {where}" * bool(where)
        )
    console().print(table)
    total = sum(len(array.elements) for array in planned.arrays)
    later = "; more than the queue takes, a job submits the rest" * (total > planned.room)
    print(f"{len(planned.arrays)} arrays, {total} jobs{later}")


def _wants(needs: Shape, resources: Resources) -> str:
    one = [f"{needs.gpus} GPU{'s' * (needs.gpus > 1)}"] * bool(needs.gpus) + [
        f"{needs.cpus} core{'s' * (needs.cpus > 1)}"
    ]
    one += [f"{resources.memory_gb} GB"] * bool(resources.memory_gb)
    return (f"{needs.nodes} nodes of " if needs.nodes > 1 else "") + ", ".join([*one, f"{resources.minutes} min"])


@dataclass(frozen=True)
class Cell:
    """A stage of a point."""

    state: str
    made: Made | None = None
    """The job that failed."""


def cells(sweep: Sweep, ledger: Ledger, queued: Sequence[client.Queued]) -> dict[str, dict[int, Cell]]:
    """Stage -> point -> how far it is."""
    alive, makers = Alive(queued, ledger.cancelled), ledger.makers()
    found: dict[str, dict[int, Cell]] = {}
    for number, (point, nodes) in enumerate(zip(sweep.points, sweep.nodes, strict=True)):
        wanted: dict[str, list[str]] = {}
        for node in nodes:
            scope = node.name.partition("/")[0] if node.job != "setup" else "start"
            keys = wanted.setdefault(f"{scope} {node.job}", [])
            if not sweep.store.has(node):
                keys.append(node.key)
        finished = not any(wanted.values()) and is_reported(point)
        wanted["report"] = [] if finished else [sweep.reports[number]]
        for stage, keys in wanted.items():
            parts = [ledger.split(makers.get(key, []), alive) for key in keys]
            found.setdefault(stage, {})[number] = _cell(parts, ledger.cancelled)
    return found


def state_of(sweep: Sweep) -> str:
    """Of all stages of all points together: the first of these that any is."""
    found = {
        c.state for row in cells(sweep, Ledger.of(sweep.store.root), client.queue()).values() for c in row.values()
    }
    order = ("failed", "cancelled", "running", "queued", "left", "done")
    return next(state for state in order if state in found)


def _cell(parts: list[tuple[list[client.Queued], list[Made]]], cancelled: Set[str]) -> Cell:
    """Of what is missing: who makes it, and who died of it."""
    if not parts:
        return Cell("done")
    jobs = [one for living, _ in parts for one in living]
    dead = [made for _, died in parts for made in died if made.submission.job is not None]
    if begun := [made for made in dead if made.job not in cancelled and made.log.exists()]:
        return Cell("failed", begun[-1])
    if dead:
        return Cell("cancelled", dead[-1])
    if not jobs:
        return Cell("left")
    return Cell("queued" if all(one.state in WAITING for one in jobs) else "running")


def print_status(sweep: Sweep) -> int:
    """Until nothing runs and nothing is queued, where somebody looks; else once. The exit code is 1 after failures."""
    shown = console()
    found = cells(sweep, Ledger.of(sweep.store.root), client.queue())
    if shown.is_terminal:
        with Live(_picture(found, sweep.points), console=shown) as live:
            while any(cell.state in ("running", "queued") for row in found.values() for cell in row.values()):
                time.sleep(LOOK_S)
                found = cells(sweep, Ledger.of(sweep.store.root), client.queue())
                live.update(_picture(found, sweep.points))
    else:
        shown.print(_picture(found, sweep.points))
    return int(any(cell.state in ("failed", "cancelled") for row in found.values() for cell in row.values()))


def _picture(found: dict[str, dict[int, Cell]], points: Sequence[Point]) -> RenderableType:
    names = labels(points)
    few = len(points) <= WIDEST
    table = Table()
    table.add_column("stage")
    for heading in names if few else STATES:
        table.add_column(Text(heading))
    for stage, row in found.items():
        counts = Counter(cell.state for cell in row.values())
        table.add_row(stage, *([row[n].state for n in range(len(points))] if few else [str(counts[s]) for s in STATES]))
    return Group(table, *_failures(found, names))


def _failures(found: dict[str, dict[int, Cell]], names: list[str]) -> list[Text]:
    """The last line of the log of each job that failed, the first of them in full."""
    by_job: dict[str, tuple[str, list[str], Path]] = {}
    for stage, row in found.items():
        for number, cell in row.items():
            if cell.state == "failed" and cell.made:
                by_job.setdefault(cell.made.job, (stage, [], cell.made.log))[1].append(names[number])
    lines = [
        Text(f"{stage}, {', '.join(hit[:3])}{' …' * (len(hit) > 3)}: job {job}: {last_line(log)} ({log})")
        for job, (stage, hit, log) in list(by_job.items())[:LISTED]
    ]
    more = [Text(f"and {len(by_job) - LISTED} more")] if len(by_job) > LISTED else []
    again = [Text("`retry` with the same words submits what failed, and what waited for it")] if by_job else []
    return lines + more + again


def last_line(log: Path) -> str:
    """What a job said last; a progress bar's last state is a line."""
    text = log.read_bytes()[-4096:].decode(errors="replace").replace("\r", "\n")
    return next((line.strip() for line in reversed(text.split("\n")) if line.strip()), "it said nothing")


def labels(points: Sequence[Point]) -> list[str]:
    """What tells each point from the others: its overrides that not all have."""
    shared = set.intersection(*(set(point.overrides) for point in points))
    return [" ".join(word for word in point.overrides if word not in shared) or point.folder.name for point in points]


def cancel(sweep: Sweep) -> int:
    """End the jobs of what is missing, but for those that jobs of other points or sweeps wait for."""
    with alone(sweep.store.root):  # nobody begins to wait for them
        ledger = Ledger.of(sweep.store.root)
        ledger.adopt(queued := client.queue())
        alive = Alive(queued, ledger.cancelled)
        own, rests = _own(sweep, ledger, alive)
        kept = _waited_for(ledger, own.keys(), rests, alive)
        ended = sorted(job for element, job in own.items() if element not in kept)
        if ended:
            client.slurm("scancel", *ended)
            ledger.cancel(ended)
        for token, keys in rests.items():  # it will not submit these
            folder = Path(ledger.submissions[token].folder)
            ledger.submitted(ledger.intend(CANCELLED, {0: keys}, folder, ""), "0")
    if not own and not rests:
        print("none of it is queued or running")
        return 0
    told = f"; {len(own) - len(ended)} go on, for others wait for them" * (len(own) > len(ended))
    print(f"{len(ended)} jobs cancelled{told}")
    return 0


def _own(sweep: Sweep, ledger: Ledger, alive: Alive) -> tuple[dict[_Element, str], dict[str, list[str]]]:
    """Jobs of nobody but the sweep; and what jobs that submit the rest of others too would submit of it."""
    folders = {str(point.folder) for point in sweep.points}
    makers, keys = ledger.makers(), folders.union(sweep.reports, *({n.key for n in nodes} for nodes in sweep.nodes))
    jobs: dict[_Element, str] = {}
    rests: dict[str, list[str]] = {}
    for key in keys:
        for made in makers.get(key, []):
            told, job = made.submission, made.alive(alive)
            if job and told.name == REST and not keys.issuperset(told.elements[0]):
                rests.setdefault(told.token, []).append(key)
            elif job:
                jobs[told.token, made.index] = job.job
    return jobs, rests


def _waited_for(ledger: Ledger, own: Set[_Element], rests: Mapping[str, Sequence[str]], alive: Alive) -> set[_Element]:
    """What jobs that are not `own` wait for to succeed, or will in `rests` but for these keys; and those in turn."""
    by_job = {told.job: told for told in ledger.submissions.values() if told.job}
    found = {
        (told.token, index)
        for told in by_job.values()
        for index in told.elements
        if alive.find(told, index) and (told.token, index) not in own
    }
    for token, keys in rests.items():
        needs = ledger.submissions[token].needs
        jobs = {job for key, waited in needs.items() if key not in keys for job in waited}
        found.update(one for job in jobs for one in _elements(job, by_job))
    left, whole = list(found), set[tuple[str, str]]()
    while left:
        token, index = left.pop()
        for clause in ledger.submissions[token].after.split(","):
            kind, *jobs = clause.split(":")
            if kind == "aftercorr":
                waited = {(by_job[job].token, index) for job in jobs if job in by_job}
            elif kind == "afterok" and (token, clause) not in whole:
                whole.add((token, clause))
                waited = {one for job in jobs for one in _elements(job, by_job)}
            else:
                continue
            left += waited - found
            found |= waited
    return found


def _elements(job: str, by_job: Mapping[str, Submission]) -> list[_Element]:
    """Of 77, all; of 77_3, that one."""
    number, _, index = job.partition("_")
    told = by_job.get(number)
    return [(told.token, one) for one in told.elements if not index or one == int(index)] if told else []
