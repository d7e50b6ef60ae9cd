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
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from src.kernel.config import UserError

DEEP, DIGITS = "@DEEP@", "@DIGITS@"
"""In place of what Python's own writer of JSON cannot write: brackets in brackets, and a number of 5,000 digits."""
WORDS = r"|0|-1|1e999|nan|null|none|a b|../..|/|{0}|{prompt}|%s|${oc.env:HOME}|[[11]]|A|[]|{}|2024-13-99"
NUMBERS = (None, True, False, 0, -1, 1, 2, 0.5, -1.5, 1e-9, float("nan"), float("inf"), float("-inf"))
TEXTS = (*WORDS.split("|"), "<|im_end|>", "\0", "\ud800", "a\nb", "é🙂", "\u202e", "x" * 5000, "9" * 5000)
HOLDERS = ([], {}, [[]], [None], [1, "a", None], {"": None}, {"role": "user"}, [{"a": [{}]}], DEEP, DIGITS)
MILD: tuple[Any, ...] = (*NUMBERS, *TEXTS, *HOLDERS)
"""What nobody expects at a place."""
HUGE = (2**31, 2**63, -(2**63) - 1, 2**64, 10**30, 10**400, 1e308, -1e308)
"""Not for sizes of a model that is then made."""
BYTES = [b"", b"\xfe\xff", b"\xef\xbb\xbf", b"\\ud800", *(bytes([byte]) for byte in b'\0\xff\r\n",{[\\|:')]


class Target(NamedTuple):
    """Something that reads."""

    name: str
    files: Mapping[str, Any] | Callable[[Path], object]
    """A valid example: the content of each file, whose name says its form, or what writes it into a folder."""
    read: Callable[[Path], object]
    """Of the folder. Raises UserError for what cannot be read."""
    named: str = ""
    """What a mistake may name instead of the file that was changed."""
    changed: str = "*"
    """Which files are, as a pattern."""
    cost: int = 1
    """So many times fewer inputs: of readers that take long."""
    odd: tuple[Any, ...] = MILD + HUGE

    def make(self, folder: Path) -> None:
        if callable(self.files):
            self.files(folder)
        else:
            write(folder, self.files)


def of_file(name: str, file: str, value: Any, read: Callable[[Path], object], **more: Any) -> Target:
    """Of a reader of one file, which it is given."""
    return Target(name, {file: value}, lambda folder: read(folder / file), **more)


def write(folder: Path, files: Mapping[str, Any]) -> None:
    for name, value in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".parquet":
            pq.write_table(pa.Table.from_pylist(value), path)
        elif isinstance(value, bytes):
            path.write_bytes(value)
        elif isinstance(value, str):
            path.write_text(value)
        elif path.suffix == ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in value))
        else:
            path.write_text(json.dumps(value, indent=1))


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
            names = [path.name, folder.name, *filter(None, [target.named])]
            assert any(name in line for name in names), f"input {number} of {target.name}: {line}"
        except Exception as error:
            said = f"input {number} of {target.name}, {path.name}: {error!r}\n{data[:2000]!r}"
            raise AssertionError(said) from error
        same = _state(folder) == before and path.read_bytes() == data
        assert same, f"input {number} of {target.name}: something written"
        path.write_bytes(valid)
    return read, count - read


def _state(folder: Path) -> list[tuple[str, int]]:
    return sorted((path, os.lstat(path).st_size) for path in map(str, folder.rglob("*")) if not os.path.isdir(path))


def mutated(data: bytes, suffix: str, chance: random.Random, odd: tuple[Any, ...]) -> bytes:
    """Half of the time another structure of the same form, else other bytes or any at all."""
    kind = chance.random()
    if kind < 0.05:
        return chance.randbytes(chance.randrange(300))
    if kind < 0.6 and suffix in FORMS:
        try:
            return FORMS[suffix](data, lambda value: other_structure(value, chance, odd))
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, pa.ArrowException):
            pass  # the form cannot hold it
    for _ in range(chance.choice((1, 1, 1, 2, 5))):
        data = _other_bytes(data, chance)
    return data


def _other_bytes(data: bytes, chance: random.Random) -> bytes:
    start = chance.randrange(len(data) + 1)
    end = min(len(data), start + chance.choice((1, 2, 8, 100)))
    flipped = bytes(byte ^ 1 << chance.randrange(8) for byte in data[start : start + 1])
    any_bytes = chance.randbytes(chance.randrange(1, 9))
    other = chance.choice((*BYTES, any_bytes, any_bytes, data[start:end] * 2, flipped + data[start + 1 : end]))
    return data[:start] + chance.choice((b"", other + data[start:], other + data[end:], other + data[end:]))


def other_structure(value: Any, chance: random.Random, odd: tuple[Any, ...]) -> Any:
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
                other, place = chance.choice(places)
                holder[key] = copy.deepcopy(other[place])
            case 2:
                holder[key] = chance.choice(([holder[key]], {"a": holder[key]}, str(holder[key])))
            case 3 if isinstance(holder, dict):
                holder[str(chance.choice(odd))] = holder.pop(key)
            case 4 if isinstance(holder, list):
                holder.insert(key, copy.deepcopy(holder[key]))
            case _:
                holder[key] = copy.deepcopy(chance.choice(odd))
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place within, as what holds it and the key there."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in list(inner):
        yield value, key
        yield from _places(item)


Change = Callable[[Any], Any]


def _json(data: bytes, change: Change) -> bytes:
    text = json.dumps(change(json.loads(data)))
    return text.replace(f'"{DEEP}"', "[" * 99_999 + "]" * 99_999).replace(f'"{DIGITS}"', "1" * 5000).encode()


def _jsonl(data: bytes, change: Change) -> bytes:
    return b"".join(_json(one, lambda row: row) + b"\n" for one in change([*map(json.loads, data.splitlines())]))


def _yaml(data: bytes, change: Change) -> bytes:
    text = yaml.safe_dump(change(yaml.safe_load(data)))
    return text.replace(f"'{DEEP}'", "[" * 5000 + "]" * 5000).replace(f"'{DIGITS}'", "1" * 5000).encode()


def _csv(data: bytes, change: Change) -> bytes:
    text = io.StringIO()
    rows = change(list(csv.reader(io.StringIO(data.decode()))))
    csv.writer(text).writerows([row if isinstance(row, list) else [row] for row in rows])
    return text.getvalue().encode("utf-8", "surrogatepass")


def _parquet(data: bytes, change: Change) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(change(pq.read_table(io.BytesIO(data)).to_pylist())), out)
    return out.getvalue()


def _safetensors(data: bytes, change: Change) -> bytes:
    (length,) = struct.unpack("<Q", data[:8])
    header = _json(data[8 : 8 + length], change)
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


FORMS: dict[str, Callable[[bytes, Change], bytes]] = {
    ".json": _json,
    ".jsonl": _jsonl,
    ".yaml": _yaml,
    ".csv": _csv,
    ".parquet": _parquet,
    ".safetensors": _safetensors,
}
