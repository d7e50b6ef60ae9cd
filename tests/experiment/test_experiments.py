"""The published systems: what each experiment and variant composes to, held against the table of sources.

Golden files: `make golden` rewrites tests/golden/experiments/; review their diff like code.
"""

from __future__ import annotations

import functools
import os
from itertools import combinations
from typing import Any

import pytest
import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError
from tiny_run import ROOT, call, composed, typed

from src.experiment.graph import nodes_of
from src.experiment.hardware import Assumed
from src.launch.compose import build

GOLDEN = ROOT / "tests" / "golden" / "experiments"
EXPERIMENTS = sorted(path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml"))
VARIANTS = ["paper", "code", "card"]
SOURCES = yaml.safe_load((ROOT / "docs" / "sources.yaml").read_text())
FOLLOWS = {"ranker.name", "ranker.trust_remote_code", "variant"}
"""Differ between variants because something in the table does."""


@functools.cache
def config_of(experiment: str, *more: str) -> DictConfig:
    return composed(f"experiment={experiment}", *more)


def table_of(experiment: str) -> dict[str, dict[str, Any]]:
    own = dict(SOURCES[experiment])
    return SOURCES.get(own.pop("like", ""), {}) | own


def expected(said: dict[str, Any], variant: str) -> Any:
    """The variant's own source, then card, paper, ours, code."""
    return next(said[source] for source in (variant, "card", "paper", "ours", "code") if source in said)


def leaves(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {k: v for key, item in value.items() for k, v in leaves(item, f"{prefix}.{key}".lstrip(".")).items()}


def resolved(cfg: DictConfig) -> dict[str, Any]:
    return leaves(OmegaConf.to_container(cfg, resolve=True))


# What is composed


def test_every_published_value_is_that_of_the_table_of_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every experiment and variant, and each can be built."""
    monkeypatch.chdir(ROOT)
    wrong = []
    assert set(EXPERIMENTS) == set(SOURCES) - {"sppo", "wpo_hb"} and len(EXPERIMENTS) == 8
    for experiment in EXPERIMENTS:
        for variant in VARIANTS:
            cfg = config_of(experiment, f"+variant={variant}")
            for key, said in table_of(experiment).items():
                if OmegaConf.select(cfg, key, throw_on_missing=True) != expected(said, variant):
                    wrong.append((experiment, variant, key, said))
            run = build(cfg)
            assert (run.experiment, run.variant, run.hardware.name) == (experiment, variant, "8xa100_80gb")
    assert wrong == []


def test_what_variants_differ_in_is_in_the_table() -> None:
    """Nothing is disputed that the table does not name; where a ranker is another one, its own fields follow."""
    unnamed = {}
    for experiment in EXPERIMENTS:
        configs = {variant: resolved(config_of(experiment, f"+variant={variant}")) for variant in VARIANTS}
        for one, other in combinations(VARIANTS, 2):
            a, b = configs[one], configs[other]
            differ = {key for key in a.keys() | b.keys() if a.get(key) != b.get(key)} - FOLLOWS
            if a["ranker._target_"] != b["ranker._target_"]:
                differ = {key for key in differ if not key.startswith("ranker.")}
            unnamed[experiment, one, other] = differ - set(table_of(experiment))
    assert not any(unnamed.values()), unnamed


def test_the_composed_experiments_are_the_golden_ones() -> None:
    texts = {f"{name}.yaml": OmegaConf.to_yaml(config_of(name), resolve=True) for name in EXPERIMENTS}
    if os.environ.get("GOLDEN"):
        for name, text in texts.items():
            (GOLDEN / name).write_text(text)
    assert {path.name for path in GOLDEN.iterdir()} == set(texts)
    changed = [name for name, text in texts.items() if text != (GOLDEN / name).read_text()]
    assert not changed, "if you meant it: make golden, and review"


def test_without_a_variant_the_card_is_followed() -> None:
    for experiment in EXPERIMENTS:
        alone, card = resolved(config_of(experiment)), resolved(config_of(experiment, "+variant=card"))
        assert (alone.pop("variant"), card.pop("variant")) == (None, "card")
        assert alone == card, experiment


def test_what_is_said_in_the_command_wins_over_experiment_and_variant() -> None:
    words = ["experiment=gemma2_9b_it_sppo", "+variant=code", "sampling=paper", "train.schedule_epochs=7"]
    run = typed(*words, "hardware=cpu", "ranker.precision=float32")
    assert (run.sampling.temperature, run.train.schedule_epochs, run.hardware.name) == (1.0, 7, "cpu")


def test_systems_share_what_they_have_in_common() -> None:
    """SPPO, DPO and IPO on Mistral have iteration 1's answers, ranking, pairs and reference once; WPO and DPO too."""

    def keys(experiment: str) -> dict[str, str]:
        return {node.name: node.key for node in nodes_of(typed(f"experiment={experiment}"))}

    sppo, dpo, ipo = map(keys, ("mistral_7b_pairrm_sppo", "mistral_7b_iterative_dpo", "mistral_7b_iterative_ipo"))
    assert sppo["it1/reference"] == dpo["it1/reference"] == ipo["it1/reference"]
    assert len({sppo["it1/policy"], dpo["it1/policy"], ipo["it1/policy"]}) == 3
    wpo, dpo_hb = keys("gemma2_9b_it_wpo_hb"), keys("gemma2_9b_it_dpo_hb")
    assert wpo["it1/reference"] == dpo_hb["it1/reference"] and wpo["it1/policy"] != dpo_hb["it1/policy"]


def test_assumed_seconds_are_operations_over_what_is_reached() -> None:
    """1e9 weights, 100 + 50 tokens, 1e12 operations a second: 2 * 1e9 * 150 / (.5 * 1e12) s an answer."""
    assumed = Assumed(prompt_tokens=100, answer_tokens=50, sampling=0.5, scoring=0.25, training=0.1)
    found = assumed.seconds(1e9, 1e12, answers=2)
    scored = 2 * 200e9 / 0.25e12
    wanted = {"responses": 0.6, "ranking": scored, "reference": scored}
    wanted |= {"policy": 6 * 200e9 / 0.1e12, "divergence": 2 * 2 * 150e9 / 0.25e12}
    assert {name: found[name] for name in wanted} == pytest.approx(wanted)


# by_source


def value(said: str, variant: str | None) -> Any:
    return OmegaConf.create({"variant": variant, "x": f"${{by_source:{said}}}"}).x


def test_a_source_is_followed_where_it_speaks_and_else_card_paper_code() -> None:
    assert [value("{paper:1,code:2,card:3}", v) for v in (None, "paper", "code", "card")] == [3, 1, 2, 3]
    assert [value("{paper:1,code:2}", v) for v in (None, "paper", "code", "card")] == [1, 1, 2, 1]
    assert [value("{ours:1,code:2}", v) for v in (None, "paper", "code", "card")] == [1, 1, 2, 1]
    assert [value("{code:2}", v) for v in (None, "paper", "code", "card")] == [2, 2, 2, 2]
    for said in ("{papre:1}", "{}", "3"):
        with pytest.raises(InterpolationResolutionError, match="by_source: .* wants {source:value} of card"):
            value(said, "paper")


def test_mistakes_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for words, line in {
        "+variant=paper": "variant: says which source an experiment follows; choose one: experiment=<name>",
        "experiment=mistral_7b_pairrm_sppo +variant=blog": "variant: no file blog.yaml in conf/variant",
        "experiment=mistral_7b_pairrm_sppo variant=paper": "use +variant=paper",
        "experiment=gemma2_9b_it_sppo +variant=paper +variant=code": "Multiple values for variant",
        "experiment=mistral_8b": "experiment: no file mistral_8b.yaml in conf/experiment",
        "+size=rehearsal": "size: rehearses an experiment; choose one: experiment=<name>",
        "mirror=models": "mirror: String should match pattern",
    }.items():
        assert call(*words.split()) == 2
        shown = capsys.readouterr().err
        assert line in shown and shown.count("\n") == 1, words


def test_a_mirror_stands_before_every_hub_id() -> None:
    run = typed("experiment=gemma2_9b_it_wpo_hb", "mirror=/models/")
    cfg = resolved(config_of("gemma2_9b_it_wpo_hb", "mirror=/models/"))
    assert cfg["model.repo"] == "/models/google/gemma-2-9b-it"
    assert cfg["ranker.checkpoint.repo"] == "/models/RLHFlow/ArmoRM-Llama3-8B-v0.1"
    assert cfg["data.path"] == "/models/HuggingFaceH4/ultrafeedback_binarized"
    assert run.model.id == "google/gemma-2-9b-it"  # pyright: ignore
    others = resolved(config_of("mistral_7b_pairrm_sppo", "mirror=/models/"))
    assert others["ranker.base.repo"] == "/models/microsoft/deberta-v3-large"
