"""What is known to fail is said before any work, by the run, by a submission and by `plan`.

Run: python -m pytest -q tests/test_refusals.py
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tiny_run import call, folders, typed

from src.config import UserError
from src.refusals import check_keys, check_settings, remarks

WPO = "experiment=gemma2_9b_it_wpo_hb"
TRUSTED = "ranker.trust_remote_code=true"
FP16 = ["experiment=mistral_7b_pairrm_sppo", "+variant=code"]
ON_CPU = ["hardware=cpu"]


@pytest.fixture(autouse=True)
def without_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


def test_foreign_code_without_leave_is_refused_before_the_base_is_fetched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(WPO, "hardware=cpu", "tracking=off", *folders(tmp_path)) == 2
    assert "error: ranker.trust_remote_code: RLHFlow/ArmoRM" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_key_that_is_missing_is_named_before_any_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(WPO, TRUSTED, "hardware=cpu", "tracking=off", *folders(tmp_path)) == 2
    said = capsys.readouterr().err
    assert re.search(
        r"^error: OPENAI_API_KEY: not set, and data\.answers\.gpt4_turbo\.endpoint\.model gpt-4-turbo", said
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("given", ["key", "address", "environment"])
def test_nothing_is_refused_where_there_is_a_key_or_another_server(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    other = "http://localhost:8000/v1"
    if given != "address":
        monkeypatch.setenv(*{"key": ("OPENAI_API_KEY", "sk-x"), "environment": ("OPENAI_BASE_URL", other)}[given])
    words = [f"data.answers.gpt4_turbo.endpoint.base_url={other}"] if given == "address" else []
    nodes = typed(WPO, TRUSTED, *words).nodes()
    check_keys(nodes)
    check_settings(nodes)
    assert not [line for line in remarks(nodes) if line.startswith("refused")]


@pytest.mark.parametrize(("more", "refused"), [([], True), (["ranker.precision=float32"], False)])
def test_a_precision_that_cpus_lack_is_refused(more: list[str], refused: bool) -> None:
    check_settings(typed(*FP16, *more).nodes())  # on GPUs
    nodes = typed(*FP16, *ON_CPU, *more).nodes()
    if refused:
        with pytest.raises(UserError, match="^ranker.precision: llm_blender has no float16 on CPUs"):
            check_settings(nodes)
    else:
        check_settings(nodes)


def test_a_plan_counts_what_is_asked_and_says_what_would_be_refused() -> None:
    """61,135 prompts, five answers of the policy and one of gpt-4-turbo to each; 512 held-out ones, thrice."""
    assert remarks(typed(WPO, "+variant=paper").nodes()) == [
        f"asks gpt-4-turbo-2024-04-09 at api.openai.com: at most {61135 * 7 + 512 * 3:,} requests",
        "refused as it is: OPENAI_API_KEY: not set, and data.answers.gpt4_turbo.endpoint.model gpt-4-turbo-2024-04-09 "
        "is asked at api.openai.com; set it, or data.answers.gpt4_turbo.endpoint.base_url for another server",
    ]
    assert [line.partition(":")[0] for line in remarks(typed(WPO).nodes())] == [
        "asks gpt-4-turbo-2024-04-09 at api.openai.com",
        "refused as it is",
        "refused as it is",
    ]
    assert remarks(typed().nodes()) == []


@pytest.mark.parametrize("sweep", [[], ["-m", "train.lr=1e-6,2e-6"]])
def test_plan_shows_it(sweep: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A sweep asks once for what its points share."""
    assert call("plan", *sweep, WPO, *folders(tmp_path)) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "asks gpt-4-turbo-2024-04-09 at api.openai.com: at most 61,135 requests" in said
    assert "refused as it is: ranker.trust_remote_code: RLHFlow/ArmoRM" in said


def test_a_policy_that_is_asked_at_a_server_is_counted() -> None:
    nodes = typed("engine@hardware.engine=openai").nodes()
    sampled = sum(int(node.work or 0) for node in nodes if node.stage.kind == "responses")
    assert remarks(nodes) == [f"asks policy at localhost:8000: at most {sampled:,} requests"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["+size=rehearsal"], "size: rehearses an experiment; choose one: experiment=<name>"),
        ([WPO, "+variant=paper", "+variant=code"], "variant: chosen twice; say it once"),
        (["+experiment=gemma2_9b_it_wpo_hb"], "experiment: chosen twice; say it once, and without +"),
        ([WPO, "+size=rehearsal", "hardware=8xa100_80gb"], "deepspeed@hardware.devices.deepspeed: chosen twice"),
        (
            ["experiment=gemma2_9b_it_sppo", "+size=rehearsal"],
            "data.path: no folder rehearsal/snorkelai/Snorkel-Mistral-PairRM-DPO-Dataset, and it is no hub id; "
            "`make rehearsal` makes it",
        ),
    ],
)
def test_mistakes_in_choosing_are_one_line(
    words: list[str], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("plan", *words, *folders(tmp_path), cwd=tmp_path) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith(f"error: {line}") or f"error: {line}" in said
    assert "Traceback" not in said
