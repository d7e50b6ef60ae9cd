"""SLURM's daemons, as Debian has them, which some tests start.

`python tests/lib/debian.py` installs what is missing, where root may do that on a machine without running services.
`make test` does so before its tests. Tests only look: one that finds a program missing is skipped and names it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

SLURM = {"munge": "munged", "slurmctld": "slurmctld", "slurmd": "slurmd", "slurm-client": "sbatch"}
ACCOUNTING = {"slurmdbd": "slurmdbd", "mariadb-server-core": "mariadbd", "mariadb-client-core": "mariadb"}
"""Package -> the program that shows that it is there."""
SYSTEM_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
APT = ("apt-get", "-q", "-y", "-o", "DPkg::Lock::Timeout=120", "-o", "Acquire::http::Timeout=20")


def missing(programs: dict[str, str]) -> list[str]:
    """The packages whose program is not there."""
    return [package for package, program in programs.items() if shutil.which(program, path=SYSTEM_PATH) is None]


def lacking(programs: dict[str, str]) -> str | None:
    """Why a test that needs the programs is skipped; None where it can run."""
    packages = missing(programs)
    return f"install Debian's {', '.join(packages)}" if packages else None


def install(programs: dict[str, str]) -> str | None:
    """Installs what is missing; says why not, or None."""
    packages = missing(programs)
    if not packages:
        return None
    if os.geteuid() != 0 or shutil.which("apt-get") is None or Path("/run/systemd/system").exists():
        return f"not installed: {', '.join(packages)}; their tests are skipped"
    for words in (["update"], ["install", "--no-install-recommends", *packages]):
        env = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        try:
            subprocess.run(
                [*APT, *words], env=env, stdin=subprocess.DEVNULL, capture_output=True, timeout=400, check=True
            )
        except subprocess.SubprocessError as error:
            last = (error.stderr or b"").decode(errors="replace").strip().splitlines()[-1:]
            return f"cannot be installed: {', '.join(packages)}: {''.join(last) or error}; their tests are skipped"
    return None


if __name__ == "__main__":
    asked = SLURM | (ACCOUNTING if "--accounting" in sys.argv else {})
    if reason := install(asked):
        print(reason)
