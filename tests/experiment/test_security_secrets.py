"""Keys come from the environment and stay there: canaries are planted, and every byte that is written is searched."""

from __future__ import annotations

import gzip
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from answer_server import AnswerServer, Said, answering
from canaries import CANARIES, plant, singing
from hypothesis import given
from hypothesis import strategies as st
from judge_server import judge, longer_wins, numbered, row
from omegaconf import OmegaConf
from tiny_run import ROOT, call, composed, folders, tiny, typed

from src.experiment.secret_words import holds_secret, refuse_settings, refuse_words
from src.kernel.config import UserError

CLUSTER = {
    "sbatch": "echo 4711",
    "squeue": "true",
    "sacctmgr": "true",
    "scancel": "true",
    "scontrol": "echo 'MaxArraySize = 1001'; echo 'MaxJobCount = 10000'",
}
"""What SLURM's commands say: all is taken."""


@pytest.fixture
def server() -> Iterator[AnswerServer]:
    with answering() as found:
        yield found


@pytest.fixture
def canaries(server: AnswerServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the server, whose fixture sets a key too."""
    plant(monkeypatch)


def cluster(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place.mkdir()
    for name, line in CLUSTER.items():
        (place / name).write_text(f"#!/bin/sh\n{line}\n")
        (place / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{place}:{os.environ['PATH']}")


STATUSES = [401, 403, 404, 429, 500]


@pytest.mark.usefixtures("canaries")
@pytest.mark.parametrize("all_statuses", [False, pytest.param(True, marks=pytest.mark.full)])
def test_no_key_is_in_anything_that_a_run_leaves(
    all_statuses: bool,
    llama: Path,
    server: AnswerServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Judged by an endpoint, reported, compared, planned, submitted, and refused in every way.

    What sings afterwards is heard, in plain, packed and printed text. W&B: tests/whole/test_wandb_online.py.
    """
    place, own = tmp_path / "place", f"ranker.endpoint.base_url={server.url}"
    judged = ["ranker=llm_judge_pairwise", own, "ranker.endpoint.retries=0"]
    words = tiny(llama, place, ranker=judged)
    server.say = longer_wins
    assert call(*words, "iter=1") == 0
    assert server.keys == {f"Bearer {CANARIES['OPENAI_API_KEY']}"}, "it was shown where it belongs"
    assert call("compare", f"runs={place}/runs/*", f"out={place}/comparison") == 0
    cluster(tmp_path / "bin", monkeypatch)
    assert call("plan", *words, "iter=2") == 0
    assert call(*words, "iter=2", "launcher=slurm") == 0
    assert list(place.rglob("*.sbatch"))
    bodies = [f'{{"error": {{"message": "bad key {CANARIES["OPENAI_API_KEY"]}"}}}}', CANARIES["OPENAI_API_KEY"]]
    for number, status in enumerate(STATUSES if all_statuses else STATUSES[::4]):
        answer = Said(status=status, body=bodies[number % 2], headers={"retry-after": "0"})
        server.say = lambda body, n, answer=answer: answer
        refused = ["iter=1", "only=it1/ranking", f"ranker.endpoint.max_tokens={status}"]
        assert call(*words, *refused) in (2, 3)
    told = capfd.readouterr()
    assert told.err.count("error: ranker.endpoint") >= 2
    assert not singing(tmp_path, told.out, told.err)

    table: Any = pyarrow.table({"a": [CANARIES["HF_TOKEN"]] * 3})
    pyarrow.parquet.write_table(table, place / "rows.parquet", compression="zstd")
    (place / "a.gz").write_bytes(gzip.compress(CANARIES["WANDB_API_KEY"].encode()))
    (place / "a").write_text(CANARIES["MYSQL_PWD"])
    found = singing(tmp_path, f"say {CANARIES['OPENAI_API_KEY']}")
    heard = {line.partition(" ")[0] for line in found}
    assert heard == {"HF_TOKEN", "MYSQL_PWD", "OPENAI_API_KEY", "WANDB_API_KEY"}


# What is typed ------------------------------------------------------------------------------------------------------

TYPED = {
    "a key": ("ranker.endpoint.api_key=abc", "ranker.endpoint.api_key: "),
    "a key that is added": (
        "+ranker.endpoint.extra_body.access_token=abc",
        "ranker.endpoint.extra_body.access_token: ",
    ),
    "in an address": ("ranker.endpoint.base_url='http://me:word@host/v1'", "ranker.endpoint.base_url: "),
    "behind an address": ("ranker.endpoint.base_url='http://host/v1?api_key=abc'", "ranker.endpoint.base_url: "),
    "like OpenAI's": ("name=sk-abcdefghijklmnopqrstuvwx", "name: "),
    "of the environment": (f"name=x-{CANARIES['WANDB_API_KEY']}", "name: "),
    "of the environment, in base64": (f"name='{CANARIES['AZURE_OPENAI_KEY']}'", "name: "),
    "a line of a script": ("slurm.setup=['export HF_TOKEN=abcdefgh1234']", "slurm.setup: "),
    "alone": (CANARIES["OPENAI_API_KEY"], "word 2 of the command: "),
    "as a key": (f"+{CANARIES['HF_TOKEN']}=1", "word 2 of the command: "),
    "of compare": ("out=/tmp/sk-abcdefghijklmnopqrstuvwx", "out: "),
}


@pytest.mark.usefixtures("canaries")
def test_a_typed_secret_is_refused_unseen_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for what, (word, key) in TYPED.items():
        own = ["compare", word] if what == "of compare" else ["tracking=off", word, *folders(tmp_path)]
        assert call(*own) == 2, what
        told = capsys.readouterr()
        said = told.out + told.err
        assert f"error: {key}looks like a secret; what a command says is kept" in said, what
        value = word.partition("=")[2].strip("'") or word
        assert value not in said and "me:word" not in said and not list(tmp_path.iterdir()), what


@pytest.mark.usefixtures("canaries")
def test_files_of_the_config_may_hold_none_either() -> None:
    """A site's own lines, say. Whatever reads a key at run time is none."""
    harmless = {"setup": ["export HF_TOKEN=$(cat ~/.hf)", "source ~/.keys"], "export": ["OPENAI_API_KEY"], "tokens": 7}
    refuse_settings(harmless | {"max_tokens": "12", "base_url": "http://host:8000/v1", "empty": {"api_key": ""}})
    for secret in ("export HF_TOKEN=abcdefgh12", CANARIES["WANDB_API_KEY"]):
        with pytest.raises(UserError, match="^slurm.setup.1: looks like a secret") as error:
            refuse_settings({"slurm": {"setup": ["module load x", secret]}})
        assert secret not in str(error.value)
    with pytest.raises(UserError, match="^ranker.extra_body.api_key: looks like a secret"):
        refuse_settings({"ranker": {"extra_body": {"api_key": "x"}}})


@pytest.mark.usefixtures("canaries")
def test_building_a_run_looks_at_its_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SITE_TOKEN", "mistral_7b_instruct_v02")
    with pytest.raises(UserError, match="^model.name: looks like a secret"):
        typed("model=mistral_7b_instruct_v02")


def test_a_path_in_the_environment_is_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether there is such a file or not; the same variable with a word that is no path is one."""
    for name in ("SITE_KEY", "SITE_PWD", "SITE_TOKEN", "KEY"):
        for path in (str(tmp_path), "/tmp/no/such/key", "~/.ssh/id_rsa"):
            monkeypatch.setenv(name, path)
            refuse_words([f"runs={path}"])
        for secret in ("/no0such0folder0of0this/machine", "~no-path-at-all"):
            monkeypatch.setenv(name, secret)
            with pytest.raises(UserError, match="^runs: looks like a secret"):
                refuse_words([f"runs={secret}"])
        monkeypatch.delenv(name)
    for name in ("PWD", "OLDPWD"):  # folders of the shell
        monkeypatch.setenv(name, f"/no0such0folder/{name}")
        refuse_words([f"runs=/no0such0folder/{name}"])


def test_the_repositorys_own_config_holds_nothing_that_looks_like_one() -> None:
    for file in (ROOT / "conf").rglob("*.yaml"):
        refuse_settings(OmegaConf.to_container(OmegaConf.load(file)))
    refuse_settings(OmegaConf.to_container(composed("benchmark=alpaca_eval")))


@given(st.text(st.characters(codec="utf-8", exclude_characters="="), max_size=40), st.integers())
def test_plain_words_are_no_secrets(text: str, number: int) -> None:
    looks = ("://" in text and "@" in text) or "sk-" in text
    refuse_words([f"train.lr={number}", "revision=98d3ac5f6bf9a2b5c7b0ea5bcf4e9bbd19a3b6d5"])
    assert looks or not holds_secret(text)


def test_an_error_of_the_environments_address_hides_what_it_carries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OPENAI_BASE_URL is read at run time and may have a password; messages name the variable or the host alone."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-x")
    with socket.socket() as taken:  # nobody listens there
        taken.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{taken.getsockname()[1]}"
        for address in (f"http://me:canaryword@{host}/v1", f"http://{host}/v1?api_key=canarykey"):
            monkeypatch.setenv("OPENAI_BASE_URL", address)
            asked = judge("pairwise", "null", "endpoint.retries=0")
            assert asked.endpoint.host == host
            with pytest.raises(UserError, match=f"{host} cannot be reached|^OPENAI_BASE_URL: ") as error:
                asked.rank([row("q", numbered(2))], (), tmp_path)
            assert "canary" not in str(error.value)
