"""A command inside a SLURM of one node, this machine's cores and most of its memory; the cluster ends with it.

Run: python tests/lib/one_machine_slurm.py bash sweeps/study.sh
"""

from __future__ import annotations

import os
import subprocess
import sys

import psutil
from debian import SLURM, install
from slurm_cluster import Cluster

if __name__ == "__main__":
    if reason := install(SLURM):
        sys.exit(f"no SLURM here: {reason}")
    memory_mb = psutil.virtual_memory().total * 3 // 4 // 2**20
    with Cluster(1, cpus=os.cpu_count() or 1, memory_mb=memory_mb) as cluster:
        sys.exit(subprocess.run(sys.argv[1:], env=os.environ | cluster.env, check=False).returncode)
