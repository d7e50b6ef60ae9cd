"""The vLLM engine, with the real vLLM on CPUs: answers, seeds, shared prompts, refusals, and processes that end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tiny_run import call, typed
from vllm_results import (
    ARCHITECTURES,
    NEW_TOKENS,
    ROOT,
    STOPS,
    K,
    Results,
    build,
    engine,
    needs_vllm,
    requests,
    rows,
    sampling,
    vllm,  # noqa: F401
)

from src import records
from src.artifact import WORK
from src.cells import CELLS, Cells
from src.config import UserError, fingerprint
from src.generation.contract import Engine, Measuring
from src.generation.sample import compact, lacking, sample_share
from src.generation.stage import Dealing, Generate
from src.generation.vllm_loading import check_soft_caps, clear_errors
from src.handover import hand_over
from src.model import load_tokenizer
from src.workers import Crew

each = pytest.mark.parametrize("architecture", ARCHITECTURES)


@needs_vllm
@pytest.mark.full
@each
def test_every_answer_ends_where_it_says(vllm: Results, architecture: str) -> None:  # noqa: F811
    whole = vllm.said[architecture]["sampled"]["whole"]
    assert set(whole) == {f"p{n}/{k}" for n in range(len(rows())) for k in range(K)}
    assert {answer["finish_reason"] for answer in whole.values()} == {"stop", "length"}
    tokenizer = load_tokenizer(vllm.policy(architecture))
    for answer in whole.values():
        ids, ended = answer["token_ids"], answer["finish_reason"] == "stop"
        assert [place for place, token in enumerate(ids) if token in STOPS] == ([len(ids) - 1] if ended else [])
        assert ended or len(ids) == NEW_TOKENS
        assert answer["text"] == tokenizer.decode(ids[:-1] if ended else ids, skip_special_tokens=True)


@needs_vllm
@pytest.mark.full
@each
def test_an_answer_is_its_seeds_alone(vllm: Results, architecture: str) -> None:  # noqa: F811
    """Whatever else is asked: all together, a prompt at a time in another order, or the fourth answers only."""
    said = vllm.said[architecture]["sampled"]
    assert said["alone"] == said["whole"]
    assert said["few"] == {f"p{n}/3": said["whole"][f"p{n}/3"] for n in range(len(rows()))}


@needs_vllm
@pytest.mark.full
def test_neither_a_full_step_nor_a_full_cache_moves_an_answer(vllm: Results) -> None:  # noqa: F811
    """40 prompts of 300 tokens: over 8192 together, and then over what the cache holds."""
    plain, full_step, full_cache = vllm.said["pressed"]
    assert full_step == plain
    assert full_cache == plain


@needs_vllm
@pytest.mark.full
@each
def test_settings_of_the_models_generation_config_do_not_leak_in(vllm: Results, architecture: str) -> None:  # noqa: F811
    """Its top_k is 1: with it all K answers to a prompt would be one."""
    whole = vllm.said[architecture]["sampled"]["whole"]
    for number in range(len(rows())):
        assert len({tuple(whole[f"p{number}/{k}"]["token_ids"]) for k in range(K)}) == K


@needs_vllm
@pytest.mark.full
@each
def test_answers_to_a_prompt_share_its_prefill(vllm: Results, architecture: str) -> None:  # noqa: F811
    """By whole blocks, of 128 tokens on CPUs."""
    cached = vllm.said[architecture]["sampled"]["cached"]
    lengths = [len(request.token_ids) for request in requests(vllm.policy(architecture))]
    assert min(lengths) < 128 < max(lengths)
    for number, length in enumerate(lengths):
        counts = sorted(cached[f"p{number}/{k}"] for k in range(K))
        assert counts[1:] == [length // 128 * 128] * (K - 1)
    assert cached["p3/0"] == 0


@needs_vllm
@pytest.mark.full
def test_what_cannot_be_is_one_line_that_names_its_key(vllm: Results) -> None:  # noqa: F811
    said = vllm.said["refused"]
    assert said["device"] == "hardware.engine.device: cuda, but this vLLM is for cpu"
    assert said["cold"].startswith("sampling.temperature: 0.001; vLLM would take 0.01")
    assert "the model takes 512 tokens" in said["long"] and "lower sampling.max_prompt_tokens" in said["long"]
    assert "cache blocks" in said["cache"] and "hardware.engine.memory_share" in said["cache"]
    assert said["weights"].startswith("hardware.engine: vLLM: ")
    assert all("\n" not in line for line in said.values())


def worker(job: Any, folder: Path, devices: int) -> subprocess.Popen[bytes]:
    """As src/workers.py starts it, in a session of its own, so that all it leaves behind can be found."""
    folder.mkdir(parents=True, exist_ok=True)
    file = hand_over(folder, (job, Crew("generate", "hardware.generation", 1, 1, "cpu", devices)))
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "src.worker", str(file)],
            cwd=ROOT,
            env=os.environ | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0"},
            stderr=log,
            start_new_session=True,
        )


def of_session(number: int) -> list[int]:
    """Processes of a session, other than zombies."""
    found: list[int] = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == number and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def awaited(condition: Any, seconds: float) -> bool:
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.1)
    return bool(condition())


@needs_vllm
@pytest.mark.full
def test_a_stopped_worker_leaves_what_is_finished_and_no_process(tmp_path: Path) -> None:
    """With tensor parallelism, whose processes are vLLM's own; then one device goes on."""
    policy, prompts, out = build(tmp_path / "policy", "mistral"), tmp_path / "prompts", tmp_path / "out"
    prompts.mkdir()
    many = [row | {"prompt_id": f"{row['prompt_id']}{n}", "source": "made up"} for n in range(8) for row in rows()]
    records.write_rows(prompts, many, records.PROMPTS)
    stage = Generate(
        sampling=sampling(), engine=engine(), seed=3, dealing=Dealing(workers=1, nodes=1, save_seconds=1e-9)
    )
    folder = out / WORK / CELLS
    asked = stage._requests(many, policy)
    job = partial(sample_share, engine(tensor_parallel=2, max_sequences=2), policy, sampling(), asked, folder, 1e-9)
    process = worker(job, out / WORK, 2)
    assert awaited(lambda: Cells(folder).values or process.poll() is not None, 500), "no answer came"
    assert len(of_session(process.pid)) >= 3, (out / WORK / "log").read_text()[-2000:]
    process.send_signal(signal.SIGTERM)
    assert process.wait(200) == 128 + signal.SIGTERM
    assert awaited(lambda: not of_session(process.pid), 60)
    known = Cells(folder, compact)
    finished = dict(known.values)
    assert 0 < len(finished) < len(many) * K
    assert all(r.seeds for r in lacking(asked, known))

    stage(prompts, policy, out=out)
    made = records.read_rows(out, records.RESPONSES)
    assert [len(row["responses"]) for row in made] == [K] * len(many)
    answers = {f"{row['prompt_id']}/{k}": answer for row in made for k, answer in enumerate(row["responses"])}
    assert all(answers[key]["token_ids"] == list(value["token_ids"]) for key, value in finished.items())
    assert {answer["source"] for answer in answers.values()} == {"policy"}
    assert len({answer["seed"] for answer in answers.values()}) == len(answers)


class Caps:
    """A loaded vLLM of which only this is asked."""

    def __init__(self, attention: float, logits: float) -> None:
        self.found = {"attention": {"One 0": attention, "Two 1": attention}, "logits": [logits]}

    def collective_rpc(self, method: str) -> list[dict[str, Any]]:
        assert method == "soft_caps"
        return [self.found]


def test_soft_caps_that_did_not_arrive_are_refused(gemma2: Path, mistral: Path) -> None:
    check_soft_caps(gemma2, Caps(50.0, 30.0))
    check_soft_caps(mistral, Caps(0, 0))
    for attention, logits in ((0, 30.0), (50.0, 0), (0, 0)):
        with pytest.raises(UserError, match=r"hardware.engine: vLLM would not cap .*attention 50.0, logits 30.0"):
            check_soft_caps(gemma2, Caps(attention, logits))
    unknown = Caps(50.0, 30.0)
    unknown.found["attention"] = {}  # a vLLM that keeps its layers elsewhere
    with pytest.raises(UserError, match="would not cap"):
        check_soft_caps(gemma2, unknown)


def test_errors_of_vllm_become_one_line() -> None:
    for text, shown in (
        (
            "1 validation error for ModelConfig\n  Value error, too long [type=value_error, x]\n  For further",
            "too long",
        ),
        ("CUDA out of memory. Tried\nmore", "CUDA out of memory. Tried; change hardware.engine.memory_share"),
    ):
        with pytest.raises(UserError) as caught, clear_errors():
            raise ValueError(text)
        assert str(caught.value).startswith(f"hardware.engine: vLLM: {shown}")
        assert "\n" not in str(caught.value)


def test_without_vllm_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, mistral: Path) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    monkeypatch.setattr(os, "environ", os.environ.copy())
    with pytest.raises(UserError, match=r"hardware.engine: vLLM is not installed .*make install EXTRAS=dev,vllm"):
        engine().open(mistral, sampling())


def test_it_keeps_the_contract_and_only_the_number_type_is_in_the_key() -> None:
    run = typed("engine@hardware.engine=vllm_cpu")
    assert isinstance(run.hardware.engine, Engine) and isinstance(run.hardware.engine, Measuring)
    assert run.hardware.engine.apart and run.hardware.engine.source == "policy"
    assert engine(tensor_parallel=4).devices_each == 4
    free = engine(tensor_parallel=4, memory_share=0.5, cache_gb=None, max_sequences=9, enforce_eager=False)
    assert fingerprint(free) == fingerprint(engine())
    assert fingerprint(engine(dtype="bfloat16")) != fingerprint(engine())


def test_wrong_values_are_refused_with_their_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("plan", "engine@hardware.engine=vllm", "hardware.engine.memory_share=1.5") == 2
    assert "hardware.engine.memory_share" in capsys.readouterr().err
