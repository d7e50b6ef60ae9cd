"""`status` and `cancel`: the state of each stage of each point, from the store, the ledger and the queue."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import NamedTuple

from rich.table import Table

from src.experiment.plan import console
from src.experiment.run_folder import is_reported
from src.experiment.sweep import SETUP, START, Sweep
from src.launch.slurm import client
from src.launch.slurm.ledger import Ledger, Maker, submission_lock

STATES = ("failed", "cancelled", "running", "queued", "left", "done")


class Cell(NamedTuple):
    """A stage of a point."""

    state: str
    logs: tuple[Path, ...] = ()
    """Logs of the jobs of a stage that failed: several where it is made in shares, of which some may be done."""
    reason: str = "None"
    """Why a job is queued, in SLURM's word."""


def cells(sweep: Sweep) -> dict[str, dict[int, Cell]]:
    """Return stage -> point -> its state. Raises UserError where SLURM says nothing."""
    queue, makers = client.queue(), Ledger(sweep.store.root).makers()
    table: dict[str, dict[int, Cell]] = {}
    for number, (point, nodes) in enumerate(zip(sweep.points, sweep.nodes, strict=True)):
        missing: dict[str, list[str]] = {}
        for node in nodes:
            keys = missing.setdefault(f"{START if node.job == SETUP else node.place.scope} {node.job}", [])
            keys += [node.key] if sweep.missing(node) else []
        finished = not any(missing.values()) and is_reported(point)
        missing["report"] = [] if finished else [sweep.reports[number]]
        for stage, keys in missing.items():
            makers_of = [maker for key in keys for maker in makers.get(key, [])]
            table.setdefault(stage, {})[number] = _cell(makers_of, queue) if keys else Cell("done")
    return table


def _cell(makers: list[Maker], queue: client.Queue) -> Cell:
    """Return the state of a missing stage from the jobs that were to make it."""
    jobs = [job for maker in makers if (job := maker.queued(queue))]
    if jobs:
        return Cell("running") if any(job.state == "RUNNING" for job in jobs) else Cell("queued", (), jobs[0].reason)
    last = [maker.submission.log(maker.index) for maker in makers if maker.submission is makers[-1].submission]
    logs = tuple(log for log in dict.fromkeys(last) if log.exists())
    return Cell("failed", logs) if logs else Cell("cancelled") if makers else Cell("left")


def print_status(sweep: Sweep) -> int:
    """Print how many points are in each state, the last lines of logs of failed jobs, and why jobs are queued.

    Returns the exit code, 1 after failures.
    """
    table = cells(sweep)
    counts = {stage: Counter(cell.state for cell in row.values()) for stage, row in table.items()}
    lines = Table("stage", *STATES)
    for stage, count in counts.items():
        lines.add_row(stage, *(str(count[state] or "") for state in STATES))
    console().print(lines)
    shared = set.intersection(*(set(point.overrides) for point in sweep.points))
    names = [" ".join(word for word in one.overrides if word not in shared) or one.folder.name for one in sweep.points]
    failed: dict[tuple[str, Path], list[str]] = {}
    for stage, row in table.items():
        for number, cell in row.items():
            for log in cell.logs:
                failed.setdefault((stage, log), []).append(names[number])
    for (stage, log), points in failed.items():
        # a progress bar's last state is a line
        output = log.read_bytes()[-4096:].decode(errors="replace").replace("\r", "\n").split("\n")
        last = next((line.strip() for line in reversed(output) if line.strip()), "no output")
        print(f"{stage} of {', '.join(points[:3])}{' …' * (len(points) > 3)}: {last} ({log})")
    if failed:
        print("`retry` with the same words submits what failed, and what waited for it")
    reasons = Counter(cell.reason for row in table.values() for cell in row.values() if cell.reason != "None")
    if reasons:
        print("queued for: " + ", ".join(f"{reason} ({count})" for reason, count in reasons.most_common()))
    return int(any(count["failed"] or count["cancelled"] for count in counts.values()))


def cancel(sweep: Sweep) -> int:
    """End the jobs of what is missing, but for those that jobs of other points or sweeps wait for."""
    keys = {str(point.folder) for point in sweep.points}.union(sweep.reports)
    keys.update(node.key for nodes in sweep.nodes for node in nodes)
    with submission_lock(sweep.store.root):  # nobody begins to wait for them
        queue = client.queue()
        jobs = [(maker, job.job) for maker in Ledger(sweep.store.root).elements() if (job := maker.queued(queue))]
        ours = [job for maker, job in jobs if keys.intersection(maker.makes)]
        ended, waited = list[str](), set[str]()
        for maker, job in reversed(jobs):  # who waits for a job was submitted after it
            if job in ours and not waited.intersection(maker.makes):
                ended.append(job)
            else:
                waited.update(maker.waits)
        if ended:
            client.slurm("scancel", *sorted(ended))
    more = f"; {len(ours) - len(ended)} go on, for others wait for them" if len(ended) < len(ours) else ""
    print(f"{len(ended)} job{'s' * (len(ended) != 1)} cancelled{more}" if ours else "none of it is queued or running")
    return 0
