"""Whatever a checkpoint, the hub's reply, a config or the words of a command hold: a value, or one line."""

from __future__ import annotations

import contextlib
import io
import tempfile
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import httpx2
import huggingface_hub
import pytest
from conftest import inputs
from foreign_files import PLACE, Reader, changes, hold_law, law_of, of_file
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_run import points_of

from src.kernel.config import UserError
from src.launch.mistakes import exit_code
from src.modeling.checkpoints import Checkpoint, refuse_broken
from src.modeling.policy import check_tokenizer, load_tokenizer, marks_as_text, read_settings, render, stop_ids

CHAT = [{"role": "user", "content": "Hi <|im_end|>"}]
HEAD = {"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
INDEX = {"metadata": {"total_size": 4}, "weight_map": {"w": "model.safetensors"}}
COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPLY = {"id": "me/it", "sha": COMMIT, "private": False, "siblings": [{"rfilename": "config.json"}], "tags": []}
WORDS = ["method=sppo", "iter=2", "sampling.K=3", "benchmark=ifeval", "train.lr=1e-6"]
EXPERIMENT = "# @package _global_\ndefaults: [{override /method: sppo}, _self_]\nheld_out:\n  confidence: 0.9\n"
place = Path(PLACE.name)


def model(folder: Path) -> None:
    """Bring a checkpoint and read all of it but its weights."""
    (out := place / "out").mkdir(exist_ok=True)
    refuse_broken.cache_clear()  # two inputs may be written in one tick of the clock
    Checkpoint(name="it", repo=str(folder), revision="main", place="model")(out=out)
    read_settings(folder)
    stop_ids(folder)
    tokenizer = load_tokenizer(folder)
    check_tokenizer(folder, tokenizer)
    render(tokenizer, CHAT)
    marks_as_text(tokenizer)


def hub(file: Path) -> None:
    """Ask a hub that says what the file holds, and has the same file under each name."""

    def answer(request: httpx2.Request) -> httpx2.Response:
        if "/tree/" in request.url.path:
            return httpx2.Response(200, json=[{"type": "file", "path": "config.json", "size": 2, "oid": "0"}])
        if "/api/" in request.url.path:
            return httpx2.Response(200, content=file.read_bytes(), headers={"content-type": "application/json"})
        head = {"etag": '"0123"', "x-repo-commit": COMMIT, "content-length": "2"}
        return httpx2.Response(200, content=b"{}", headers=head)

    huggingface_hub.set_client_factory(lambda: httpx2.Client(transport=httpx2.MockTransport(answer)))
    try:
        with tempfile.TemporaryDirectory() as cache, mock.patch("huggingface_hub.constants.HF_HUB_CACHE", cache):
            Checkpoint(name="it", repo="me/it", revision="main", place="model")._folder()
    finally:
        huggingface_hub.set_client_factory(huggingface_hub.utils._http.default_client_factory)


def composed(words: list[str]) -> None:
    """Compose and plan what a command asks for; its line of a mistake is raised."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            for point in points_of(*words):
                assert point.nodes
    except BaseException as error:
        with contextlib.redirect_stderr(said):
            exit_code(error, words)
        assert said.getvalue().startswith("error: ") and said.getvalue().count("\n") == 1, said.getvalue()
        raise UserError(said.getvalue()) from None


def typed(file: Path) -> None:
    composed(file.read_bytes().decode(errors="surrogateescape").removesuffix("\n").split("\n"))


def experiment(folder: Path) -> None:
    composed([f"--config-dir={folder}", "experiment=mine"])


@cache
def checkpoint(folder: Path) -> Reader:
    """Return a reader of a checkpoint's files, with other weights: only their head is read here."""
    files: dict[str, Any] = {file.name: file.read_bytes() for file in folder.iterdir()}
    files |= {"model.safetensors": HEAD, "model.safetensors.index.json": INDEX}
    return Reader("checkpoint", files, model, "model.")


HUB = of_file("revision.json", REPLY, hub, "model.repo")
COMPOSED = [
    Reader("command", {"command.words": WORDS}, lambda folder: typed(folder / "command.words"), "", seconds=5),
    Reader("config of one's own", {"experiment/mine.yaml": EXPERIMENT}, experiment, "", form="text", seconds=5),
]

test_a_reply_of_the_hub_is_a_model_or_a_mistake = law_of([HUB])
test_words_and_configs_are_a_run_or_one_line = law_of(COMPOSED, 10, 1000)


@pytest.mark.timeout(inputs(900, 4 * 3600))
@settings(max_examples=inputs(100, 20_000), suppress_health_check=[HealthCheck.too_slow])
@given(draws=st.data())
def test_a_checkpoint_is_a_model_or_a_mistake_that_names_it(llama: Path, draws: st.DataObject) -> None:
    reader = checkpoint(llama)
    hold_law(reader, draws.draw(changes(reader)))
