"""Secrets that nobody may see: planted in the environment, and listened for in files, output and the process list."""

from __future__ import annotations

import gzip
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet
import pytest

CANARIES = {
    "OPENAI_API_KEY": "sk-canary0openai0canary0openai", "WANDB_API_KEY": "c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00",
    "HF_TOKEN": "hf_canaryOfTheHubCanaryOfTheHub00", "HUGGING_FACE_HUB_TOKEN": "hf_anotherCanaryOfTheHubOfTheHub",
    "AWS_SECRET_ACCESS_KEY": "canary/of/a/cloud/that/nobody/asked", "MYSQL_PWD": "~canary-of-a-data-base",
    "FORGE_TOKEN": "canary0of0the0forge0where0the0source0is", "DATABASE_PASSWORD": "correct horse canary staple",
    "AZURE_OPENAI_KEY": "/9canary0of0the0cloud+with/a/slash==", "HTTPS_PROXY": "canary-that-opens-the-proxy",
}  # fmt: skip
STARTED: list[str] = []
"""The command lines of the processes that were started since the planting: `ps` shows them to everybody."""
sys.addaudithook(lambda event, words: STARTED.append(str(words[:2])) if event == "subprocess.Popen" else None)


def plant(patch: pytest.MonkeyPatch) -> None:
    for name, value in CANARIES.items():
        patch.setenv(name, f"http://me:{value}@127.0.0.1:9" if name == "HTTPS_PROXY" else value)
    STARTED.clear()


def readings(path: Path) -> Iterator[bytes]:
    """Yield the bytes of a file, and what they hold in a compressed form."""
    yield path.read_bytes()
    if path.suffix == ".parquet":
        yield repr(pyarrow.parquet.read_table(path).to_pylist()).encode()
    if path.suffix == ".gz":
        yield gzip.decompress(path.read_bytes())


def singing(place: Path, *outputs: str, least: int = 20) -> list[str]:
    """Return which canary is heard where, in files, outputs and command lines. There are `least` files at least."""
    files = [path for path in place.rglob("*") if path.is_file()]
    assert len(files) >= least, "nothing was written"
    texts = [(str(path), text) for path in files for text in readings(path)]
    texts += [(f"output {number}", text.encode()) for number, text in enumerate([*outputs, *STARTED])]
    return [f"{name} in {where}" for where, text in texts for name, key in CANARIES.items() if key.encode() in text]
