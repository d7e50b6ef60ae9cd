"""`python -m src.main` without its imports, which are most of what a tiny run takes.

A server has imported what a run imports. It carries out each command in a fork of itself.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import signal
import site
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

SINGLE = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}
"""Environment of a process that can be forked: it has one thread."""


@contextmanager
def forking_python() -> Iterator[Path]:
    """Yield a program that stands in for `python -m …`: it takes no time for imports. A signal to it kills the command.

    A command that dies without an exit code of its own has 137, as one has in a shell that SIGKILL has hit.
    """
    from places import PYTHONPATH, ROOT

    from src.kernel.processes import die_with_parent

    with tempfile.TemporaryDirectory() as place:
        server, python = Path(place, "server"), Path(place, "python")
        python.write_text(f'#!/bin/sh\nexec {sys.executable} -S -E {__file__} ask {server} "$@"\n')
        python.chmod(0o755)
        env = os.environ | SINGLE | {"PYTHONPATH": PYTHONPATH}
        words = [sys.executable, __file__, "serve", str(server)]
        with subprocess.Popen(words, cwd=ROOT, env=env, preexec_fn=die_with_parent) as process:
            try:
                while not server.exists():
                    assert process.poll() is None, "the server of forks ended while it imported; stderr says why"
                    time.sleep(0.05)
                yield python
            finally:
                process.kill()


def ask(place: str, words: list[str]) -> int:
    """Carry out words that have `-m` and a module, as `python` would, and return the exit code."""
    with socket.socket(socket.AF_UNIX) as link:
        link.connect(place)
        request = json.dumps({"words": words, "env": dict(os.environ), "cwd": os.getcwd()}).encode()
        socket.send_fds(link, [len(request).to_bytes(4, "big")], [1, 2])
        link.sendall(request)
        return int(link.recv(16) or b"137")


def serve(place: str) -> None:
    """Serve until the parent dies."""
    import transformers

    from src.evaluation import held_out  # noqa: F401
    from src.generation import transformers_engine  # noqa: F401
    from src.launch import runner  # noqa: F401
    from src.ranking import embedded  # noqa: F401
    from src.training import trainer  # noqa: F401

    for name in ("LlamaForCausalLM", "PreTrainedTokenizerFast"):
        getattr(transformers, name)
    assert len(os.listdir("/proc/self/task")) == 1, "a fork would lose a thread"
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"{place}.new")
        listening.listen()
        os.rename(f"{place}.new", place)
        while True:
            link, _ = listening.accept()
            if os.fork() == 0:
                listening.close()
                carry_out(link)
            link.close()


def carry_out(link: socket.socket) -> None:
    """Carry out a command as in a process of its own, which dies when whoever asked is dead; end this process."""
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    head, files, _, _ = socket.recv_fds(link, 4, 2)
    request = json.loads(link.recv(int.from_bytes(head, "big"), socket.MSG_WAITALL))
    for number, file in enumerate(files, 1):
        os.dup2(file, number)
        os.close(file)
    # The server's own streams may be files, whose place would be sought.
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ |= request["env"]
    sys.argv = request["words"][request["words"].index("-m") + 1 :]
    sys.path[:0] = [os.getcwd(), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    sys.modules.pop("sitecustomize", None)
    site.execsitecustomize()

    def watch() -> None:
        link.recv(1)
        os.kill(os.getpid(), signal.SIGKILL)

    command, leave = os.getpid(), os._exit

    def tell_and_leave(code: int) -> NoReturn:
        """Tell whoever asked, also where the command leaves without the end of an interpreter."""
        if os.getpid() == command:
            link.sendall(str(code).encode())
        leave(code)

    os._exit = tell_and_leave
    threading.Thread(target=watch, daemon=True).start()
    code = 1
    try:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:  # when all is said: whoever asked reads it then
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # too late for the command
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    sys.exit(ask(sys.argv[2], sys.argv[3:]))
