"""`python -m src.main [verb] [overrides]`: compose the config, build one typed Run, do what the verb says.

verbs: (none) make what is missing and report | plan | status | cancel | retry | verify | clean [--yes]
       score benchmark=… from=… [out=…], of files that others made
       compare runs=… [out=…] | sync [runs=…], which take run folders in place of a config
exit codes: 0 done, 2 a mistake of the user, 3 a failure of the machine or a damaged store, 128+n stopped by signal n
HYDRA_FULL_ERROR=1 in the environment shows where an error rose.
"""

import os
import signal
import sys
import threading

# This file takes the syntax of older Pythons, so that they can say that they are too old.
CTRL_C = () if signal.getsignal(signal.SIGINT) == signal.SIG_IGN else (signal.SIGINT,)  # ignored in a background
if __name__ == "__main__":
    for number in CTRL_C:
        signal.signal(number, signal.SIG_DFL)  # during the imports there is nothing to keep and nothing to say

try:
    if sys.version_info < (3, 11):  # noqa: UP036
        raise ImportError(f"Python {sys.version.split()[0]} is too old, it takes 3.11 or later")
    if not __package__:
        raise ImportError("started as a file, not as python -m src.main")
    from src.kernel.config import Stopped
    from src.kernel.processes import quiet_libraries, tidy_output

    if __name__ == "__main__":
        quiet_libraries()  # before the next line imports some
    from src.launch.mistakes import exit_code
    from src.launch.verbs import VERBS, carry_out
except ImportError as error:
    if error.name and error.name.partition(".")[0] in {"src", *sys.stdlib_module_names}:
        raise  # a mistake in the code; else a package is missing, or another version than ours
    remedy = "`make install`, `source .venv/bin/activate`, then python -m src.main at the root of the clone"
    print(f"error: {error} ({sys.executable}); {remedy}", file=sys.stderr)
    sys.exit(2)


def main() -> int:
    """Carry out the command in sys.argv; return the exit code."""
    words, trace = sys.argv[1:], bool(os.environ.get("HYDRA_FULL_ERROR"))
    verb = words.pop(0) if words and words[0] in VERBS else "run"
    try:
        tidy_output()
        code = carry_out(verb, words)
        sys.stdout.flush()
        return code
    except BaseException as error:
        return exit_code(error, words, trace)


def _stop(number: int, frame: object) -> None:
    """End the command in order; a second Ctrl-C ends it at once, other signals may come again meanwhile."""
    signal.signal(number, signal.SIG_DFL if number == signal.SIGINT else signal.SIG_IGN)
    raise Stopped(number)


def _stop_again(ignored: "sys.UnraisableHookArgs") -> None:
    """Send a signal again that came while an object was being collected, where Python goes on after any exception."""
    if isinstance(ignored.exc_value, Stopped):
        number = ignored.exc_value.exit_code - 128
        signal.signal(number, _stop)
        threading.Timer(0.05, os.kill, (os.getpid(), number)).start()
    else:
        sys.__unraisablehook__(ignored)


if __name__ == "__main__":
    try:
        sys.unraisablehook = _stop_again
        for number in (*CTRL_C, signal.SIGTERM, signal.SIGUSR1):  # the last is SLURM's warning; training saves first
            signal.signal(number, _stop)
        code = main()
    except Stopped as stopped:  # before the first line of work, or while a mistake is told
        code = stopped.exit_code
    for number in CTRL_C:
        signal.signal(number, signal.SIG_DFL)
    sys.exit(code)
