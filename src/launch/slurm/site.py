"""What a cluster wants of a job, and what a job wants of the cluster."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, PositiveInt

from src.experiment.run import Run
from src.kernel.artifact import Job
from src.kernel.config import Free, UserError, config

Word = Annotated[str, Field(pattern=r"^[\w.,:=+/@&|*()\[\]-]+$")]
"""A word that may stand behind an option of sbatch: no blank, no quote, no line's end."""


@config
class Resources:
    """What a job of one kind takes."""

    minutes: Free[PositiveInt]
    cpus: Free[PositiveInt]
    """Cores for each GPU, or all cores where there is none."""
    memory_gb: Free[PositiveInt | None]
    """Memory of a node; null: the cluster's default."""
    gpus: Free[Annotated[int, Field(ge=0)] | None] = None
    """GPUs of a node; null: what the hardware says of the stage."""
    partition: Free[Word | None] = None
    qos: Free[Word | None] = None
    constraint: Free[Word | None] = None


@config
class Site:
    """A cluster."""

    partition: Free[Word | None]
    account: Free[Word | None]
    qos: Free[Word | None]
    constraint: Free[Word | None]
    gpu: Free[Word]
    """What a GPU is called in --gres."""
    modules: Free[list[Word]]
    setup: Free[list[str]]
    """Lines of shell before the command: the site's own code."""
    prefix: Free[list[str]]
    python: Free[str | None]
    scratch: Free[str | None]
    export: Free[list[Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")]]]
    setup_here: Free[bool]
    """Whether models and prompts are fetched where the command is given."""


@config
class Shape:
    """The machine that a job takes, of the hardware of its run."""

    nodes: int
    gpus: int
    """GPUs of each node."""
    cpus: int
    """Cores of each node."""


def shape(job: Job, run: Run, resources: Resources) -> Shape:
    """Gives training whole nodes, answers the devices of one engine, and what runs no model no GPU."""
    hardware = run.hardware
    devices, engine = hardware.devices, hardware.engine
    cuda = devices.device == "cuda"
    engine_gpus = engine.devices_each if engine.device == "cuda" else 0
    nodes, wanted = 1, 0
    if job == "training":
        nodes, wanted = devices.nodes, devices.count // devices.nodes if cuda else 0
    elif job == "generation":
        wanted = engine_gpus
    elif job in ("ranking", "reference"):
        wanted = int(cuda)
    elif job == "evaluation":
        wanted = max(engine_gpus, int(cuda))
    gpus = wanted if resources.gpus is None else resources.gpus
    if gpus < wanted:
        raise UserError(f"launcher.jobs.{job}.gpus: {gpus}, but hardware={hardware.name} takes {wanted} a node for it")
    return Shape(nodes=nodes, gpus=gpus, cpus=resources.cpus * max(1, gpus))
