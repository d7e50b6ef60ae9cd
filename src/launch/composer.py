"""From composed configs to typed runs; what points of a sweep have in common is composed and built once."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, InstantiationException
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from src.experiment.point import Launcher, Point, Tracking
from src.experiment.run import Run
from src.experiment.secret_words import refuse_settings
from src.experiment.sources import register
from src.kernel.config import Placed, UserError, explain

register()
AROUND = {"launcher": "local", "tracking": "off"}
"""Keys of the config that are no part of the run, each with a choice: who carries it out, and what mirrors it."""
CLASS = "package.module.Class, as the files in conf have it"


class _Parts(NamedTuple):
    run: Run
    launcher: Launcher
    tracking: Tracking


class Composer:
    """Points of a sweep: Hydra composes what they have in common once, the rest is put in.

    Where a value could move anything but itself, such as a group, a list or what an interpolation reads, Hydra
    composes the point as a whole.
    """

    def __init__(self, loader: Any, master: DictConfig, words: tuple[str, ...]) -> None:
        self.loader, self.master, self.words = loader, master, words
        self.parser = OverridesParser.create(config_loader=loader)
        self._bases: dict[tuple[str, ...], _Base | None] = {}
        self._groups: dict[str, bool] = {}

    def points(self, batch: list[list[str]]) -> list[Point]:
        common = set.intersection(*map(set, batch)) if batch else set()
        return [self._point(overrides, common) for overrides in batch]

    def whole(self, overrides: list[str]) -> DictConfig:
        """As Hydra composes it."""
        cfg = self.loader.load_sweep_config(self.master, overrides)
        with read_write(cfg), open_dict(cfg):
            del cfg["hydra"]
        return cfg

    def _point(self, overrides: list[str], common: set[str]) -> Point:
        values = [word for word in overrides if word not in common and self._is_value(word)]
        rest = tuple(word for word in overrides if word not in values)
        if rest not in self._bases:
            self._bases[rest] = self._base(list(rest)) if values else None
        base = self._bases[rest]
        parts = base.with_values(self.parser.parse_overrides(values), rest) if base else None
        if parts is None:
            cfg = self.whole(overrides)
            return point_of(cfg, overrides, lambda: cfg, self.words)
        return Point(*parts, overrides, lambda: self.whole(overrides), self.words)

    def _base(self, rest: list[str]) -> _Base | None:
        """None where these words alone are refused; a point's own values may take their place."""
        try:
            return _Base(self.whole(rest))
        except (UserError, HydraException, OmegaConfBaseException):
            return None

    def _is_value(self, word: str) -> bool:
        """key=value of a key that is no group."""
        key = re.match(r"([A-Za-z_][\w.]*)=", word)
        if key is None or key[1].startswith("hydra"):
            return False
        name = key[1]
        if name not in self._groups:
            self._groups[name] = bool(self.loader.get_group_options(name.replace(".", "/")))
        return not self._groups[name]


class _Base:
    """A composed config, and what differs from it in plain values."""

    def __init__(self, cfg: DictConfig) -> None:
        self.parts = _built(cfg)
        self.resolved: Any = OmegaConf.to_container(cfg, resolve=True)
        self.read = _tokens(OmegaConf.to_container(cfg, resolve=False))
        self._parts: dict[str, Any] = {}

    def with_values(self, values: list[Any], rest: tuple[str, ...]) -> _Parts | None:
        """Return the parts with other values; None where these may move more than themselves, or are refused."""
        keys = [value.key_or_group for value in values]
        others = [word.lstrip("+~").partition("=")[0] for word in rest]
        if any(_overlap(key, other) for key in keys for other in others):
            return None
        changed: dict[str, Any] = {}
        for key, value in zip(keys, (value.value() for value in values), strict=True):
            path = key.split(".")
            plain = isinstance(value, int | float | str | bool | None) and "${" not in str(value) and value != "???"
            if not plain or self.read.intersection(path) or not self._put(changed, path, value):
                return None
        try:
            built = {key: self._part(key, part) for key, part in changed.items()}
            around = {key: built.pop(key) for key in AROUND if key in built}
            return self.parts._replace(run=dataclasses.replace(self.parts.run, **built), **around)
        except (InstantiationException, ValidationError):
            return None  # composed as a whole it says what is wrong

    def _put(self, changed: dict[str, Any], path: list[str], value: Any) -> bool:
        """Put the value into a copy of its part of the config; False where there is no such key."""
        first, *inner = path
        if first not in self.resolved:
            return False
        if not inner:
            changed[first] = value
            return not isinstance(self.resolved[first], dict)
        place = changed[first] = json.loads(json.dumps(changed.get(first, self.resolved[first])))
        for name in inner[:-1]:
            place = place.get(name) if isinstance(place, dict) else None
        if not isinstance(place, dict) or inner[-1] not in place or isinstance(place[inner[-1]], dict):
            return False
        place[inner[-1]] = value
        return True

    def _part(self, key: str, part: Any) -> Any:
        """A field of the run; equal ones are the same object."""
        if not isinstance(part, dict):
            return part
        text = json.dumps([key, part])
        if text not in self._parts:
            self._parts[text] = placed(hydra.utils.instantiate(OmegaConf.create(part), _convert_="all"), key)
        return self._parts[text]


def _overlap(one: str, other: str) -> bool:
    """Whether one of two keys is the other, or within it."""
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


def _tokens(raw: Any) -> set[str]:
    """Names in all that has an interpolation."""
    if isinstance(raw, dict):
        return set[str]().union(*(_tokens(value) for value in raw.values()))
    if isinstance(raw, list):
        return set[str]().union(*(_tokens(value) for value in raw))
    return set(re.findall(r"\w+", raw)) if isinstance(raw, str) and "${" in raw else set()


def point_of(
    cfg: DictConfig, overrides: list[str], compose: Callable[[], DictConfig], command: tuple[str, ...]
) -> Point:
    """Return the typed point of a composed config. Raises UserError naming the full key of a refused value."""
    return Point(*_built(cfg), overrides, compose, command)


def build(cfg: DictConfig) -> Run:
    """Return the typed Run of a composed config. Raises UserError naming the full key of a refused value."""
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise UserError(f"{missing[0]}: missing; give it a value")
    run = _instantiated(OmegaConf.masked_copy(cfg, [key for key in map(str, cfg) if key not in AROUND]))
    refuse_settings(OmegaConf.to_container(cfg, resolve=False))
    return placed(run)


def _built(cfg: DictConfig) -> _Parts:
    run, around = build(cfg), [cfg.get(key) and _instantiated(cfg[key]) for key in AROUND]
    for (key, choice), part, protocol in zip(AROUND.items(), around, (Launcher, Tracking), strict=True):
        if not isinstance(part, protocol):
            raise UserError(f"{key}: wants a file of conf/{key}, such as {key}={choice}")
    return _Parts(run, *around)


def _instantiated(cfg: Any) -> Any:
    try:
        return hydra.utils.instantiate(cfg, _convert_="all")
    except InstantiationException as error:
        raise UserError(_explain(error)) from error


def read_point(folder: Path) -> Point:
    """Return the point of a run folder, of the config that its last command has left there. Raises UserError."""
    cfg = OmegaConf.load(folder / "config.yaml")
    if not isinstance(cfg, DictConfig):
        raise UserError(f"{folder / 'config.yaml'}: not the config of a run")
    point = point_of(cfg, [], lambda: cfg, ())
    if point.folder.resolve() != folder.resolve():
        raise UserError(f"its config.yaml is that of {point.folder}; use the code and the current folder that made it")
    return point


def placed(value: Any, key: str = "") -> Any:
    """The same config, whose parts know their `place` in it as far as they want to."""
    if isinstance(value, dict):
        found, own = value, {}
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        found = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        own = {"place": key} if key and isinstance(value, Placed) else {}
    else:
        return value
    inner = {name: placed(part, f"{key}.{name}".lstrip(".")) for name, part in found.items()} | own
    changed = {name: part for name, part in inner.items() if part is not found[name]}
    if not changed:
        return value
    return value | changed if isinstance(value, dict) else dataclasses.replace(value, **changed)


def _explain(error: InstantiationException) -> str:
    """Hydra's message ends in `full_key: a.b`; the cause says what pydantic or the class refused."""
    text, cause = str(error), error.__cause__
    key = text.rpartition("full_key: ")[2].strip() if "full_key: " in text else ""
    if isinstance(cause, ValidationError):
        return explain(cause, key)
    first, *rest = str(cause or text).strip().splitlines()
    remedy = (
        f"; mend {key or 'config'}._target_: {CLASS}" if first.startswith(("Error loading", "Error locating")) else ""
    )
    return f"{key or 'config'}: {' '.join([first, *rest[:1]]) if first.endswith(':') else first}{remedy}"
