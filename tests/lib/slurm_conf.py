"""What a throw-away SLURM cluster is made of: Debian's packages, configuration files, free ports."""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path

from filelock import FileLock

PACKAGES = {"munge": "munged", "slurmctld": "slurmctld", "slurmd": "slurmd", "slurm-client": "sbatch"}
"""Of Debian, each with a program of its own."""
MORE_PACKAGES = {"slurmdbd": "slurmdbd", "mariadb-server-core": "mariadbd", "mariadb-client-core": "mariadb"}
"""For accounting."""
APT = ("apt-get", "-q", "-y", "-o", "DPkg::Lock::Timeout=120", "-o", "Acquire::http::Timeout=20")
SYSTEM_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
PORTS = range(10_000, 32_000)
"""Below those the system gives to outgoing connections, so that a restarted daemon finds its own port free."""

CONFIGURATION = """\
ClusterName=throwaway
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
AuthInfo=socket={root}/run/munge.sock,cred_expire={requeue_wait}
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool/%n
SlurmctldPidFile={root}/run/slurmctld.pid
SlurmdPidFile={root}/run/%n.pid
SlurmctldLogFile={root}/log/slurmctld.log
SlurmdLogFile={root}/log/%n.log
ProctrackType=proctrack/linuxproc
MailProg=/bin/true
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1,bf_window=60
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=100
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
SlurmdTimeout=300
BatchStartTimeout=60
MessageTimeout=60
KillWait={kill_wait}
MinJobAge=36000
ReturnToService=2
MaxArraySize=1001
MaxJobCount=5000
FirstJobId={first_job}
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName=n[1-{nodes}] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{node_ports}] CPUs={cpus} RealMemory={memory_mb} \
Gres=gpu:{gpus}
PartitionName=DEFAULT Nodes=ALL DefaultTime=10 MaxTime=60
PartitionName=main Default=YES PriorityTier=10 PreemptMode=OFF
PartitionName=low PriorityTier=1 PreemptMode=REQUEUE GraceTime=10
PartitionName=high PriorityTier=50 PreemptMode=OFF
"""


def free_ports(count: int) -> list[int]:
    """By the system's own lot, for two processes that chose at once would take the same lowest ones."""
    found = list[int]()
    with ExitStack() as held:
        while len(found) < count:
            port = random.SystemRandom().choice(PORTS)
            with suppress(OSError):
                held.enter_context(socket.socket()).bind(("127.0.0.1", port))
                found.append(port)
    return found


def listens(port: int) -> bool:
    return f"0100007F:{port:04X} 00000000:0000 0A" in Path("/proc/net/tcp").read_text()


def install(accounting: bool = False) -> str | None:
    """Installs what is missing. Why there can be no cluster here, or None."""
    if os.geteuid() != 0:
        return "SLURM's daemons need root"
    with FileLock(Path(tempfile.gettempdir()) / "slurm_cluster.lock"):  # of several test workers one installs
        programs = PACKAGES | (MORE_PACKAGES if accounting else {})
        missing = [name for name, program in programs.items() if shutil.which(program, path=SYSTEM_PATH) is None]
        if missing and (shutil.which("apt-get") is None or Path("/run/systemd/system").exists()):
            return f"install {', '.join(missing)}; no apt-get, or one that would start services"
        for words in (["update"], ["install", "--no-install-recommends", *missing]) if missing else ():
            env = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
            try:
                subprocess.run(
                    [*APT, *words], env=env, stdin=subprocess.DEVNULL, capture_output=True, timeout=240, check=True
                )
            except subprocess.SubprocessError as error:
                last = (error.stderr or b"").decode(errors="replace").strip().splitlines()[-1:]
                return f"{', '.join(missing)} cannot be installed: {''.join(last) or error}"
    return None
