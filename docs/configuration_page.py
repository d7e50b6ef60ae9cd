"""docs/configuration.md, from conf/ and the classes that its files name. `make golden` writes it."""

from __future__ import annotations

import re
import types
from collections.abc import Iterator
from pathlib import Path
from textwrap import shorten
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from hydra.utils import get_class
from omegaconf import OmegaConf

from src.kernel.config import CONF, _NotInKey

PLACES = {"engine": "hardware.engine", "deepspeed": "hardware.devices.deepspeed", "lora": "train.lora"}
"""Groups that stand at another key than their own name."""
PRESETS = ("experiment", "variant", "size", "ranking", "sweep")
"""Groups whose files set keys of other groups."""
MEANINGS = {
    "engine": "what samples the answers",
    "deepspeed": "how a training is split over devices; null: it is not",
    "lora": "low-rank additions in place of all weights",
    "answers": "answers of others, as further candidates: `+answers@data.answers.<name>=`",
    "experiment": "a published system: experiments.md",
    "variant": "whom the experiment follows where paper, code and card disagree",
    "size": "an experiment at toy size",
    "ranking": "ranker, estimator and pairing together",
    "sweep": "points of a grid, behind `-m`",
}
HEAD = """# Configuration

Written from `conf/` and the code by `make golden`: every group, its choices, and every key with its type, its value and
what it does.

```
python -m src.main method=dpo train.lr=3e-6              # a choice of a group; a key
python -m src.main +lora@train.lora=rank16 train.lr=1e-4 # a group that is empty by default
python -m src.main -m method.eta=100,1000                # a sweep
python -m src.main --cfg job method=dpo                  # what a command composes to; makes nothing
```

A value is checked before anything is made: a whole number may stand for a float, and nothing else for anything else;
NaN and infinity are no numbers. **○** marks keys that cannot change a result: artifacts made with other values of them
are found again. Where choices of a group differ, the default's value comes first.
"""


class Key(NamedTuple):
    place: str
    type: str
    value: str
    free: bool
    meaning: str


def page() -> str:
    groups = [*_groups(), *(group for group in MEANINGS if group not in PRESETS)]
    keyed = [_group(group) for group in groups]
    presets = [_preset(group) for group in PRESETS]
    return "\n".join([HEAD, _own_keys(), *keyed, *presets])


def _groups() -> dict[str, tuple[str, str]]:
    """Group -> its default choice and meaning, in the order of config.yaml."""
    found = re.findall(r"^  - (\w+): (\w+)  # (.+)$", (CONF / "config.yaml").read_text(), re.MULTILINE)
    return {group: (choice, meaning) for group, choice, meaning in found if group not in PRESETS}


def _own_keys() -> str:
    settings, comments = _read(CONF / "config.yaml")
    settings = {key: value for key, value in settings.items() if key != "hydra"}
    return f"\n## The run\n\n{_table([list(_keys('', settings, comments))], [''])}"


def _group(group: str) -> str:
    default, meaning = _groups().get(group, ("", MEANINGS.get(group, "")))
    files = sorted((CONF / group).glob("*.yaml"), key=lambda file: (file.stem != default, file.stem))
    place = PLACES.get(group, group)
    parts = [f"\n## {place} — {_linked(meaning)}\n", *(_choice(file, file.stem == default) for file in files), ""]
    classes: dict[str, list[Path]] = {}
    for file in files:
        classes.setdefault(str(_read(file)[0].get("_target_")), []).append(file)
    for its in classes.values():
        keys = [list(_keys(_place(place, group, file), *_read(file))) for file in its]
        if any(keys):
            names = [f"`{file.stem}`" for file in its]
            parts += ([f"{', '.join(names)}:\n"] if len(classes) > 1 else []) + [_table(keys, names)]
    return "\n".join(parts)


def _preset(group: str) -> str:
    files = sorted((CONF / group).glob("*.yaml"))
    return "\n".join([f"\n## {group} — {_linked(MEANINGS[group])}\n", *(_choice(file, False) for file in files), ""])


def _place(place: str, group: str, file: Path) -> str:
    return {"answers": "data.answers.<name>", "benchmark": f"benchmark.{file.stem}"}.get(group, place)


def _linked(text: str) -> str:
    return re.sub(r"(?:docs/)?(\w+\.md)", r"[\1](\1)", text)


def _choice(file: Path, default: bool) -> str:
    """Its name, and the comment at its head, or what its class says of itself."""
    head = re.match(r"((?:#.*\n)*)", re.sub(r"^# @package .*\n", "", file.read_text()))
    lines = [line.removeprefix("#").strip() for line in (head[1] if head else "").splitlines()]
    told = " ".join(lines[: lines.index("")] if "" in lines else lines)
    if not told:
        told = _of_class(file)
    told = re.split(r" (?=Command:|Grid:|Cost:)", told)[0]
    return f"* `{file.stem}`{' (default)' if default else ''}{': ' if told else ''}{_linked(told).rstrip('.:')}"


def _of_class(file: Path) -> str:
    """What the class of a choice says of itself, where it tells choices apart."""
    targets = [_read(other)[0].get("_target_") for other in file.parent.glob("*.yaml")]
    target = _read(file)[0].get("_target_")
    if not target or len(set(targets)) == 1:
        return ""
    doc = str(get_class(target).__doc__)
    return "" if doc.startswith(f"{target.rpartition('.')[2]}(") else doc.strip().splitlines()[0]


def _read(file: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Keys of a file and their comments, with what it takes from others of its group."""
    own: Any = OmegaConf.to_container(OmegaConf.load(file), resolve=False) or {}
    settings: dict[str, Any] = {}
    comments: dict[str, str] = {}
    for entry in own.pop("defaults", []):
        if isinstance(entry, str) and entry != "_self_":
            inherited, told = _read(file.with_name(f"{entry}.yaml"))
            settings, comments = _merged(settings, inherited), comments | told
    return _merged(settings, own), comments | dict(_comments(file.read_text()))


def _merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    both = {
        key: _merged(one[key], value) if isinstance(one.get(key), dict) and isinstance(value, dict) else value
        for key, value in other.items()
    }
    return one | both


def _comments(text: str) -> Iterator[tuple[str, str]]:
    path: list[tuple[int, str]] = []
    for line in text.splitlines():
        if found := re.match(r"( *)([\w.]+):(?: [^#]*?(?:\"[^\"]*\")?)? *(?:# (.*))?$", line):
            indent = len(found[1])
            path = [(depth, name) for depth, name in path if depth < indent] + [(indent, found[2])]
            yield ".".join(name for _, name in path), found[3] or ""


def _keys(place: str, settings: dict[str, Any], comments: dict[str, str], own: str = "") -> Iterator[Key]:
    cls: Any = get_class(settings["_target_"]) if "_target_" in settings else None
    fields = cls.__pydantic_fields__ if cls else {}
    for name, value in settings.items():
        if name.startswith("_"):
            continue
        full, comment = ".".join(filter(None, (place, name))), ".".join(filter(None, (own, name)))
        if isinstance(value, dict) and ("_target_" in value or name not in fields or name == "engine"):
            yield from _keys(full, value, comments, comment)
        else:
            field = fields.get(name)
            metadata = field.metadata if field else []
            free = any(isinstance(one, _NotInKey) for one in metadata)
            told = _type(field.annotation, metadata) if field else ""
            yield Key(full, told, _shown(value), free, comments.get(comment, ""))


def _shown(value: Any) -> str:
    if value is None:
        return "`null`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if value == "":
        return '`""`'
    if isinstance(value, dict) and any(isinstance(one, dict) for one in value.values()):
        return "in its file"
    return f"`{shorten(str(value).splitlines()[0], 120, placeholder=' …')}`"


def _table(keys: list[list[Key]], names: list[str]) -> str:
    """A line a key of any choice: the first one's value, and those of the choices that differ."""
    lines = ["| key | type | value | |", "|---|---|---|---|"]
    for place in dict.fromkeys(key.place for its in keys for key in its):
        found = [(name, key) for name, its in zip(names, keys, strict=True) for key in its if key.place == place]
        (own, first), *others = found
        alone = not others and own != names[0] and own.strip("`") not in place
        values = [f"{own}: {first.value}" if alone else first.value]
        for value in dict.fromkeys(key.value for _, key in others if key.value != first.value):
            values.append(f"{', '.join(name for name, key in others if key.value == value)}: {value}")
        meaning = next((key.meaning for _, key in found if key.meaning), "")
        cells = [f"`{place}`{' ○' if first.free else ''}", first.type, "; ".join(values), meaning]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


RANGES = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
WORDS = {str: "text", Path: "path", bool: "true or false", int: "int", float: "float", types.NoneType: "null"}


def _type(annotation: Any, metadata: Any = ()) -> str:
    """Such as `float > 0`, `one of a, b` or `null or int`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(arguments[0], (*arguments[1:], *metadata))
    if origin is Literal:
        return "one of " + ", ".join(str(one) for one in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_type(one) for one in arguments))
    if origin in (list, tuple, dict):
        inner = [_type(one) for one in arguments if one is not Ellipsis]
        return f"{origin.__name__} of {' and '.join(dict.fromkeys(inner))}"
    limits = [
        f"{sign} {getattr(one, name)}" for one in _flat(metadata) for name, sign in RANGES.items() if _has(one, name)
    ]
    base = WORDS.get(annotation, getattr(annotation, "__name__", str(annotation)))
    return " ".join([base, " and ".join(limits)]).strip()


def _flat(metadata: Any) -> Iterator[Any]:
    for one in metadata:
        yield from _flat(one.metadata) if hasattr(one, "metadata") and not hasattr(one, "gt") else [one]


def _has(one: Any, name: str) -> bool:
    return isinstance(getattr(one, name, None), int | float)


PAGE = Path(__file__).with_name("configuration.md")
