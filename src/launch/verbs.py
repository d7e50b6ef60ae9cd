"""What a command asks for: its points are composed, and its verb is carried out on them."""

from __future__ import annotations

from collections import Counter

from src.experiment.point import Point, Queue
from src.experiment.secret_words import refuse_words
from src.kernel.config import UserError
from src.launch.compose import points_of, read_point
from src.launch.local import show_plan
from src.launch.score import score, split_words

OF_FOLDERS = ("compare", "sync")
"""Verbs that take run folders in place of a config."""
VERBS = ("plan", "parity", "status", "cancel", "retry", "verify", "clean", "score", *OF_FOLDERS)


def carry_out(verb: str, words: list[str]) -> int:
    """Do what the verb says to the points that the words ask for; return the exit code."""
    refuse_words(words)
    if verb == "compare":
        from src.reporting.compare.command import compare

        return compare(words)
    if verb == "sync":
        from src.reporting.wandb import sync

        return sync(words, read_point)
    confirmed = verb == "clean" and "--yes" in words
    own, words = (
        split_words(words) if verb == "score" else ({}, [word for word in words if not confirmed or word != "--yes"])
    )
    points = points_of(words)
    if not points:
        return 0
    launcher = points[0].launcher
    if any(point.launcher != launcher for point in points):
        raise UserError("launcher: all points of a sweep are launched by one; leave it out of the sweep")
    points = _distinct(points)
    _refuse_shared_folders(points)
    if verb == "run":
        return launcher.launch(points)
    if verb in ("plan", "status", "cancel", "retry") and isinstance(launcher, Queue):
        return getattr(launcher, verb)(points)
    if verb == "plan":
        show_plan(points)
        return 0
    if verb == "score":
        return score(points, own)
    if verb == "parity":
        from src.launch.parity import print_parity

        return max(map(print_parity, points))
    if verb in ("verify", "clean"):
        from src.launch.housekeeping import clean, verify

        return max(verify(point.run) if verb == "verify" else clean(point.run, confirmed) for point in points)
    raise UserError(f"launcher: {verb} is for what launcher=slurm has submitted; add it to the words")


def _distinct(points: list[Point]) -> list[Point]:
    """Keep points that are the same run, as variants of an experiment may be, once."""
    distinct: dict[object, Point] = {}
    for point in points:
        run = point.run
        same = (point.folder, run.store, run.iter, *run.wanted, run.part, *(node.key for node in point.nodes))
        if same in distinct:
            print(f"sweep: {' '.join(point.overrides)} is the same run as {' '.join(distinct[same].overrides)}")
        distinct.setdefault(same, point)
    return list(distinct.values())


def _refuse_shared_folders(points: list[Point]) -> None:
    from src.reporting.hub import check_apart

    counts = Counter(point.folder for point in points if not point.run.only)
    doubled = next((folder for folder, count in counts.items() if count > 1), None)
    if doubled is not None:
        raise UserError(f"name: points of the sweep share the run folder {doubled}; leave it null or sweep it too")
    check_apart([point.run for point in points])
