"""What a throw-away SLURM cluster is made of: Debian's packages, configuration files, free ports."""

from __future__ import annotations

import random
import socket
from contextlib import ExitStack, suppress
from pathlib import Path

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
