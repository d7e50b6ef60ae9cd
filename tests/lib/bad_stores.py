"""Stores, run folders, machines and clusters that are not what they should be."""

from __future__ import annotations

import tempfile
from typing import Any

from bad_inputs import Given, Setting


def holding(name: str, text: str, *words: str) -> Given:
    """A file of somebody's; `{}` in the words is the folder."""

    def given(setting: Setting) -> list[str]:
        (setting.at / name).parent.mkdir(exist_ok=True)
        (setting.at / name).write_text(text)
        return [word.format(setting.at) for word in words]

    return given


def anothers(name: str) -> Given:
    """Root may write everywhere, so the answer of the system is played."""

    def given(setting: Setting) -> None:
        (setting.at / name).mkdir()
        real = tempfile.TemporaryFile

        def refused(dir: Any = None, **more: Any) -> Any:
            if dir == setting.at / name:
                raise PermissionError
            return real(dir=dir, **more)

        setting.patch.setattr(tempfile, "TemporaryFile", refused)

    return given


def present(count: int) -> Given:
    """So many CUDA devices, as torch counts them."""
    return lambda setting: setting.patch.setattr("torch.cuda.device_count", lambda: count)


CONFIG = "echo 'MaxArraySize = 1001'; echo 'MaxJobCount = 10000'"


def cluster(squeue: str = "exit 0", sbatch: str = "exit 0") -> Given:
    """Its programs, which are all there is on PATH."""

    def given(setting: Setting) -> None:
        place = setting.at / "bin"
        place.mkdir()
        for name, body in {"squeue": squeue, "sbatch": sbatch, "scontrol": CONFIG}.items():
            (place / name).write_text(f"#!/bin/sh\n{body}\n")
            (place / name).chmod(0o755)
        setting.patch.setenv("PATH", str(place))

    return given


def says(line: str) -> str:
    return f"echo '{line}' >&2; exit 1"


STORES: dict[str, Given] = {
    "GPUs, where there are none": present(0),
    "more GPUs than are used": present(2),
    "more GPUs than the machine has, for answers": present(4),
    "more GPUs than the machine has, for training": present(4),
    "a store that is a file": holding("a_file", "mine", "store={}/a_file"),
    "run folders in a file": holding("a_file", "mine", "iter=1", "runs={}/a_file"),
    "a folder for store that another user owns": anothers("store"),
    "a folder for runs that another user owns": anothers("runs"),
    "a store that is a folder of somebody's files": holding("store/thesis.tex", "mine"),
    "verify without a store": lambda setting: [f"store={setting.at / 'nowhere'}"],
    "clean without run folders": lambda setting: (setting.at / "store").mkdir(),
    "what only a job of SLURM does": lambda setting: setting.patch.delenv("SLURM_JOB_ID", raising=False),
}
CLUSTERS: dict[str, Given] = {
    "no SLURM here": lambda setting: setting.patch.setenv("PATH", str(setting.at)),
    "a cluster that does not answer": cluster(
        squeue=says("slurm_load_jobs error: Unable to contact slurm controller (connect failure)")
    ),
    "more GPUs than a node has": cluster(
        sbatch=says("allocation failure: Requested node configuration is not available")
    ),
    "a limit that leaves no time to work": cluster(),
    "other GPUs than the hardware says": cluster(),
    "an account that there is not": cluster(
        sbatch=says("sbatch: error: Invalid account or account/partition combination specified")
    ),
    "a job for one artifact": cluster(),
}
