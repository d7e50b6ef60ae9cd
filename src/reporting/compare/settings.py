"""Settings of runs as plain values: which differ between runs, which go along with others, and how they are called."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

Value = str | int | float | bool | None
Settings = dict[str, Value]
"""Dotted key -> value."""

USUAL = {
    "model.name": "model",
    "method.name": "method",
    "method.eta": "eta",
    "train.lr": "lr",
    "sampling.K": "K",
    "ranker.name": "ranker",
    "estimator.kind": "estimator",
    "pairing.rule._target_": "pairing",
    "seed": "seed",
}
"""Short names of the usual keys, in the order in which tables have them."""
SEED = "seed"
COPY = "copy"
"""A key of its own that numbers runs of equal settings, such as the same experiment on two machines."""
SYMBOLS = {"eta": "η"}
IRRELEVANT = (
    *("name", "experiment", "variant", "mirror", "iter", "benchmark", "tracking", "store", "runs", "launcher", "only"),
    *("part", "push_to_hub", "push_private", "hardware", "ranker.work", "ranker.device", "ranker.precision"),
    *("ranker.batch_prompts", "ranker.pmi_batch_prompts", "data.card_datasets", "_target_", "_convert_"),
)
"""Keys that name places, machines and labels, with all keys below them."""
UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML cannot hold, and what a terminal takes for a command."""


def flat(config: dict[str, Any]) -> Settings:
    """Returns the dotted keys of a composed config that can change a result; `method.beta` becomes `method.eta`."""
    settings: Settings = {}

    def walk(value: Any, key: str) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                walk(inner, f"{key}.{name}" if key else str(name))
        elif not any(f"{key}.".startswith(f"{irrelevant}.") for irrelevant in IRRELEVANT):
            plain = _plain(value)
            settings[key] = json.dumps(plain, ensure_ascii=False) if isinstance(value, list) else plain

    walk(config, "")
    beta = settings.pop("method.beta", None)
    if isinstance(beta, int | float) and beta > 0:
        settings["method.eta"] = _plain(float(f"{1 / beta:.12g}"))
    return {key: settings[key] for key in sorted(settings, key=_place)}


def _plain(value: Any) -> Any:
    """Makes 1000.0 and 1000 equal, and two paths equal that end in the same name."""
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    return value.rstrip("/").rpartition("/")[2] if isinstance(value, str) and value.startswith("/") else value


def _place(key: str) -> tuple[int, str]:
    usual = list(USUAL)
    return (usual.index(key) if key in usual else len(usual), key)


class Varied(NamedTuple):
    """What differs between runs."""

    axes: list[str]
    """Dotted keys in which the runs differ."""
    bound: dict[str, str]
    """Keys that differ too, but only together with an axis: their effects cannot be told apart."""
    same: Settings
    """What all runs have in common."""


def varied(runs: Sequence[Settings]) -> Varied:
    """Sorts the keys of runs into axes, keys bound to an axis, and common ones.

    A key is bound if an axis of words determines it, or if it is unusual and changes one-to-one with an axis.
    """
    keys = sorted({key for settings in runs for key in settings}, key=_place)
    columns = {key: [settings.get(key) for settings in runs] for key in keys}
    axes: list[str] = []
    bound: dict[str, str] = {}
    for key, values in columns.items():
        if len(set(map(str, values))) == 1:
            continue
        for axis in axes if key != SEED else ():
            words = not numeric(columns[axis])
            one_to_one = key not in USUAL and _determines(values, columns[axis])
            if axis != SEED and _determines(columns[axis], values) and (words or one_to_one):
                bound[key] = axis
                break
        else:
            axes.append(key)
    return Varied(axes, bound, {key: columns[key][0] for key in keys if key not in axes and key not in bound})


def _determines(values: list[Value], others: list[Value]) -> bool:
    pairs = {(str(value), str(other)) for value, other in zip(values, others, strict=True)}
    return len(pairs) == len(set(map(str, values)))


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def numeric(values: Sequence[Value]) -> bool:
    return all(map(is_number, values))


def order(value: Value) -> tuple[bool, float, str]:
    """Sorts numbers by size, then words by the alphabet."""
    return (not is_number(value), float(value or 0) if is_number(value) else 0.0, str(value))


def in_order(values: Sequence[Value]) -> list[Value]:
    """Returns each value once, sorted."""
    return sorted(dict.fromkeys(values), key=order)


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Names each key by its usual name, or by its last part where that tells it from all others."""
    lasts = [USUAL.get(key, key.rpartition(".")[2]) for key in keys]
    return {
        key: legible(last if lasts.count(last) == 1 and not last.startswith("_") else key)
        for key, last in zip(keys, lasts, strict=True)
    }


def symbol(name: str) -> str:
    """Returns what stands for a key in front of a value, and as the heading of a column."""
    return SYMBOLS.get(name, name)


def shown(value: Value) -> str:
    """Writes a value shortly: 5e-07 as 5e-7, src.pairing.rules.BestWorst as BestWorst."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return legible(value.rpartition(".")[2] if value.startswith("src.") else value)
    mantissa, e, exponent = f"{value:.6g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if e else mantissa


def described(names: dict[str, str], values: Settings) -> str:
    """Writes values as `η 1000, lr 1e-5`; `names` are short ones by key."""
    return ", ".join(f"{symbol(names.get(key, key))} {shown(value)}" for key, value in values.items())


def legible(text: str) -> str:
    """Replaces characters that can stand in a setting, but not in a page, a plot or a terminal."""
    return UNPRINTABLE.sub("\ufffd", text)
