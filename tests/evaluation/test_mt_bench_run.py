"""benchmark=mt_bench through the command: both turns of a tiny policy, a judge on loopback, scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from answer_server import AnswerServer, Said, answering
from mt_bench_made_up import CATEGORIES, lines_of
from test_mt_bench_judge import graded
from tiny_run import World, call, composed, folders, tiny

from src import records
from src.artifact import Node
from src.evaluation.mt_bench.question_files import published_categories
from src.evaluation.mt_bench.rows import question_of
from src.evaluation.mt_bench.score import SCORES, score_file
from src.evaluation.plan import Benchmark
from src.generation.contract import PenalisedSampling
from src.generation.stage import Generate
from src.main import build
from src.records import read_rows

SETS = {
    "0": ["coding", "extraction", "math", "reasoning"],
    "0.1": ["humanities", "stem"],
    "0.7": ["roleplay", "writing"],
}
"""Published temperature -> its categories."""


def words_of(llama: Path, place: Path, server: AnswerServer, *more: str) -> list[str]:
    judge = [f"judge.base_url={server.url}", "judge.retries=0", "first=1", "max_new_tokens=6"]
    asked = ["benchmark=mt_bench", *(f"benchmark.mt_bench.{word}" for word in judge)]
    return tiny(llama, place, "iter=0", *asked, *more)


def planned(*words: str) -> dict[str, Node]:
    return {node.name: node for node in build(composed(*words)).nodes()}


# The plan ----------------------------------------------------------------------------------------------------------


def test_each_category_is_answered_at_its_temperature(llama: Path, tmp_path: Path) -> None:
    nodes = planned(*tiny(llama, tmp_path, "iter=1", "benchmark=mt_bench", "seed=2"))
    for temperature, categories in SETS.items():
        for policy, turn in (("base", 1), ("base", 2), ("it1", 1), ("it1", 2)):
            node = nodes[f"{policy}/mt_bench/turn_{turn}_at_{temperature}"]
            stage = node.stage
            assert isinstance(stage, Generate) and stage.seed == 2950
            assert (stage.sampling.temperature, stage.sampling.K) == (float(temperature), 1)
            assert (stage.sampling.max_new_tokens, stage.sampling.top_p) == (1024, 1)
            drawn = isinstance(stage.sampling, PenalisedSampling) and stage.sampling.top_k == 50
            assert drawn == (temperature != "0")
            prompts, by = node.inputs
            assert by.name == f"{policy}/policy" and vars(prompts.stage)["categories"] == categories
            assert node.rows == node.work == 10 * len(categories) and node.job == prompts.job or turn == 1
    for policy in ("base", "it1"):
        assert nodes[f"{policy}/mt_bench/judgments"].work == 160
        assert [node.name for node in nodes[f"{policy}/mt_bench/scores"].inputs] == [
            *(f"{policy}/mt_bench/judgments", "mt_bench/questions")
        ]
    assert nodes["mt_bench/questions"].inputs == () and nodes["mt_bench/questions"].job == "setup"
    jobs = {name.rpartition("/")[2]: node.job for name, node in nodes.items() if name.startswith("base/mt_bench/")}
    assert {name for name, job in jobs.items() if job == "judging"} == {"judgments", "scores"}
    assert set(jobs.values()) == {"evaluation", "judging"}


def test_it_is_a_benchmark_of_the_policies_that_are_named(llama: Path, tmp_path: Path) -> None:
    words = tiny(llama, tmp_path, "iter=2", "benchmark=mt_bench")
    benchmark = build(composed(*words)).benchmark["mt_bench"]
    assert isinstance(benchmark, Benchmark) and benchmark.title == "MT-Bench"
    assert [(one.key, one.title) for one in benchmark.measures][0] == ("score", "MT-Bench")
    named = planned(*words, "benchmark.mt_bench.of=[it2]")
    assert {name.split("/")[0] for name in named if "/mt_bench/" in name} == {"it2"}
    for part in ("questions", "prompts_at_0.7"):
        assert named[f"mt_bench/{part}"].key == planned(*words)[f"mt_bench/{part}"].key


@pytest.mark.full
@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("benchmark.mt_bench.of=[it7]", "benchmark.mt_bench.of: this run has no policy it7; there are base"),
        ("benchmark.mt_bench.files.package=null", "benchmark.mt_bench.files.questions: no file fastchat"),
        ("benchmark.mt_bench.temperatures.math=-1.0", "benchmark.mt_bench.temperatures.math: "),
        ("benchmark.mt_bench.judge.temperature=hot", "benchmark.mt_bench.judge.temperature: "),
        ("benchmark.mt_bench.first=0", "benchmark.mt_bench.first: "),
        ("+benchmark.mt_bench.turns=2", "benchmark.mt_bench.turns: unknown key"),
    ],
)
def test_a_wrong_setting_is_one_line_and_nothing_is_written(
    word: str, line: str, llama: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with answering() as server:
        assert call(*words_of(llama, tmp_path, server, word)) == 2
    said = capfd.readouterr().err
    assert line in said and "Traceback" not in said and not (tmp_path / "store").exists()


def test_a_category_without_a_temperature_is_told_before_anything_is_sampled(
    llama: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with answering() as server:
        words = words_of(llama, tmp_path, server, "~benchmark.mt_bench.temperatures.math")
        assert call(*words) == 2 and not server.bodies
        more = words_of(llama, tmp_path, server, "+benchmark.mt_bench.temperatures.law=0.5")
        assert call(*more) == 2 and not server.bodies
    said = capfd.readouterr().err
    assert "benchmark.mt_bench.temperatures: none for the category math of question 111; give it one" in said
    assert "is in law; take it out with ~benchmark.mt_bench.temperatures.law" in said
    assert not list((tmp_path / "store").glob("responses/*"))


# The run -----------------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_a_policy_is_asked_twice_and_graded(llama: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with answering() as server:
        server.say = graded
        words = words_of(llama, tmp_path, server)
        assert call(*words) == 0, capfd.readouterr().err
        world, place = World(tmp_path, words), "base/mt_bench"
        assert len(server.bodies) == 16
        said = {row["question_id"]: row["choices"][0]["turns"] for row in _answers(world)}
        assert list(said) == list(range(81, 161, 10))
        for temperature, categories in SETS.items():
            first, second = (_responses(world, turn, temperature) for turn in (1, 2))
            assert {published_categories()[question] for question in first} == set(categories)
            for question, row in second.items():
                roles = [message["role"] for message in row["messages"]]
                assert roles == ["user", "assistant", "user"]
                own = first[question]["responses"][0]["text"].strip()
                assert row["messages"][:1] == first[question]["messages"] and row["messages"][1]["content"] == own
                assert said[question] == [own, row["responses"][0]["text"].strip()]
        judged = world.artifact(f"{place}/judgments") / "model_judgment" / "gpt-4_single.jsonl"
        for row in lines_of(judged):
            assert all(text in row["user_prompt"] for text in said[row["question_id"]][: row["turn"]])
        metrics = world.metrics(f"{place}/scores")
        eight = {q: c for q, c in published_categories().items() if q in said}
        assert metrics == score_file(judged, "tiny-base", categories=eight).metrics
        assert (metrics["items"], metrics["questions"]) == (16, 8) and {*CATEGORIES} <= {*metrics}
        assert len(read_rows(world.artifact(f"{place}/scores"), SCORES)) == 16

        assert call(*words) == 0 and len(server.bodies) == 16
        again = ["benchmark.mt_bench.judge.concurrent=1", "benchmark.mt_bench.unrated_share_limit=0.5"]
        assert call(*words, *again) == 0 and len(server.bodies) == 16
        assert call(*words, *folders(tmp_path / "twin")) == 0 and len(server.bodies) == 32
        twin = World(tmp_path / "twin", words)
        names = ("answers/model_answer/tiny-base.jsonl", "judgments/model_judgment/gpt-4_single.jsonl")
        for name in (*names, "judgments/metrics.json", "scores/metrics.json", "scores/rows.parquet"):
            here, there = (one.artifact(place) / name for one in (world, twin))
            assert here.read_bytes() == there.read_bytes()
        # A second question of each category: the judge is asked on those alone.
        assert call(*words, "benchmark.mt_bench.first=2") == 0 and len(server.bodies) == 48
    assert world.metrics(f"{place}/scores")["items"] == 32


@pytest.mark.full
def test_a_run_that_was_stopped_goes_on_with_the_replies_it_has(
    llama: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with answering() as server:
        server.say = lambda body, number: graded(body, number) if number < 6 else Said("?")
        words = words_of(llama, tmp_path, server, "benchmark.mt_bench.judge.concurrent=1")
        assert call(*words) == 2
        said = capfd.readouterr().err
        assert "benchmark.mt_bench.judge: 1 of 16 replies of gpt-4 hold no rating" in said and "Traceback" not in said
        server.say = graded
        assert call(*words, "benchmark.mt_bench.unrated_share_limit=0.1") == 0
        texts = [body["messages"][1]["content"] for body in server.bodies]
        assert len(texts) == len(set(texts)) == 16
    assert World(tmp_path, words).metrics("base/mt_bench/scores")["unrated"] == 1


@pytest.mark.full
def test_the_report_of_a_start_policy_shows_it(llama: Path, tmp_path: Path) -> None:
    with answering() as server:
        server.say = graded
        assert call(*words_of(llama, tmp_path, server)) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    report, metrics = (folder / "report.md").read_text(), World(tmp_path, []).metrics("base/mt_bench/scores")
    assert "MT-Bench" in report and f"{metrics['score']:.2f}" in report


def _answers(world: World) -> list[dict[str, Any]]:
    return lines_of(world.artifact("base/mt_bench/answers") / "model_answer" / "tiny-base.jsonl")


def _responses(world: World, turn: int, temperature: str) -> dict[int, records.Row]:
    rows = read_rows(world.artifact(f"base/mt_bench/turn_{turn}_at_{temperature}"), records.RESPONSES)
    return {question_of(row): row for row in rows}
