"""Model cards: their numbers under their own names, and when they are written."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import ModelCard, metadata_load
from huggingface_hub.repocard_data import model_index_to_eval_results
from made_up_cards import body, card_of, links, written
from made_up_run import made_up
from tiny_run import ROOT, World, call, folders, typed

from src.kernel.artifact import Node
from src.kernel.record import CARD, damage, read_record
from src.modeling.checkpoints import Checkpoint
from src.reporting.card import MEASURES
from src.reporting.published import NOT_MEASURED, published
from src.reporting.tables import literal


def path(world: World, t: int) -> Path:
    return world.artifact(f"it{t}/policy").resolve() / CARD


# What a card says --------------------------------------------------------------------------------------------------


def test_the_hub_s_own_reader_gives_back_the_numbers_of_the_run(finished: World) -> None:
    data = metadata_load(path(finished, 2)) or {}
    name, entries = model_index_to_eval_results(data["model-index"])
    results = {one.metric_type: one for one in entries}
    metrics = {stage: finished.metrics(f"it2/{stage}") for stage in MEASURES}
    expected = {key: metrics[stage][key] for stage, keys in MEASURES.items() for key in keys if key in metrics[stage]}
    assert name == "tiny-sppo-Iter2" and {key: one.metric_value for key, one in results.items()} == expected
    numbers = metrics["evaluation"]
    args = {"prompts": numbers["prompts"], "confidence": 0.95, "ranker": "embedded"}
    args |= {end: numbers[f"win_over_base_{end}"] for end in ("low", "high")}
    assert results["win_over_base"].metric_args == args
    assert (data["license"], data.get("base_model")) == ("apache-2.0", None), "the base is a stand-in"


def test_the_card_links_its_lineage_and_says_how_the_policy_is_made_again(finished: World) -> None:
    assert set((finished.place / "store").rglob(CARD)) == {path(finished, t) for t in (1, 2)}, "nothing else has one"
    text, record = path(finished, 1).read_text(), read_record(finished.artifact("it1/policy"))
    local = {path(finished, 1).parent / address for address in links(text) if not address.startswith("https://")}
    assert {place.resolve() for place in local} == {finished.artifact(f"{t}/policy").resolve() for t in ("base", "it2")}
    (block,) = [token.content for token in body(text) if token.type == "fence" and "src.main" in token.content]
    assert block == (finished.folder / "command.txt").read_text()
    assert record["commit"].replace("+dirty", "") in text and f"torch {record['versions']['torch']}" in text
    for place in (finished.folder / "artifacts" / "it1").iterdir():
        assert f"| {literal(f'it1/{place.name}')} | `{'/'.join(place.resolve().parts[-2:])}` |" in text
    for row in ("method.eta | 1000.0", "train.lr | 1e-05", "sampling.K | 3", "ranker.tau | 0.25", "seed | 0"):
        assert f"| {row} |" in text
    before = text.partition("## How to reproduce")[0]
    assert not any(word in before for word in ("row\\_tokens", "tracking", "save\\_minutes")), "they change no result"


def test_a_stand_in_is_not_taken_for_the_model_that_it_stands_for(tmp_path: Path) -> None:
    """A local copy is in a folder of its name."""
    for repo, alike in (("google/gemma-2-9b-it", True), ("/data/gemma-2-9b-it", True), ("/data/tiny", False)):
        text = card_of(typed("model=gemma2_9b_it", f"model.repo={repo}"), tmp_path)
        assert (ModelCard(text).data.get("base_model") == "google/gemma-2-9b-it") == alike == ("stand-in" not in text)
        assert ("https://ai.google.dev/gemma/terms" in links(text)) and ModelCard(text).data.get("license") == "gemma"


def test_an_experiment_s_published_tables_have_an_empty_row_for_what_was_not_measured_here(tmp_path: Path) -> None:
    run, names = typed("iter=1"), sorted(file.stem for file in (ROOT / "conf" / "experiment").glob("*.yaml"))
    assert sorted(published()) == names
    for name in names:
        text = card_of(run, tmp_path, experiment=name, variant="paper")
        here = [line for line in text.splitlines() if line.startswith("| **here, iteration 1**")]
        assert [line.count(NOT_MEASURED) for line in here] == [len(one.measures) for one in published()[name].tables]
        assert ("for non-commercial use. None of it is used" in text) == ("wpo" in name or "dpo_hb" in name), name


# When it is written ------------------------------------------------------------------------------------------------


def test_a_lost_card_comes_back_to_the_byte_and_the_others_are_not_touched(world: World) -> None:
    before = {t: (path(world, t).read_bytes(), path(world, t).stat().st_mtime_ns) for t in (1, 2)}
    path(world, 1).unlink()
    assert world.run("iter=2") == 0 == world.run("iter=2", "only=it1/responses"), "the card has the command of the run"
    assert path(world, 1).read_bytes() == before[1][0]
    assert (path(world, 2).read_bytes(), path(world, 2).stat().st_mtime_ns) == before[2]


def test_a_card_is_no_part_of_its_artifact(world: World) -> None:
    """`verify` knows it, and another run that starts from the policy has the same key with and without it."""
    start = Checkpoint(name="again", repo=str(path(world, 2).parent), revision="main")
    before = Node("base/policy", start).key
    path(world, 2).write_text("another card")
    assert call("verify", *folders(world.place)) == 0 and Node("base/policy", start).key == before
    path(world, 2).unlink()
    assert Node("base/policy", start).key == before and damage(path(world, 2).parent) == []


def test_the_last_run_that_has_the_policy_writes_its_card(tmp_path: Path) -> None:
    story = made_up(tmp_path)
    for command in ("python -m src.main first", "python -m src.main second"):
        assert command in written(story, command)
