"""Keys come from the environment and stay there: canaries are planted, and every byte that is written is searched."""

from __future__ import annotations

import gzip
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from answer_server import IMPATIENT, AnswerServer, Said
from bad_inputs import NOBODY, Setting, cluster
from bad_models import saying
from canaries import CANARIES, STARTED, plant, singing
from hub_server import server as hub  # noqa: F401
from hypothesis import given
from hypothesis import strategies as st
from judge_server import judge, longer_wins, numbered, row
from tiny_run import call, folders, tiny, typed
from tiny_training import train_stage, write_reference

from src.kernel.config import UserError
from src.kernel.secret_words import holds_secret, refuse_settings, refuse_words
from src.training.recipe import DeepSpeed

# ruff: noqa: F811

OPENAI, HUB, WANDB = (CANARIES[name] for name in ("OPENAI_API_KEY", "HF_TOKEN", "WANDB_API_KEY"))
SHOWN = f'{{"error": {{"message": "bad key {OPENAI}"}}}}'
"""What a server says that refuses a key by showing it."""
Captured = pytest.CaptureFixture[str]


# What is written ----------------------------------------------------------------------------------------------------


def test_no_key_is_in_anything_that_a_run_leaves(
    llama: Path, server: AnswerServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Captured
) -> None:
    """Judged by an endpoint, reported, compared, planned, submitted, and refused with a trace; W&B is in tests/whole.

    What sings afterwards is heard, in plain, packed and printed text.
    """
    plant(monkeypatch)  # the server has a key of its own
    place = tmp_path / "place"
    words = ["ranker=llm_judge_pairwise", f"ranker.endpoint.base_url={server.url}", "ranker.endpoint.retries=0"]
    words = tiny(llama, place, ranker=words)
    server.say = longer_wins
    assert call(*words, "iter=1") == 0
    assert server.keys == {f"Bearer {OPENAI}"}, "it was shown where it belongs"
    assert call("compare", f"runs={place}/runs/*", f"out={place}/comparison") == 0
    assert call("plan", *words, "iter=2") == 0
    with monkeypatch.context() as patch, ExitStack() as stack:
        cluster(sbatch="echo 4711")(Setting(tmp_path, llama, patch, stack))
        assert call(*words, "iter=2", "launcher=slurm") == 0
    assert list(place.rglob("*.sbatch"))
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    far = ["ranker.endpoint.max_tokens=1", "ranker.endpoint.base_url=https://example.invalid/v1"]
    assert call(*words, "iter=1", "only=it1/ranking", *far) == 3 and STARTED
    for status, body in {401: SHOWN, 404: OPENAI, 500: SHOWN}.items():
        server.say = lambda _, n, status=status, body=body: Said(status=status, body=body)
        assert call(*words, "iter=1", "only=it1/ranking", f"ranker.endpoint.max_tokens={status}") in (2, 3)
    out, err = capfd.readouterr()
    assert err.count("error: ranker.endpoint") == 4 and "Traceback" in err
    assert not singing(tmp_path, out, err)

    table: Any = pyarrow.table({"a": [HUB] * 3})
    pyarrow.parquet.write_table(table, place / "rows.parquet", compression="zstd")
    (place / "a.gz").write_bytes(gzip.compress(WANDB.encode()))
    (place / "a").write_text(CANARIES["MYSQL_PWD"])
    heard = {line.partition(" ")[0] for line in singing(tmp_path, f"say {OPENAI}")}
    assert heard == {"HF_TOKEN", "MYSQL_PWD", "OPENAI_API_KEY", "WANDB_API_KEY"}


def test_no_key_is_kept_of_judges_outside_answers_and_uploads(
    llama: Path, server: AnswerServer, hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Captured
) -> None:
    """Nor of a server that answers with its key."""
    plant(monkeypatch)  # the server and the hub have keys of their own
    answers = ["max_answer_tokens=50", f"endpoint.base_url={server.url}", *IMPATIENT]
    judged = [f"judge.base_url={server.url}", "judge.retries=0", "first=1", "max_new_tokens=6", "of=[it1]"]
    saying(max_position_embeddings=8192)(long := Path(shutil.copytree(llama, tmp_path / "long")))
    words = tiny(long, tmp_path, "iter=1", "+answers@data.answers.gpt=endpoint", "benchmark=mt_bench")
    words += [f"data.answers.gpt.{word}" for word in answers]
    words += [f"benchmark.mt_bench.{word}" for word in judged]
    server.say = lambda body, number: "Rating: [[5]]" if body["model"] == "gpt-4" else f"answer {number}"
    assert call(*words, "push_to_hub=me/Tiny") == 0
    assert server.keys == {f"Bearer {OPENAI}"} and f"Bearer {HUB}" in hub.tokens, "shown where they belong"
    sent = [content.decode("latin-1") for content in hub.files["me/Tiny-Iter1"].values()]
    asked = [("benchmark.mt_bench.judge.max_tokens=7", "only=it1/mt_bench/judgments"),
             ("data.answers.gpt.max_tokens=7", "only=it1/outside_gpt")]  # fmt: skip
    server.say = lambda body, number: Said(status=401, body=SHOWN)
    assert all(call(*words, *more) in (2, 3) for more in asked)
    out, err = capfd.readouterr()
    assert err.count("refused the key (401)") >= 2 and sent
    assert not singing(tmp_path, out, err, *sent)
    server.say = lambda body, number: f"Rating: [[5]], {OPENAI}"
    assert all(call(*words, *more) == 0 for more in asked)
    assert not singing(tmp_path, *capfd.readouterr())


@pytest.mark.faults
def test_no_key_is_in_what_processes_under_deepspeed_leave(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Captured
) -> None:
    """Launched as in a run: the job, the launcher's command and settings, its log, a checkpoint at every step."""
    plant(monkeypatch)
    (out := tmp_path / "out").mkdir()
    stage = train_stage(count=2, deepspeed=DeepSpeed(stage=2, offload=False), save_minutes=1e-6)
    stage(write_reference(tmp_path / "reference", llama, 8), llama, out=out)
    log = out / "work" / "launch.txt"
    assert log.exists() and (out / "work" / "accelerate.json").exists()
    assert list((out / "work").glob("checkpoint-*/*")) and not singing(tmp_path, *capfd.readouterr())
    log.write_text(f"{log.read_text()} {HUB}")
    assert singing(tmp_path) == [f"HF_TOKEN in {log}"]


# What is typed ------------------------------------------------------------------------------------------------------

TYPED = {
    "ranker.endpoint.api_key=abc": "ranker.endpoint.api_key",
    "+ranker.endpoint.extra_body.access_token=abc": "ranker.endpoint.extra_body.access_token",
    "ranker.endpoint.base_url='http://me:word@host/v1'": "ranker.endpoint.base_url",
    "ranker.endpoint.base_url='http://host/v1?api_key=abc'": "ranker.endpoint.base_url",
    "hardware.engine.endpoint.base_url=https://some-token@host/v1": "hardware.engine.endpoint.base_url",
    "+data.answers.x.endpoint.base_url='https://:word@host/'": "data.answers.x.endpoint.base_url",
    f"runs=/tmp/{CANARIES['HTTPS_PROXY']}": "runs",
    "name=sk-abcdefghijklmnopqrstuvwx": "name",
    f"name=x-{WANDB}": "name",
    "slurm.setup=['export HF_TOKEN=abcdefgh1234']": "slurm.setup",
    OPENAI: "word 2 of the command",
    f"+{HUB}=1": "word 2 of the command",
    "out=/tmp/sk-abcdefghijklmnopqrstuvwx": "out",
}
"""A word of the command -> what the refusal calls it."""


def test_a_typed_secret_is_refused_unseen_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    plant(monkeypatch)
    for word, key in TYPED.items():
        assert call(*(["compare"] if key == "out" else ["plan", "tracking=off"]), word, *folders(tmp_path)) == 2, word
        text = "".join(capsys.readouterr())
        assert f"error: {key}: looks like a secret; what a command says is kept" in text, word
        secret = word.partition("=")[2].strip("'") or word
        assert secret not in text and "me:word" not in text and not list(tmp_path.iterdir()), word


READING = [
    *(["name=${oc.env:MY_NAME}"], ["name=${oc.\nenv:MY_NAME}"], ['name="${oc.decode:${oc.env:MY_NAME}}"']),
    *(["method=${oc.env:MY_NAME}"], ["method.name=x-${ oc.env: MY_NAME, y}"]),
    *(["model.name=env", "name=${oc.${model.name}:MY_NAME}"], ["method.name={_target_: os.getenv, key: MY_NAME}"]),
    ["hydra.job.name=${oc.env:MY_NAME}", "name=${hydra:job.name}"],
]
"""Words that read the environment."""
SHOWING = ["--cfg=job --resolve", "--package=method", "--cfg=all --resolve", "--cfg=hydra", "--info=all"]


def test_what_reads_the_environment_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Captured
) -> None:
    """A value of it would be kept with the settings; Hydra's options show none either."""
    monkeypatch.setenv("MY_NAME", "canary-3f9a1c")
    shown = [(2, "plan", words) for words in READING] + [(0, option, READING[0]) for option in SHOWING]
    for code, verb, words in [*shown, *[(0, SHOWING[2], words) for words in READING]]:
        ended = call(*verb.split(), *words, *folders(tmp_path), cwd=tmp_path)
        text = "".join(capsys.readouterr())
        assert ended in (code, 2) and "Traceback" not in text and "canary" not in text, (verb, words)
    assert list(tmp_path.iterdir()) == []


def test_files_of_the_config_may_hold_none_either(monkeypatch: pytest.MonkeyPatch) -> None:
    """A site's lines, say. Whatever reads a key at run time is none."""
    plant(monkeypatch)
    harmless = {"setup": ["export HF_TOKEN=$(cat ~/.hf)", "source ~/.keys"], "export": ["OPENAI_API_KEY"], "tokens": 7}
    refuse_settings(harmless | {"max_tokens": "12", "base_url": "http://host:8000/v1", "empty": {"api_key": ""}})
    for secret in ("export HF_TOKEN=abcdefgh12", WANDB):
        with pytest.raises(UserError, match="^slurm.setup.1: looks like a secret") as error:
            refuse_settings({"slurm": {"setup": ["module load x", secret]}})
        assert secret not in str(error.value)
    with pytest.raises(UserError, match="^ranker.extra_body.api_key: looks like a secret"):
        refuse_settings({"ranker": {"extra_body": {"api_key": "x"}}})
    monkeypatch.setenv("SITE_TOKEN", "mistral_7b_instruct_v02")
    with pytest.raises(UserError, match="^model.name: looks like a secret"):
        typed("model=mistral_7b_instruct_v02")


def test_a_path_in_the_environment_is_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether there is such a file or not; the same variable with a word that is no path is one."""
    for path in (str(tmp_path), "/tmp/no/such/key", "~/.ssh/id_rsa"):
        monkeypatch.setenv("SITE_KEY", path)
        refuse_words([f"runs={path}"])
    for secret in ("/no0such0folder0of0this/machine", "~no-path-at-all"):
        monkeypatch.setenv("SITE_KEY", secret)
        with pytest.raises(UserError, match="^runs: looks like a secret"):
            refuse_words([f"runs={secret}"])


@given(st.text(st.characters(codec="utf-8", exclude_characters="="), max_size=40), st.integers())
def test_plain_words_are_no_secrets(text: str, number: int) -> None:
    looks = ("://" in text and "@" in text) or "sk-" in text
    refuse_words([f"train.lr={number}", "name=${method.name}", "revision=98d3ac5f6bf9a2b5c7b0ea5bcf4e9bbd19a3b6d5"])
    assert looks or not holds_secret(text)


def test_an_error_of_the_environments_address_hides_what_it_carries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OPENAI_BASE_URL is read at run time and may have a password; messages name the variable or the host alone."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-x")
    for address in (f"http://me:canaryword@{NOBODY}/v1", f"http://{NOBODY}/v1?api_key=canarykey"):
        monkeypatch.setenv("OPENAI_BASE_URL", address)
        asked = judge("pairwise", "null", "endpoint.retries=0")
        assert asked.endpoint.host == NOBODY
        with pytest.raises(UserError, match=f"{NOBODY} cannot be reached|^OPENAI_BASE_URL: ") as error:
            asked.rank([row("q", numbered(2))], (), tmp_path)
        assert "canary" not in str(error.value)
