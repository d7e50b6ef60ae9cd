"""What is known to fail is said before any work, by the run, by a submission and by `plan`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tiny_run import call, folders, tiny, typed

from src.experiment.graph import nodes_of
from src.experiment.preflight import check_keys, check_settings, remarks
from src.kernel.artifact import Computing
from src.kernel.config import UserError
from src.kernel.store import Store
from src.ranking.stage import Rank

WPO = "experiment=gemma2_9b_it_wpo_hb"
TRUSTED = "ranker.trust_remote_code=true"
FP16 = ["experiment=mistral_7b_pairrm_sppo", "+variant=code"]


@pytest.fixture(autouse=True)
def without_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_a_submission_is_refused_too_and_leaves_keys_to_the_jobs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before any cluster is asked; a job's environment may have the key."""
    assert call(WPO, "launcher=slurm", "tracking=off", *folders(tmp_path)) == 2
    assert "error: ranker.trust_remote_code: RLHFlow/ArmoRM" in capsys.readouterr().err
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(tmp_path))  # no cluster
        assert call(WPO, TRUSTED, "launcher=slurm", "tracking=off", *folders(tmp_path)) == 2
    told = capsys.readouterr()
    assert "refused by its jobs, unless they have it: OPENAI_API_KEY: not set" in told.out
    assert "OPENAI_API_KEY" not in told.err
    assert not list(tmp_path.iterdir())


def test_what_is_missing_is_named_before_any_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(WPO, "hardware=cpu", "tracking=off", *folders(tmp_path)) == 2
    assert "error: ranker.trust_remote_code: RLHFlow/ArmoRM" in capsys.readouterr().err
    assert call(WPO, TRUSTED, "hardware=cpu", "tracking=off", *folders(tmp_path)) == 2
    said = capsys.readouterr().err
    assert re.search(
        r"^error: OPENAI_API_KEY: not set, and data\.answers\.gpt4_turbo\.endpoint\.model gpt-4-turbo", said
    )
    assert not list(tmp_path.iterdir())


def test_nothing_is_refused_where_there_is_a_key_or_another_server(store: Store) -> None:
    other = "http://localhost:8000/v1"
    for name, value in {"OPENAI_API_KEY": "sk-x", "OPENAI_BASE_URL": other, "": other}.items():
        words = [] if name else [f"data.answers.gpt4_turbo.endpoint.base_url={other}"]
        with pytest.MonkeyPatch.context() as patch:
            if name:
                patch.setenv(name, value)
            nodes = nodes_of(typed(WPO, TRUSTED, *words))
            check_keys(nodes, store)
            check_settings(nodes)
            assert not [line for line in remarks(nodes, store) if line.startswith("refused")], name


def test_without_a_key_replies_that_are_kept_can_be_read_again(store: Store) -> None:
    """Another pattern is another ranking, and asks for nothing where all replies are there (test_asking.py)."""
    judged = "ranker=llm_judge_pairwise"
    nodes = [node for node in nodes_of(typed(judged)) if isinstance(node.stage, Rank)]
    for node in nodes:
        (cells := store.cells(node)).mkdir(parents=True, exist_ok=True)  # type: ignore[union-attr]
        (cells / "torn.jsonl").touch()  # type: ignore[operator]
    with pytest.raises(UserError, match="^OPENAI_API_KEY: not set, and ranker.endpoint.model"):
        check_keys(nodes_of(typed(judged, "ranker.strength=3")), store)
    for node in nodes:
        (store.cells(node) / "kept.jsonl").write_text('["a", 1]\n')  # type: ignore[operator]
    check_keys(nodes_of(typed(judged, "ranker.strength=3")), store)


def test_every_stage_with_a_device_says_what_it_takes() -> None:
    for words in (["iter=1"], ["iter=1", "benchmark=open_llm_v1"]):
        for node in nodes_of(typed(*words)):
            if hasattr(node.stage, "device"):
                assert isinstance(node.stage, Computing), node.name
    (leaderboard,) = (n for n in nodes_of(typed(*words)) if n.name == "base/open_llm_v1/scores")
    assert leaderboard.workload.endswith(" 1")


def test_a_precision_that_cpus_lack_is_refused() -> None:
    check_settings(nodes_of(typed(*FP16)))  # on GPUs
    check_settings(nodes_of(typed(*FP16, "hardware=cpu", "ranker.precision=float32")))
    with pytest.raises(UserError, match="^ranker: precision: llm_blender has no float16 on CPUs"):
        typed(*FP16, "hardware=cpu")


def test_a_plan_counts_what_is_asked_and_says_what_would_be_refused(store: Store) -> None:
    """61,135 prompts, five answers of the policy and one of gpt-4-turbo to each; 512 held-out ones, thrice."""
    assert remarks(nodes_of(typed(WPO, "+variant=paper")), store) == [
        f"asks gpt-4-turbo-2024-04-09 at api.openai.com: at most {61135 * 7 + 512 * 3:,} requests",
        "refused as it is: OPENAI_API_KEY: not set, and data.answers.gpt4_turbo.endpoint.model gpt-4-turbo-2024-04-09 "
        "is asked at api.openai.com; set it, or data.answers.gpt4_turbo.endpoint.base_url for another server",
    ]
    assert [line.partition(":")[0] for line in remarks(nodes_of(typed(WPO)), store)] == [
        "asks gpt-4-turbo-2024-04-09 at api.openai.com",
        "refused as it is",
        "refused as it is",
    ]
    assert remarks(nodes_of(typed()), store) == []


def test_a_later_point_of_a_sweep_is_refused_before_the_first_begins(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = tiny(llama, tmp_path, "iter=1", ranker=[])
    assert call("-m", *words, "ranker=reward_model,llm_judge_points") == 2
    assert "error: OPENAI_API_KEY: not set, and ranker.endpoint.model" in capsys.readouterr().err
    assert not (tmp_path / "store").exists() and not (tmp_path / "runs").exists()


def test_what_only_names_is_all_that_is_looked_at(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Answers of the policy need neither the ranker's code nor a key."""
    assert call("plan", WPO, "only=it1/own_responses", *folders(tmp_path)) == 0
    said = capsys.readouterr().out
    assert "asks" not in said and "refused" not in said


def test_plan_shows_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A sweep asks once for what its points share."""
    for sweep in ([], ["-m", "train.lr=1e-6,2e-6"]):
        assert call("plan", *sweep, WPO, *folders(tmp_path)) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert "asks gpt-4-turbo-2024-04-09 at api.openai.com: at most 61,135 requests" in said
        assert "refused as it is: ranker.trust_remote_code: RLHFlow/ArmoRM" in said


def test_a_rehearsal_without_its_stand_ins_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["experiment=gemma2_9b_it_sppo", "+size=rehearsal"]
    assert call("plan", *words, *folders(tmp_path), cwd=tmp_path) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: data.path: ") and "`make rehearsal` makes it" in said and said.count("\n") == 0
    assert call("plan", *words, *folders(tmp_path), "hardware=8xa100_80gb") == 2
    assert "deepspeed@hardware.devices.deepspeed appears more than once" in capsys.readouterr().err
