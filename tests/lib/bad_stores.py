"""Stores and run folders that are not what they should be."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from bad_inputs import Bad, Given, Setting, Table

from src.layout import MARK

FEW = "iter=1 only=it1/prompts"
TAKE = "and this code reads layout 1; take the code that made it, or another folder"


def file_as_store(setting: Setting) -> list[str]:
    (setting.at / "a_file").write_text("mine")
    return [f"store={setting.at / 'a_file'}"]


def below_a_file(setting: Setting) -> list[str]:
    (setting.at / "a_file").write_text("mine")
    return [f"store={setting.at / 'a_file' / 'store'}"]


def runs_in_a_file(setting: Setting) -> list[str]:
    (setting.at / "a_file").write_text("mine")
    return ["iter=1", f"runs={setting.at / 'a_file'}"]


def somebodys(setting: Setting) -> None:
    (setting.at / "store").mkdir()
    (setting.at / "store" / "thesis.tex").write_text("mine")


def anothers(name: str) -> Given:
    """Root may write everywhere, so the answer of the system is played."""

    def given(setting: Setting) -> None:
        (setting.at / name).mkdir()
        access = os.access

        def no_access(path: Any, mode: int, **more: Any) -> bool:
            return not (mode & os.W_OK and Path(path) == setting.at / name) and access(path, mode, **more)

        setting.patch.setattr(os, "access", no_access)

    return given


def later_layout(setting: Setting) -> None:
    (setting.at / "store").mkdir()
    (setting.at / "store" / MARK).write_text(json.dumps({"layout": 99}))


def later_with_work(setting: Setting) -> None:
    """An artifact, a kill's leftover and a run folder, all of which `clean --yes` would look at."""
    later_layout(setting)
    for name in ("pairs/0123456789abcdef0123", "pairs/0123456789abcdef0124.partial-01234567"):
        (setting.at / "store" / name).mkdir(parents=True)
        (setting.at / "store" / name / "record.json").write_text("{}")
    (setting.at / "runs").mkdir()


def torn_mark(setting: Setting) -> None:
    (setting.at / "store").mkdir()
    (setting.at / "store" / MARK).write_text("")


def nothing_made(setting: Setting) -> list[str]:
    return [f"store={setting.at / 'nowhere'}"]


def no_runs(setting: Setting) -> None:
    (setting.at / "store").mkdir()


def in_no_job(setting: Setting) -> None:
    setting.patch.delenv("SLURM_JOB_ID", raising=False)


STORES = Table(
    "Stores and run folders",
    "A damaged artifact is no mistake: it is told, and made again before it is read. A finished store that is read-only is none either: `plan`, `verify` and a run with "
    "nothing left to make read it (tests/kernel/test_read_only.py). One that turns read-only while a run works ends it in one line with exit code 3, and the same command goes on later.",
    [
        Bad(
            "a store that is a file",
            FEW,
            "store: cannot write below …/a_file; is it a folder of yours?",
            given=file_as_store,
            verb="run",
        ),
        Bad(
            "a store below a file",
            FEW,
            "store: cannot write below …/a_file; is it a folder of yours?",
            given=below_a_file,
            verb="run",
        ),
        Bad(
            "run folders in a file",
            "",
            "runs: cannot write below …/a_file; is it a folder of yours?",
            given=runs_in_a_file,
            verb="run",
        ),
        *(
            Bad(
                f"a folder for {name} that another user owns",
                "iter=1",
                f"{name}: cannot write below …/{name}; is it a folder of yours?",
                given=anothers(name),
                verb="run",
            )
            for name in ("store", "runs")
        ),
        Bad(
            "a store that is a folder of somebody's files",
            FEW,
            "store: … holds thesis.tex and is no store; choose an empty folder, or a new one",
            given=somebodys,
            verb="run",
        ),
        Bad(
            "a store of a later version",
            FEW,
            "store: … is of layout 99, and this code reads layout 1; take the code that made it, or another folder",
            given=later_layout,
            verb="run",
        ),
        *(
            Bad(
                f"a store of a later version, for `{verb}`",
                "",
                f"store: … is of layout 99, {TAKE}",
                given=later_with_work,
                verb=verb,
            )
            for verb in ("plan", "verify", "clean --yes")
        ),
        Bad(
            "a store whose mark is torn",
            FEW,
            '…/.store.json: cannot be read; if this code made the store, write {"layout": 1} there',
            given=torn_mark,
            verb="run",
        ),
        Bad(
            "verify without a store",
            "",
            "store: no folder …/nowhere; nothing was made there yet",
            given=nothing_made,
            verb="verify",
        ),
        Bad(
            "clean without run folders",
            "",
            "runs: no folder …/runs; without its links every artifact would look unused",
            given=no_runs,
            verb="clean",
        ),
        Bad(
            "what only a job of SLURM does",
            "launcher=allocation",
            "launcher: allocation is for SLURM jobs; here, launcher=local",
            given=in_no_job,
            verb="run",
        ),
    ],
)
