"""The card of a start policy that is only evaluated: its own words stay, ours stand behind them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from huggingface_hub import ModelCard, metadata_load
from huggingface_hub.repocard_data import EvalResult, model_index_to_eval_results
from made_up_cards import THEIRS
from safetensors.numpy import save
from tiny_run import typed

from src.card.write import write_cards
from src.provenance import CARD, RECORD
from src.report.stand_in import comparable_results
from src.store import Store


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


def test_a_card_that_cannot_be_read_is_replaced_by_one_of_ours(tmp_path: Path) -> None:
    """Where the experiment has published numbers, they have a row of the start policy."""
    for number, broken in enumerate(("---\n- a\n---\nx", "---\n[\n---\nx", "---\nmodel-index: 3\n---\nx", "", None)):
        place = tmp_path / str(number)
        place.mkdir()
        words = [] if number else ["experiment=gemma2_9b_it_sppo"]
        card, failures = evaluated(place, *words, *checkpoint(place / "model", broken), **NUMBERS)
        name, found = told(card)
        assert failures == [] and name == "gemma2_9b_it" and len(found) == 1, broken
        assert ("**here, start policy**" in card.read_text()) == (not number)


def test_before_anything_is_measured_there_is_no_card_and_a_folder_that_cannot_be_written_is_told(
    tmp_path: Path,
) -> None:
    run = typed("iter=0", "benchmark=ifeval", f"store={tmp_path}/store")
    assert write_cards(run, run.nodes(), Store(run.store), "x", tmp_path) == []
    assert not (tmp_path / CARD).exists()
    (tmp_path / "run" / CARD).mkdir(parents=True)
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


def test_a_checkpoint_of_another_size_is_a_stand_in(tmp_path: Path) -> None:
    """Said first, before the words of its publisher; and no number of the experiment is held against it."""
    published, experiment = 10_000, ["experiment=gemma2_9b_it_sppo"]
    for share, words in ((1.0, experiment), (0.5, experiment), (0.5, [])):
        place = tmp_path / f"{share}{bool(words)}"
        place.mkdir()
        words = [*words, *checkpoint(place / "model", THEIRS), f"model.weights={published}"]
        files: dict[str, dict[str, int | str]] = {"a.safetensors": {"bytes": int(4 * share * published), "sha256": ""}}
        weights = save({"a": np.zeros(int(share * published), np.float32)})
        run = typed("iter=0", "benchmark=ifeval", f"store={place}/store", *words)
        (node,) = [node for node in run.nodes() if node.name == "base/policy"]
        folder = Store(run.store).path(node)
        folder.mkdir(parents=True)
        (folder / "a.safetensors").write_bytes(weights)
        card, failures = evaluated(place, *words, files=files, **NUMBERS)
        text = ModelCard(card.read_text()).text
        assert failures == [] and text.lstrip().startswith("**This policy has about 5,000") == (share != 1)
        assert ("it is a stand-in" in text) == (share != 1) and "Words of *theirs*." in text
        ours = told(card)[1]["ifeval", "leaderboard_ifeval"]
        comparable = share == 1 or not run.experiment
        assert (ours.metric_args or {})["comparable"] == comparable
        found = comparable_results(run, run.nodes(), Store(run.store))
        assert [one.departs is None for one in found] == [comparable]
