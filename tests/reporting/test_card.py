"""Model cards of a finished run: its numbers under their own names, what makes it again, and when they are written."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard, metadata_load
from huggingface_hub.repocard_data import model_index_to_eval_results
from made_up_cards import body, cards, facts, links, written
from made_up_run import made_up
from tiny_run import World, call, folders, tiny, typed

from src import runner
from src.artifact import Node
from src.card.facts import title
from src.card.markdown import literal
from src.card.metadata import DIVERGENCE, EVALUATION, metadata
from src.card.write import text
from src.checkpoints import Checkpoint
from src.provenance import CARD, RECORD

pytestmark = pytest.mark.full

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def finished(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    place = tmp_path_factory.mktemp("finished")
    world = World(place, tiny(llama, place, "++data.card_datasets=[me/prompts]"))
    assert world.run("iter=2") == 0
    return world


@pytest.fixture
def world(finished: World, tmp_path: Path) -> World:
    """A copy of the finished run that a test may change."""
    shutil.copytree(finished.place, tmp_path / "copy", symlinks=True)
    return finished._replace(place=tmp_path / "copy")


def card(world: World, t: int) -> Path:
    return world.artifact(f"it{t}/policy").resolve() / CARD


# What a card says --------------------------------------------------------------------------------------------------


def test_trained_policies_have_a_card_and_no_other_artifact_has_one(finished: World) -> None:
    trained = {card(finished, t) for t in (1, 2)}
    assert set((finished.place / "store").rglob(CARD)) == trained
    assert len(trained) == 2


@pytest.mark.parametrize("t", [1, 2])
def test_the_model_index_gives_back_the_numbers_of_the_run(t: int, finished: World) -> None:
    name, results = model_index_to_eval_results((metadata_load(card(finished, t)) or {})["model-index"])
    told = finished.metrics(f"it{t}/evaluation")
    kl = finished.metrics(f"it{t}/divergence")
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


def test_the_head_says_what_the_hub_wants_to_know(finished: World) -> None:
    """And survives the hub's own reader and writer unchanged."""
    data = metadata_load(card(finished, 2)) or {}
    assert (data["license"], data.get("base_model")) == ("apache-2.0", None), "the base is a stand-in"
    assert (data["library_name"], data["pipeline_tag"]) == ("transformers", "text-generation")
    assert data["datasets"] == ["me/prompts"]
    assert data["tags"] == ["sppo", "preference-optimisation", "iteration-2", "iterpref"]
    assert str(ModelCard.load(card(finished, 2))) == card(finished, 2).read_text()


@pytest.mark.parametrize("t", [1, 2])
def test_every_link_of_the_lineage_leads_to_the_folder_of_that_policy(t: int, finished: World) -> None:
    place = card(finished, t)
    local = [place.parent / address for address in links(place.read_text()) if not address.startswith("https://")]
    others = {finished.artifact(f"{name}/policy").resolve() for name in ("base", f"it{3 - t}")}
    assert {path.resolve() for path in local} == others
    assert all(path.resolve().name in place.read_text() for path in local)


def test_on_the_hub_the_links_lead_to_the_other_repositories(tmp_path: Path) -> None:
    story = made_up(tmp_path)
    found = links(written(story, push_to_hub="me/Tiny-SPPO"))
    assert [address for address in found if "/me/" in address] == ["https://huggingface.co/me/Tiny-SPPO-Iter2"]
    assert all(address.startswith("https://") for address in found)
    assert title(dataclasses.replace(story.run, push_to_hub="me/Tiny-SPPO"), 2) == "Tiny-SPPO-Iter2"


def test_the_settings_are_those_of_the_run_and_what_changes_no_result_is_not_among_them(finished: World) -> None:
    shown = card(finished, 1).read_text()
    for row in (
        "| method.eta | 1000.0 |",
        "| train.lr | 1e-05 |",
        "| sampling.K | 3 |",
        "| estimator.kind | pairwise |",
    ):
        assert row in shown
    for row in ("| pairing.rule | src.pairing.rules.BestWorst |", "| ranker.tau | 0.25 |", "| seed | 0 |"):
        assert row in shown
    table = shown[shown.index("## Hyper-parameters") : shown.index("## How to reproduce")]
    assert not any(word in table for word in ("row\\_tokens", "source\\_version", "tracking", "save\\_minutes"))
    assert "loss = [ (D_w - eta (P_w - c))^2" in shown


def test_the_card_says_how_the_policy_is_made_again(finished: World) -> None:
    shown, record = card(finished, 1).read_text(), json.loads((finished.artifact("it1/policy") / RECORD).read_text())
    (block,) = [token.content for token in body(shown) if token.type == "fence" and "src.main" in token.content]
    assert block == (finished.folder / "command.txt").read_text()
    assert record["commit"].replace("+dirty", "") in shown and f"torch {record['versions']['torch']}" in shown
    for place in (finished.folder / "artifacts" / "it1").iterdir():
        assert f"| {literal(f'it1/{place.name}')} | `{'/'.join(place.resolve().parts[-2:])}` |" in shown


def test_a_policy_that_is_not_evaluated_is_said_to_be_none(tmp_path: Path) -> None:
    story = made_up(tmp_path)
    for kind in ("evaluation", "divergence"):
        shutil.rmtree(story.store.root / kind)
    shown = written(story)
    assert "This policy is not evaluated yet." in shown
    assert "model-index" not in (metadata_load(cards(story, 1)) or {})


def test_measures_that_a_ranker_does_not_have_are_left_out(tmp_path: Path) -> None:
    shown = written(made_up(tmp_path, tokens=None))
    assert "tokens of an answer of the start policy" in shown and "tokens of an answer, mean" not in shown


# Models and licences -----------------------------------------------------------------------------------------------


def test_a_stand_in_is_not_taken_for_the_model_that_it_stands_for(finished: World, tmp_path: Path) -> None:
    """The tiny model of the tests is read in place of Mistral's 7.24e9 parameters."""
    from transformers import AutoModelForCausalLM

    shown = card(finished, 1).read_text()
    count = AutoModelForCausalLM.from_pretrained(card(finished, 1).parent).num_parameters()
    (said,) = re.findall(r"This policy has about ([\d,]+) parameters, and .* has 7,240,000,000: .* a stand-in", shown)
    assert count <= int(said.replace(",", "")) < 1.2 * count, "the file has a header"
    told = facts(typed("model=gemma2_9b_it"), tmp_path)
    for size, alike in ((9.24e9, True), (9.3e9, True), (7.24e9, False), (1e5, False)):
        for dtype, width in (("float32", 4), ("bfloat16", 2)):
            train = dataclasses.replace(told.run.train, save_dtype=dtype)
            files = {"a.safetensors": {"bytes": size * width // 2}, "b.safetensors": {"bytes": size * width // 2}}
            run = dataclasses.replace(told.run, train=train)
            found = told._replace(run=run, record=told.record | {"files": files})
            assert (metadata(found).base_model == "google/gemma-2-9b-it") == alike == ("stand-in" not in text(found))


# When it is written ------------------------------------------------------------------------------------------------


def test_the_same_command_writes_nothing_again_and_a_lost_card_comes_back_to_the_byte(world: World) -> None:
    assert world.run("iter=2") == 0  # from now on the command names this folder
    before = {t: (card(world, t).read_bytes(), card(world, t).stat().st_mtime_ns) for t in (1, 2)}
    assert world.run("iter=2") == 0
    assert {t: (card(world, t).read_bytes(), card(world, t).stat().st_mtime_ns) for t in (1, 2)} == before
    card(world, 1).unlink()
    assert world.run("iter=2") == 0
    assert card(world, 1).read_bytes() == before[1][0]


def test_a_run_that_is_killed_before_its_report_has_its_cards(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    before = card(world, 1).read_bytes()
    card(world, 1).unlink()
    monkeypatch.setattr(runner, "report", killed)
    assert world.run("iter=2") == 130
    assert card(world, 1).read_bytes() == before


def test_a_finished_run_under_other_hardware_keeps_its_cards(world: World) -> None:
    """As it keeps its command: the other one had no part in it."""
    before = card(world, 1).read_bytes()
    assert world.run("iter=2", "hardware.devices.row_tokens=64") == 0
    assert card(world, 1).read_bytes() == before


def test_verify_knows_cards_and_still_finds_what_is_damaged(world: World, capsys: Capture) -> None:
    assert call("verify", *folders(world.place)) == 0
    card(world, 1).write_text("mine")
    (card(world, 1).with_name(".README.md.77.tmp")).write_text("half a card, of a process that was killed")
    assert call("verify", *folders(world.place)) == 0
    weights = card(world, 2).with_name("model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0\0")
    (card(world, 2).with_name("README.txt")).write_text("no card")
    capsys.readouterr()
    assert call("verify", *folders(world.place)) == 3
    found = capsys.readouterr().out.splitlines()
    assert f"{weights}: damaged (sha256 differs from the record)" in found
    assert f"{weights.with_name('README.txt')}: not in the record" in found and "2 problems" in found[2]


def test_only_writes_the_card_of_what_it_made_and_keeps_one_that_knows_more(world: World) -> None:
    """Without the evaluations it cannot know more than that the policy is there."""
    shown = card(world, 1).read_text()
    for kind in ("evaluation", "divergence"):
        shutil.rmtree(world.place / "store" / kind)
    assert world.run("iter=2", "only=it1/policy") == 0
    assert card(world, 1).read_text() == shown
    card(world, 1).unlink()
    assert world.run("iter=2", "only=it1/responses") == 0
    assert world.run("iter=2", "only=it1/responses", "part=1/2") == 0
    assert "not evaluated yet" in (shown := card(world, 1).read_text())
    assert "iter=2\n" in shown and "only=" not in shown, "the command makes all of the run"


def test_a_policy_that_another_run_starts_from_has_the_same_key_with_and_without_its_card(world: World) -> None:
    folder = world.artifact("it2/policy").resolve()
    start = Checkpoint(name="again", repo=str(folder), revision="main")
    before = Node("base/policy", start).key
    card(world, 2).write_text("another card")
    assert Node("base/policy", start).key == before
    card(world, 2).unlink()
    assert Node("base/policy", start).key == before
