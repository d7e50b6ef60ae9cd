"""Fuzzing of what reads files and replies of others: valid examples, changed until they are none.

The law: whatever bytes there are, a reader gives a value, or a mistake that names the file in its first line, and
writes nothing. Input number n of a target is the same in every run.
"""

from __future__ import annotations

import copy
import csv
import io
import json
import os
import random
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from src.config import UserError

DEEP, DIGITS = "@DEEP@", "@DIGITS@"
"""In place of what Python's own writer of JSON cannot write: brackets in brackets, and a number of 5,000 digits."""
WRITTEN = {f'"{DEEP}"': "[" * 99_999 + "]" * 99_999, f'"{DIGITS}"': "1" * 5000}
MILD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 0.5, -1.5, 1e-9, float("nan"), float("inf"), float("-inf")),
    *(
        "",
        " ",
        "0",
        "-1",
        "1e999",
        "nan",
        "null",
        "none",
        "\0",
        "\ud800",
        "a\nb",
        "é🙂",
        "\u202e",
        "x" * 5000,
        "9" * 5000,
    ),
    *("../..", "/", "{0}", "{prompt}", "%s", "${oc.env:HOME}", "[[11]]", "A", "<|im_end|>", "[]", "{}", "2024-13-99"),
    *([], {}, [[]], [None], [1, "a", None], {"": None}, {"role": "user"}, [{"a": [{}]}], DEEP, DIGITS),
)
"""What nobody expects at a place."""
HUGE: tuple[Any, ...] = (2**31, 2**63, -(2**63) - 1, 2**64, 10**30, 10**400, 1e308, -1e308)
ODD = MILD + HUGE
BYTES = (
    b"",
    b"\0",
    b"\xff",
    b"\xfe\xff",
    b"\xef\xbb\xbf",
    b"\r",
    b"\n",
    b'"',
    b",",
    b"{",
    b"[",
    b"\\",
    b"\\ud800",
    b"|",
    b":",
)


class Target(NamedTuple):
    """Something that reads."""

    name: str
    make: Callable[[Path], None]
    """Write a valid example into a folder."""
    read: Callable[[Path], object]
    """Raises UserError for what cannot be read."""
    named: tuple[str, ...] = ()
    """What a mistake may name instead of the file that was changed."""
    changed: str = "*"
    """Which files are, as a pattern."""
    odd: Sequence[Any] = ODD
    cost: int = 1
    """So many times fewer inputs: of readers that take long."""
    slow: bool = False
    """It takes seconds to begin."""

    def __str__(self) -> str:
        return self.name


def fuzz(target: Target, folder: Path, count: int) -> tuple[int, int]:
    """Read the example and `count` changed ones; returns how many were read, and how many refused."""
    folder.mkdir()
    target.make(folder)
    target.read(folder)
    found = sorted(path for path in folder.rglob(target.changed) if path.is_file() and not path.is_symlink())
    read = 0
    for number in range(count):
        chance = random.Random(f"{target.name}/{number}")
        path = chance.choice(found)
        valid = path.read_bytes()
        data = mutated(valid, path.suffix, chance, target.odd)
        path.write_bytes(data)
        before = _state(folder)
        try:
            target.read(folder)
            read += 1
        except UserError as error:
            line = str(error).strip().partition("\n")[0]  # what a user sees
            assert any(name in line for name in (path.name, folder.name, *target.named)), (
                f"input {number} of {target}: {line}"
            )
        except Exception as error:
            raise AssertionError(f"input {number} of {target}, {path.name}: {error!r}\n{data[:2000]!r}") from error
        assert _state(folder) == before and path.read_bytes() == data, f"input {number} of {target}: something written"
        path.write_bytes(valid)
    return read, count - read


def _state(folder: Path) -> list[tuple[str, int]]:
    return sorted((path, os.lstat(path).st_size) for path in map(str, folder.rglob("*")) if not os.path.isdir(path))


def mutated(data: bytes, suffix: str, chance: random.Random, odd: Sequence[Any] = ODD) -> bytes:
    """Half of the time another structure of the same form, else other bytes or any at all."""
    kind = chance.random()
    if kind < 0.05:
        return chance.randbytes(chance.randrange(300))
    if kind < 0.6 and suffix in FORMS:
        try:
            return FORMS[suffix](data, chance, odd)
        except (ValueError, OverflowError, TypeError, AttributeError, pa.ArrowException):  # Parquet cannot hold it
            pass
    for _ in range(chance.choice((1, 1, 1, 2, 5))):
        data = _other_bytes(data, chance)
    return data


def _other_bytes(data: bytes, chance: random.Random) -> bytes:
    start = chance.randrange(len(data) + 1)
    end = min(len(data), start + chance.choice((1, 2, 8, 100)))
    match chance.randrange(6):
        case 0:
            return data[:start]
        case 1:  # a flipped bit
            return (
                data[:start]
                + bytes(byte ^ 1 << chance.randrange(8) for byte in data[start : start + 1])
                + data[start + 1 :]
            )
        case 2:
            return data[:start] + chance.choice(BYTES) + data[start:]
        case 3:
            return data[:start] + chance.choice(BYTES) + data[end:]
        case 4:
            return data[:end] + data[start:end] + data[end:]
        case _:
            return data[:start] + chance.randbytes(chance.randrange(1, 9)) + data[end:]


def other_structure(value: Any, chance: random.Random, odd: Sequence[Any] = ODD) -> Any:
    """A JSON-able value with one to three places changed."""
    for _ in range(chance.choice((1, 1, 2, 3))):
        places = list(_places(value))
        if not places:
            return copy.deepcopy(chance.choice(odd))
        holder, key = chance.choice(places)
        match chance.randrange(7):
            case 0:
                del holder[key]
            case 1:
                _, other = chance.choice(places), chance.choice(places)
                holder[key] = copy.deepcopy(_get(*other))
            case 2:
                holder[key] = chance.choice(([holder[key]], {"a": holder[key]}, str(holder[key])))
            case 3 if isinstance(holder, dict):
                holder[str(chance.choice(odd))] = holder.pop(key)
            case 4 if isinstance(holder, list):
                holder.insert(key, copy.deepcopy(holder[key]))
            case _:
                holder[key] = copy.deepcopy(chance.choice(odd))
    return value


def _get(holder: Any, key: Any) -> Any:
    try:
        return holder[key]
    except (KeyError, IndexError):  # taken out meanwhile
        return None


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place within, as what holds it and the key there."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in list(inner):
        yield value, key
        yield from _places(item)


def _dumped(value: Any) -> bytes:
    text = json.dumps(value)
    for mark, written in WRITTEN.items():
        text = text.replace(mark, written)
    return text.encode()


def _json(data: bytes, chance: random.Random, odd: Sequence[Any]) -> bytes:
    return _dumped(other_structure(json.loads(data), chance, odd))


def _jsonl(data: bytes, chance: random.Random, odd: Sequence[Any]) -> bytes:
    lines = data.splitlines(keepends=True)
    place = chance.randrange(len(lines))
    lines[place] = _dumped(other_structure(json.loads(lines[place]), chance, odd)) + b"\n"
    return b"".join(lines)


def _yaml(data: bytes, chance: random.Random, odd: Sequence[Any]) -> bytes:
    text = yaml.safe_dump(other_structure(yaml.safe_load(data), chance, odd))
    return text.replace(f"'{DEEP}'", "[" * 5000 + "]" * 5000).replace(f"'{DIGITS}'", "1" * 5000).encode()


def _card(data: bytes, chance: random.Random, odd: Sequence[Any]) -> bytes:
    """Of a card the head, which is YAML."""
    _, head, text = data.split(b"---\n", 2)
    return b"---\n" + _yaml(head, chance, odd) + b"---\n" + text


def _csv(data: bytes, chance: random.Random, odd: Sequence[Any]) -> bytes:
    rows = other_structure(list(csv.reader(io.StringIO(data.decode()))), chance, odd)
    text = io.StringIO()
    csv.writer(text).writerows([row if isinstance(row, list) else [row] for row in rows])
    return text.getvalue().encode("utf-8", "surrogatepass")


def _parquet(data: bytes, chance: random.Random, odd: Sequence[Any]) -> bytes:
    table = pa.Table.from_pylist(other_structure(pq.read_table(io.BytesIO(data)).to_pylist(), chance, odd))
    out = io.BytesIO()
    pq.write_table(table, out)
    return out.getvalue()


def _safetensors(data: bytes, chance: random.Random, odd: Sequence[Any]) -> bytes:
    (length,) = struct.unpack("<Q", data[:8])
    header = _json(data[8 : 8 + length], chance, odd)
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


FORMS: dict[str, Callable[[bytes, random.Random, Sequence[Any]], bytes]] = {
    ".json": _json,
    ".jsonl": _jsonl,
    ".yaml": _yaml,
    ".md": _card,
    ".csv": _csv,
    ".parquet": _parquet,
    ".safetensors": _safetensors,
}
