"""Model cards: their numbers under their own names, and when they are written."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard, metadata_load
from huggingface_hub.repocard_data import model_index_to_eval_results
from made_up_cards import body, card_of, cards, links, written
from made_up_run import made_up
from tiny_run import ROOT, World, call, folders, typed

from src.experiment.graph import nodes_of
from src.kernel.artifact import Node
from src.kernel.record import CARD, RECORD, damage
from src.modeling.checkpoints import Checkpoint
from src.reporting.card import MEASURES
from src.reporting.published import NOT_MEASURED, published
from src.reporting.tables import literal


def path(world: World, t: int) -> Path:
    return world.artifact(f"it{t}/policy").resolve() / CARD


# What a card says --------------------------------------------------------------------------------------------------


def test_the_hub_s_own_reader_gives_back_the_numbers_of_the_run(finished: World) -> None:
    for t in (1, 2):
        name, entries = model_index_to_eval_results((metadata_load(path(finished, t)) or {})["model-index"])
        results = {one.metric_type: one for one in entries}
        metrics = {stage: finished.metrics(f"it{t}/{stage}") for stage in MEASURES}
        expected = {key: metrics[stage][key] for stage, keys in MEASURES.items() for key in keys}
        assert name == f"tiny-sppo-Iter{t}" and {key: one.metric_value for key, one in results.items()} == expected
        numbers = metrics["evaluation"]
        ends = {end: numbers[f"win_over_base_{end}"] for end in ("low", "high")}
        args = {"prompts": numbers["prompts"], "confidence": 0.95, "ranker": "embedded"}
        assert results["win_over_base"].metric_args == ends | args
        assert results["kl_per_token"].metric_args == {"prompts": metrics["divergence"]["prompts"]}
    data = metadata_load(path(finished, 2)) or {}
    assert (data["license"], data.get("base_model")) == ("apache-2.0", None), "the base is a stand-in"
    assert data["tags"] == ["sppo", "preference-optimisation", "iteration-2", "iterpref"]
    assert str(ModelCard.load(path(finished, 2))) == path(finished, 2).read_text()


def test_the_card_links_its_lineage_and_says_how_the_policy_is_made_again(finished: World) -> None:
    assert set((finished.place / "store").rglob(CARD)) == {path(finished, t) for t in (1, 2)}, "nothing else has one"
    text, record = path(finished, 1).read_text(), json.loads((finished.artifact("it1/policy") / RECORD).read_text())
    local = [path(finished, 1).parent / address for address in links(text) if not address.startswith("https://")]
    wanted = {finished.artifact(f"{name}/policy").resolve() for name in ("base", "it2")}
    assert {place.resolve() for place in local} == wanted
    (block,) = [token.content for token in body(text) if token.type == "fence" and "src.main" in token.content]
    assert block == (finished.folder / "command.txt").read_text()
    assert record["commit"].replace("+dirty", "") in text and f"torch {record['versions']['torch']}" in text
    for place in (finished.folder / "artifacts" / "it1").iterdir():
        assert f"| {literal(f'it1/{place.name}')} | `{'/'.join(place.resolve().parts[-2:])}` |" in text
    for row in ("method.eta | 1000.0", "train.lr | 1e-05", "sampling.K | 3", "ranker.tau | 0.25", "seed | 0"):
        assert f"| {row} |" in text
    table = text[text.index("## Hyper-parameters") : text.index("## How to reproduce")]
    assert not any(word in table for word in ("row\\_tokens", "tracking", "save\\_minutes")), "they change no result"


def test_a_stand_in_is_not_taken_for_the_model_that_it_stands_for(tmp_path: Path) -> None:
    """A local copy is in a folder of its name."""
    for repo, alike in (("google/gemma-2-9b-it", True), ("/data/gemma-2-9b-it", True), ("/data/tiny", False)):
        text = card_of(typed("model=gemma2_9b_it", f"model.repo={repo}"), tmp_path)
        assert (ModelCard(text).data.get("base_model") == "google/gemma-2-9b-it") == alike == ("stand-in" not in text)


def test_start_policies_have_their_id_and_licence_and_nothing_is_made_up(tmp_path: Path) -> None:
    """What the hub's pages of them say; what the hub would refuse is not in the head."""
    for model, base, licence, terms in (
        ("gemma2_9b_it", "google/gemma-2-9b-it", "gemma", "https://ai.google.dev/gemma/terms"),
        ("llama3_8b_instruct", "meta-llama/Meta-Llama-3-8B-Instruct", "llama3", "https://llama.meta.com/llama3/license/"),
    ):  # fmt: skip
        text = card_of(typed(f"model={model}"), tmp_path)
        data = ModelCard(text).data
        assert (data.get("base_model"), data.get("license")) == (base, licence)
        assert {f"https://huggingface.co/{base}", terms} <= set(links(text))
    run: Any = typed("iter=1")
    model = dataclasses.replace(run.model, id="/home/me/my model", license="My own: *terms*")
    data = dataclasses.replace(run.data, card_datasets=["me/prompts", "../prompts.jsonl"])
    text = card_of(run, tmp_path, model=model, data=data)
    head = ModelCard(text).data
    assert (head.get("base_model"), head.get("license"), head.get("datasets")) == (None, None, ["me/prompts"])
    assert literal("My own: *terms*") in text.partition("## Licence")[2]


def test_an_experiment_s_published_tables_have_an_empty_row_for_what_was_not_measured_here(tmp_path: Path) -> None:
    run, names = typed("iter=1"), sorted(file.stem for file in (ROOT / "conf" / "experiment").glob("*.yaml"))
    assert sorted(published()) == names
    for name in names:
        text = card_of(run, tmp_path, experiment=name, variant="paper")
        here = [line for line in text.splitlines() if line.startswith("| **here, iteration 1**")]
        assert [line.count(NOT_MEASURED) for line in here] == [len(one.measures) for one in published()[name].tables]
        assert ("for non-commercial use. None of it is used" in text) == ("wpo" in name or "dpo_hb" in name), name
    assert "reproduces no published system" in card_of(run, tmp_path)


# When it is written ------------------------------------------------------------------------------------------------


def test_a_lost_card_comes_back_to_the_byte_and_the_others_are_not_touched(world: World) -> None:
    before = {t: (path(world, t).read_bytes(), path(world, t).stat().st_mtime_ns) for t in (1, 2)}
    path(world, 1).unlink()
    assert world.run("iter=2") == 0
    assert path(world, 1).read_bytes() == before[1][0]
    assert (path(world, 2).read_bytes(), path(world, 2).stat().st_mtime_ns) == before[2]
    assert world.run("iter=2", "only=it1/responses") == 0
    text = path(world, 1).read_text()
    assert "iter=2\n" in text and "only=" not in text, "the command makes all of the run"


def test_a_card_is_no_part_of_its_artifact(world: World) -> None:
    """`verify` knows it, and another run that starts from the policy has the same key with and without it."""
    start = Checkpoint(name="again", repo=str(path(world, 2).parent), revision="main")
    before = Node("base/policy", start).key
    path(world, 2).write_text("another card")
    assert call("verify", *folders(world.place)) == 0 and Node("base/policy", start).key == before
    path(world, 2).unlink()
    assert Node("base/policy", start).key == before and damage(path(world, 2).parent) == []


def test_the_last_run_that_has_the_policy_writes_its_card_and_a_kill_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = made_up(tmp_path)
    run = dataclasses.replace(first.run, held_out=dataclasses.replace(first.run.held_out, confidence=0.9))
    second = first._replace(run=run, nodes=nodes_of(run))  # its evaluation has another key, and is not made
    assert cards(first, 1) == cards(second, 1)
    text = written(first)
    assert "[95% interval]" in text and "0.600 [0.550, 0.650]" in text

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", killed)
        written(second)
    assert cards(first, 1).read_text() == text
    after = written(second, "python -m src.main second")
    assert "0.600" not in after and "not evaluated yet" not in after, "the divergence is known"
    assert "python -m src.main second" in after and written(first) == text
