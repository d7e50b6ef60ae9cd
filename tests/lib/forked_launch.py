"""`accelerate launch` without the imports of its processes, which are most of what a tiny training takes.

A server has imported what a training imports. It runs accelerate's own command in a fork of itself, where alone the
start of a process is another: a fork goes on as the module that would have been started. test_distributed.py
compares a training so launched with a real one.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any

SINGLE = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}
"""Environment of a process that can be forked: it has one thread."""


def ask(place: str, words: list[str]) -> int:
    """Of the command that stands in for `python -m accelerate.commands.launch`; ends with its exit code."""
    with socket.socket(socket.AF_UNIX) as link:
        link.connect(place)
        told = json.dumps({"words": words, "env": dict(os.environ), "cwd": os.getcwd()}).encode()
        socket.send_fds(link, [len(told).to_bytes(4, "big")], [1, 2])
        link.sendall(told)
        return int(link.recv(16) or b"1")


def serve(place: str) -> None:
    """Until the parent dies."""
    import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401 # type: ignore[reportMissingImports]
    import transformers
    from accelerate.commands import launch  # noqa: F401

    from src.training import trainer  # noqa: F401

    for name in ("LlamaForCausalLM", "MistralForCausalLM", "Gemma2ForCausalLM", "PreTrainedTokenizerFast"):
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
                _in_fork(lambda link=link: _launch(link))
            link.close()


def _in_fork(act: Callable[[], Any]) -> None:
    """Ends the process with the exit code."""
    code = 1
    try:
        act()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _launch(link: socket.socket) -> None:
    """accelerate's command, as in a process of its own; when whoever asked is dead, it dies and its processes too."""
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    head, files, _, _ = socket.recv_fds(link, 4, 2)
    told = json.loads(_received(link, int.from_bytes(head, "big")))
    for number, file in enumerate(files, 1):
        os.dup2(file, number)
        os.close(file)
    os.chdir(told["cwd"])
    os.environ.clear()
    os.environ |= told["env"]
    blanks = [_Blank() for _ in range(int(told["words"][told["words"].index("--num_processes") + 1]))]

    def watch() -> None:
        link.recv(1)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
    from accelerate.commands import launch
    from torch.distributed.elastic.multiprocessing.subprocess_handler.subprocess_handler import SubprocessHandler

    SubprocessHandler._popen = lambda self, args, env: blanks.pop().become(args, env)  # type: ignore[method-assign]
    sys.argv = ["accelerate", *told["words"]]
    code = 1
    try:
        launch.main()
        code = 0
    except Exception:
        traceback.print_exc()
        sys.stderr.flush()
    finally:  # when all is said: whoever asked reads it then
        link.sendall(str(code).encode())


def _received(link: socket.socket, count: int) -> bytes:
    found = b""
    while len(found) < count:
        found += link.recv(count - len(found))
    return found


class _Blank(subprocess.Popen[bytes]):
    """A process that waits for what it is to be: made before there are threads."""

    def __init__(self) -> None:
        reading, self._told = os.pipe()
        self.args, self.returncode, self._child_created = "", None, True
        self.stdin = self.stdout = self.stderr = None
        self._waitpid_lock = threading.Lock()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._told)
            _in_fork(lambda: _become(reading))
        os.close(reading)

    def become(self, args: tuple[str, ...], env: dict[str, str]) -> _Blank:
        with os.fdopen(self._told, "w") as told:
            told.write(f"{json.dumps([args, env])}\n")
        return self


def _become(reading: int) -> None:
    from src.children import die_with_parent

    die_with_parent()
    os.setsid()
    with os.fdopen(reading) as file:
        (_, _, _, module, *words), env = json.loads(file.readline())  # its end may be open in another
    os.environ.clear()
    os.environ |= env
    sys.argv = [module, *words]
    for folder in env.get("PYTHONPATH", "").split(os.pathsep):  # as an interpreter does that starts
        if os.path.exists(first := os.path.join(folder, "sitecustomize.py")):
            runpy.run_path(first)
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    sys.exit(ask(sys.argv[2], sys.argv[3:]))
