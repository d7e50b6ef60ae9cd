"""Settings as plain values: what differs between runs, what goes along with it, and how it is called."""

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
"""Short names, in the order in which they are shown."""
SEED, COPY = "seed", "copy"
"""`copy` tells runs apart whose settings are the same (made on other hardware, say)."""
_LABELS = {"eta": "η (nats)", "lr": "peak learning rate", "K": "answers per prompt, K"}
_SIGNS = {"eta": "η"}
_APART = (
    *(
        "name",
        "experiment",
        "variant",
        "mirror",
        "iter",
        "benchmark",
        "tracking",
        "store",
        "runs",
        "launcher",
        "only",
        "part",
    ),
    *("push_to_hub", "push_private", "hardware", "ranker.work", "ranker.device", "ranker.precision"),
    *("ranker.batch_prompts", "ranker.pmi_batch_prompts", "data.card_datasets", "_target_", "_convert_"),
)
"""Keys that name places, machines and labels."""
_WHOLE = 2**53
"""From here on a float is no longer every whole number."""
_UNSHOWN = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML cannot hold, and what a terminal takes for a command."""


def flat(config: dict[str, Any]) -> Settings:
    """Dotted keys of a composed config that can change a result; `method.eta` is 1/beta where a method has beta."""
    found = {key: value for key, value in _leaves(config, "") if not _is_apart(key)}
    beta = found.pop("method.beta", None)
    if isinstance(beta, int | float) and beta > 0:
        found["method.eta"] = _plain(float(f"{1 / beta:.12g}"))
    return dict(sorted(found.items(), key=lambda item: _place(item[0])))


def _leaves(value: Any, key: str) -> list[tuple[str, Value]]:
    if isinstance(value, dict):
        return [leaf for name, inner in value.items() for leaf in _leaves(inner, f"{key}.{name}" if key else str(name))]
    if isinstance(value, list):
        return [(key, json.dumps(_plain(value), ensure_ascii=False))]
    return [(key, _plain(value))]


def _plain(value: Any) -> Any:
    """However it was typed: 1000.0 is 1000. A folder's place is not what it holds: its name is what is compared."""
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) < _WHOLE else value
    return value.rstrip("/").rpartition("/")[2] if isinstance(value, str) and value.startswith("/") else value


def _is_apart(key: str) -> bool:
    return any(f"{key}.".startswith(f"{apart}.") for apart in _APART)


def _place(key: str) -> tuple[int, str]:
    usual = list(USUAL)
    return (usual.index(key) if key in usual else len(usual), key)


class Varied(NamedTuple):
    axes: list[str]
    """Dotted keys in which the runs differ."""
    bound: dict[str, str]
    """Keys that differ too, but only together with an axis: their effects cannot be told apart."""
    same: Settings
    """What all runs have in common."""


def varied(runs: Sequence[Settings]) -> Varied:
    """A key is bound that follows from a word (`method`), or that, unusual, changes exactly when another does."""
    keys = sorted({key for settings in runs for key in settings}, key=_place)
    columns = {key: [settings.get(key) for settings in runs] for key in keys}
    axes: list[str] = []
    bound: dict[str, str] = {}
    same: Settings = {}
    for key, values in columns.items():
        if len(set(map(str, values))) == 1:
            same[key] = values[0]
        elif by := _bound_to(key, columns, axes):
            bound[key] = by
        else:
            axes.append(key)
    return Varied(axes, bound, same)


def _bound_to(key: str, columns: dict[str, list[Value]], axes: list[str]) -> str | None:
    if key == SEED:
        return None
    for axis in axes:
        if axis == SEED or not _follows(columns[key], columns[axis]):
            continue
        if not numeric(columns[axis]) or (key not in USUAL and _follows(columns[axis], columns[key])):
            return axis
    return None


def _follows(values: list[Value], by: list[Value]) -> bool:
    return len({(str(b), str(v)) for v, b in zip(values, by, strict=True)}) == len(set(map(str, by)))


def numeric(values: Sequence[Value]) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def in_order(values: Sequence[Value]) -> list[Value]:
    """Each once: numbers by size, words by the alphabet."""
    return sorted(dict.fromkeys(values), key=order)


def order(value: Value) -> tuple[bool, float, str]:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return (not is_number, float(value or 0) if is_number else 0.0, str(value))


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """The usual ones have names; else the last part of the key where that tells it from all others."""
    lasts = [USUAL.get(key, key.rpartition(".")[2]) for key in keys]
    return {
        key: legible(last if lasts.count(last) == 1 and not last.startswith("_") else key)
        for key, last in zip(keys, lasts, strict=True)
    }


def legible(text: str) -> str:
    """A control character can stand in a setting, but not in a page or a plot."""
    return _UNSHOWN.sub("\ufffd", text)


def label(name: str) -> str:
    """Of a plot's axis."""
    return _LABELS.get(name, name)


def sign(name: str) -> str:
    """In front of a value."""
    return _SIGNS.get(name, name)


def shown(value: Value) -> str:
    """5e-07 is 5e-7, 1000.0 is 1000, src.pairing.rules.BestWorst is BestWorst."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return legible(value.rpartition(".")[2] if value.startswith("src.") else value)
    mantissa, e, exponent = f"{value:.6g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if e else mantissa


def told(names: dict[str, str], values: dict[str, Value]) -> str:
    """`η 1000, lr 1e-5`; `names` are short ones by key."""
    return ", ".join(f"{sign(names.get(key, key))} {shown(value)}" for key, value in values.items())
