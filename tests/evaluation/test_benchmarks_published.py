"""Numbers of benchmarks beside published ones: whatever makes them others is told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from alpaca_eval_made_up import INSTRUCTIONS, annotation, written
from tiny_run import typed

from src.evaluation.results import results


def test_numbers_that_cannot_be_held_against_published_ones_say_why(tmp_path: Path) -> None:
    def told(*words: str, **numbers: float) -> str | None:
        run = typed("iter=0", f"store={tmp_path}", *words)
        (name,) = run.benchmark
        (node,) = [node for node in run.nodes() if node.name.endswith("/scores")]
        place = tmp_path / node.stage.kind / node.key
        place.mkdir(parents=True, exist_ok=True)
        (place / "metrics.json").write_text(json.dumps(numbers))
        (place / "record.json").write_text("{}")
        from src.store import Store

        (one,) = results(run, run.nodes(), Store(tmp_path))
        assert one.name == name
        return one.departs

    assert told("benchmark=mt_bench", items=160) is None
    assert told("benchmark=ifeval", items=541, official_items=541) is None
    assert told("benchmark=ifeval", items=6, official_items=0) == "other items, baseline or annotator"
    assert told("benchmark=mt_bench", "benchmark.mt_bench.judge.model=mine", items=160) == "judged by mine"
    assert told("benchmark=mt_bench", "benchmark.mt_bench.first=2", items=32) == "the first 2 items only"
    alpaca = "benchmark=alpaca_eval"
    assert told(alpaca, items=805, official_items=805) is None
    assert told(alpaca, items=400, official_items=400) == "400 of 805 items"
    assert told(alpaca, items=805, official_items=0) == "other items, baseline or annotator"
    assert "judged by mine" in (told(alpaca, "benchmark.alpaca_eval.judge.endpoint.model=mine", items=1) or "")


PUBLISHED = ["alpaca_eval", "mt_bench", "ifeval", "open_llm_v1", "open_llm_v2"]
DEPARTS = {
    "alpaca_eval.decodings.default.temperature=0.0": "another decoding",
    "alpaca_eval.decodings.default.max_new_tokens=8": "another decoding",
    "alpaca_eval.decodings.gemma2_9b_it_wpo_hb.top_k=null": "another decoding",
    "alpaca_eval.judge.endpoint.temperature=0.0": "its judge asked otherwise",
    "alpaca_eval.judge.endpoint.max_tokens=2": "its judge asked otherwise",
    "alpaca_eval.judge.top_logprobs=3": "its judge asked otherwise",
    "alpaca_eval.judge.endpoint.model=mine": "judged by mine",
    "mt_bench.temperatures.math=1.0": "another decoding",
    "mt_bench.top_k=null": "another decoding",
    "mt_bench.max_new_tokens=512": "another decoding",
    "mt_bench.files.references=gpt-4-0125-preview.jsonl": "files of one's own",
    "mt_bench.files.package=null": "files of one's own",
    "mt_bench.judge.temperature=1.0": "its judge asked otherwise",
    "mt_bench.judge.seed=3": "its judge asked otherwise",
    "+mt_bench.judge.extra_body.top_p=.5": "its judge asked otherwise",
    "ifeval.temperature=0.7": "another decoding",
    "ifeval.max_new_tokens=640": "another decoding",
    "ifeval.first=6": "the first 6 items only",
    "open_llm_v1.chat_template=true": "with a chat template",
    "open_llm_v2.chat_template=false": "without a chat template",
    "open_llm_v1.columns.0.shots=0": "other columns",
    "open_llm_v1.columns.2.metrics=['acc_norm,none']": "other columns",
    "open_llm_v2.columns.3.choices=null": "other columns",
    "open_llm_v1.include_path=tasks": "tasks of one's own",
    "open_llm_v1.title=Mine": "nothing is published of it",
    "win_matrix.of=[base]": "nothing is published of it",
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_is_shipped_can_be_held_against_published_numbers(name: str) -> None:
    """The benchmarks know what is published; a changed file of conf/benchmark has to be changed there too."""
    assert typed("iter=0", f"benchmark={name}").benchmark[name].departs("base") is None


@pytest.mark.parametrize("word", DEPARTS)
def test_whatever_moves_a_number_is_told(word: str) -> None:
    own = word.lstrip("+")
    name, set_ = own.partition(".")[0], word.replace(own, f"benchmark.{own}")
    assert typed("iter=0", f"benchmark={name}", set_).benchmark[name].departs("base") == DEPARTS[word]


@pytest.mark.parametrize(
    "word",
    [
        "alpaca_eval.decodings.default.max_prompt_tokens=4096",
        "alpaca_eval.judge.endpoint.base_url=http://localhost:8000/v1",
        "alpaca_eval.of=[base]",
        "mt_bench.judge.concurrent=1",
        "mt_bench.max_prompt_tokens=9000",
        "ifeval.path=models/google/IFEval",
        "open_llm_v1.batch_size=4",
        "open_llm_v1.columns.0.title=AI2 ARC",
    ],
)
def test_what_moves_none_is_not(word: str) -> None:
    name = word.partition(".")[0]
    assert typed("iter=0", f"benchmark={name}", f"benchmark.{word}").benchmark[name].departs("base") is None


def test_annotations_that_are_there_depend_on_no_decoding_or_judge_of_ours(tmp_path: Path) -> None:
    """Nothing shows that the model that they judge is this policy."""
    path = written(tmp_path / "a.json", [annotation(INSTRUCTIONS[0], 1.5) | {"generator_2": "Their-9B"}])
    words = ["benchmark.alpaca_eval.judge.endpoint.model=mine", f"+benchmark.alpaca_eval.annotations.base={path}"]
    benchmark = typed("iter=1", "benchmark=alpaca_eval", *words).benchmark["alpaca_eval"]
    brought = "annotations of Their-9B, which were brought"
    assert [benchmark.departs(policy) for policy in ("base", "it1")] == [brought, "judged by mine"]


def test_columns_are_the_same_in_any_order() -> None:
    benchmark: Any = typed("iter=0", "benchmark=open_llm_v1").benchmark["open_llm_v1"]
    assert replace(benchmark, columns=benchmark.columns[::-1]).departs("base") is None
    assert replace(benchmark, columns=benchmark.columns[1:]).departs("base") == "other columns"
