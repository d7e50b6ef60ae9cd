"""Compose typed points from the words of a command; config classes check the values."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import glob
import io
import itertools
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, InstantiationException
from omegaconf import DictConfig, Node, OmegaConf
from pydantic import ValidationError
from yaml import YAMLError

from src.experiment.point import Launcher, Point, Tracking
from src.experiment.run import Run
from src.kernel.config import CONF, UserError, explain, leaves, meant
from src.kernel.secret_words import refuse_settings

AROUND = {"launcher": Launcher, "tracking": Tracking}
"""Keys of the config that do not belong to the run: who carries it out, and what mirrors it."""
PLACES = {"engine": "engine@hardware.engine", "deepspeed": "+deepspeed@hardware.devices.deepspeed",
          "lora": "+lora@train.lora", "answers": "+answers@data.answers.<name>",
          "slurm": "slurm@launcher.site"}  # fmt: skip
"""Groups that have one place in the config, and how a file of each is chosen."""
LARGEST, SMALLEST = 1e12, 1e-12
"""Sizes of the numbers of a config, but for 0: with larger and smaller ones arithmetic goes wrong."""
SOURCES = ("card", "paper", "ours", "code")
"""Whom an experiment may follow. `ours`: what we do where only the code speaks, and it looks like an accident."""


def points_of(words: list[str]) -> list[Point]:
    """Compose the points that the words ask for: one, or for a sweep one for each combination of its values.

    Returns none where Hydra only shows something (`--help`, `--cfg job`). Raises UserError, or an error of Hydra or
    argparse.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("-m", "--multirun", action="store_true")
    parser.add_argument("--config-dir")
    options, overrides = parser.parse_known_args(words)
    if any(word.startswith("-") for word in overrides):
        _show(words)
        return []
    if refused := next((word for word in overrides if word.lstrip("+~").startswith(("hydra.", "hydra/"))), None):
        raise UserError(f"{refused}: Hydra composes the points and no more; launcher= says who starts them")
    folder = os.path.abspath(options.config_dir) if options.config_dir else None
    if folder and not glob.glob(f"{glob.escape(folder)}/*/*.yaml"):
        raise UserError(f"--config-dir: {folder} has no <group>/<choice>.yaml; name the folder above the groups")
    for word in overrides:
        _refuse_misplaced(word)
    quoted = (folder or "").replace("'", r"\'")
    search = [f"hydra.searchpath=['file://{quoted}']"] if folder else []
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        swept = options.multirun or any(word.startswith("+sweep=") for word in overrides)
        points = _combinations(overrides, search) if swept else [overrides]
        again = [f"--config-dir={folder}"] if folder else []
        return [point_of(_composed([*search, *point]), [*again, *point], tuple(words)) for point in points]


def _refuse_misplaced(word: str) -> None:
    """Raise UserError where a word chooses a file of a group for a place in the config that it is not for."""
    key, _, value = word.lstrip("+").partition("=")
    group = key.partition("@")[0]
    if not key:
        raise UserError(f"{word}: a key stands before =")
    if key == "sweep/wandb":
        raise UserError(f"{key}: W&B starts its searches: wandb sweep sweeps/wandb/{value}.yml")
    if (value.startswith("[") and (CONF / key).is_dir() and key != "benchmark") or ("," in value and key == "sweep"):
        raise UserError(f"{key}: takes one choice, and {value} is a list")
    right = PLACES.get(group, key)
    if not re.fullmatch(re.escape(right.lstrip("+")).replace("<name>", r"\w+"), key):
        note = ", without + where one is chosen already" if right.startswith("+") else ""
        raise UserError(f"{key}: choose it as {right}={value}{note}")


def _combinations(overrides: list[str], search: list[str]) -> list[list[str]]:
    """Return the overrides of each point of a grid; the last key is the fastest. A word wins over the grid's file."""
    grids = [word for word in overrides if word.startswith("+sweep=")]
    params = _composed([*search, *grids], return_hydra_config=True).hydra.sweeper.params or {}
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    choices: dict[str, list[str]] = {}
    for override in parser.parse_overrides([*(f"{key}={values}" for key, values in params.items()), *overrides]):
        key, word = override.get_key_element(), str(override.input_line)
        values = list(override.sweep_string_iterator()) if override.is_discrete_sweep() else []
        if override.is_sweep_override() and not values:
            raise UserError(f"{word}: a grid wants the values themselves, such as {key}=1,2")
        choices[key] = [f"{key}={value}" for value in values] or [word]
    return [list(point) for point in itertools.product(*choices.values())]


def _composed(overrides: list[str], **options: Any) -> DictConfig:
    try:
        return hydra.compose("config", list(map(_with_new_keys, overrides)), **options)
    except (OSError, ValueError, YAMLError) as error:  # Hydra's, and YAML's, whose first line names no file
        raise HydraException(" ".join(str(error).split()) if isinstance(error, YAMLError) else str(error)) from error


def _with_new_keys(word: str) -> str:
    """Return `key={new: value}` as Hydra wants it; the classes of the config refuse the keys that they do not know."""
    return re.sub(r"^(?=\w+\.[\w.]+=\{)", "++", word)


OPTIONS = ("-c", "--cfg", "-h", "--help", "--hydra-help", "--resolve", "-m", "--multirun", "--config-dir")
"""Options that only show something, and those that may stand beside them."""


def _show(words: list[str]) -> None:
    """Have Hydra show what an option such as `--help` or `--cfg job` asks for."""
    names = [word.partition("=")[0] for word in words if word.startswith("-")]
    if strange := next((name for name in names if name not in OPTIONS), None):
        hint = meant(strange, OPTIONS)
        raise UserError(f"{strange}: no such option; {hint}settings are key=value, and --hydra-help shows the options")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach us instead of Hydra's own report
    # Without an option that shows something Hydra would run, and write its outputs/ here.
    sys.argv[1:] = [*map(_with_new_keys, words), *["--cfg=job"] * {*names}.isdisjoint(OPTIONS[:5])]
    messages = io.StringIO()
    try:
        with contextlib.redirect_stderr(messages):
            hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(lambda cfg: None)()
    except SystemExit as end:  # of argparse, which writes its usage and a line that says what is wrong
        if end.code:
            message = messages.getvalue().rpartition("error: ")[2].strip()
            raise UserError(f"{message}; settings are key=value, and --hydra-help shows the options") from None
    except ValueError as error:  # of options that exclude each other
        raise UserError(f"{' '.join(words)}: {error}") from None


def point_of(cfg: DictConfig, overrides: list[str], command: tuple[str, ...] = ()) -> Point:
    """Return the typed point of a composed config. Raises UserError naming the full key of a refused value."""
    run = build(cfg)
    cfg.replace = False  # it says what to do once, and is no setting of the run
    around: dict[str, Any] = {}
    for key, protocol in AROUND.items():
        around[key] = cfg.get(key) and _instantiated(cfg[key])
        if not isinstance(around[key], protocol):
            raise UserError(f"{key}: wants a file of conf/{key}")
    return Point(run=run, cfg=cfg, overrides=overrides, command=command, **around)


def build(cfg: DictConfig) -> Run:
    """Return the typed Run of a composed config. Raises UserError naming the full key of a refused value."""
    if missing := sorted(OmegaConf.missing_keys(cfg)):
        raise UserError(f"{missing[0]}: missing; give it a value")
    settings = OmegaConf.to_container(cfg, resolve=False)
    _refuse_sizes(settings)
    refuse_settings(settings)
    return _placed(_instantiated(OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key not in AROUND])))


def _refuse_sizes(settings: Any) -> None:
    """Raise UserError, naming the key, for a number that is not finite, or larger or smaller than any is meant."""
    for key, value in leaves(settings):
        if isinstance(value, int | float) and value and not SMALLEST <= abs(value) <= LARGEST:
            sizes = f"a number is 0, or from {SMALLEST:g} to {LARGEST:g} in size"
            raise UserError(f"{key}: {str(value):.40} is out of range; {sizes}")


def read_point(folder: Path) -> Point:
    """Return the point of a run folder, from the config that its last command left there. Raises UserError."""
    cfg = OmegaConf.load(folder / "config.yaml")
    if not isinstance(cfg, DictConfig):
        raise UserError(f"{folder / 'config.yaml'}: not the config of a run")
    point = point_of(cfg, [])
    if point.folder.resolve() != folder.resolve():
        raise UserError(f"its config.yaml is that of {point.folder}; use the code and the current folder that made it")
    return point


def _instantiated(cfg: Any) -> Any:
    """Build the objects of a config. Hydra's message ends in the key; its cause is what pydantic or a class refused."""
    try:
        return hydra.utils.instantiate(cfg, _convert_="all")
    except InstantiationException as error:
        _, _, key = str(error).partition("full_key: ")
        key, cause = key.strip(), error.__cause__
        if isinstance(cause, ValidationError):
            raise UserError(explain(cause, key)) from error
        key, message = key or "config", " ".join(str(cause or error).split())
        if message.startswith(("Error loading", "Error locating")):
            message += f"; mend {key}._target_: package.module.Class, as the files in conf have it"
        raise UserError(f"{key}: {message}") from error


def _placed(value: Any, key: str = "") -> Any:
    """Return the same config, where each part that names its keys in messages has the `place` where it stands."""
    if isinstance(value, dict):
        return {name: _placed(part, f"{key}.{name}") for name, part in value.items()}
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    names = [field.name for field in dataclasses.fields(value) if field.init]
    parts = {name: _placed(getattr(value, name), f"{key}.{name}".lstrip(".")) for name in names}
    return dataclasses.replace(value, **parts | ({"place": key} if key and "place" in names else {}))


def by_source(values: Mapping[str, Any], *, _root_: DictConfig) -> Any:
    """`${by_source:{paper:18,code:1}}` in YAML: the value of the chosen variant, else the first that is written.

    It also works as a choice in a defaults list, where `_root_` holds the groups that are chosen. Raises ValueError
    for a source of another name, or none at all.
    """
    if not isinstance(values, Mapping) or not values or set(values) - set(SOURCES):
        raise ValueError(f"by_source: {values}: wants {{source:value}} of {', '.join(SOURCES)}")
    node = _root_._get_node("variant")
    chosen = node._value() if isinstance(node, Node) else None
    return values[str(chosen) if chosen in values else next(iter(values))]


def no_environment(*_: Any) -> str:
    """Stand in for OmegaConf's `${oc.env:NAME}`. Raises UserError: its value would be kept with the settings."""
    raise UserError('${oc.env:…} is refused, for settings are kept; let the shell put the value there: key="$NAME"')


OmegaConf.register_new_resolver("by_source", by_source, replace=True)
OmegaConf.register_new_resolver("oc.env", no_environment, replace=True)
