"""Failures as one line and an exit code; where Hydra refuses words of a command, the line says what to do."""

from __future__ import annotations

import re
import sys
import traceback
from argparse import ArgumentError
from collections.abc import Iterator
from difflib import get_close_matches
from itertools import takewhile
from typing import cast

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from src.kernel.config import CONF, Fault, Stopped, UserError, meant
from src.kernel.faults import explain
from src.launch.verbs import VERBS


def exit_code(error: BaseException, words: list[str], trace: bool = False) -> int:
    """Print what failed in one line and return the exit code; raise a mistake in the code again.

    `words` are those of the command behind its verb. `trace`: print where the error rose, too.
    """
    if isinstance(error, Stopped):
        print(error, file=sys.stderr)
        return error.exit_code
    if isinstance(error, UserError | ArgumentError | HydraException | OmegaConfBaseException):
        message, code = one_line(error, words), 3 if isinstance(error, Fault) else 2
    else:
        message, code = explain(error), 3
    if message is None or not isinstance(error, Exception):
        raise error
    if trace:
        traceback.print_exception(error)
    print("error: " + message.replace("\n", "\\n"), file=sys.stderr)
    return code


def one_line(error: Exception, words: list[str]) -> str:
    """Return the first line that says something, with the choices or the hint that Hydra has for it."""
    if isinstance(error, OverrideParseException):
        word = error.override.removeprefix("++")
        if "=" in word:
            return f"{word}: Hydra cannot read this value; a text with signs is \"key='…'\", a home folder $HOME/…"
        if word in VERBS:
            return f"{word}: a verb stands first: python -m src.main {word} ..."
        hint = f"{meant(word, VERBS)}the verbs are {', '.join(VERBS)}"
        return f"{word}: neither key=value (without spaces around =) nor a verb; {hint}"
    first, *rest = [line.strip() for line in str(error).splitlines() if line.strip()] or [repr(error)]
    quoted = first.partition("'")[2].rpartition("'")[0]
    if "UserError raised while" in first and isinstance(error, OmegaConfBaseException):
        return f"{error.full_key}: {first.partition('interpolation: ')[2]}"
    if any(line.startswith("To append to your config use") for line in rest):
        return _unknown(quoted.partition("'")[0], words)
    if first.startswith("Ambiguous value for argument"):
        return f"{quoted}: add -m to run a sweep; a list is key=[1,2], and a text is \"key='a,b'\""
    if first.startswith("Multiple values for "):
        group = first.split()[3].rstrip(".")
        return f"{group}: chosen twice; say it once, and without + where config.yaml has the group"
    if "appears more than once in the final defaults list" in first:
        return f"{first.split()[0]}: chosen twice, by two choices of the command that both bring it; leave one out"
    if first.startswith("Config group override must be"):
        for key, _, value in (word.lstrip("+").partition("=") for word in words):
            group = CONF / key.partition("@")[0]
            if group.is_dir() and not (group / f"{value}.yaml").exists():
                return f"{key}: needs the name of a file in conf/{group.name}; {value} is not one"
    if match := re.search(r"Interpolation key '([^']*)' not found", first):
        asking = re.compile(rf"\$\{{\.*{re.escape(match[1])}\}}")
        word = next(filter(asking.search, words), " ".join(words))
        return f"{word}: there is no key {match[1]}; --cfg job shows all keys"
    choices = list(takewhile(lambda line: not line.startswith("Config search path"), rest))[1:]
    if match := re.search(r"Could not (?:find|load) '(.*)/(.*)'\.?$", first):
        choices = choices or sorted(file.stem for file in (CONF / match[1]).glob("*.yaml"))
        hint = f"{meant(match[2], choices)}there are {', '.join(choices) or 'none'}"
        return f"{match[1]}: no file {match[2]}.yaml in conf/{match[1]}; {hint}"
    if append := re.search(r"To append to your default list use (.*)", str(error)):
        return f"{quoted}: config.yaml has no such choice; use {append[1]}"
    key = getattr(error, "full_key", None)
    return f"{key}: {first}" if key else first.replace(" ++", " ")


def _unknown(key: str, words: list[str]) -> str:
    """Name an unknown key, and the one that may be meant, of those that the other words compose."""
    others = [word for word in words if "=" in word and "," not in word and not word.startswith(f"{key}=")]
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            keys = list(_keys(compose("config", others)))
    except (HydraException, OmegaConfBaseException, ValueError):
        keys = []
    parent, _, last = key.rpartition(".")
    lasts = {other.rpartition(".")[2]: other for other in reversed(keys)}
    beside = [other for other in keys if other.rpartition(".")[0] == parent]
    candidates = [
        *get_close_matches(key, beside, n=1, cutoff=1 - 0.35 * len(last) / len(key)),
        *[other for other in keys if other.endswith(f".{key}")][:1],
        *[other for other in beside if other.startswith(key)],
        *get_close_matches(key, keys, n=1, cutoff=0.85),
        *[lasts[name] for name in get_close_matches(last, lasts, n=1, cutoff=0.8)],
    ]
    if candidates:
        return f"{key}: unknown key; did you mean {candidates[0]}? --cfg job shows all keys"
    group, _, inner = key.partition(".")
    files = sorted((CONF / group).glob("*.yaml")) if inner and group.isidentifier() else []
    having = [file.stem for file in files if inner in _keys(cast(DictConfig, OmegaConf.load(file)))]
    if having:
        return f"{key}: this {group} has no such key; choose {' or '.join(f'{group}={name}' for name in having)}"
    return f"{key}: unknown key; --cfg job shows all keys"


def _keys(cfg: DictConfig, prefix: str = "") -> Iterator[str]:
    """Yield the full name of every key of a config."""
    for key in cfg:
        yield f"{prefix}{key}"
        inner = cfg._get_node(key)
        if isinstance(inner, DictConfig) and not inner._is_missing() and not inner._is_none():
            yield from _keys(inner, f"{prefix}{key}.")
