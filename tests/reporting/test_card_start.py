"""The card of a start policy that is only evaluated: its own words stay, ours stand behind them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard, metadata_load
from huggingface_hub.repocard_data import EvalResult, model_index_to_eval_results
from tiny_run import World, tiny, typed

from src.card.write import write_cards
from src.provenance import CARD, RECORD
from src.report.stand_in import comparable_results
from src.store import Store

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
    - {type: IFEval, value: 1.5, name: IFEval}
  - task: {type: text-generation}
    dataset: {type: other, name: Other}
    metrics:
    - {type: acc, value: 7.0, name: acc}
---

# Theirs

Words of *theirs*.
"""


def evaluated(
    place: Path, *words: str, files: dict[str, dict[str, int | str]] | None = None, **numbers: float
) -> tuple[Path, list[str]]:
    """The card of a run whose scores were written by hand, and what could not be written. `files` as records have."""
    run = typed("iter=0", "benchmark=ifeval", f"store={place}/store", *words)
    store, nodes = Store(run.store), run.nodes()
    for node in nodes:
        folder = store.path(node)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RECORD).write_text(
            json.dumps({"files": files or {}, "commit": "c0ffee", "versions": {"torch": "9.9"}})
        )
        (folder / "metrics.json").write_text(json.dumps(numbers))
    folder = place / "run"
    folder.mkdir(exist_ok=True)
    return folder / CARD, write_cards(run, nodes, store, "python -m src.main iter=0", folder)


def checkpoint(place: Path, card: str | None) -> list[str]:
    """Words of a run from a local folder with this card."""
    place.mkdir()
    (place / "model.safetensors").touch()
    if card is not None:
        (place / CARD).write_text(card)
    return ["model=gemma2_9b_it", f"model.repo={place}"]


def told(card: Path) -> tuple[str, dict[tuple[str, str], EvalResult]]:
    name, found = model_index_to_eval_results((metadata_load(card) or {})["model-index"])
    return name, {(one.dataset_type, one.metric_type): one for one in found}


NUMBERS = {"leaderboard_ifeval": 41.25, "items": 541, "official_items": 541}


def test_what_was_measured_stands_in_head_and_text(tmp_path: Path) -> None:
    card, failures = evaluated(tmp_path, **NUMBERS)
    name, found = told(card)
    assert failures == [] and name == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert {key: one.metric_value for key, one in found.items()} == {("ifeval", "leaderboard_ifeval"): 41.25}
    assert (found["ifeval", "leaderboard_ifeval"].dataset_args or {}) == {"items": 541, "comparable": True}
    text = card.read_text()
    assert "nothing was trained" in text and "41.25" in text and "`ifeval_scores/" in text
    assert "license" not in (metadata_load(card) or {}), "a checkpoint of a family may have another"


def test_a_card_of_its_own_is_kept_and_the_one_in_its_folder_left_alone(tmp_path: Path) -> None:
    words = checkpoint(tmp_path / "model", THEIRS.replace("type: IFEval,", "type: leaderboard_ifeval,"))
    before = (tmp_path / "model" / CARD).read_text()
    card, failures = evaluated(tmp_path, *words, **NUMBERS)
    name, found = told(card)
    assert failures == [] and name == "Theirs"
    assert {key: one.metric_value for key, one in found.items()} == {
        ("ifeval", "leaderboard_ifeval"): 41.25,
        ("other", "acc"): 7.0,
    }
    head, text = metadata_load(card) or {}, card.read_text()
    assert (head["license"], head["language"]) == ("gemma", ["en"])
    assert text.index("Words of *theirs*.") < text.index("## Evaluation of this checkpoint") < text.rindex("41.25")
    assert (tmp_path / "model" / CARD).read_text() == before
    assert evaluated(tmp_path, *words, **NUMBERS)[0].read_text() == text, "again"


@pytest.mark.parametrize("broken", ["---\n- a\n---\nx", "---\n[\n---\nx", "---\nmodel-index: 3\n---\nx", "", None])
def test_a_card_that_cannot_be_read_is_replaced_by_one_of_ours(broken: str | None, tmp_path: Path) -> None:
    card, failures = evaluated(tmp_path, *checkpoint(tmp_path / "model", broken), **NUMBERS)
    name, found = told(card)
    assert failures == [] and name == "gemma2_9b_it" and len(found) == 1


def test_published_numbers_of_the_experiment_have_the_row_of_the_start_policy(tmp_path: Path) -> None:
    card, _ = evaluated(tmp_path, "experiment=mistral_7b_pairrm_sppo", **NUMBERS)
    assert "**here, start policy**" in card.read_text() and "here, iteration" not in card.read_text()


def test_before_anything_is_measured_there_is_no_card(tmp_path: Path) -> None:
    run = typed("iter=0", "benchmark=ifeval", f"store={tmp_path}/store")
    assert write_cards(run, run.nodes(), Store(run.store), "x", tmp_path) == []
    assert not (tmp_path / CARD).exists()


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "run" / CARD).mkdir(parents=True)
    with pytest.raises(IsADirectoryError):
        (tmp_path / "run" / CARD).read_bytes()
    assert "cannot be written" in " ".join(evaluated(tmp_path, **NUMBERS)[1])


def test_a_command_with_fewer_benchmarks_takes_no_numbers_away(tmp_path: Path) -> None:
    both = ["iter=0", f"store={tmp_path}/store", "benchmark=[ifeval,mt_bench]"]
    more, _ = evaluated(tmp_path, *both[2:], **NUMBERS, score=7.5)
    before = more.read_bytes()
    assert {key[0] for key in told(more)[1]} == {"ifeval", "mt_bench"}
    assert evaluated(tmp_path, **NUMBERS)[1] == [] and more.read_bytes() == before
    more.write_text("Somebody's.")
    evaluated(tmp_path, **NUMBERS)
    assert {key[0] for key in told(more)[1]} == {"ifeval"}
    evaluated(tmp_path, *both[2:], **NUMBERS, score=7.5)
    assert more.read_bytes() == before, "and more are added"


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize(("share", "alike"), [(1.0, True), (0.5, False)])
def test_a_checkpoint_of_another_size_is_a_stand_in_in_whatever_precision(
    dtype: str, share: float, alike: bool, tmp_path: Path
) -> None:
    """Said first, before the words of its publisher; and no number of the experiment is held against it."""
    import numpy as np
    from safetensors.numpy import save_file

    published = 10_000
    words = [*checkpoint(tmp_path / "model", THEIRS), f"model.weights={published}"]
    for experiment in ([], ["experiment=gemma2_9b_it_sppo"]):
        place = tmp_path / ("with" if experiment else "without")
        run = typed("iter=0", "benchmark=ifeval", f"store={place}/store", *experiment, *words)
        (node,) = [node for node in run.nodes() if node.name == "base/policy"]
        folder = Store(run.store).path(node)
        folder.mkdir(parents=True)
        save_file({"a": np.zeros(int(share * published), dtype)}, folder / "a.safetensors")
        size = (folder / "a.safetensors").stat().st_size
        files = {"a.safetensors": {"bytes": size, "sha256": "00"}}
        card, failures = evaluated(place, *experiment, *words, files=files, **NUMBERS)
        text = ModelCard(card.read_text()).text
        assert failures == [] and text.lstrip().startswith("**This policy has about 5,000") == (not alike)
        assert ("it is a stand-in" in text) == (not alike) and "Words of *theirs*." in text
        ours, theirs = (told(card)[1]["ifeval", key] for key in ("leaderboard_ifeval", "IFEval"))
        comparable = (ours.metric_args or {})["comparable"]
        assert (ours.metric_args or {})["items"] == 541 and not (theirs.metric_args or theirs.dataset_args)
        assert comparable == (alike or not experiment)
        nodes = run.nodes()
        assert [one.departs is None for one in comparable_results(run, nodes, Store(run.store))] == [comparable]


@pytest.mark.full
def test_the_command_leaves_it_in_the_run_folder_and_again_the_same_bytes(llama: Path, tmp_path: Path) -> None:
    asked = {"key": 1, "prompt": "Say it.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    (tmp_path / "q.jsonl").write_text(json.dumps(asked) + "\n")
    more = ["iter=0", "benchmark=ifeval", f"benchmark.ifeval.path={tmp_path}/q.jsonl"]
    world = World(tmp_path, [*tiny(llama, tmp_path, *more), "benchmark.ifeval.max_new_tokens=8"])
    assert world.run() == 0
    card = world.folder / CARD
    before = card.read_bytes()
    measured = world.metrics("base/ifeval/scores")["leaderboard_ifeval"]
    assert told(card)[1]["ifeval", "leaderboard_ifeval"].metric_value == measured
    assert world.run() == 0 and card.read_bytes() == before
    card.unlink()
    assert world.run() == 0 and card.read_bytes() == before, "a lost one is written again"
    assert not list((tmp_path / "store").rglob(CARD)) and not (llama / CARD).exists()


@pytest.mark.full
def test_the_command_with_fewer_benchmarks_keeps_card_and_report(llama: Path, tmp_path: Path) -> None:
    asked = {"key": 1, "prompt": "Say it.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    (tmp_path / "q.jsonl").write_text(json.dumps(asked) + "\n")

    def words(name: str) -> list[str]:
        return [f"benchmark.{name}.path={tmp_path}/q.jsonl", f"benchmark.{name}.max_new_tokens=8"]

    one = World(tmp_path, [*tiny(llama, tmp_path, "iter=0", "benchmark=ifeval", *words("ifeval"))])
    both = one._replace(words=[*one.words, "+benchmark@benchmark.again=ifeval", *words("again")])
    assert both.run() == 0 and both.folder == one.folder
    files = [one.folder / CARD, one.folder / "report.md"]
    before = [file.read_bytes() for file in files]
    assert all(b"benchmark.again" in text for text in before)
    assert one.run() == 0 and [file.read_bytes() for file in files] == before
