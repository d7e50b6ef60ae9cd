"""Files of others, changed by hypothesis until they are valid no more, and the law of whatever reads them."""

from __future__ import annotations

import copy
import io
import json
import logging
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from traceback import walk_stack
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import inputs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from src.kernel.cells import line_of, value_of
from src.kernel.config import UserError

# Forms of files -----------------------------------------------------------------------------------------------------

DEEP, DIGITS = "@DEEP@", "@DIGITS@"
"""These stand for what Python does not write: brackets in brackets, and a number of 5,000 digits."""
NUMBERS = (None, True, False, 0, -1, 1, 2, 0.5, 1e-9, float("nan"), float("inf"), 2**31, 2**64, 10**400, 1e308, -1e308)
WORDS = ("", "0", "1e999", "nan", "null", "../..", "/", "{0}", "{prompt}", "%s", "${oc.env:HOME}", "[[11]]", "A", "[]")
TEXTS = ("2024-13-99", "<|im_end|>", "\0", "\ud800", "a\nb", "é🙂", "\u202e", "x" * 5000, "9" * 5000)
HOLDERS = ([], {}, [[]], [None], [1, "a", None], {"": None}, {"role": "user"}, [{"a": [{}]}], DEEP, DIGITS)
ODD: tuple[Any, ...] = (*NUMBERS, *WORDS, *TEXTS, *HOLDERS)
"""Values that nobody expects at a place."""
BYTES = (b"", b"\xfe\xff", b"\xef\xbb\xbf", b"\\ud800", *(bytes([byte]) for byte in b'\0\xff\r\n",{[\\|:'))


Form = tuple[Callable[[bytes], Any], Callable[[Any], bytes]]


def write_json(value: Any) -> bytes:
    text = json.dumps(value).replace(f'"{DEEP}"', "[" * 99_999 + "]" * 99_999)
    return text.replace(f'"{DIGITS}"', "1" * 5000).encode()


def write_parquet(rows: Any) -> bytes:
    pq.write_table(pa.Table.from_pylist(rows), out := io.BytesIO())
    return out.getvalue()


def read_head(data: bytes) -> Any:
    """Return the head of a file of safetensors."""
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])


def write_head(value: Any) -> bytes:
    """Return a file of safetensors with one number."""
    head = write_json(value)
    return len(head).to_bytes(8, "little") + head + bytes(4)


def of_lines(read: Callable[[bytes], Any], write: Callable[[Any], bytes]) -> Form:
    return lambda data: list(map(read, data.splitlines())), lambda rows: b"".join(write(row) + b"\n" for row in rows)


PLAIN: Form = (bytes.decode, str.encode)
FORMS: dict[str, Form] = {
    **{"json": (json.loads, write_json), "yaml": (yaml.safe_load, write_json)},  # JSON is YAML
    "jsonl": of_lines(json.loads, write_json),
    "parquet": (lambda data: pq.read_table(io.BytesIO(data)).to_pylist(), write_parquet),
    "checked": of_lines(value_of, lambda row: line_of(row).rstrip().encode()),
    "safetensors": (read_head, write_head),
    "words": of_lines(bytes.decode, lambda word: str(word).encode()),
}
"""How a file is read and written, by the end of its name; any other is text."""


PLACE = tempfile.TemporaryDirectory()
MOST_S, GUARD_S = 1.0, 10.0
"""CPU seconds that an input may take, and after which an endless one is stopped."""
USUAL_DEPTH = 950
"""Frames that a reader may add, of Python's 1,000."""


# How they are changed -----------------------------------------------------------------------------------------------


class Changed:
    """The content of one of a reader's files."""

    def __init__(self, name: str, data: bytes) -> None:
        self.name, self.data = name, data

    def __repr__(self) -> str:
        return f"{self.name} of {len(self.data):,} bytes: {self.data[:3000]!r}"


@dataclass
class Reader:
    """Something that reads what others wrote."""

    name: str
    examples: dict[str, Any]
    """Valid ones, by the name of each file."""
    read: Callable[[Path], object]
    """Gets their folder."""
    named: str = "-"
    """What a refusal may name in place of the file or its folder."""
    changed: str = ""
    """Only files whose names end so are changed."""
    form: str = ""
    """That of all files, whatever their names end in."""
    writes: bool = False
    seconds: float = MOST_S
    """The CPU time that an input may take."""

    def __post_init__(self) -> None:
        self.folder = Path(PLACE.name, self.name, "given")
        self.forms = {file: FORMS.get(self.form or file.rpartition(".")[2], PLAIN) for file in self.examples}
        examples = self.examples.items()
        self.files = {file: one if isinstance(one, bytes) else self.forms[file][1](one) for file, one in examples}

    def __repr__(self) -> str:
        return self.name


def of_file(name: str, value: Any, read: Callable[[Path], object], named: str = "-", form: str = "") -> Reader:
    return Reader(name, {name: value}, lambda folder: read(folder / name), named, form=form)


numbers = cache(lambda most: st.integers(0, most))
odd_values = st.sampled_from(ODD) | st.text(max_size=20) | st.integers() | st.floats()
odd_bytes = st.sampled_from(BYTES) | st.binary(min_size=1, max_size=8)
other_files = st.binary(max_size=40) | st.sampled_from([write_json(value) for value in ODD])


@st.composite
def changes(draw: Any, reader: Reader) -> Changed:
    """Draw a file of a reader: as it is, of another structure, with other bytes, or another file altogether."""
    name = draw(st.sampled_from([file for file in reader.files if file.endswith(reader.changed)]))
    data, (read, write) = reader.files[name], reader.forms[name]
    how = draw(numbers(9))
    if how == 9:
        return Changed(name, draw(other_files))
    if how >= 4:
        with suppress(ArithmeticError, AttributeError, LookupError, TypeError, ValueError, pa.ArrowException):
            return Changed(name, write(other_structure(draw, read(data))))  # unless the form cannot hold it
    for _ in range(draw(numbers(3))):
        start = draw(numbers(len(data)))
        end = min(len(data), start + (0, 1, 2, 8, 100)[draw(numbers(4))])
        bit = 1 << draw(numbers(7))
        flipped = bytes(byte ^ bit for byte in data[start:end])
        new = draw(st.sampled_from([data[start:end] * 2, flipped]) | odd_bytes)
        data = data[:start] + new + (data[end:] if draw(numbers(3)) else b"")
    return Changed(name, data)


def other_structure(draw: Any, value: Any) -> Any:
    """Draw a JSON-able value with one to three places changed."""
    for _ in range(1 + draw(numbers(2))):
        places = list(places_in(value))
        if not places:
            return draw(odd_values)
        holder, key = places[draw(numbers(len(places) - 1))]
        how = draw(numbers(7))
        if how == 0:
            del holder[key]
        elif how == 1:
            other, place = places[draw(numbers(len(places) - 1))]
            holder[key] = copy.deepcopy(other[place])
        elif how == 2:
            holder[key] = ([holder[key]], {"a": holder[key]}, str(holder[key]))[draw(numbers(2))]
        elif how == 3 and isinstance(holder, dict):
            holder[str(draw(odd_values))] = holder.pop(key)
        elif how == 4 and isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))
        else:
            holder[key] = copy.deepcopy(draw(odd_values))
    return value


def places_in(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every place within, as what holds it and the key there."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in list(inner):
        yield value, key
        yield from places_in(item)


# The law ------------------------------------------------------------------------------------------------------------


def hold_law(reader: Reader, changed: Changed) -> None:
    """Assert that a reader returns, or refuses in one line that names the file. It writes nothing, and is done within a
    second of CPU time at one of three times: the first may import, another may collect garbage.
    """
    signal.signal(signal.SIGPROF, _stop)
    folder, spent = reader.folder, 0.0
    files = {folder / name: data for name, data in reader.files.items()} | {folder / changed.name: changed.data}
    for _ in range(3):
        for path, data in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        began, free = time.process_time(), sys.getrecursionlimit()
        depth = sum(1 for _ in walk_stack(None))
        sys.setrecursionlimit(depth + USUAL_DEPTH)  # hypothesis allows for more than a user has
        signal.setitimer(signal.ITIMER_PROF, GUARD_S)
        logging.disable()  # pytest-xdist cannot send each odd text that a library logs
        try:
            reader.read(folder)
        except UserError as error:
            line = str(error).strip().partition("\n")[0]  # what a user sees
            names = (Path(changed.name).name, folder.name, reader.named)
            assert any(name in line for name in names), f"names no file: {line}"
            assert changed.data != reader.files[changed.name], f"the example itself is refused: {line}"
        except Exception as error:
            raise AssertionError(f"neither a value nor a refusal: {error!r}") from error
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            logging.disable(logging.NOTSET)
            sys.setrecursionlimit(free)
        spent = time.process_time() - began
        there = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        assert reader.writes or there == files, "something was written"
        if spent < reader.seconds:
            return
    raise AssertionError(f"takes {spent:.1f} s")


def law_of(readers: list[Reader], few: int = 200, many: int = 20_000) -> Callable[..., None]:
    """Return the test of the law, for so many files of each reader."""

    @pytest.mark.parametrize("reader", readers, ids=repr)
    @pytest.mark.timeout(inputs(900, 4 * 3600))
    @settings(max_examples=inputs(few, many), suppress_health_check=[HealthCheck.too_slow])
    @given(draws=st.data())
    def test(reader: Reader, draws: st.DataObject) -> None:
        hold_law(reader, draws.draw(changes(reader)))

    return test


def _stop(*_: object) -> None:
    raise TimeoutError("endless")
