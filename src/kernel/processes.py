"""Processes: how each begins and shows progress, and a job that several of them work off.

Those that this one starts die with it. `run_in_processes` starts this module once a worker, with a file that holds the
job; a worker writes its results where the job says.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import pickle
import re
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from src.kernel.config import Device, Fault, Stopped, UserError
from src.kernel.faults import RESUMES, explain
from src.kernel.secret_words import scrubbed

ROOT = Path(__file__).parents[2]
LOOK_S = 0.2
"""Seconds between two looks at the processes."""
END_S = 120.0
"""Seconds for what a worker is in the midst of; one that hangs is killed then."""
REFUSED, FAILED = 2, 3
"""Exit codes of a worker: a mistake of the user; the machine or the store has failed."""
_STEERS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)
_LIBC = ctypes.CDLL(None)
_JOB = "job-{}.pickle"


# This process ------------------------------------------------------------------------------------------------------


def bar(name: str, total: int, done: int, unit: str) -> Any:
    """Return a bar on stderr; `done` of `total` units were finished by an earlier attempt.

    Without a terminal (a batch job's log) it writes one line every ten seconds.
    """
    interval, end = (0.5, {}) if sys.stderr.isatty() else (10.0, {"ncols": 90, "ascii": True})
    from tqdm import tqdm  # it reads the environment when it is imported

    shown: dict[str, Any] = {"initial": done, "unit": unit, "disable": False, "maxinterval": 30, **end}
    return tqdm(desc=name, total=total, mininterval=interval, **shown)


def legible(text: str) -> str:
    """Show what steers a terminal, turns text round or breaks a line as Python writes it: `\\x1b`, `\\u202e`."""
    return _STEERS.sub(lambda found: ascii(found[0])[1:-1], text)


class Output:
    """What stdout or stderr goes through, whoever prints: text of others steers no terminal, and no key is shown."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        stream.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        start = "\r" * text.startswith("\r")  # of a progress bar
        self._try(lambda: self._stream.write(start + legible(scrubbed(text.removeprefix(start)))))
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, act: Callable[[], Any]) -> None:
        """Raise Stopped where nobody reads stdout any more, OSError where it fails; stderr has nowhere to say it."""
        try:
            act()
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())  # or it would fail again at the end
            if self is sys.stdout:
                failed = OSError(error.errno, error.strerror, "stdout")
                raise Stopped(signal.SIGPIPE) if isinstance(error, BrokenPipeError) else failed from None


def quiet_libraries() -> None:
    """Silence bars and advice of libraries, which read the environment when they are imported: call this before.

    Processes that this one starts have its environment.
    """
    for name, value in {
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TQDM_DISABLE": "1",  # of bars that do not say `disable`, as ours do
        "WANDB_SILENT": "true",
        # Two spinning OpenMP threads beside any other busy process lose most of their time to each other.
        "OMP_WAIT_POLICY": "PASSIVE",
    }.items():
        os.environ.setdefault(name, value)


def tidy_output() -> None:
    """Make the run's own lines the ones to read: silence what libraries say at run time, and guard the output.

    A stream that was closed before the start is opened: the next file would have its number, and get what it gets.
    """
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), "w"))  # the lowest free number
    sys.stdout, sys.stderr = Output(sys.stdout), Output(sys.stderr)  # pyright: ignore
    # DeepSpeed is imported by accelerate and reports that there is no GPU; it sets its level itself, so filter.
    logging.getLogger("DeepSpeed").addFilter(lambda record: record.levelno >= logging.ERROR)
    warnings.filterwarnings("ignore", module="torch|transformers|accelerate|deepspeed")


def keep_memory() -> None:
    """Let glibc keep freed memory for the next tensors instead of handing it back to the kernel.

    Activations come and go in large blocks; touching fresh pages costs a sixth of a step on virtual machines. This does
    nothing with other C libraries.
    """
    if hasattr(_LIBC, "malloc_trim"):
        mmap_max, trim_threshold, top_pad = -4, -1, -2  # of malloc.h
        for option, value in ((mmap_max, 0), (trim_threshold, 2**31 - 1), (top_pad, 2**26)):
            _LIBC.mallopt(option, value)


def release_memory() -> None:
    """Hand back to the kernel what `keep_memory` has kept: another stage needs blocks of other sizes."""
    if hasattr(_LIBC, "malloc_trim"):
        _LIBC.malloc_trim(0)


# Children -----------------------------------------------------------------------------------------------------------


def die_with_parent() -> None:
    """Have Linux kill this process when its parent is killed, or it would go on writing."""
    parent = os.getppid()
    _LIBC.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:  # it was killed just before
        os._exit(1)


def prepare_child() -> None:
    """Prepare a child before it starts: SLURM's early warning is for this process, the child would die of it."""
    die_with_parent()
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def killed_by(number: int) -> str:
    """Say what signal `number` did to a process; the kernel sends SIGKILL where memory is short."""
    return f"was killed by {signal.Signals(number).name}{'; was memory short?' if number == signal.SIGKILL else ''}"


def cores() -> int:
    """Count the cores that this process may use: not all clusters bind a job to what it asked for."""
    bound = len(os.sched_getaffinity(0))
    return min(bound, slurm_number("SLURM_CPUS_PER_TASK", bound))


def slurm_number(variable: str, otherwise: int) -> int:
    """Return a number that SLURM has put into the environment; `otherwise` where there is none."""
    text = os.environ.get(variable, "")
    return int(text) if text.isdecimal() else otherwise


def hand_over(folder: Path, job: Any) -> Path:
    """Write a job for a process to be started.

    A pickle runs whatever it says when it is read, and others may write in the store: so the file is named by its
    sha256, the name reaches the process by its command line, and nothing else is read.
    """
    data = pickle.dumps(job)
    file = folder.resolve() / _JOB.format(hashlib.sha256(data).hexdigest())
    file.unlink(missing_ok=True)
    with file.open("xb") as opened:  # a new file: no link of somebody else's is written through
        opened.write(data)
    return file


def take_over(file: Path) -> Any:
    """Read a job. Raises Fault where the file is another than its name says."""
    data = file.read_bytes()
    if file.name != _JOB.format(hashlib.sha256(data).hexdigest()):
        raise Fault(f"{file}: not what was written there, so it is not read; who else writes in this folder?")
    return pickle.loads(data)


# A job in several processes -----------------------------------------------------------------------------------------


Job = Callable[[int, int], None]
"""Does the share of worker `number` of `count`; can be pickled. Raises UserError."""


def run_in_processes(
    job: Job, title: str, count: int, device: Device, devices_each: int, folder: Path, look: Callable[[], Any]
) -> None:
    """Work the job off in `count` processes; each takes `devices_each` CUDA devices, or its share of the cores.

    `title` begins their complaints; `look` is called now and then and at the end. Raises UserError or Fault when a
    worker fails, as it failed, with its number and its last line. The others are asked to end and save what they have.
    """
    file = hand_over(folder, (job, count))
    logs = [folder.resolve() / f"worker{number}.log" for number in range(count)]
    running: list[subprocess.Popen[bytes]] = []
    try:
        for number, log in enumerate(logs):
            words = [sys.executable, "-m", "src.kernel.processes", str(file), str(number)]
            env = environment(number, count, device, devices_each)
            with log.open("wb") as stderr:
                running.append(subprocess.Popen(words, cwd=ROOT, env=env, stderr=stderr, preexec_fn=prepare_child))
        while None in (codes := [process.poll() for process in running]) and not any(codes):
            look()
            time.sleep(LOOK_S)
        for number, process in enumerate(running):
            if code := process.poll():
                ended = f"ended with exit code {code}" if code > 0 else killed_by(-code)
                *_, line = logs[number].read_text(errors="replace").strip().splitlines() or ["it said nothing"]
                what = f"worker {number} (process {process.pid}) {ended}: {line} ({logs[number]}){RESUMES}"
                raise (UserError if code == REFUSED else Fault)(f"{title}: {what}")
    finally:
        for process in running:
            process.terminate()
        until = time.monotonic() + END_S
        for process in running:
            try:
                process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    look()


def environment(number: int, count: int, device: Device, devices_each: int) -> dict[str, str]:
    """Return the environment of worker `number`: its share of this machine's cores, or CUDA devices of its own."""
    if device == "cpu":
        return {"OMP_NUM_THREADS": str(max(1, cores() // count)), **os.environ}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count * devices_each)))
    share = visible.split(",")[number * devices_each : (number + 1) * devices_each]
    return os.environ | {"CUDA_VISIBLE_DEVICES": ",".join(share)}


def main(file: Path, number: int) -> None:
    """Do one worker's share of the job in the file."""

    def save_and_exit(signum: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second signal does not disturb the saving
        sys.exit(128 + signum)

    prepare_child()  # before the imports, which take seconds
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the parent ends this one
    signal.signal(signal.SIGTERM, save_and_exit)
    tidy_output()
    try:
        job, count = take_over(file)
        job(number, count)
    except Exception as error:
        message = str(error) if isinstance(error, UserError) else explain(error)
        if message is None:
            raise
        print(message.removesuffix(RESUMES), file=sys.stderr, flush=True)
        sys.exit(REFUSED if isinstance(error, UserError) and not isinstance(error, Fault) else FAILED)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
