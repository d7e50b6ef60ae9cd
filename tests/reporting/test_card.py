"""Model cards: their numbers under their own names, and when they are written."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard, metadata_load
from huggingface_hub.repocard_data import EvalResult, model_index_to_eval_results
from made_up_cards import body, cards, facts, links, written
from made_up_run import made_up
from tiny_run import ROOT, World, call, folders, typed

from src.experiment.graph import nodes_of
from src.kernel.artifact import Node
from src.kernel.record import CARD, RECORD
from src.kernel.store import Store
from src.modeling.checkpoints import Checkpoint
from src.reporting.card import DIVERGENCE, EVALUATION, card, write_cards
from src.reporting.published import NOT_MEASURED, published
from src.reporting.tables import literal


def path(world: World, t: int) -> Path:
    return world.artifact(f"it{t}/policy").resolve() / CARD


def index(card: Path) -> tuple[str, dict[tuple[str, str], EvalResult]]:
    """Name and entries of the model index, as the hub's own reader sees them."""
    name, results = model_index_to_eval_results((metadata_load(card) or {})["model-index"])
    return name, {(one.dataset_type, one.metric_type): one for one in results}


# What a card says --------------------------------------------------------------------------------------------------


def test_the_model_index_gives_back_the_numbers_of_the_run_and_the_head_survives_the_hub_s_own_reader(
    finished: World,
) -> None:
    for t in (1, 2):
        name, results = index(path(finished, t))
        numbers, kl = finished.metrics(f"it{t}/evaluation"), finished.metrics(f"it{t}/divergence")
        expected = {one.metric: numbers[one.key] for one in EVALUATION} | {
            one.metric: kl[one.key] for one in DIVERGENCE
        }
        assert name == f"tiny-sppo-Iter{t}"
        assert {metric: one.metric_value for (_, metric), one in results.items()} == expected
        win = results["held-out-prompts", "win_probability_over_base"].metric_args
        ends = {end: numbers[f"win_over_base_{end}"] for end in ("low", "high")}
        assert win == ends | {"prompts": numbers["prompts"], "confidence": 0.95, "ranker": "embedded"}
        assert results["held-out-prompts", "kl_per_token"].metric_args == {"prompts": kl["prompts"]}
    data = metadata_load(path(finished, 2)) or {}
    assert (data["license"], data.get("base_model")) == ("apache-2.0", None), "the base is a stand-in"
    assert data["tags"] == ["sppo", "preference-optimisation", "iteration-2", "iterpref"]
    assert str(ModelCard.load(path(finished, 2))) == path(finished, 2).read_text()


def test_the_card_links_its_lineage_and_says_how_the_policy_is_made_again(finished: World) -> None:
    assert set((finished.place / "store").rglob(CARD)) == {path(finished, t) for t in (1, 2)}, "nothing else has one"
    text, record = path(finished, 1).read_text(), json.loads((finished.artifact("it1/policy") / RECORD).read_text())
    local = [path(finished, 1).parent / address for address in links(text) if not address.startswith("https://")]
    assert {place.resolve() for place in local} == {
        finished.artifact(f"{name}/policy").resolve() for name in ("base", "it2")
    }
    (block,) = [token.content for token in body(text) if token.type == "fence" and "src.main" in token.content]
    assert block == (finished.folder / "command.txt").read_text()
    assert record["commit"].replace("+dirty", "") in text and f"torch {record['versions']['torch']}" in text
    for place in (finished.folder / "artifacts" / "it1").iterdir():
        assert f"| {literal(f'it1/{place.name}')} | `{'/'.join(place.resolve().parts[-2:])}` |" in text
    for row in ("method.eta | 1000.0", "train.lr | 1e-05", "sampling.K | 3", "ranker.tau | 0.25", "seed | 0"):
        assert f"| {row} |" in text
    table = text[text.index("## Hyper-parameters") : text.index("## How to reproduce")]
    assert not any(word in table for word in ("row\\_tokens", "tracking", "save\\_minutes")), "they change no result"
    assert "under the run's own ranker, embedded, whose verdicts the policy was trained on" in text


def test_a_stand_in_is_not_taken_for_the_model_that_it_stands_for(tmp_path: Path) -> None:
    start = facts(typed("model=gemma2_9b_it", "train.save_dtype=bfloat16"), tmp_path)
    for size, alike in ((9_300_000_000, True), (7_240_000_000, False)):
        files = {f"{name}.safetensors": {"bytes": size} for name in "ab"}
        text = card(start._replace(record=start.record | {"files": files}))
        assert (ModelCard(text).data.get("base_model") == "google/gemma-2-9b-it") == alike == ("stand-in" not in text)
    assert "about 7,240,000,000 parameters, and google/gemma-2-9b-it has 9,240,000,000: it was trained from" in text


def test_start_policies_have_their_id_and_licence_and_nothing_is_made_up(tmp_path: Path) -> None:
    """What the hub's pages of them say; what the hub would refuse is not in the head."""
    for model, base, licence, terms in (
        ("gemma2_9b_it", "google/gemma-2-9b-it", "gemma", "https://ai.google.dev/gemma/terms"),
        ("llama3_8b_instruct", "meta-llama/Meta-Llama-3-8B-Instruct", "llama3", "https://llama.meta.com/llama3/license/"),
        ("smollm2_135m_instruct", "HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0", "https://www.apache.org/licenses/LICENSE-2.0"),
    ):  # fmt: skip
        text = card(facts(typed(f"model={model}"), tmp_path))
        data = ModelCard(text).data
        assert (data.get("base_model"), data.get("license")) == (base, licence)
        assert {f"https://huggingface.co/{base}", terms} <= set(links(text))
    run: Any = typed("iter=1")
    model = dataclasses.replace(run.model, id="/home/me/my model", license="My own: *terms*")
    data = dataclasses.replace(run.data, card_datasets=["me/prompts", "../prompts.jsonl"])
    text = card(facts(run, tmp_path, model=model, data=data))
    head = ModelCard(text).data
    assert (head.get("base_model"), head.get("license"), head.get("datasets")) == (None, None, ["me/prompts"])
    assert literal("My own: *terms*") in text.partition("## Licence")[2]


def test_an_experiment_s_published_tables_have_an_empty_row_for_what_was_not_measured_here(tmp_path: Path) -> None:
    run, names = typed("iter=1"), sorted(file.stem for file in (ROOT / "conf" / "experiment").glob("*.yaml"))
    assert sorted(published()) == names
    for name in names:
        text = card(facts(run, tmp_path, experiment=name, variant="paper"))
        here = [line for line in text.splitlines() if line.startswith("| **here, iteration 1**")]
        assert [line.count(NOT_MEASURED) for line in here] == [len(one.measures) for one in published()[name].tables]
        assert ("for non-commercial use. None of it is used" in text) == ("wpo" in name or "dpo_hb" in name), name
    assert "reproduces no published system" in card(facts(run, tmp_path))


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
    assert Node("base/policy", start).key == before


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


# A start policy that is only evaluated -----------------------------------------------------------------------------

THEIRS = """---
license: gemma
language:
- en
model-index:
- name: Theirs
  results:
  - task: {type: text-generation}
    dataset: {type: ifeval, name: IFEval}
    metrics:
    - {type: leaderboard_ifeval, value: 1.5, name: IFEval}
    - {type: another, value: 2.5, name: Another}
  - task: {type: text-generation}
    dataset: {type: other, name: Other}
    metrics:
    - {type: acc, value: 7.0, name: acc}
---

# Theirs

Words of *theirs*.
"""


def evaluated(place: Path, *words: str) -> Path:
    """The card of a start policy whose scores were written by hand."""
    run = typed("iter=0", "benchmark=ifeval", f"store={place}/store", *words)
    store, nodes = Store(run.store), nodes_of(run)
    for node in nodes:
        folder = store.path(node)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RECORD).write_text('{"files": {}, "commit": "c0ffee", "versions": {"torch": "9.9"}}')
        (folder / "metrics.json").write_text('{"leaderboard_ifeval": 41.25, "items": 541}')
    folder = place / "run"
    folder.mkdir(exist_ok=True)
    assert write_cards(run, nodes, store, "python -m src.main iter=0", folder) == []
    return folder / CARD


def test_what_was_measured_of_a_start_policy_stands_in_head_and_text(tmp_path: Path) -> None:
    name, results = index(file := evaluated(tmp_path))
    assert name == "HuggingFaceTB/SmolLM2-135M-Instruct" and results.keys() == {("ifeval", "leaderboard_ifeval")}
    one = results["ifeval", "leaderboard_ifeval"]
    assert (one.metric_value, one.metric_args) == (41.25, {"items": 541, "comparable": True})
    text = file.read_text()
    assert "nothing was trained" in text and "41.25" in text and "`ifeval_scores/" in text
    assert "license" not in (metadata_load(file) or {}), "a checkpoint of a family may have another"


def test_the_card_of_a_local_start_policy_is_continued_and_the_one_in_its_folder_left_alone(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors").touch()
    (model / CARD).write_text(THEIRS)
    name, results = index(file := evaluated(tmp_path, "model=gemma2_9b_it", f"model.repo={model}"))
    assert name == "Theirs" and {metric: one.metric_value for (_, metric), one in results.items()} == {
        "leaderboard_ifeval": 41.25,
        "another": 2.5,
        "acc": 7.0,
    }
    head, text = metadata_load(file) or {}, file.read_text()
    assert (head["license"], head["language"]) == ("gemma", ["en"])
    assert text.index("Words of *theirs*.") < text.index("## Evaluation of this checkpoint") < text.rindex("41.25")
    assert (model / CARD).read_text() == THEIRS
