"""Model cards of trained policies: their numbers under their own names, and when they are written."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard, metadata_load
from huggingface_hub.repocard_data import model_index_to_eval_results
from made_up_cards import body, cards, facts, links, written
from made_up_run import MadeUp, evaluation, made_up
from tiny_run import ROOT, World, call, folders, typed

from src.experiment.graph import nodes_of
from src.kernel.artifact import Node
from src.kernel.record import CARD, RECORD, damage
from src.modeling.checkpoints import Checkpoint
from src.reporting.card.licences import KNOWN
from src.reporting.card.markdown import literal
from src.reporting.card.metadata import DIVERGENCE, EVALUATION, metadata
from src.reporting.card.write import text
from src.reporting.published import published
from src.reporting.report.benchmarks import NOT_MEASURED


def card(world: World, t: int) -> Path:
    return world.artifact(f"it{t}/policy").resolve() / CARD


# What a card says --------------------------------------------------------------------------------------------------


def test_the_model_index_gives_back_the_numbers_of_the_run_and_the_head_survives_the_hub_s_own_reader(
    finished: World,
) -> None:
    for t in (1, 2):
        name, results = model_index_to_eval_results((metadata_load(card(finished, t)) or {})["model-index"])
        told, kl = finished.metrics(f"it{t}/evaluation"), finished.metrics(f"it{t}/divergence")
        assert name == f"tiny-sppo-Iter{t}"
        assert {one.metric_type: one.metric_value for one in results} == {
            measure.metric: told[measure.key] for measure in EVALUATION
        } | {measure.metric: kl[measure.key] for measure in DIVERGENCE}
        for one, measure in zip(results, EVALUATION, strict=False):
            args = one.metric_args or {}
            assert args["prompts"] == told["prompts"]
            if measure.interval:
                assert (args["low"], args["high"]) == tuple(told[f"{measure.key}_{side}"] for side in ("low", "high"))
                assert (args["confidence"], args["ranker"]) == (0.95, "embedded")
        assert (results[-1].metric_args or {})["prompts"] == kl["prompts"] == 3
    data = metadata_load(card(finished, 2)) or {}
    assert (data["license"], data.get("base_model")) == ("apache-2.0", None), "the base is a stand-in"
    assert data["tags"] == ["sppo", "preference-optimisation", "iteration-2", "iterpref"]
    assert str(ModelCard.load(card(finished, 2))) == card(finished, 2).read_text()


def test_the_card_links_its_lineage_and_says_how_the_policy_is_made_again(finished: World) -> None:
    assert set((finished.place / "store").rglob(CARD)) == {card(finished, t) for t in (1, 2)}, (
        "and nothing else has one"
    )
    shown, record = card(finished, 1).read_text(), json.loads((finished.artifact("it1/policy") / RECORD).read_text())
    local = [card(finished, 1).parent / address for address in links(shown) if not address.startswith("https://")]
    others = {finished.artifact(f"{name}/policy").resolve() for name in ("base", "it2")}
    assert {path.resolve() for path in local} == others
    (block,) = [token.content for token in body(shown) if token.type == "fence" and "src.main" in token.content]
    assert block == (finished.folder / "command.txt").read_text()
    assert record["commit"].replace("+dirty", "") in shown and f"torch {record['versions']['torch']}" in shown
    for place in (finished.folder / "artifacts" / "it1").iterdir():
        assert f"| {literal(f'it1/{place.name}')} | `{'/'.join(place.resolve().parts[-2:])}` |" in shown
    for row in ("method.eta | 1000.0", "train.lr | 1e-05", "sampling.K | 3", "ranker.tau | 0.25", "seed | 0"):
        assert f"| {row} |" in shown
    table = shown[shown.index("## Hyper-parameters") : shown.index("## How to reproduce")]
    assert not any(word in table for word in ("row\\_tokens", "tracking", "save\\_minutes")), "they change no result"


def test_a_stand_in_is_not_taken_for_the_model_that_it_stands_for(finished: World, tmp_path: Path) -> None:
    """The tiny model of the tests is read in place of Mistral's 7.24e9 parameters."""
    shown = card(finished, 1).read_text()
    assert re.search(r"This policy has about [\d,]+ parameters, and .* has 7,240,000,000: .* a stand-in", shown)
    told = facts(typed("model=gemma2_9b_it"), tmp_path)
    for size, alike in ((9.24e9, True), (9.3e9, True), (7.24e9, False), (1e5, False)):
        for dtype, width in (("float32", 4), ("bfloat16", 2)):
            train = dataclasses.replace(told.run.train, save_dtype=dtype)
            files = {f"{name}.safetensors": {"bytes": size * width // 2} for name in "ab"}
            run = dataclasses.replace(told.run, train=train)
            found = told._replace(run=run, record=told.record | {"files": files})
            assert (metadata(found).base_model == "google/gemma-2-9b-it") == alike == ("stand-in" not in text(found))


def test_start_policies_have_their_id_and_licence_and_nothing_is_made_up(tmp_path: Path) -> None:
    """What the hub's pages of them say; what the hub would refuse is not in the head."""
    expected = {
        "gemma2_9b_it": ("google/gemma-2-9b-it", "gemma"),
        "llama3_8b_instruct": ("meta-llama/Meta-Llama-3-8B-Instruct", "llama3"),
        "mistral_7b_instruct_v02": ("mistralai/Mistral-7B-Instruct-v0.2", "apache-2.0"),
        "smollm2_135m_instruct": ("HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0"),
    }
    for model, (base, licence) in expected.items():
        shown = text(facts(typed(f"model={model}"), tmp_path))
        data = ModelCard(shown).data
        assert (data.get("base_model"), data.get("license")) == (base, licence)
        assert f"https://huggingface.co/{base}" in links(shown) and KNOWN[licence].address in links(shown)
    run = typed("iter=1")
    own = text(facts(run, tmp_path, model=dataclasses.replace(run.model, license="My own: *terms*")))  # pyright: ignore
    assert ModelCard(own).data.get("license") is None and literal("My own: *terms*") in own.partition("## Licence")[2]
    model = dataclasses.replace(run.model, id="/home/me/my model")  # pyright: ignore
    data = dataclasses.replace(run.data, card_datasets=["me/prompts", "../prompts.jsonl"])  # pyright: ignore
    head = metadata(facts(run, tmp_path, model=model, data=data))
    assert (head.base_model, head.datasets) == (None, ["me/prompts"])


def test_an_experiment_s_published_tables_have_an_empty_row_for_what_was_not_measured_here(tmp_path: Path) -> None:
    run, names = typed("iter=1"), sorted(path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml"))
    assert sorted(published()) == names
    for name in names:
        shown = text(facts(run, tmp_path, experiment=name, variant="paper"))
        part = shown[shown.index("## Published results") : shown.index("## Hyper-parameters")]
        tables = published()[name].tables
        here = [line for line in part.splitlines() if line.startswith("| **here, iteration 1**")]
        counts = [(line.count(NOT_MEASURED), len(table.measures)) for line, table in zip(here, tables, strict=True)]
        assert all(told == wanted for told, wanted in counts), name
        assert ("for non-commercial use. None of it is used" in shown) == ("wpo" in name or "dpo_hb" in name), name
    assert "reproduces no published system" in text(facts(run, tmp_path))


# When it is written ------------------------------------------------------------------------------------------------


def test_a_lost_card_comes_back_to_the_byte_and_a_share_keeps_one_that_knows_more(world: World) -> None:
    assert world.run("iter=2") == 0  # from now on the command names this folder
    before = {t: (card(world, t).read_bytes(), card(world, t).stat().st_mtime_ns) for t in (1, 2)}
    card(world, 1).unlink()
    assert world.run("iter=2") == 0
    assert card(world, 1).read_bytes() == before[1][0]
    assert (card(world, 2).read_bytes(), card(world, 2).stat().st_mtime_ns) == before[2], "it is not written again"
    for kind in ("evaluation", "divergence"):
        shutil.rmtree(world.place / "store" / kind)
    assert world.run("iter=2", "only=it1/policy") == 0
    assert card(world, 1).read_bytes() == before[1][0]
    card(world, 1).unlink()
    assert world.run("iter=2", "only=it1/responses") == 0
    assert "not evaluated yet" in (shown := card(world, 1).read_text())
    assert "iter=2\n" in shown and "only=" not in shown, "the command makes all of the run"


def test_a_card_is_no_part_of_its_artifact(world: World) -> None:
    """`verify` knows it, and another run that starts from the policy has the same key with and without it."""
    start = Checkpoint(name="again", repo=str(card(world, 2).parent), revision="main")
    before = Node("base/policy", start).key
    card(world, 2).write_text("another card")
    (card(world, 1).with_name(".README.md.77.tmp")).write_text("half a card, of a process that was killed")
    assert call("verify", *folders(world.place)) == 0 and Node("base/policy", start).key == before
    card(world, 2).unlink()
    assert Node("base/policy", start).key == before
    (card(world, 2).with_name("README.txt")).write_text("no card")
    assert damage(card(world, 2).parent) == [f"{card(world, 2).with_name('README.txt')}: not in the record"]


def two_runs(tmp_path: Path) -> tuple[MadeUp, MadeUp]:
    """They share their policies; the second has an evaluation of its own, which is not made yet."""
    first = made_up(tmp_path)
    run = dataclasses.replace(first.run, held_out=dataclasses.replace(first.run.held_out, confidence=0.9))
    second = first._replace(run=run, nodes=nodes_of(run))
    assert cards(first, 1) == cards(second, 1)
    return first, second


def make(story: MadeUp, name: str, metrics: dict[str, Any]) -> None:
    place = story.store.path(next(node for node in story.nodes if node.name == name))
    place.mkdir(parents=True, exist_ok=True)
    (place / "metrics.json").write_text(json.dumps(metrics))
    (place / RECORD).write_text('{"files": {}}')


def test_the_last_run_that_measured_as_much_has_the_card(tmp_path: Path) -> None:
    first, second = two_runs(tmp_path)
    shown = written(first)
    assert "95% interval" in shown and "0.600" in shown
    assert written(second, "python -m src.main second") == shown, "it has not measured yet"
    make(second, "it1/evaluation", evaluation() | {"win_over_base": 0.7})
    after = written(second, "python -m src.main second")
    assert "90% interval" in after and "0.700" in after and "src.main second" in after
    assert written(first) == shown, "the last one that was carried out"
    shutil.rmtree(first.store.root / "divergence")
    assert written(second) == shown, "less is measured now"


def test_a_kill_leaves_the_old_card_and_the_next_run_writes_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    story = made_up(tmp_path)
    shown = written(story)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", killed)
        written(story, "python -m src.main again")
    assert cards(story, 1).read_text() == shown
    assert "src.main again" in written(story, "python -m src.main again")
    assert [p.name for p in cards(story, 1).parent.iterdir() if p.suffix == ".tmp"] == []
