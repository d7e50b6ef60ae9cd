"""The published systems: what each experiment and variant composes to, held against the table of sources."""

from __future__ import annotations

import functools
from itertools import combinations
from typing import Any

import pytest
import yaml
from golden_files import golden
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError
from tiny_run import ROOT, composed

from src.experiment.graph import nodes_of
from src.experiment.hardware import Assumed
from src.experiment.run import Run
from src.launch.compose import build

EXPERIMENTS = sorted(path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml"))
VARIANTS = ["paper", "code", "card"]
SOURCES = yaml.safe_load((ROOT / "docs" / "sources.yaml").read_text())
FOLLOWS = {"ranker.name", "ranker.trust_remote_code", "variant"}
"""Differ between variants because something in the table does."""


config_of = functools.cache(composed)


@functools.cache
def run_of(*words: str) -> Run:
    return build(config_of(*words))


def keys(*words: str) -> dict[str, str]:
    return {node.name: node.key for node in nodes_of(run_of(*words))}


def leaves(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {k: v for key, item in value.items() for k, v in leaves(item, f"{prefix}.{key}".lstrip(".")).items()}


def resolved(cfg: DictConfig) -> dict[str, Any]:
    return leaves(OmegaConf.to_container(cfg, resolve=True))


# What is composed


def test_every_published_value_is_that_of_the_table_of_sources_and_no_other_is_disputed() -> None:
    """Every experiment and variant can be built. Where a ranker is another one, its own fields follow."""
    wrong, unnamed = [], set[tuple[str, str]]()
    assert set(EXPERIMENTS) == set(SOURCES) - {"sppo", "wpo_hb"} and len(EXPERIMENTS) == 8
    for experiment in EXPERIMENTS:
        own = dict(SOURCES[experiment])
        table = SOURCES.get(own.pop("like", ""), {}) | own
        scripted = table.pop("scripted", False)
        configs: dict[str | None, dict[str, Any]] = {}
        for variant in (None, *VARIANTS):
            words = [f"experiment={experiment}", *([f"+variant={variant}"] if variant else [])]
            cfg, run = config_of(*words), run_of(*words)
            after = ("code", "paper", "ours") if scripted and variant != "paper" else ("paper", "ours", "code")
            configs[variant] = resolved(cfg)
            for key, values in table.items():
                expected = next(values[s] for s in (variant, "card", *after) if s in values)
                if OmegaConf.select(cfg, key, throw_on_missing=True) != expected:
                    wrong.append((experiment, variant, key, expected))
            assert (run.experiment, run.variant, run.hardware.name) == (experiment, variant, "8xa100_80gb")
        for a, b in combinations(configs.values(), 2):
            differ = {key for key in a.keys() | b.keys() if a.get(key) != b.get(key)} - FOLLOWS - set(table)
            follows = "ranker." if a["ranker._target_"] != b["ranker._target_"] else "nothing"
            unnamed |= {(experiment, key) for key in differ if not key.startswith(follows)}
    assert wrong == [] and unnamed == set()


def test_assumed_seconds_are_operations_over_what_is_reached() -> None:
    """1e9 weights, 100 + 50 tokens, 1e12 operations a second: 2 * 1e9 * 150 / (.5 * 1e12) s an answer."""
    assumed = Assumed(prompt_tokens=100, answer_tokens=50, sampling=0.5, scoring=0.25, training=0.1)
    scored = 2 * 200e9 / 0.25e12
    wanted = {"responses": 0.6, "ranking": scored, "reference": scored}
    wanted |= {"policy": 6 * 200e9 / 0.1e12, "divergence": 2 * 2 * 150e9 / 0.25e12}
    assert assumed.seconds(1e9, 1e12, answers=2) == pytest.approx(wanted)


# by_source and mirror


def test_a_source_is_followed_where_it_speaks_and_else_the_first_that_is_written() -> None:
    def value(values: str, variant: str | None) -> Any:
        return OmegaConf.create({"variant": variant, "x": f"${{by_source:{values}}}"}).x

    for values, expected in {
        "{card:3,paper:1,code:2}": [3, 1, 2, 3],
        "{paper:1,code:2}": [1, 1, 2, 1],
        "{code:2,paper:1}": [2, 1, 2, 2],
        "{ours:1,code:2}": [1, 1, 2, 1],
        "{code:2}": [2, 2, 2, 2],
    }.items():
        assert [value(values, variant) for variant in (None, "paper", "code", "card")] == expected
    for values in ("{papre:1}", "{}", "3"):
        with pytest.raises(InterpolationResolutionError, match="by_source: .* wants {source:value} of card"):
            value(values, "paper")


def test_a_mirror_stands_before_every_hub_id() -> None:
    config = resolved(config_of("experiment=gemma2_9b_it_wpo_hb", "mirror=/models/"))
    repositories = (config[key] for key in ("model.repo", "ranker.checkpoint.repo", "data.path"))
    ids = ("google/gemma-2-9b-it", "RLHFlow/ArmoRM-Llama3-8B-v0.1", "HuggingFaceH4/ultrafeedback_binarized")
    assert list(repositories) == [f"/models/{each}" for each in ids]
    assert run_of("experiment=gemma2_9b_it_wpo_hb", "mirror=/models/").model.id == ids[0]


# Artifacts


def test_no_key_moved_golden() -> None:
    """Compose the default run, each benchmark, each published system, and what each of its variants makes otherwise.

    A change of keys makes every store useless. Versions of packages that are part of a key are those
    that constraints.txt pins.
    """
    made = {"": keys()}
    for benchmark in sorted(path.stem for path in (ROOT / "conf" / "benchmark").glob("*.yaml")):
        words = f"benchmark={benchmark}"
        made[words] = {name: key for name, key in keys(words).items() if name not in made[""]}
        assert made[words]
    for experiment in EXPERIMENTS:
        words = f"experiment={experiment}"
        made[words] = keys(words)
        for variant in VARIANTS:
            other = keys(words, f"+variant={variant}")
            made[f"{words} +variant={variant}"] = {n: k for n, k in other.items() if made[words].get(n) != k}
    assert made == golden("keys.json", made)


def test_experiments_of_one_model_share_what_they_have_in_common() -> None:
    """SPPO, DPO and IPO on Mistral have iteration 1 but for its training once, and WPO and DPO on hybrid data too."""
    for experiments in (
        ("mistral_7b_pairrm_sppo", "mistral_7b_iterative_dpo", "mistral_7b_iterative_ipo"),
        ("gemma2_9b_it_wpo_hb", "gemma2_9b_it_dpo_hb"),
    ):
        runs = [keys(f"experiment={name}") for name in experiments]
        for artifact in ("responses", "ranking", "pairs", "reference"):
            assert len({run[f"it1/{artifact}"] for run in runs}) == 1, artifact
        assert len({run["it1/policy"] for run in runs}) == len(experiments)
