"""What Hydra refuses in the words of a command, as one line that names the word and what to do."""

from __future__ import annotations

import re
from difflib import get_close_matches
from itertools import takewhile
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from src.kernel.config import CONF

_NO_CHOICE = re.compile(r"Could not find '(.*)/(.*)'$")


def one_line(error: BaseException, words: list[str], verbs: tuple[str, ...]) -> str:
    """The first line that says something, with the choices or the hint that Hydra has for it."""
    if isinstance(error, OverrideParseException):
        if "=" in error.override:
            return f"{error.override}: Hydra cannot read this value; quote it"
        return _no_override(error.override, verbs)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first, rest = (lines or [repr(error)])[0], lines[1:]
    if any(line.startswith("To append to your config use") for line in rest):
        return _unknown(first.partition("'")[2].partition("'")[0], words)
    if first.startswith("Ambiguous value for argument"):
        word = first.partition("'")[2].rpartition("'")[0]
        return f"{word}: several values are a sweep, which wants -m, or a list: key=[1,2], or a text: \"key='a,b'\""
    if first.startswith("Multiple values for "):
        group = first.split()[3].rstrip(".")
        return f"{group}: chosen twice; say it once, and without + where config.yaml has the group"
    if "appears more than once in the final defaults list" in first:
        return f"{first.split()[0]}: chosen twice, by two choices of the command that both bring it; leave one out"
    choices = list(takewhile(lambda line: not line.startswith("Config search path"), rest))
    if (wrong := _NO_CHOICE.search(first)) and choices and choices[0].startswith("Available options in"):
        return f"{wrong[1]}: no file {wrong[2]}.yaml in conf/{wrong[1]}; there are {', '.join(choices[1:])}"
    return " ".join([first, *(line for line in rest if line.startswith("To append to your default list use"))])


def of_value(error: ValueError, words: list[str]) -> str:
    """Hydra's own, which name no word: the one whose value is at fault where that can be told, else all of them."""
    text = str(error).strip().splitlines()[0]
    if text.startswith("Config group override must be"):
        found = [word for word in words if word.partition("=")[2] in ("null", "", "true", "false") or "={" in word]
        groups = [word for word in found if (CONF / word.partition("=")[0].lstrip("+")).is_dir()]
        if groups:
            group = groups[0].partition("=")[0].lstrip("+")
            return f"{groups[0]}: {group} wants the name of a file of conf/{group}"
    if found := re.search(r"Interpolation key '([^']*)' not found", text):
        named = [word for word in words if f"${{{found[1]}}}" in word]
        return f"{(named or words)[0]}: there is no key {found[1]}; --cfg job shows all keys"
    return f"{' '.join(words)}: {text}"


def _unknown(key: str, words: list[str]) -> str:
    """With the key that may have been meant, of those that the other words compose."""
    meant = _meant(key, _keys([word for word in words if not word.startswith(f"{key}=")]))
    if meant is None and (having := _choices_with(key)):
        group = key.partition(".")[0]
        return f"{key}: no key of this {group}; {', '.join(f'{group}={name}' for name in having)}: these have it"
    return f"{key}: unknown key; {f'did you mean {meant}? ' if meant else ''}--cfg job shows all keys"


def _meant(key: str, keys: list[str]) -> str | None:
    """A key beside it that is spelt alike; or one anywhere, if only its parents are left out or a letter is wrong; or
    the only one of its name in its group.
    """
    parent, _, last = key.rpartition(".")
    beside = [other for other in keys if other.rpartition(".")[0] == parent]
    below = [other for other in keys if other.endswith(f".{key}")]
    found = get_close_matches(key, beside, n=1, cutoff=1 - 0.35 * len(last) / len(key))
    group = f"{key.partition('.')[0]}."
    named = [other for other in keys if parent and other.startswith(group) and other.rpartition(".")[2] == last]
    only = named if len(named) == 1 else []
    return next(iter([*found, *below[:1], *get_close_matches(key, keys, n=1, cutoff=0.9), *only]), None)


def _choices_with(key: str) -> list[str]:
    """The files of its group that have the key, which the chosen one does not."""
    group, _, inner = key.partition(".")
    files = sorted((CONF / group).glob("*.yaml")) if inner and group.isidentifier() else []
    return [file.stem for file in files if inner in _flat(_loaded(file))]


def _loaded(file: Path) -> DictConfig:
    found = OmegaConf.load(file)
    return found if isinstance(found, DictConfig) else OmegaConf.create()


def _keys(words: list[str]) -> list[str]:
    """All keys of the config that the words compose; none where they do not."""
    given = [word for word in words if not word.startswith(("-", "hydra"))]
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return _flat(compose("config", given))
    except (HydraException, OmegaConfBaseException, ValueError):
        return []


def _flat(cfg: DictConfig, prefix: str = "") -> list[str]:
    found: list[str] = []
    for key in cfg:
        name = f"{prefix}{key}"
        found.append(name)
        inner = cfg._get_node(key)
        if isinstance(inner, DictConfig) and not OmegaConf.is_missing(cfg, key) and not inner._is_none():
            found += _flat(inner, f"{name}.")
    return found


def _no_override(word: str, verbs: tuple[str, ...]) -> str:
    if word in verbs:
        return f"{word}: a verb stands first: python -m src.main {word} ..."
    meant = get_close_matches(word, verbs, n=1)
    asked = f"did you mean {meant[0]}?" if meant else f"the verbs are {', '.join(verbs)}"
    return f"{word}: neither key=value (without spaces around =) nor a verb; {asked}"
