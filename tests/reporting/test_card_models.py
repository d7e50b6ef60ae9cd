"""Model cards of start policies and experiments: licences, and what others published."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from made_up_cards import facts, links
from tiny_run import ROOT, typed

from src.card.licences import KNOWN
from src.card.markdown import literal
from src.card.metadata import metadata
from src.card.write import text
from src.published import published
from src.report.benchmarks import NOT_MEASURED

pytestmark = pytest.mark.full
EXPERIMENTS = sorted(path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml"))


# Models and licences -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", sorted(path.stem for path in (ROOT / "conf" / "model").glob("*.yaml")))
def test_every_start_policy_has_its_id_and_licence_in_head_and_text(model: str, tmp_path: Path) -> None:
    """What the hub's pages of them say."""
    expected = {
        "gemma2_9b_it": ("google/gemma-2-9b-it", "gemma"),
        "llama3_8b_instruct": ("meta-llama/Meta-Llama-3-8B-Instruct", "llama3"),
        "mistral_7b_instruct_v02": ("mistralai/Mistral-7B-Instruct-v0.2", "apache-2.0"),
        "smollm2_135m_instruct": ("HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0"),
    }
    base, licence = expected[model]
    shown = text(facts(typed(f"model={model}"), tmp_path))
    data = ModelCard(shown).data
    assert (data.get("base_model"), data.get("license")) == (base, licence)
    assert f"https://huggingface.co/{base}" in links(shown) and KNOWN[licence].address in links(shown)


@pytest.mark.parametrize("licence", [None, "My own: *terms*", "mit"])
def test_a_licence_without_words_of_ours_is_named_and_an_unknown_one_not_made_up(
    licence: str | None, tmp_path: Path
) -> None:
    run = typed("iter=1")
    shown = text(facts(run, tmp_path, model=dataclasses.replace(run.model, license=licence)))  # pyright: ignore
    assert ModelCard(shown).data.get("license") == ("mit" if licence == "mit" else None)
    assert (literal(licence) if licence else "is not said here") in shown.partition("## Licence")[2]


def test_what_the_hub_would_refuse_is_not_in_the_head(tmp_path: Path) -> None:
    run = typed("iter=1")
    model = dataclasses.replace(run.model, id="/home/me/my model")  # pyright: ignore
    data = dataclasses.replace(run.data, card_datasets=["me/prompts", "../prompts.jsonl"])  # pyright: ignore
    head = metadata(facts(run, tmp_path, model=model, data=data))
    assert (head.base_model, head.datasets) == (None, ["me/prompts"])


# What is published -------------------------------------------------------------------------------------------------


def test_every_experiment_has_its_published_numbers_or_is_said_to_have_none() -> None:
    assert sorted(published()) == EXPERIMENTS
    assert [name for name, known in published().items() if not known.tables] == ["gemma2_9b_it_dpo_hb"]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_numbers_an_experiments_file_quotes_are_those_of_its_card(name: str) -> None:
    quoted = re.findall(r"\d+\.\d+/\d+\.\d+(?:/\d+)?", (ROOT / "conf" / "experiment" / f"{name}.yaml").read_text())
    rows = [values for table in published()[name].tables for values in table.policies.values()]
    known = {"/".join(str(value) for value in map(plain, values) if value) for values in rows}
    assert {"/".join(str(plain(float(value))) for value in triple.split("/")) for triple in quoted} <= known
    assert quoted or not rows


def plain(value: float | None) -> float | int | None:
    """1855.0 is 1855."""
    return int(value) if value and value >= 1000 else value


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_published_tables_have_an_empty_row_for_what_was_not_measured_here(name: str, tmp_path: Path) -> None:
    shown = text(facts(typed("iter=1"), tmp_path, experiment=name, variant="paper"))
    part = shown[shown.index("## Published results") : shown.index("## Hyper-parameters")]
    assert f"experiment {literal(name)} (variant paper)" in part and "docs/differences.md" in part
    tables = published()[name].tables
    here = [line for line in part.splitlines() if line.startswith("| **here, iteration 1**")]
    assert len(here) == len(tables)
    assert all(line.count(NOT_MEASURED) == len(table.measures) for line, table in zip(here, tables, strict=True))
    assert ("Nothing published" in part) == (not tables)


def test_a_run_of_ones_own_is_compared_with_nothing(tmp_path: Path) -> None:
    shown = text(facts(typed("iter=1"), tmp_path))
    assert "reproduces no published system. AlpacaEval 2, MT-Bench and Arena-Hard: not measured." in shown


@pytest.mark.parametrize(
    ("words", "experiment", "said"),
    [
        ([], "gemma2_9b_it_wpo_hb", True),
        ([], "gemma2_9b_it_dpo_hb", True),
        (["method=wpo"], None, True),
        ([], "gemma2_9b_it_sppo", False),
        ([], None, False),
    ],
)
def test_wpos_terms_are_named_where_wpo_is(words: list[str], experiment: str, said: bool, tmp_path: Path) -> None:
    shown = text(facts(typed("iter=1", *words), tmp_path, experiment=experiment))
    assert ("for non-commercial use. None of it is used" in shown) == said


# When it is written ------------------------------------------------------------------------------------------------


def test_the_published_file_is_part_of_the_package() -> None:
    """A wheel takes all of src/; what is read must lie there."""
    project = (ROOT / "pyproject.toml").read_text()
    assert 'packages = ["src", ' in project
    assert isinstance(yaml.safe_load((ROOT / "src" / "published.yaml").read_text()), dict)
