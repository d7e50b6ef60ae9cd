"""The card of a start policy that is only evaluated: its own words stay, ours stand behind them."""

from __future__ import annotations

import json
from pathlib import Path

from huggingface_hub import metadata_load
from huggingface_hub.repocard_data import EvalResult, model_index_to_eval_results
from made_up_cards import THEIRS
from tiny_run import typed

from src.experiment.graph import nodes_of
from src.kernel.record import CARD, RECORD
from src.kernel.store import Store
from src.reporting.card.write import write_cards


def evaluated(
    place: Path, *words: str, files: dict[str, dict[str, int | str]] | None = None, **numbers: float
) -> tuple[Path, list[str]]:
    """The card of a run whose scores were written by hand, and what could not be written. `files` as records have."""
    run = typed("iter=0", "benchmark=ifeval", f"store={place}/store", *words)
    store, nodes = Store(run.store), nodes_of(run)
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
