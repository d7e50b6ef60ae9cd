"""What is shown of jobs: the arrays of a plan, and how far each stage of each point is; and their end by `cancel`."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Column, Table
from rich.text import Text

from src.experiment.plan import console
from src.experiment.point import Point
from src.experiment.run_folder import is_reported
from src.experiment.sweep import Sweep
from src.launch.slurm import client
from src.launch.slurm.ledger import Ledger, Maker, alone
from src.launch.slurm.script import Jobs
from src.launch.slurm.submit import Plan

LOOK_S = 5.0
WIDEST = 8
"""Points that have a column each; of more the states are counted."""
LISTED = 20
"""Failed jobs that are listed."""
WAITING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT")
"""States of jobs that do not run."""
STATES = ("failed", "cancelled", "running", "queued", "left", "done")
"""The first of these that any stage has is the state of all."""


def print_arrays(planned: Plan, jobs: Jobs) -> None:
    table = Table(title="job arrays", title_justify="left")
    for heading in ("array", "jobs", "waits for", "of each job"):
        table.add_column(heading, justify="right" if heading == "jobs" else "left")
    for array in planned.arrays:
        waits = [f"all of {other.name}" if index is None else f"{other.name}[{index}]" for other, index in array.named]
        waits += [f"{other.name}, one to one" for other in array.matched]
        waits += [f"job {job}".replace("_%", ", one to one") for job in array.running]
        more = f" and {len(waits) - 3} more" if len(waits) > 3 else ""
        resources, needs = jobs.wants(array, planned.sweep.points)
        sizes = {"nodes": needs.nodes if needs.nodes > 1 else 0, "GPUs": needs.gpus, "cores": needs.cpus}
        sizes |= {"GB": resources.memory_gb or 0, "min": resources.minutes}
        wants = [f"{size} {unit}" for unit, size in sizes.items() if size]
        wants += filter(None, [resources.partition or jobs.site.partition])
        table.add_row(array.name, str(len(array.elements)), ", ".join(waits[:3]) + more, ", ".join(wants))
    console().print(table)
    room = f"; the queue takes {max(0, planned.room)} now" if planned.jobs > planned.room else ""
    print(f"{len(planned.arrays)} arrays, {planned.jobs} jobs{room}")


@dataclass(frozen=True)
class Cell:
    """A stage of a point."""

    state: str
    maker: Maker | None = None
    """The job that failed."""
    reason: str = ""
    """Why a job is queued, in SLURM's word."""


def cells(sweep: Sweep, ledger: Ledger, queued: Sequence[client.Queued]) -> dict[str, dict[int, Cell]]:
    """Stage -> point -> how far it is."""
    living, makers = ledger.living(queued), ledger.makers()
    table: dict[str, dict[int, Cell]] = {}
    for number, (point, nodes) in enumerate(zip(sweep.points, sweep.nodes, strict=True)):
        missing: dict[str, list[str]] = {}
        for node in nodes:
            scope = node.place.scope if node.job != "setup" else "start"
            keys = missing.setdefault(f"{scope} {node.job}", [])
            if not sweep.store.has(node):
                keys.append(node.key)
        finished = not any(missing.values()) and is_reported(point)
        missing["report"] = [] if finished else [sweep.reports[number]]
        for stage, keys in missing.items():
            jobs, dead = list[client.Queued](), list[Maker]()
            for key in keys:
                alive, died = ledger.split(makers.get(key, []), living)
                jobs += alive
                dead += [maker for maker in died if maker.submission.job is not None]
            begun = [maker for maker in dead if maker.job not in ledger.cancelled and maker.log.exists()]
            if not keys:
                cell = Cell("done")
            elif dead:
                cell = Cell("failed", begun[-1]) if begun else Cell("cancelled")
            elif not jobs:
                cell = Cell("left")
            else:
                waits = all(job.state in WAITING for job in jobs)
                cell = Cell("queued", reason=jobs[0].reason) if waits else Cell("running")
            table.setdefault(stage, {})[number] = cell
    return table


def look(sweep: Sweep) -> dict[str, dict[int, Cell]]:
    return cells(sweep, Ledger.of(sweep.store.root), client.queue())


def _states(table: dict[str, dict[int, Cell]]) -> set[str]:
    return {cell.state for row in table.values() for cell in row.values()}


def print_status(sweep: Sweep) -> int:
    """Shows it once, and in a terminal until nothing runs and nothing is queued. The exit code is 1 after failures."""
    screen, table = console(), look(sweep)
    with Live(_picture(table, sweep.points), console=screen) as live:
        while screen.is_terminal and {"running", "queued"} & _states(table):
            time.sleep(LOOK_S)
            table = look(sweep)
            live.update(_picture(table, sweep.points))
    return int(bool({"failed", "cancelled"} & _states(table)))


def _picture(table: dict[str, dict[int, Cell]], points: Sequence[Point]) -> RenderableType:
    """The table, the last line of the log of each job that failed, and why jobs are queued."""
    names, few = labels(points), len(points) <= WIDEST
    shown = Table("stage", *(Column(Text(heading)) for heading in (names if few else STATES)))
    failed: dict[Maker, tuple[str, list[str]]] = {}
    reasons = Counter[str]()
    for stage, row in table.items():
        counts = Counter(cell.state for cell in row.values())
        shown.add_row(stage, *([cell.state for cell in row.values()] if few else [str(counts[s]) for s in STATES]))
        for number, cell in row.items():
            reasons.update([cell.reason] if cell.reason not in ("", "None") else [])
            if cell.maker:
                failed.setdefault(cell.maker, (stage, []))[1].append(names[number])
    lines = [
        f"{stage}, {', '.join(hit[:3])}{' …' * (len(hit) > 3)}: job {maker.job}: {last_line(maker)} ({maker.log})"
        for maker, (stage, hit) in list(failed.items())[:LISTED]
    ]
    lines += [f"and {len(failed) - LISTED} more"] if len(failed) > LISTED else []
    lines += ["`retry` with the same words submits what failed, and what waited for it"] if failed else []
    lines += ["queued for: " + ", ".join(f"{why} ({n})" for why, n in reasons.most_common())] if reasons else []
    return Group(shown, *map(Text, lines))


def last_line(maker: Maker) -> str:
    """What a job said last; a progress bar's last state is a line."""
    lines = maker.log.read_bytes()[-4096:].decode(errors="replace").replace("\r", "\n").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")


def labels(points: Sequence[Point]) -> list[str]:
    """Names each point by the overrides that not all have."""
    shared = set.intersection(*(set(point.overrides) for point in points))
    return [" ".join(word for word in point.overrides if word not in shared) or point.folder.name for point in points]


def cancel(sweep: Sweep) -> int:
    """Ends the jobs of what is missing, but for those that jobs of other points or sweeps wait for."""
    keys = {str(point.folder) for point in sweep.points}.union(sweep.reports)
    keys.update(node.key for nodes in sweep.nodes for node in nodes)
    with alone(sweep.store.root):  # nobody begins to wait for them
        ledger = Ledger.of(sweep.store.root)
        ledger.adopt(queued := client.queue())
        living = ledger.living(queued)
        makers = [maker for maker in ledger.elements() if maker.queued(living)]
        ours = [maker for maker in makers if keys.intersection(maker.makes)]
        waited = {key for maker in makers if not keys.intersection(maker.makes) for key in maker.waits}
        kept: list[Maker] = []
        while more := [maker for maker in ours if maker not in kept and waited.intersection(maker.makes)]:
            kept += more
            waited.update(key for maker in more for key in maker.waits)
        ended = sorted({maker.job for maker in ours} - {maker.job for maker in kept})
        if ended:
            client.slurm("scancel", *ended)
            ledger.cancel(ended)
    more_said = f"; {len(kept)} go on, for others wait for them" if kept else ""
    print(f"{len(ended)} jobs cancelled{more_said}" if ours else "none of it is queued or running")
    return 0
