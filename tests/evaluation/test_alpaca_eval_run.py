"""benchmark=alpaca_eval by the real command: a tiny policy answers, a judge on loopback compares."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from alpaca_eval_made_up import GAMED, INSTRUCTIONS, SHARED, annotation, baseline, outputs, real, written
from judge_server import serving
from test_alpaca_eval_judging import longer
from tiny_run import World, call, tiny, typed

from src import records
from src.config import UserError
from src.evaluation.alpaca_eval.annotations import instruction_id, read_annotations, read_outputs
from src.evaluation.alpaca_eval.benchmark import AlpacaEval
from src.evaluation.alpaca_eval.hub_file import HubFile
from src.evaluation.alpaca_eval.score import SCORES
from src.evaluation.plan import Benchmark
from src.generation.contract import PenalisedSampling

BENCHMARK = ["iter=0", "benchmark=alpaca_eval", "benchmark.alpaca_eval.length_control=false"]
ONLY = "only=base/alpaca_eval/scores"


def asking(place: Path, url: str = "http://x/v1", *more: str) -> list[str]:
    """Overrides of an evaluation on six made-up prompts, with answers of 8 tokens."""
    own = ["judge.endpoint.backoff_s=0.001", f"judge.endpoint.base_url={url}", "decodings.default.max_new_tokens=8"]
    words = [f"baseline={baseline(place / 'base.json')}", *own, *more]
    return [*BENCHMARK, *(f"benchmark.alpaca_eval.{word}" for word in words)]


def keys(llama: Path, place: Path, *more: str) -> dict[str, str]:
    return {node.name: node.key for node in typed(*asking(place), *tiny(llama, place), *more).nodes()}


@pytest.mark.full
def test_a_policy_is_answered_judged_and_scored(llama: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Six answers, six requests; the same command again makes nothing."""
    with serving() as server:
        server.script = lambda text, number: longer(server, number)
        words = [*asking(tmp_path, server.url), *tiny(llama, tmp_path)]
        assert call(*words, ONLY) == 0, capfd.readouterr().err
        assert "benchmark.alpaca_eval.judge: gpt-4-1106-preview at 127.0.0.1" in capfd.readouterr().out
        assert len(server.bodies) == 6
        assert call(*words, ONLY) == 0 and len(server.bodies) == 6
    names = {"answers", "outputs", "annotations", "scores"}
    by_name = {name: _artifact(tmp_path, words, f"base/alpaca_eval/{name}") for name in names}
    own = read_outputs(by_name["outputs"] / "model_outputs.json")
    assert [row.instruction for row in own] == INSTRUCTIONS and {row.generator for row in own} == {"tiny-base"}
    given = records.read_rows(by_name["answers"], records.RESPONSES)
    texts = {row["prompt_id"]: row["responses"][0]["text"].strip() for row in given}
    assert [row.output for row in own] == [texts[instruction_id(one)] for one in INSTRUCTIONS]
    judged = read_annotations(by_name["annotations"] / "annotations.json")
    for row in judged:
        expected = 1.75 if len(row.output_2) >= len(row.output_1) else 1.25
        assert row.preference == pytest.approx(expected)
    rows = records.read_rows(by_name["scores"], SCORES)
    assert [row["item_id"] for row in rows] == [instruction_id(one) for one in INSTRUCTIONS]
    numbers = json.loads((by_name["scores"] / "metrics.json").read_text())
    assert numbers["win_rate"] == pytest.approx(100 * sum(row["score"] for row in rows) / 6)
    assert numbers["items"] == 6 and numbers["avg_length"] == sum(len(row.output) for row in own) / 6


def _artifact(place: Path, words: list[str], name: str) -> Path:
    run = typed(*words)
    node = next(node for node in run.nodes() if node.name == name)
    return World(place, words).store.path(node)


@pytest.mark.full
def test_annotations_that_are_there_are_scored_without_a_policy_or_a_judge(llama: Path, tmp_path: Path) -> None:
    """No model is brought, nothing is asked; three of six questions are expected where `first` says so."""
    rows = [annotation(one, p, "a") for one, p in zip(INSTRUCTIONS, (2, 1, 1.5, 1.5, 1.5, 1.5), strict=True)]
    path = written(tmp_path / "given.json", rows)
    base = outputs(tmp_path / "same.json", ["a"] * 6)
    there = [f"benchmark.alpaca_eval.annotations.base={path}", f"benchmark.alpaca_eval.baseline={base}"]
    for first, share in ((6, 50), (2, 50), (1, 100)):
        words = [*BENCHMARK, *_added(there), f"benchmark.alpaca_eval.first={first}", *tiny(llama, tmp_path)]
        assert call(*words, ONLY) == 0
        scores = _artifact(tmp_path, words, "base/alpaca_eval/scores")
        numbers = json.loads((scores / "metrics.json").read_text())
        assert numbers["win_rate"] == pytest.approx(share) and numbers["items"] == first
        assert ("standard_error" in numbers) == (first > 1)
        assert not (tmp_path / "store/policy").exists()


def _added(words: list[str]) -> list[str]:
    return [f"+{word}" if ".annotations." in word else word for word in words]


@pytest.mark.full
def test_a_mistake_is_a_line_and_no_work(llama: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    mistakes = {
        "of=[it1]": "benchmark.alpaca_eval.of: this run has no policy it1; there are base",
        "baseline=nowhere.json": "benchmark.alpaca_eval.baseline: no file nowhere.json",
        f"repo={tmp_path}": f"benchmark.alpaca_eval.baseline: no file alpaca_eval_gpt4_baseline.json in the folder "
        f"{tmp_path}; give its path here",
        "length_control=true": "benchmark.alpaca_eval.length_control: .*has 6 instructions that are not the leader",
        "best_of=1": "benchmark.alpaca_eval.best_of: .*greater than or equal to 2",
        "decodings.default.K=2": "benchmark.alpaca_eval: decodings.default.K: must be 1; .* give best_of",
        "+annotations.it2=x.json": "benchmark.alpaca_eval.annotations: no policy it2 is evaluated; there are base",
        "+annotations.base=x.json": "benchmark.alpaca_eval.annotations.base: no file x.json",
    }
    for word, line in mistakes.items():
        plus, name = ("+", word[1:]) if word.startswith("+") else ("", word)
        change = [f"{plus}benchmark.alpaca_eval.{name}"]
        if word.startswith("repo"):
            change.append("benchmark.alpaca_eval.baseline=null")
        assert call("plan", *asking(tmp_path), *tiny(llama, tmp_path), *change) == 2
        error = capfd.readouterr().err
        assert _matches(line, error), error
        assert not (tmp_path / "store").exists() or not list((tmp_path / "store").glob("*/*"))


def _matches(line: str, text: str) -> bool:
    return re.search(line, text) is not None


def test_a_prompt_that_is_too_long_is_named(llama: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = [*asking(tmp_path), *tiny(llama, tmp_path), "benchmark.alpaca_eval.decodings.default.max_prompt_tokens=50"]
    assert call(*words, "only=base/alpaca_eval/outputs") == 2
    line = r"benchmark.alpaca_eval.decodings.default.max_prompt_tokens: \d of 6 instructions have more, .* 'Made up"
    assert _matches(line, capfd.readouterr().err)


@pytest.mark.full
def test_where_files_lie_moves_no_key_and_what_they_say_does(llama: Path, tmp_path: Path) -> None:
    usual = keys(llama, tmp_path)
    assert {"alpaca_eval/questions", "base/alpaca_eval/annotations", "base/alpaca_eval/scores"} <= usual.keys()
    baseline(tmp_path / "moved.json")
    assert keys(llama, tmp_path, f"benchmark.alpaca_eval.baseline={tmp_path / 'moved.json'}") == usual
    outputs(tmp_path / "other.json", ["x"] * 6)
    other = keys(llama, tmp_path, f"benchmark.alpaca_eval.baseline={tmp_path / 'other.json'}")
    first = keys(llama, tmp_path, "benchmark.alpaca_eval.first=3")
    for changed in (other, first):
        moved = {name for name in usual if changed[name] != usual[name]}
        assert moved == {name for name in usual if "alpaca_eval" in name}
    free = [*(f"benchmark.alpaca_eval.{word}" for word in ("judge.failed_share_limit=1.0", "of=[base]"))]
    assert keys(llama, tmp_path, *free) == usual


@pytest.mark.full
def test_the_hub_is_asked_for_by_name_and_revision(llama: Path, tmp_path: Path) -> None:
    """Nothing is fetched to plan: 805 are expected. A mirror is a folder with the files."""
    words = ["iter=0", "benchmark=alpaca_eval", *tiny(llama, tmp_path)]
    usual = {node.name: node.key for node in typed(*words).nodes()}
    other = {node.name: node.key for node in typed(*words, "benchmark.alpaca_eval.revision=x").nodes()}
    assert {name for name in usual if other[name] != usual[name]} == {n for n in usual if "alpaca_eval" in n}
    run = typed(*words)
    assert {node.name: node.rows for node in run.nodes()}["base/alpaca_eval/scores"] == 805
    baseline(tmp_path / "mirror/tatsu-lab/alpaca_eval/alpaca_eval_gpt4_baseline.json")
    mirrored = [*BENCHMARK, *tiny(llama, tmp_path), f"mirror={tmp_path}/mirror/"]
    assert {node.name: node.rows for node in typed(*mirrored).nodes()}["base/alpaca_eval/scores"] == 6


@pytest.mark.full
def test_annotations_want_no_baseline_of_a_mirror(llama: Path, tmp_path: Path) -> None:
    """They are of the 805; a policy that is judged beside them does want it."""
    (tmp_path / "mirror/tatsu-lab/alpaca_eval").mkdir(parents=True)
    path = written(tmp_path / "given.json", [annotation(INSTRUCTIONS[0], 2)])
    given = [*BENCHMARK, *tiny(llama, tmp_path), f"+benchmark.alpaca_eval.annotations.base={path}"]
    words = [*given, f"mirror={tmp_path}/mirror/"]
    rows = {node.name: (node.key, node.rows) for node in typed(*words).nodes()}
    assert rows["base/alpaca_eval/scores"][1] == 805 and "alpaca_eval/questions" not in rows
    assert typed(*words, "benchmark.alpaca_eval.first=7").nodes()[-1].rows == 7
    line = r"^benchmark.alpaca_eval.baseline: no file alpaca_eval_gpt4_baseline.json in the folder"
    with pytest.raises(UserError, match=line):
        typed(*words, "iter=1").nodes()
    with pytest.raises(UserError, match=line):
        typed(*BENCHMARK, *tiny(llama, tmp_path), f"mirror={tmp_path}/mirror/").nodes()


DECODINGS = {
    "gemma2_9b_it_sppo": ("default", (0.7, 0.9, 2048)),
    "mistral_7b_pairrm_sppo": ("default", (0.7, 0.9, 2048)),
    "mistral_7b_iterative_dpo": ("default", (0.7, 0.9, 2048)),
    "llama3_8b_instruct_sppo": ("llama3_8b_instruct", (0.9, 1.0, 4096)),
    "mistral_7b_snorkel_dpo": ("mistral_7b_snorkel_dpo", (0.5, 1.0, 2048)),
    "gemma2_9b_it_wpo_hb": ("gemma2_9b_it_wpo_hb", (0.7, 0.9, 4096)),
    "gemma2_9b_it_dpo_hb": ("gemma2_9b_it_dpo_hb", (0.7, 0.9, 4096)),
}


@pytest.mark.full
@pytest.mark.parametrize("experiment", DECODINGS)
def test_each_experiment_answers_as_published(experiment: str) -> None:
    """As alpaca-eval's models_configs say of what they reproduce."""
    name, (temperature, top_p, longest) = DECODINGS[experiment]
    run = typed(f"experiment={experiment}", "benchmark=alpaca_eval")
    benchmark: Any = run.benchmark["alpaca_eval"]
    assert isinstance(benchmark, AlpacaEval) and isinstance(benchmark, Benchmark)
    found, sampling = benchmark.decoding(run.experiment, run.model.name)
    assert (found, sampling.K) == (name, 1)
    assert (sampling.temperature, sampling.top_p, sampling.max_new_tokens) == (temperature, top_p, longest)
    if "_hb" in experiment:
        assert isinstance(sampling, PenalisedSampling)
        assert (sampling.top_k, sampling.presence_penalty, sampling.frequency_penalty) == (50, 0.1, 0.1)


def test_the_best_of_several_is_judged(llama: Path, tmp_path: Path) -> None:
    run = typed(*asking(tmp_path, "http://x/v1", "best_of=16"), *tiny(llama, tmp_path))
    nodes = {node.name: node for node in run.nodes()}
    answers: Any = nodes["base/alpaca_eval/answers"].stage
    assert answers.sampling.K == 16 and nodes["base/alpaca_eval/answers"].work == 6 * 16
    best = nodes["base/alpaca_eval/best"]
    assert best.inputs[0].name == "base/alpaca_eval/answers" and best.inputs[1].name == "base/alpaca_eval/ranking"
    assert nodes["base/alpaca_eval/outputs"].inputs == (best, nodes["alpaca_eval/questions"])


def test_measures_are_titled_as_published(llama: Path, tmp_path: Path) -> None:
    words = tiny(llama, tmp_path)
    without: Any = typed(*asking(tmp_path), *words).benchmark["alpaca_eval"]
    usual: Any = typed("iter=0", "benchmark=alpaca_eval", *words).benchmark["alpaca_eval"]
    assert [(one.key, one.title) for one in usual.measures] == [
        ("length_controlled_winrate", "LC win rate"),
        ("win_rate", "win rate"),
        ("avg_length", "characters"),
    ]
    assert without.measures == usual.measures[1:] and usual.title == "AlpacaEval 2"


@real
@pytest.mark.full
def test_a_leaderboard_number_by_the_command_and_offline(llama: Path, tmp_path: Path) -> None:
    """From official annotations and a table of gamed baselines; nothing names a baseline, so the 805 are expected."""
    annotations, table = SHARED / "annotations/FuseChat-Gemma-2-9B-Instruct.json", GAMED
    words = [f"+benchmark.alpaca_eval.annotations.base={annotations}", f"benchmark.alpaca_eval.gamed={table}"]
    words = ["iter=0", "benchmark=alpaca_eval", *words, *tiny(llama, tmp_path)]
    assert call(*words, ONLY) == 0
    scores = _artifact(tmp_path, words, "base/alpaca_eval/scores")
    numbers = json.loads((scores / "metrics.json").read_text())
    assert numbers["win_rate"] == pytest.approx(70.49713534560247, abs=1e-10)
    assert numbers["length_controlled_winrate"] == pytest.approx(70.1811, abs=1e-3)
    assert numbers["length_controlled_winrate_low"] < 70.18 < numbers["length_controlled_winrate_high"]
    assert set(json.loads((scores / "glm.json").read_text())) == {"length", "difficulty", "model", "C"}
    rows = records.read_rows(scores, SCORES)
    assert len(rows) == 805 and len({row["item_id"] for row in rows}) == 805
    assert 100 * sum(row["glm_preference"] for row in rows) / 805 == pytest.approx(numbers["length_controlled_winrate"])


HUB = {"repo": "tatsu-lab/alpaca_eval", "name": "df_gamed.csv", "revision": "abc", "path": None, "key": "k.gamed"}


def test_the_hub_is_asked_for_the_file_at_its_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: list[Any] = []

    def download(*words: Any, **named: Any) -> str:
        asked.append((words, named))
        return str(tmp_path / "x")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert HubFile(**HUB).fetch() == tmp_path / "x"
    assert asked == [(("tatsu-lab/alpaca_eval", "df_gamed.csv"), {"repo_type": "dataset", "revision": "abc"})]


def test_a_file_that_the_hub_does_not_give_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def download(*_: Any, **__: Any) -> str:
        raise LocalEntryNotFoundError("no network\nat all")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    line = r"^k.gamed: df_gamed.csv of tatsu-lab/alpaca_eval cannot be .*; give its path here \(no network at all\)$"
    with pytest.raises(UserError, match=line):
        HubFile(**HUB).fetch()
