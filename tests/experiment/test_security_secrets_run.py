"""The same of what else a run asks and starts: judges of benchmarks, outside answers, the hub, lm-eval, DeepSpeed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from answer_server import Said, answering
from canaries import CANARIES, plant, singing
from everything import outside
from hub_server import server as hub  # noqa: F401
from tiny_run import call, tiny, typed
from tiny_training import train_stage, write_reference

from src.experiment.graph import nodes_of
from src.training.recipe import DeepSpeed

OPENAI, HUB = CANARIES["OPENAI_API_KEY"], CANARIES["HF_TOKEN"]
JUDGE = "benchmark.mt_bench.judge"


@pytest.mark.full
def test_no_key_is_kept_of_judges_outside_answers_and_uploads(
    llama: Path,
    hub: Any,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Nor of a server that refuses a key by showing it. A server that answers with it is heard, in either place."""
    place = tmp_path
    judged = [f"{JUDGE}.retries=0"]
    own = ["benchmark.mt_bench.first=1", "benchmark.mt_bench.max_new_tokens=6", "benchmark.mt_bench.of=[it1]"]
    words = [*tiny(llama, place, "iter=1", "benchmark=mt_bench"), *judged, *own]
    with answering() as server:
        plant(monkeypatch)  # behind the servers, which have keys too
        words += [f"{JUDGE}.base_url={server.url}", *outside(server.url)]
        server.say = lambda body, number: "Rating: [[5]]" if body["model"] == "gpt-4" else f"answer {number}"
        assert call(*words, "push_to_hub=me/Tiny") == 0
        assert server.keys == {f"Bearer {OPENAI}"} and f"Bearer {HUB}" in hub.tokens, "shown where they belong"
        (sent := place / "sent").mkdir()
        for number, content in enumerate(hub.files["me/Tiny-Iter1"].values()):
            (sent / str(number)).write_bytes(content)
        assert list(sent.iterdir())
        server.say = lambda body, number: Said(status=401, body=f'{{"error": {{"message": "bad key {OPENAI}"}}}}')
        asked = {"it1/mt_bench/judgments": f"{JUDGE}.max_tokens=7", "it1/outside_gpt": "data.answers.gpt.max_tokens=7"}
        for name, other in asked.items():
            assert call(*words, other, f"only={name}") in (2, 3)
        told = capfd.readouterr()
        assert told.err.count("error: data.answers.gpt.endpoint") == 1
        assert told.err.count("refused the key (401)") >= 2
        assert not singing(place, told.out, told.err)
        server.say = lambda body, number: f"Rating: [[5]], {OPENAI}"
        for name, other in asked.items():
            assert call(*words, other, f"only={name}") == 0
    kinds = {line.partition("/store/")[2].partition("/")[0] for line in singing(place)}
    assert {"outside", "mt_bench_judgments"} <= kinds


TASK = """
task: toy_words
dataset_path: json
dataset_kwargs: {data_files: {test: TEST, train: TEST}}
test_split: test
fewshot_split: train
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{label}}"
metric_list: [{metric: acc}]
"""
COLUMN = (
    "{_target_:src.evaluation.open_llm.columns.Column,key:toy,title:Toy,task:toy_words,shots:1,metrics:['acc,none']}"
)


@pytest.mark.full
def test_no_key_is_in_what_lm_eval_leaves(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its settings, log, samples and cache of requests, all in the working folder that a stopped run keeps."""
    plant(monkeypatch)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tasks := tmp_path / "tasks").mkdir()
    (tasks / "test.jsonl").write_text('{"question": "Which?", "choices": ["the", "of a"], "label": 1}\n' * 4)
    (tasks / "toy.yaml").write_text(TASK.replace("TEST", str(tasks / "test.jsonl")))
    own = (f"include_path={tasks}", f"columns=[{COLUMN}]", "batch_size=1", "dtype=float32")
    words = ["iter=0", "benchmark=open_llm_v1", *(f"benchmark.open_llm_v1.{word}" for word in own)]
    (stage,) = [node.stage for node in nodes_of(typed(*tiny(llama, tmp_path, *words))) if "open_llm" in node.name]
    (out := tmp_path / "out").mkdir()
    stage(llama, out=out)
    told = capfd.readouterr()
    assert "toy_words" in (next(out.rglob("log"))).read_text() and list(out.rglob("samples_*.jsonl"))
    assert not singing(tmp_path, told.out, told.err, least=10)


@pytest.mark.faults
def test_no_key_is_in_what_processes_under_deepspeed_leave(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Launched as in a run: the job, the launcher's command and settings, its log, a checkpoint at every step."""
    plant(monkeypatch)
    (out := tmp_path / "out").mkdir()
    zero = DeepSpeed(stage=2, offload=False)
    stage = train_stage(count=2, deepspeed=zero, save_minutes=1e-6)
    stage(write_reference(tmp_path / "reference", llama, 8), llama, out=out)
    told = capfd.readouterr()
    assert {"launch.txt", "accelerate.json"} <= {path.name for path in (out / "work").iterdir()}
    assert list((out / "work").glob("checkpoint-*/*")) and not singing(tmp_path, told.out, told.err)
    log = out / "work" / "launch.txt"
    log.write_text(f"{log.read_text()} {HUB}")
    assert singing(tmp_path, told.out, told.err) == [f"HF_TOKEN in {log}"]
