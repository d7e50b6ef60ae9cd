"""What is known to fail is refused before any work, by a run, by a submission and by `plan`.

The messages themselves are rows of tests/bad_inputs.md.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tiny_run import call, folders, tiny, typed

from src.experiment.graph import nodes_of
from src.experiment.preflight import check_keys, remarks
from src.kernel.config import UserError
from src.kernel.store import Store
from src.ranking.stage import Rank

WPO = "experiment=gemma2_9b_it_wpo_hb"
TRUSTED = "ranker.trust_remote_code=true"
Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def without_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("src.generation.vllm_engine.find_spec", lambda name: name)  # installed or not


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_a_submission_is_refused_before_any_cluster_is_asked_and_leaves_keys_to_the_jobs(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no cluster
    words = [WPO, "launcher=slurm", "tracking=off", *folders(tmp_path)]
    assert call(*words) == 2
    assert "error: ranker.trust_remote_code: RLHFlow/ArmoRM" in capsys.readouterr().err
    assert call(*words, TRUSTED) == 2
    out, err = capsys.readouterr()
    assert "refused by its jobs, unless they have it: OPENAI_API_KEY: not set" in out and "OPENAI_API_KEY" not in err
    assert not list(tmp_path.iterdir())


def test_a_later_point_of_a_sweep_is_refused_before_the_first_begins(
    llama: Path, tmp_path: Path, capsys: Capture
) -> None:
    words = tiny(llama, tmp_path, "iter=1", ranker=[])
    assert call("-m", *words, "ranker=reward_model,llm_judge_points") == 2
    assert "error: OPENAI_API_KEY: not set, and ranker.endpoint.model" in capsys.readouterr().err
    assert not (tmp_path / "store").exists() and not (tmp_path / "runs").exists()


def test_nothing_is_refused_where_there_is_a_key_or_another_server(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = "http://localhost:8000/v1"
    for name, value in {"OPENAI_API_KEY": "sk-x", "OPENAI_BASE_URL": other, "": other}.items():
        words = [] if name else [f"data.answers.gpt4_turbo.endpoint.base_url={other}"]
        with monkeypatch.context() as patch:
            if name:
                patch.setenv(name, value)
            lines = remarks(nodes_of(typed(WPO, TRUSTED, *words)), store)
        assert len(lines) == 1 and lines[0].startswith("asks gpt-4-turbo"), name


def test_without_a_key_replies_that_are_kept_can_be_read_again(store: Store) -> None:
    """Another pattern is another ranking, and asks for nothing where all replies are there."""
    cells = [store.cells(n) for n in nodes_of(typed("ranker=llm_judge_pairwise")) if isinstance(n.stage, Rank)]
    again = nodes_of(typed("ranker=llm_judge_pairwise", "ranker.strength=3"))
    for folder in filter(None, cells):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "torn.jsonl").touch()
    with pytest.raises(UserError, match=r"^OPENAI_API_KEY: not set, and ranker\.endpoint\.model"):
        check_keys(again, store)
    for folder in filter(None, cells):
        (folder / "kept.jsonl").write_text('["a", 1]\n')
    check_keys(again, store)


def test_a_plan_counts_what_is_asked_and_says_what_would_be_refused(
    store: Store, tmp_path: Path, capsys: Capture
) -> None:
    """61,135 prompts, five answers of the policy and one of gpt-4-turbo to each, which a judge of that name grades."""
    judged = typed(WPO, "ranker=llm_judge_points_gpt4", "pairing=wpo_v1", "held_out.ranker.trust_remote_code=true")
    assert remarks(nodes_of(judged), store) == [
        f"asks gpt-4-turbo-2024-04-09 at api.openai.com: at most {61135 * 7:,} requests",
        "refused as it is: OPENAI_API_KEY: not set, and data.answers.gpt4_turbo.endpoint.model gpt-4-turbo-2024-04-09 "
        "is asked at api.openai.com; set it, or data.answers.gpt4_turbo.endpoint.base_url for another server",
    ]
    for sweep in ([], ["-m", "train.lr=1e-6,2e-6"]):  # a sweep asks once for what its points share
        assert call("plan", *sweep, WPO, *folders(tmp_path)) == 0
        lines = " ".join(capsys.readouterr().out.split())
        assert "asks gpt-4-turbo-2024-04-09 at api.openai.com: at most 61,135 requests" in lines
        assert "refused as it is: ranker.trust_remote_code: RLHFlow/ArmoRM" in lines
    assert call("plan", WPO, "only=it1/own_responses", *folders(tmp_path)) == 0
    lines = capsys.readouterr().out
    assert "asks" not in lines and "refused" not in lines, "the policy's answers need neither ranker nor key"


def test_a_plan_reads_the_files_of_a_model_that_is_on_this_machine(
    llama: Path, tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hub's snapshot too; one that lacks more than a template may be half fetched, and counts where no hub is."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    kept = tmp_path / "models--me--tiny"
    snapshot = shutil.copytree(llama, kept / "snapshots" / "0")
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("0")
    words = tiny(llama, tmp_path, "iter=1")

    def refused(repo: str) -> bool:
        lines = remarks(nodes_of(typed(*words, f"model.repo={repo}")), store)
        return any(line.startswith(f"refused as it is: {snapshot}: ") for line in lines)

    assert not refused("me/tiny") and not refused(str(snapshot))
    for template in ("", "hello"):  # the second leaves out the chat
        (snapshot / "chat_template.jinja").write_text(template)
        assert refused("me/tiny") and refused(str(snapshot))
    (snapshot / "tokenizer.json").unlink()
    assert not refused("me/tiny") and refused(str(snapshot))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert refused("me/tiny")
