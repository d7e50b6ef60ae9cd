"""Benchmarks as part of a run: what they add to it and leave alone, and how far they stand beside published numbers."""

from __future__ import annotations

import json
from typing import Any

import pytest
from huggingface_hub import metadata_load
from tiny_run import World, call, folders, typed

from src.evaluation.benchmark import RESERVED
from src.evaluation.results import _shipped, departs
from src.experiment.graph import nodes_of
from src.kernel.artifact import Asking, place_of
from src.kernel.record import CARD
from src.modeling.endpoint import OPENAI
from src.reporting.metrics_file import METRICS

MATRIX = "benchmark=win_matrix"


def test_a_benchmark_added_to_a_finished_run_is_shown_everywhere(
    world: World, capfd: pytest.CaptureFixture[str]
) -> None:
    """The same run without the word keeps what is shown, and `clean` what the benchmark made."""
    policies = [world.artifact(f"it{t}/policy").resolve() for t in (1, 2)]
    assert world.run("iter=2", MATRIX, "only=it2/win_matrix/scores") == 0
    assert (
        "only: " in (printed := capfd.readouterr().out)
        and "win rate over the first policy" in printed.partition("only: ")[2]
    )
    assert world.run("iter=2", MATRIX) == 0
    assert call("compare", f"runs={world.folder}", f"out={world.place / 'page'}") == 0
    assert f" {world.folder.name} | win_matrix, by embedded | " in " ".join(
        capfd.readouterr().out.replace("│", "|").split()
    )
    plot = "plots/win_matrix_it2_matrix.png"
    report = (world.folder / "report.md").read_text()
    assert plot in report and (world.folder / plot).is_file() and "Win-rate matrix, judged by embedded" in report
    rows = [json.loads(line) for line in (world.folder / METRICS).read_text().splitlines()]
    logged = [row for row in rows if "win_matrix/it2_over_base" in row]
    assert [row["iteration"] for row in logged] == [2] and logged[0]["win_matrix/items"] == 6
    (model,) = metadata_load(world.artifact("it2/policy") / CARD)["model-index"]  # pyright: ignore
    (card,) = [result for result in model["results"] if result["dataset"]["type"] == "win_matrix"]
    assert {"low", "high"} <= card["metrics"][0]["args"].keys()
    assert [world.artifact(f"it{t}/policy").resolve() for t in (1, 2)] == policies
    before = {path: path.read_bytes() for path in (world.folder / METRICS, world.folder / "report.md")}
    scores = world.artifact("it2/win_matrix/scores").resolve()
    win, held_out = world.metrics("it2/win_matrix/scores")["win"], world.metrics("it2/evaluation")["win_over_base"]
    assert win == pytest.approx(held_out, abs=0.01)  # the ranker sees other texts beside each
    assert world.run("iter=2") == 0
    assert all(path.read_bytes() == content for path, content in before.items())
    assert call("clean", "--yes", *world.words, *folders(world.place)) == 0 and scores.is_dir()


def test_a_benchmark_has_names_of_its_own_and_leaves_the_run_its_folder() -> None:
    """All artifacts of a run without benchmarks have reserved names."""
    plain, more = typed("iter=2"), typed("iter=2", "benchmark=[mt_bench,win_matrix]")
    names, all_names = ([node.name for node in nodes_of(run)] for run in (plain, more))
    assert not any(place_of(name).benchmark for name in names)
    assert all(RESERVED.fullmatch(part) for name in names for part in name.split("/") if not part.startswith("model"))
    assert {name for name in all_names if place_of(name).benchmark} == set(all_names) - set(names)
    assert all_names.index("mt_bench/questions") < all_names.index("it1/responses"), "made before anything is sampled"
    assert typed("iter=0", "benchmark=mt_bench").folder.name == f"start-{plain.folder.name}"
    assert more.folder.name == plain.folder.name


@pytest.mark.parametrize("name", ["mt_bench", "alpaca_eval", "win_matrix", "open_llm_v1"])
def test_messages_name_the_keys_of_a_benchmark_under_another_label(name: str) -> None:
    """Those of its stages when they run; others are rows of tests/bad_inputs.md."""
    nodes = nodes_of(typed("iter=1", f"+benchmark@benchmark.mine={name}"))
    stages: list[Any] = [node.stage for node in nodes if node.place.benchmark]
    keys = {stage.key for stage in stages if hasattr(stage, "key")} - {"ranker"}  # the run's own
    assert all(key.startswith("benchmark.mine") for key in keys)


JUDGES = {
    "alpaca_eval": ("judge.failed_share_limit=1.0", "judge.endpoint", "temperature=null", "max_tokens=5"),
    "mt_bench": ("unrated_share_limit=1.0", "judge", "temperature=1.0", "max_tokens=5"),
}
"""A limit, the place of the endpoint, and keys of it that change what is sent, beside model and seed."""


@pytest.mark.parametrize("name", JUDGES)
def test_replies_depend_on_the_judge_and_not_on_limits_or_where_a_server_of_yours_is(name: str) -> None:
    def replies(*words: str) -> Any:
        """Return what all stages share that may use each other's replies."""
        nodes = nodes_of(typed("iter=0", f"benchmark={name}", *(f"benchmark.{name}.{word}" for word in words)))
        (stage,) = [node.stage for node in nodes if isinstance(node.stage, Asking) and node.stage.asks()]
        return stage.shared()  # pyright: ignore

    limit, place, *sent = JUDGES[name]
    assert replies(limit, f"{place}.retries=0", f"{place}.concurrent=1") == replies()
    assert all(replies(f"{place}.{word}") != replies() for word in (*sent, "model=m", "seed=1"))
    address = f"{place}.base_url=http://"
    assert replies(f"{address}a/v1") == replies(f"{address}b/v1") != replies() == replies(f"{address}{OPENAI}/v1")


# Beside published numbers ------------------------------------------------------------------------------------------

DEPARTS = {
    "alpaca_eval.decodings.default.temperature=0.0": "decodings.default.temperature",
    "alpaca_eval.judge.top_logprobs=2": "judge.top_logprobs",
    "alpaca_eval.repo=mine": "repo",
    "alpaca_eval.judge.endpoint.base_url=http://b/v1": "judge.endpoint",
    "mt_bench.judge.base_url=http://b/v1": "judge",
    "alpaca_eval.of=[base]": None,
    "mt_bench.files.references=fastchat/fastchat/llm_judge/data/judge_prompts.jsonl": "files",
    "ifeval.path=mine.jsonl": "path",
    "open_llm_v1.chat_template=true": "chat_template",
    "open_llm_v1.columns.3.shots=4": "columns.3.shots",
    "open_llm_v1.include_path=tasks": "include_path",
}


@pytest.mark.parametrize(("word", "key"), DEPARTS.items())
def test_whatever_moves_a_number_is_named(word: str, key: str | None) -> None:
    name = word.partition(".")[0]
    reason = departs(typed("iter=0", f"benchmark={name}", f"benchmark.{word}").benchmark[name], {})
    assert reason == (key and f"{key} not as in conf/benchmark/{name}.yaml")


def test_the_address_of_the_environment_counts_where_a_judge_was_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://b/v1")
    monkeypatch.setattr("src.evaluation.results._shipped", _shipped.__wrapped__)
    benchmark = typed("iter=0", "benchmark=mt_bench").benchmark["mt_bench"]
    assert departs(benchmark, {}) == "judge not as in conf/benchmark/mt_bench.yaml"
    assert departs(benchmark, {}, asked=False) is None


@pytest.mark.parametrize("name", ["alpaca_eval", "mt_bench", "ifeval", "open_llm_v1"])
def test_the_files_of_conf_measure_as_the_published_numbers_were(name: str) -> None:
    """Where judges were not too often silent. A mirror's data may be any; of other titles nothing is published."""
    benchmark, mirrored = (typed("iter=0", f"benchmark={name}", *more).benchmark[name] for more in ((), ("mirror=m/",)))
    assert departs(benchmark, {"items": 805, "failed": 8}) is departs(benchmark, {"items": 152, "unrated": 8}) is None
    assert departs(benchmark, {"items": 805, "failed": 9}) == "9 judgments are missing"
    assert departs(benchmark, {"items": 151, "unrated": 9}) == "9 judgments are missing"
    key = {"alpaca_eval": "repo", "ifeval": "path"}.get(name)
    assert departs(mirrored, {}) == (key and f"{key} not as in conf/benchmark/{name}.yaml")
    assert departs(typed("iter=1", "benchmark=win_matrix").benchmark["win_matrix"], {}) == "nothing is published of it"
