"""Keys and passwords: how to recognise one, and the refusal of words and settings that hold one.

What a command says is kept in the run folder, in job scripts, in records and at W&B. Keys come from the environment.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import Any

from src.kernel.config import UserError, leaves

NAMED = re.compile(
    r"(api|access|secret|private|_)_?key$|^(?-i:KEY)$|_pwd$|(^|_)token$|secret|passw|authori[sz]ation|credential", re.I
)
"""Ends of keys, and names of variables, whose words are secret. The repository's own config holds none: its columns of
benchmarks have a `key`. PWD holds a folder.
"""
_LOOKS = re.compile(
    r"\b(sk-[\w-]{20,}|hf_\w{30,}|gh[oprsu]_\w{30,}|github_pat_\w{30,}|wandb_v\d_\w{30,}|AKIA[0-9A-Z]{16})"
    r"|://[^/\s:@]*:[^/\s@]+@|https?://[^/\s@]+@"  # http://me:password@host, https://token@host
    r"|[?&](api[_-]?key|key|(access_|auth_)?token|sig|signature|password)=[^&\s]"  # http://host?api_key=...
    r"|\b\w*(APIKEY|_KEY|_PWD|TOKEN|SECRET|PASSWORD)=[\"']?[^\s\"'$<.]{8}"  # a line of shell that sets a variable
)
_CREDENTIALS = re.compile(r"(?<=://)[^/\s@]+@")
_PASSWORD = re.compile(r"://[^/\s:@]*:([^/\s@]+)@")
_TOKEN = re.compile(r"\bhf_[^\W_]{12,}")
SHORTEST = 8
"""Characters of the shortest value of the environment that is looked for: shorter ones are in many words."""
REMEDY = (
    "what a command says is kept in run folders, job scripts and W&B; leave it out, keys are read from the environment "
    "(OPENAI_API_KEY, HF_TOKEN, WANDB_API_KEY)"
)


def holds_secret(text: str) -> bool:
    """Say whether a secret seems to be in the text, or a secret of the environment is: a variable with such a name."""
    return bool(_LOOKS.search(text)) or any(value in text for value in _secrets())


def scrubbed(text: str) -> str:
    """Take out secrets of the environment, tokens of the hub, and `me:word` of an address `https://me:word@host`."""
    for value in _secrets():
        text = text.replace(value, "***")
    return _TOKEN.sub("hf_…", _CREDENTIALS.sub("…@", text))


def refuse_words(words: Iterable[str]) -> None:
    """Raise UserError, without the secret, for the first word of a command that holds one."""
    for number, word in enumerate(words, 1):
        key, _, value = word.lstrip("+~").partition("=")
        if (NAMED.search(key.rpartition(".")[2]) and value.strip("'\"") not in ("", "null")) or holds_secret(word):
            place = f"word {number} of the command" if holds_secret(key) or not value else key
            raise UserError(f"{place}: looks like a secret; {REMEDY}")


def refuse_settings(settings: Any) -> None:
    """Raise UserError, without the secret, where a composed config holds one: its files may, where no word does.

    No function is called for a value, which could be one of the environment.
    """
    for key, text in leaves(settings):
        if isinstance(text, str) and text and (NAMED.search(key.rpartition(".")[2]) or holds_secret(text)):
            raise UserError(f"{key}: looks like a secret; {REMEDY}")
        if key.endswith("_target_") and not re.search(r"\.[A-Z]\w*$", str(text)):  # os.getenv, say
            raise UserError(f"{key}: {text} is no class; write package.module.Class, as the files in conf have it")


def _secrets() -> list[str]:
    """Return what variables of the environment with such a name hold, and passwords of addresses in any of them."""
    values = [value.strip() for name, value in os.environ.items() if NAMED.search(name)]
    values += [password for value in os.environ.values() for password in _PASSWORD.findall(value)]
    return [value for value in values if len(value) >= SHORTEST and not _is_path(value)]


def _is_path(value: str) -> bool:
    """Say whether a value is a path. Base64 may begin with a slash too, but with no folder of this machine."""
    first = value[1:].partition("/")[0]
    return value.startswith("~/") or (value.startswith("/") and bool(first) and os.path.isdir(f"/{first}"))
