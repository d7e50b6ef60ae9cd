"""The same of what else a run asks and starts: judges of benchmarks, outside answers, the hub, lm-eval, DeepSpeed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from answer_server import AnswerServer, answering
from canaries import CANARIES, plant, singing
from everything import outside
from hub_server import server as hub  # noqa: F401
from judge_server import Step
from test_distributed import two
from test_mt_bench_judge import graded
from test_open_llm import column
from test_open_llm_run import TASK, stage_with
from tiny_run import call, tiny
from tiny_training import write_reference
from wandb_files import UNTIDY, wandb_home  # noqa: F401

pytestmark = pytest.mark.full
OPENAI, HUB = CANARIES["OPENAI_API_KEY"], CANARIES["HF_TOKEN"]
JUDGE = "benchmark.mt_bench.judge"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[AnswerServer]:
    """Answers and grades; the canaries are planted after it."""
    with answering() as found:
        found.say = lambda body, number: graded(body, number) if body["model"] == "gpt-4" else f"answer {number}"
        plant(monkeypatch)
        yield found


def asking(llama: Path, place: Path, url: str) -> list[str]:
    """Overrides of a run with outside answers whose policy is graded by a judge."""
    judged = [f"{JUDGE}.{word}" for word in (f"base_url={url}", "retries=0", "backoff_s=0.001")]
    own = ["benchmark.mt_bench.first=1", "benchmark.mt_bench.max_new_tokens=6", "benchmark.mt_bench.of=[it1]"]
    words = tiny(llama, place, "iter=1", "benchmark=mt_bench", *judged, *own, *outside(url))
    return [word for word in words if word != "tracking=off"]


@UNTIDY
def test_no_key_is_kept_of_judges_outside_answers_and_uploads(
    llama: Path,
    server: AnswerServer,
    hub: Any,  # noqa: F811
    wandb_home: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Nor of a server that refuses a key by showing it. A server that answers with it is heard, in either place."""
    monkeypatch.setenv("HF_TOKEN", HUB)  # the hub's fixture has one too
    place = wandb_home
    words = asking(llama, place, server.url)
    assert call(*words, "push_to_hub=me/Tiny") == 0
    assert server.keys == {f"Bearer {OPENAI}"} and f"Bearer {HUB}" in hub.tokens, "shown where they belong"
    sent = place / "sent"
    sent.mkdir()
    for number, content in enumerate(hub.files["me/Tiny-Iter1"].values()):
        (sent / str(number)).write_bytes(content)
    assert list(sent.iterdir()) and list(place.rglob("run-*.wandb"))
    server.say = lambda body, number: Step(status=401, body=f'{{"error": {{"message": "bad key {OPENAI}"}}}}')
    asked = {"it1/mt_bench/judgments": f"{JUDGE}.max_tokens=7", "it1/outside_gpt": "data.answers.gpt.max_tokens=7"}
    for name, other in asked.items():
        assert call(*words, other, f"only={name}", "debug=true") in (2, 3)
    told = capfd.readouterr()
    assert told.err.count("error: data.answers.gpt.endpoint") == 1 and told.err.count("refused the key (401)") >= 2
    assert not singing(place, told.out, told.err)

    server.say = lambda body, number: f"Rating: [[5]], {OPENAI}"
    for name, other in asked.items():
        assert call(*words, other, f"only={name}") == 0
    kinds = {line.partition("/store/")[2].partition("/")[0] for line in singing(place)}
    assert {"outside", "mt_bench_judgments"} <= kinds
    (sent / "0").write_text(HUB)
    assert f"HF_TOKEN in {sent / '0'}" in singing(place)


def test_no_key_is_in_what_lm_eval_leaves(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its settings, log, samples and cache of requests, all in the working folder that a stopped run keeps."""
    plant(monkeypatch)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tasks := tmp_path / "tasks").mkdir()
    (tasks / "test.jsonl").write_text('{"question": "Which?", "choices": ["the", "of a"], "label": 1}\n' * 4)
    (tasks / "toy.yaml").write_text(TASK.format(test=tasks / "test.jsonl"))
    toy = column(task="toy_words", shots=1)
    stage = replace(stage_with(tmp_path), python=None, include_path=tasks, columns=(toy,))
    (out := tmp_path / "out").mkdir()
    stage(llama, out=out)
    told = capfd.readouterr()
    assert "toy_words" in (next(out.rglob("log"))).read_text() and list(out.rglob("samples_*.jsonl"))
    assert not singing(tmp_path, told.out, told.err, least=10)


def test_a_key_that_lm_eval_says_is_heard_in_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    plant(monkeypatch)
    stage, out = stage_with(tmp_path, "easy"), tmp_path / "out"
    (tmp_path / "python").write_text(f"{(tmp_path / 'python').read_text()}import os\nprint(os.environ['HF_TOKEN'])\n")
    out.mkdir()
    stage(tmp_path, out=out)
    log, told = out / "work" / "easy" / "log", capfd.readouterr()
    assert singing(tmp_path, told.out, told.err, least=5) == [f"HF_TOKEN in {log}", "HF_TOKEN in output 1"]


@pytest.mark.faults
def test_no_key_is_in_what_processes_under_deepspeed_leave(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Launched as in a run: the job, the launcher's command and settings, its log, a checkpoint at every step."""
    plant(monkeypatch)
    (out := tmp_path / "out").mkdir()
    two(2, save_minutes=1e-6)(write_reference(tmp_path / "reference", llama, 8), llama, out=out)
    told = capfd.readouterr()
    assert {"launch.txt", "accelerate.json"} <= {path.name for path in (out / "work").iterdir()}
    assert list((out / "work").glob("checkpoint-*/*")) and not singing(tmp_path, told.out, told.err)
    log = out / "work" / "launch.txt"
    log.write_text(f"{log.read_text()} {HUB}")
    assert singing(tmp_path, told.out, told.err) == [f"HF_TOKEN in {log}"]
