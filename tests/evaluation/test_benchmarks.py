"""Benchmarks as part of a run: what they add to it and leave alone, and how far they stand beside published numbers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import metadata_load
from tiny_run import World, call, folders, typed

from src.evaluation.plan import RESERVED, of_benchmark
from src.evaluation.results import results
from src.experiment.run_folder import run_name
from src.generation.stage import Generate
from src.kernel.config import UserError
from src.kernel.metrics import write_metrics
from src.kernel.provenance import CARD
from src.kernel.store import Store
from src.reporting.metrics_file import METRICS
from src.reporting.wandb_runs import experiment_of, family_of

MATRIX = "benchmark=win_matrix"


def test_a_benchmark_added_to_a_finished_run_is_shown_everywhere(world: World) -> None:
    """The same run without the word keeps what is shown, and `clean` what the benchmark made."""
    policies = [world.artifact(f"it{t}/policy").resolve() for t in (1, 2)]
    assert world.run("iter=2", MATRIX) == 0
    report = (world.folder / "report.md").read_text()
    assert "## Benchmarks" in report and "plots/win_matrix_it2_matrix.png" in report
    assert (world.folder / "plots" / "win_matrix_it2_matrix.png").read_bytes()
    rows = [json.loads(line) for line in (world.folder / METRICS).read_text().splitlines()]
    told = [row for row in rows if "win_matrix/it2_over_base" in row]
    assert [row["iteration"] for row in told] == [2] and told[0]["win_matrix/items"] == 6
    (model,) = metadata_load(world.artifact("it2/policy") / CARD)["model-index"]  # pyright: ignore
    (found,) = [result for result in model["results"] if result["dataset"]["type"] == "win_matrix"]
    assert {"low", "high"} <= found["metrics"][0]["args"].keys()
    assert [world.artifact(f"it{t}/policy").resolve() for t in (1, 2)] == policies
    before = {path: path.read_bytes() for path in (world.folder / METRICS, world.folder / "report.md")}
    scores = world.artifact("it2/win_matrix/scores").resolve()
    win, held_out = world.metrics("it2/win_matrix/scores")["win"], world.metrics("it2/evaluation")["win_over_base"]
    assert win == pytest.approx(held_out, abs=0.01)  # the ranker sees other texts beside each
    assert world.run("iter=2") == 0
    assert all(path.read_bytes() == content for path, content in before.items())
    assert call("clean", "--yes", *world.words, *folders(world.place)) == 0 and scores.is_dir()


def test_benchmarks_are_families_of_their_own_and_leave_the_experiments_identity_alone() -> None:
    """What a run without benchmarks makes is core, and its names are reserved."""
    plain, more = typed("iter=2"), typed("iter=2", "benchmark=[mt_bench,win_matrix]")
    names, all_names = ([node.name for node in run.nodes()] for run in (plain, more))
    assert not any(map(of_benchmark, names))
    assert all(RESERVED.fullmatch(part) for name in names for part in name.split("/") if not part.startswith("model"))
    assert {name for name in all_names if of_benchmark(name)} == set(all_names) - set(names)
    assert all_names.index("mt_bench/questions") < all_names.index("it1/responses"), "made before anything is sampled"
    assert family_of("it2/mt_bench/turn_1_at_0.7") == family_of("base/mt_bench/scores") == "mt_bench"
    assert family_of("mt_bench/questions") is None and family_of("it2/evaluation") == "evaluate"
    with pytest.raises(UserError, match="^benchmark.it2: this name is taken"):
        typed("+benchmark@benchmark.it2=mt_bench")
    start = typed("iter=0", "benchmark=mt_bench")
    assert experiment_of(plain.nodes()) == experiment_of(more.nodes()) != experiment_of(start.nodes())
    assert run_name(start) == f"start-{run_name(plain)}" and run_name(more) == run_name(plain)


LABELLED = {
    "mt_bench": ("files.package=null", "files.questions: no file .*; mend it, or benchmark.mine.files.package"),
    "alpaca_eval": ("gamed=none.csv", "gamed: no file none.csv"),
    "win_matrix": ("of=[it7]", "of: this run has no policy it7"),
    "open_llm_v1": ("include_path=none", "include_path: no folder none"),
}


def test_messages_name_the_keys_of_a_benchmark_under_another_label() -> None:
    """What its stages say when they run, too."""
    for name, (word, line) in LABELLED.items():
        words = ["iter=1", f"+benchmark@benchmark.mine={name}"]
        told: list[Any] = [node.stage for node in typed(*words).nodes() if of_benchmark(node.name)]
        keys = {stage.key for stage in told if hasattr(stage, "key")} - {"ranker"}  # the run's own
        assert all(key.startswith("benchmark.mine") for key in keys)
        with pytest.raises(UserError, match=f"^benchmark.mine.{line}"):
            typed(*words, f"benchmark.mine.{word}").nodes()


def test_what_an_engine_says_of_the_sampling_names_the_benchmark_s_keys() -> None:
    """Engines know one sampling only, the run's."""
    nodes = {node.name: node.stage for node in typed("iter=1", "benchmark=[alpaca_eval,ifeval,mt_bench]").nodes()}
    told: dict[str, str] = {}
    for name, stage in nodes.items():
        if isinstance(stage, Generate):
            with pytest.raises(UserError) as error, stage.naming():
                raise UserError("lower sampling.max_prompt_tokens or max_new_tokens; no sampling.")
            told[name] = str(error.value)
    said = {name: line.removeprefix("lower ").partition(".max_prompt_tokens or")[0] for name, line in told.items()}
    assert all(line.endswith("; no sampling.") for line in told.values())
    assert said["it1/responses"] == said["it1/answers"] == "sampling"
    assert said["base/alpaca_eval/answers"] == "benchmark.alpaca_eval.decodings.default"
    assert (said["it1/ifeval/answers"], said["it1/mt_bench/turn_2_at_0"]) == ("benchmark.ifeval", "benchmark.mt_bench")


def test_a_number_that_is_none_is_not_written(tmp_path: Path) -> None:
    for value in (float("nan"), -float("inf")):
        with pytest.raises(ValueError, match="not JSON compliant"):
            write_metrics(tmp_path, {"score": 1.0, "score_low": value})
    assert not list(tmp_path.iterdir())
    write_metrics(tmp_path, {"score": 0.1, "longer_wins": None, "items": 3})
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"score": 0.1, "longer_wins": None, "items": 3}


# Beside published numbers ------------------------------------------------------------------------------------------


def test_numbers_that_cannot_be_held_against_published_ones_say_why(tmp_path: Path) -> None:
    def told(name: str, *words: str, **numbers: float) -> str | None:
        run = typed("iter=0", f"store={tmp_path}", f"benchmark={name}", *(f"benchmark.{name}.{word}" for word in words))
        (node,) = [node for node in run.nodes() if node.name.endswith("/scores")]
        place = tmp_path / node.stage.kind / node.key
        place.mkdir(parents=True, exist_ok=True)
        (place / "metrics.json").write_text(json.dumps(numbers))
        (place / "record.json").write_text("{}")
        (one,) = results(run, run.nodes(), Store(tmp_path))
        assert one.name == name
        return one.departs

    assert told("mt_bench", items=160) is None
    assert told("ifeval", items=541, official_items=541) is None
    assert told("mt_bench", "judge.model=mine", items=160) == "judged by mine"
    assert told("mt_bench", "first=2", items=32) == "the first 2 items only"
    assert told("alpaca_eval", items=805, official_items=805) is None
    assert told("alpaca_eval", items=400, official_items=400) == "400 of 805 items"
    assert told("alpaca_eval", items=805, official_items=0) == "other items, baseline or annotator"


DEPARTS = {
    "alpaca_eval.decodings.default.temperature=0.0": "another decoding",
    "mt_bench.temperatures.math=1.0": "another decoding",
    "mt_bench.files.references=gpt-4-0125-preview.jsonl": "files of one's own",
    "mt_bench.judge.seed=3": "its judge asked otherwise",
    "ifeval.temperature=0.7": "another decoding",
    "ifeval.first=6": "the first 6 items only",
    "ifeval.of=[base]": None,
    "open_llm_v1.chat_template=true": "with a chat template",
    "open_llm_v2.columns.3.choices=null": "other columns",
    "open_llm_v1.include_path=tasks": "tasks of one's own",
    "win_matrix.of=[base]": "nothing is published of it",
}


def test_whatever_moves_a_number_is_told() -> None:
    """The benchmarks know what is published; a changed file of conf/benchmark has to be changed there too."""

    def departs(name: str, *words: str) -> str | None:
        return typed("iter=0", f"benchmark={name}", *words).benchmark[name].departs("base")

    found = {word: departs(word.partition(".")[0], f"benchmark.{word}") for word in DEPARTS}
    assert found == DEPARTS
    shipped = ("alpaca_eval", "mt_bench", "ifeval", "open_llm_v1", "open_llm_v2")
    assert [name for name in shipped if departs(name) is not None] == []
    board: Any = typed("iter=0", "benchmark=open_llm_v1").benchmark["open_llm_v1"]
    assert replace(board, columns=board.columns[::-1]).departs("base") is None, "in any order"
