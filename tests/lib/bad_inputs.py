"""The rows of tests/bad_inputs.md, and what arranges the mistakes that words alone do not make.

Those of models are in tests/lib/bad_models.py.
"""

from __future__ import annotations

import gzip
import json
import re
import shlex
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from answer_server import Said, answering
from tiny_run import ROOT

from src.kernel.store import MARK

# The page -----------------------------------------------------------------------------------------------------------


class Bad(NamedTuple):
    """A mistake, the words of the command that hold it, and the line that tells it."""

    what: str
    words: list[str]
    message: str
    """All that stands behind `error: `; `…` for what differs, such as a path."""
    code: int
    made: list[str]
    """Kinds of the artifacts that were finished before it was found."""
    begun: list[str]
    """Kinds of unfinished ones, whose work so far the next try uses."""

    def matches(self, line: str) -> bool:
        return bool(re.fullmatch(".+".join(map(re.escape, self.message.split("…"))), line))


def sections() -> dict[str, tuple[list[Bad], list[str]]]:
    """Return title -> the mistakes of a section, and what looks like a mistake and is none."""
    page = {}
    for part in (ROOT / "tests" / "bad_inputs.md").read_text().split("\n## ")[1:]:
        rows = [_cells(line) for line in part.splitlines() if line.startswith("| ")]
        bad = [_bad(*row) for row in rows if len(row) == 5 and row[0] != "mistake"]
        page[part.partition("\n")[0]] = bad, [row[0] for row in rows if len(row) == 2 and row[0] != "no mistake"]
    return page


def _cells(line: str) -> list[str]:
    """Return the cells of a line of a table, without the quotes of code."""
    cells = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
    return [cell.strip("`").strip() if cell.startswith("`") and cell.endswith("`") else cell for cell in cells]


def _bad(what: str, words: str, message: str, code: str, kept: str) -> Bad:
    made, _, begun = kept.partition("; begun: ")
    counted = [kind.partition(" ×") for kind in made.split(", ") if kind]
    kinds = [kind for kind, _, times in counted for _ in range(int(times or 1))]
    return Bad(what, shlex.split(words), message, int(code), kinds, [begun] if begun else [])


# What arranges a mistake --------------------------------------------------------------------------------------------

NOBODY = "127.0.0.1:9"
"""An address where nobody listens."""


class Setting(NamedTuple):
    """What may be arranged before a command: files below `at`, servers until `stack` ends, the environment."""

    at: Path
    model: Path
    """A tiny policy with its tokenizer; copy it before you change it."""
    patch: pytest.MonkeyPatch
    stack: ExitStack


Arrange = Callable[[Setting], list[str] | None]
"""Arranges a mistake; returns words of the command that the page cannot know, such as the address of a server."""


def files(contents: dict[str, bytes | str], *words: str) -> Arrange:
    """Somebody's files; `{}` in the words is their folder."""

    def arrange(setting: Setting) -> list[str]:
        for name, content in contents.items():
            (setting.at / name).parent.mkdir(parents=True, exist_ok=True)
            (setting.at / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return [word.format(setting.at) for word in words]

    return arrange


def made(command: str, name: str, *words: str) -> Arrange:
    """What a shell command makes below the row's folder; `{}` in it and in the words is its path."""

    def arrange(setting: Setting) -> list[str]:
        subprocess.run(shlex.split(command.format(setting.at / name)), check=True)
        return [word.format(setting.at / name) for word in words]

    return arrange


def environment(**variables: str | None) -> Arrange:
    """Variables; None: not set."""

    def arrange(setting: Setting) -> None:
        for name, value in variables.items():
            setting.patch.delenv(name, raising=False)
            if value is not None:
                setting.patch.setenv(name, value)

    return arrange


def patched(target: str, value: Any) -> Arrange:
    return lambda setting: setting.patch.setattr(target, value)


def asks(reply: str | Said, key: str = "data.answers.mine.endpoint", timeout_s: float = 60) -> Arrange:
    """The endpoint of this key is a server that says this at every request; one thread asks, and once more at once."""

    def arrange(setting: Setting) -> list[str]:
        server = setting.stack.enter_context(answering())
        server.say = lambda body, number: reply
        return endpoint(key, server.url, timeout_s)

    return arrange


def endpoint(key: str, url: str, timeout_s: float = 60) -> list[str]:
    values = {"base_url": url, "concurrent": 1, "retries": 1, "timeout_s": timeout_s}
    return [f"{key}.{name}={value}" for name, value in values.items()]


def down(setting: Setting) -> list[str]:
    setting.stack.enter_context(answering())  # for its environment
    return endpoint("data.answers.mine.endpoint", f"http://{NOBODY}/v1")


def cluster(squeue: str = "exit 0", sbatch: str = "exit 0") -> Arrange:
    """The programs of SLURM, which are all there is on PATH."""

    def arrange(setting: Setting) -> None:
        scripts = dict.fromkeys(("sacctmgr", "scancel"), "exit 0") | {"squeue": squeue, "sbatch": sbatch}
        scripts["scontrol"] = "echo 'MaxArraySize = 1001'; echo 'MaxJobCount = 10000'"
        files({f"bin/{name}": f"#!/bin/sh\n{line}\n" for name, line in scripts.items()})(setting)
        for file in (setting.at / "bin").iterdir():
            file.chmod(0o755)
        setting.patch.setenv("PATH", str(setting.at / "bin"))

    return arrange


def fails(line: str) -> str:
    return f"echo '{line}' >&2; exit 1"


# Prompts, and answers from elsewhere --------------------------------------------------------------------------------

GOOD: list[dict[str, Any]] = [{"prompt": f"good prompt {number}"} for number in range(4)]
HI = {"role": "user", "content": "hi"}
HO = {"role": "assistant", "content": "ho"}


def lines(*rows: Any) -> bytes:
    """Three good prompts, then `rows`: objects, or text as it is."""
    texts = [row if isinstance(row, str) else json.dumps(row) for row in (*GOOD[:3], *rows)]
    return "\n".join([*texts, ""]).encode()


def prompts(content: bytes) -> Arrange:
    """The prompts of the tiny run's first iteration."""
    return files({"part0.jsonl": content})


def answers(*rows: Any) -> Arrange:
    """Answers from elsewhere. The tiny run asks `part 0 0: …`, so that `good prompt 0` is to be asked too."""
    text = "".join(json.dumps(row) + "\n" for row in rows)
    return files({"part0.jsonl": lines(GOOD[3]), "answers.jsonl": text}, "data.answers.mine.path={}/answers.jsonl")


ROWS: dict[str, Any] = {
    "a line of broken JSON": '{"prompt": "hi"',
    "a line that is a list": '["hi"]',
    "brackets without end": "[" * 100_000,
    "other columns": {"question": "hi"},
    "an empty prompt": {"prompt": ""},
    "half of a character": '{"prompt": "\\ud800"}',
    "a content that is a number": {"messages": [HI | {"content": 3}]},
    "messages that end in an answer": {"messages": [HI, HO]},
}
"""The fourth row of JSON lines."""
ANSWER = {"prompt": "good prompt 0", "answer": "yes"}
DATA: dict[str, Arrange] = {
    **{what: prompts(lines(row)) for what, row in ROWS.items()},
    "an empty file": prompts(b""),
    "too few prompts": prompts(lines()),
    "fewer rows than parts": files({"one.jsonl": '{"prompt": "a"}\n'}, "data.path={}/one.jsonl"),
    "a file in Latin-1": prompts(lines('{"prompt": "caf\xe9"}').decode().encode("latin-1")),
    "prompts from a pipe": made("mkfifo {}", "pipe.jsonl", "data.parts=[{}]"),
    "prompts from a device": made("ln -s /dev/zero {}", "zero.jsonl", "data.parts=[{}]"),
    "a compressed file": files({"mine.jsonl.gz": gzip.compress(lines(GOOD[3]))}, "data.parts=[{}/mine.jsonl.gz]"),
    "Parquet that is damaged": files({"mine.parquet": b"PAR1" + bytes(50) + b"PAR1"}, "data.parts=[{}/mine.parquet]"),
    "prompts that are all held out": files(
        {"held_out.jsonl": '{"prompt": "a"}\n' * 6, "part0.jsonl": '{"prompt": " A "}\n' * 4}
    ),
    "a broken line in the prompts of a later iteration": files({"part2.jsonl": lines("what?")}),
    "answers to other prompts": answers({"prompt": "who?", "answer": "me"}),
    "answers in another column": answers(ANSWER, {"prompt": "good prompt 1", "reply": "yes"}),
    "not a prompt id": answers({"id": 7, "answer": "yes"}),
}
ODD_PROMPTS = {
    "emoji, also of several characters": "what is 👩‍👩‍👧‍👦 and 🇪🇺? \U0001f9d1\U0001f3fd\u200d\U0001f680",
    "zero-width characters": "a\u200bb\u200cc\u200dd\ufeffe",
    "NUL and other control characters, escaped": "a\x00b\x07c\x1bd\x7f",
    "line ends of every kind": "a\u2028b\u2029c\x85d\r\ne\x0bf\x0cg",
    "special tokens and nothing else": "<|im_end|><|im_start|><|im_end|>",
    "letters and their accents apart": "e\u0301 a\u030a ﬁ Å",
    "a private character that we use ourselves": "\ue000 1\ue001 <|im_end|>",
    "a prompt of a million characters": "word " * 200_000,
}
READ = "iter=1 only=it1/prompts"
FINE: dict[str, tuple[str, Arrange]] = {
    "the same prompt twice": (READ, prompts(lines(GOOD[0], GOOD[1]))),
    "a mark of UTF-8 in front": (READ, prompts(b"\xef\xbb\xbf" + lines(GOOD[3]))),
    "Windows' line ends": (READ, prompts(lines(GOOD[3]).replace(b"\n", b"\r\n"))),
    "empty lines at the end": (READ, prompts(lines(GOOD[3]) + b"\n\n")),
    "answers to other prompts beside those to ours, and a prompt answered twice": (
        "iter=1 only=it1/outside_mine +answers@data.answers.mine=file",
        answers(ANSWER, ANSWER, ANSWER | {"prompt": "who?"}),
    ),
}

# Servers, stores, machines and clusters -----------------------------------------------------------------------------

JUDGE = "ranker.endpoint"
NO_NODE = "Requested node configuration is not available"
NO_SUCH = '{"error": {"message": "no such model"}}'
PLACES: dict[str, Arrange] = {
    "a server that is down": down,
    "a server that says nothing": asks(Said(hang=True), timeout_s=0.5),
    "a server that says for good that it is too much": asks(Said(status=429, body='{"error": "slow down"}')),
    "a server that wants an hour's wait": asks(Said(status=429, body="{}", headers={"retry-after": "3600"})),
    "a content that is a list": asks(Said(["It", "is"])),  # pyright: ignore
    "JSON that is cut off": asks(Said(body='{"id": "x", "choi')),
    "a key that is refused": asks(Said(status=401, body="{}")),
    "a model that the server does not have": asks(Said(status=404, body=NO_SUCH)),
    "a setting that the server refuses": asks(Said(status=400, body="no such field")),
    "no key": environment(OPENAI_API_KEY=None, OPENAI_BASE_URL=None),
    "an address in the environment that is not valid": environment(OPENAI_API_KEY="sk", OPENAI_BASE_URL="here:8000"),
    "a judge that gives no verdict": asks("It is good.", JUDGE),
    "a judge that fails for good": asks(Said(status=503, body="{}"), JUDGE),
    "a store that is a file": files({"a_file": "mine"}, "store={}/a_file"),
    "run folders in a file": files({"a_file": "mine"}, "iter=1", "runs={}/a_file"),
    "a store behind a link that leads nowhere": made("ln -s nowhere {}", "link", "store={}"),
    "a name longer than a file system takes": made("true {}", "x" * 300, "store={}/mine"),
    "a path longer than a file system takes": made("true {}", "x" * 300, "model.repo={}"),
    "run folders in the store": made("true {}", "runs", "iter=1", "store={0}/store", "runs={0}/store/runs"),
    "a store that is a folder of somebody's files": files({"store/thesis.tex": "mine"}),
    "a store that was copied without its mark": files({f"store/policy/{20 * '0'}/a.json": "{}"}, "iter=1"),
    "clean without run folders": files({f"store/{MARK}": ""}),
    "GPUs, where there are none": patched("torch.cuda.device_count", lambda: 0),
    "vLLM, where it is not installed": patched("src.generation.vllm_engine.find_spec", lambda name: None),
    "more GPUs than the machine has, for training": patched("torch.cuda.device_count", lambda: 4),
    "what only a job of SLURM does": environment(SLURM_JOB_ID=None),
    "a push without the hub": patched("huggingface_hub.constants.is_offline_mode", lambda: True),
    "no SLURM here": environment(PATH="/nowhere"),
    "a cluster that does not answer": cluster(fails("slurm_load_jobs error: Unable to contact slurm controller")),
    "more GPUs than a node has": cluster(sbatch=fails(f"allocation failure: {NO_NODE}")),
    "a limit that leaves no time to work": cluster(),
    "other GPUs than the hardware says": cluster(),
    "a job for one artifact": cluster(),
}
