"""Shared fixtures: tiny policies of real architectures and one finished tiny run, made once per session."""

from __future__ import annotations

import logging
import os
import random
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import fork_server
import psutil
import pytest
from answer_server import AnswerServer, answering
from hypothesis import HealthCheck, settings
from quick_compose import quick_compose
from slurm_cluster import cluster, running  # noqa: F401
from tiny_run import World, tiny
from xdist.scheduler import LoadFileScheduling

# A library that calls logging.basicConfig during a test keeps that test's stream, which is closed in the next one.
logging.raiseExceptions = False

# The same inputs in every run: few by default, many in `make faults` (--hypothesis-profile=many).
FEW, MANY = 25, 2000
settings.register_profile("few", max_examples=FEW, deadline=None, derandomize=True, database=None)
settings.register_profile(
    "many", settings.get_profile("few"), max_examples=MANY, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("few")


def inputs(few: int, many: int = MANY) -> int:
    """Return the number of inputs of a law that needs another than FEW, or than MANY where one takes long: it starts a
    shell, or composes configs.
    """
    return many if settings.default and settings.default.max_examples == MANY else few


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--shuffle", type=int, metavar="SEED", help="random order of files, and of tests in a file")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if (seed := config.getoption("--shuffle")) is not None:
        rng = random.Random(seed)
        files = {path: rng.random() for path in sorted({item.path for item in items})}
        items.sort(key=lambda item: (files[item.path], rng.random()))


class OneHeavyTestAtATime(LoadFileScheduling):
    """A file stays in one process. All of tests/whole share one: what they start never runs beside more of it.

    The sections of the bad inputs go wherever there is room: they are few, so they come last, and take long.
    """

    def _split_scope(self, nodeid: str) -> str:
        if "/test_bad_input.py" in nodeid:
            return nodeid
        return "whole" if "/whole/" in nodeid else super()._split_scope(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> OneHeavyTestAtATime:
    return OneHeavyTestAtATime(config, log)


@pytest.fixture(autouse=True, scope="session")
def composing() -> Iterator[None]:
    with quick_compose():
        yield


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    """A test that leaves a process running fails itself, not a later one.

    One that is about to end has minutes for it on a busy machine; W&B's server stays.
    """
    before = set(psutil.Process().children())
    yield
    left = []
    for child in set(psutil.Process().children()) - before:
        with suppress(psutil.NoSuchProcess):
            if child.status() != psutil.STATUS_ZOMBIE and child.name() != "wandb-core":
                left.append(child)
    _, left = psutil.wait_procs(left, timeout=120)
    for child in left:
        child.kill()
    assert not left, "the test left processes running"


os.environ.setdefault("OMP_NUM_THREADS", "1")  # two threads on tiny tensors only wait for each other
os.environ.setdefault("WANDB_MODE", "offline")

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
INST = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + "
    "' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token }}{% else %}"
    "{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
TEXT = (
    "the a of to and in is you that it he was for on are as with his they at be this have from or one had by word but"
)


def build_tokenizer(folder: Path, template: str, bos: str, eos: str) -> None:
    """A byte-level BPE tokenizer that can spell anything."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet, special = pre_tokenizers.ByteLevel.alphabet(), [bos, eos]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    raw.train_from_iterator([TEXT] * 20, trainer)
    # Like those of Mistral and Gemma: called plainly, it adds a BOS of its own, which a rendered chat must not get.
    raw.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, raw.token_to_id(bos))]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token=bos, eos_token=eos, pad_token=eos)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)


def build_policy(folder: Path, architecture: str, template: str = CHATML, seed: int = 0) -> Path:
    """A random two-layer model of `architecture` (llama, mistral, gemma2) with a tokenizer of its own."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    bos, eos = ("<s>", "</s>") if template == INST else ("<|im_start|>", "<|im_end|>")
    build_tokenizer(folder, template, bos, eos)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": None}
    extra = {"head_dim": 8, "num_key_value_heads": 2, "vocab_size": len(tokenizer), "max_position_embeddings": 512}
    special = {"mistral": {"sliding_window": 16}, "gemma2": {"sliding_window": 16, "query_pre_attn_scalar": 8}}
    extra |= special.get(architecture, {})
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **shape, **extra, **ids))
    model = model.float()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)  # far from uniform, so that wrong masks show
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.eos_token_id)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_policy(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture(scope="session")
def mistral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_policy(tmp_path_factory.mktemp("mistral"), "mistral", INST)


@pytest.fixture(scope="session")
def gemma2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_policy(tmp_path_factory.mktemp("gemma2"), "gemma2", INST)


@pytest.fixture
def server() -> Iterator[AnswerServer]:
    """An OpenAI-compatible server."""
    with answering() as server:
        yield server


@pytest.fixture(scope="session")
def finished(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    """The tiny run, two iterations; a test that changes something takes `world`."""
    place = tmp_path_factory.mktemp("finished")
    world = World(place, tiny(llama, place))
    assert world.run("iter=2") == 0
    return world


@pytest.fixture
def world(finished: World, tmp_path: Path) -> World:
    """A copy of the finished run that a test may change."""
    shutil.copytree(finished.place, tmp_path / "copy", symlinks=True)
    return finished._replace(place=tmp_path / "copy")


@pytest.fixture(scope="session")
def forking_python() -> Iterator[Path]:
    with fork_server.forking_python() as python:
        yield python


@pytest.fixture
def eager_flex(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """FlexAttention in its eager form has a backward on CPUs; only a check of the device is in its way."""
    import torch
    from torch.nn.attention import flex_attention

    monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)
    with torch.compiler.set_stance("force_eager"):
        yield
