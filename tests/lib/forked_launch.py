"""Commands of Python without the imports, which are most of what a tiny one takes: `-m src.main`, `accelerate launch`.

A server has imported what a run imports. It carries out a command in a fork of itself. The processes that accelerate
would start are forks too, which go on as the module that would have been started.
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
LAUNCHER = "accelerate.commands.launch"


def ask(place: str, words: list[str]) -> int:
    """Carry out words that begin with `-m` and a module, as `python` would, and return the exit code."""
    with socket.socket(socket.AF_UNIX) as link:
        link.connect(place)
        request = json.dumps({"words": words, "env": dict(os.environ), "cwd": os.getcwd()}).encode()
        socket.send_fds(link, [len(request).to_bytes(4, "big")], [1, 2])
        link.sendall(request)
        return int(link.recv(16) or b"1")


def serve(place: str) -> None:
    """Serve until the parent dies."""
    import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401 # type: ignore[reportMissingImports]
    import transformers
    from accelerate.commands import launch  # noqa: F401

    from src.evaluation import held_out  # noqa: F401
    from src.generation import transformers_engine  # noqa: F401
    from src.launch import runner  # noqa: F401
    from src.ranking import embedded  # noqa: F401
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
                _in_fork(lambda link=link: _carry_out(link))
            link.close()


def _in_fork(act: Callable[[], Any]) -> None:
    """Act, and end the process with the exit code."""
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


def _carry_out(link: socket.socket) -> None:
    """Carry out a command as in a process of its own, which dies with its processes when whoever asked is dead."""
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    head, files, _, _ = socket.recv_fds(link, 4, 2)
    request = json.loads(_received(link, int.from_bytes(head, "big")))
    for number, file in enumerate(files, 1):
        os.dup2(file, number)
        os.close(file)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ |= request["env"]
    _, module, *words = request["words"]
    blanks = [_Blank() for _ in range(_processes(words) if module == LAUNCHER else 0)]

    def watch() -> None:
        link.recv(1)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
    code = 1
    try:
        _launch(words, blanks) if module == LAUNCHER else _run(module, words)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except Exception:
        traceback.print_exc()
    finally:  # when all is said: whoever asked reads it then
        sys.stdout.flush()
        sys.stderr.flush()
        link.sendall(str(code).encode())


def _processes(words: list[str]) -> int:
    return int(words[words.index("--num_processes") + 1])


def _launch(words: list[str], blanks: list[_Blank]) -> None:
    from accelerate.commands import launch
    from torch.distributed.elastic.multiprocessing.subprocess_handler.subprocess_handler import SubprocessHandler

    SubprocessHandler._popen = lambda self, args, env: blanks.pop().become(args, env)  # type: ignore[method-assign]
    sys.argv = ["accelerate", *words]
    launch.main()


def _run(module: str, words: list[str]) -> None:
    sys.argv = [module, *words]
    sys.path.insert(0, os.getcwd())
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _received(link: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        data += link.recv(count - len(data))
    return data


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
    from src.kernel.processes import die_with_parent

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
