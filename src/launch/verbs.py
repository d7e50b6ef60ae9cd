"""Carry out a command: compose its points, and apply its verb to them."""

from __future__ import annotations

import os
import re
from collections import Counter

from src.experiment.plan import print_plan, print_stages
from src.experiment.point import Queue
from src.experiment.preflight import check_paths
from src.experiment.run_folder import check_same
from src.experiment.sweep import Sweep
from src.kernel.config import UserError
from src.kernel.secret_words import refuse_words
from src.launch.compose import points_of, read_point
from src.launch.score import score, split_words
from src.modeling.endpoint import ADDRESS
from src.reporting.hub import check_apart, print_push_plan

OF_FOLDERS = ("compare", "sync")
"""Verbs that take run folders in place of a config."""
VERBS = ("plan", "status", "cancel", "retry", "verify", "clean", "score", *OF_FOLDERS)


def carry_out(verb: str, words: list[str]) -> int:
    """Do what the verb says to the points that the words ask for; return the exit code."""
    refuse_words(words)
    try:
        os.getcwd()
    except FileNotFoundError:
        raise UserError("the folder in which the command is given is gone; cd to one that is there") from None
    if not re.fullmatch(ADDRESS, os.environ.get("HF_ENDPOINT") or "https://huggingface.co"):
        raise UserError("HF_ENDPOINT: no address like https://huggingface.co; mend it, or unset it")
    if verb == "compare":
        from src.reporting.compare.command import compare

        return compare(words)
    if verb == "sync":
        from src.reporting.wandb import sync

        return sync(words, read_point)
    confirmed, files = False, dict[str, str]()
    if verb == "clean" and "--yes" in words:
        confirmed, words = True, [word for word in words if word != "--yes"]
    elif verb == "score":
        files, words = split_words(words)
    points = points_of(words)
    if not points:
        return 0
    launcher = points[0].launcher
    if any(point.launcher != launcher for point in points):
        raise UserError("launcher: all points of a sweep are launched by one; leave it out of the sweep")
    counts = Counter(point.folder for point in points if not point.run.only)
    if doubled := next((folder for folder, count in counts.items() if count > 1), None):
        raise UserError(f"name: points of the sweep share the run folder {doubled}; leave it null or sweep it too")
    for point in points:
        check_paths(point)
    check_apart([point.run for point in points])
    if verb in ("run", "retry"):
        check_same(points)
    if verb == "run":
        return launcher.launch(points)
    if verb in ("plan", "status", "cancel", "retry") and isinstance(launcher, Queue):
        return getattr(launcher, verb)(points)
    if verb == "plan" and len(points) > 1:
        print_stages(Sweep(points))
        return 0
    if verb == "plan":
        print_plan(points[0])
        print_push_plan(points[0].run, points[0].nodes)
        return 0
    if verb == "score":
        return score(points, files)
    if verb in ("verify", "clean"):
        from src.launch.housekeeping import clean, verify

        return max(verify(point.run) if verb == "verify" else clean(point.run, confirmed) for point in points)
    raise UserError(f"launcher: {verb} is for what launcher=slurm has submitted; add it to the words")
