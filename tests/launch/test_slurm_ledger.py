"""What submissions remember, and what is read of SLURM's words: the ledger, queue and limits."""

from __future__ import annotations

import getpass
import re
from pathlib import Path

import pytest

from src.kernel.cells import json_of
from src.kernel.config import Fault, UserError
from src.launch.slurm import client
from src.launch.slurm.client import Limits, NoCluster, Queued
from src.launch.slurm.ledger import Ledger, Maker, Submission

Capture = pytest.CaptureFixture[str]


def filled(place: Path) -> Ledger:
    """Two submissions: an array, and shares whose job's number was never noted."""
    ledger = Ledger.of(place)
    first = ledger.intend("it1-training", place / "slurm", {0: ["key a"], 2: ["key b", "key c"]}, {0: ["key x"]})
    ledger.submitted(first, "77")
    ledger.intend("it2-generation", place / "slurm", {0: ["key d"], 1: ["key d"]}, {})
    return ledger


def test_a_ledger_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert Ledger.of(tmp_path).submissions == {} and list(tmp_path.iterdir()) == []
    written, read = filled(tmp_path), Ledger.of(tmp_path)
    assert read == written
    first, second = read.submissions.values()
    keys = {0: ["key a"], 2: ["key b", "key c"]}
    waits = {0: ["key x"]}
    assert first == Submission(first.token, "it1-training", f"{tmp_path}/slurm", keys, waits, first.token, "77")
    assert first.token != second.token and second.job is None
    maker = Maker(first, 2)
    assert (maker.job, maker.log) == ("77_2", tmp_path / "slurm/logs/it1-training-77_2.out")
    assert (maker.makes, maker.waits) == (["key b", "key c"], [])
    assert Maker(Submission("t", "x", "f", {3: []}, job="77"), 3).job == "77", "one element is no array"
    read.cancel(["77_0"])
    assert Ledger.of(tmp_path).cancelled == {"77_0"}


def test_a_ledger_that_is_cut_at_any_byte_tells_of_what_was_whole(tmp_path: Path, capsys: Capture) -> None:
    """A crash, or a full disk, of which nobody needs to hear; whoever goes on writes behind it."""
    whole = filled(tmp_path / "whole").file.read_bytes()
    lines = [line for line in whole.split(b"\n") if line]
    breaks = [place for place, byte in enumerate(whole) if byte == ord("\n")]
    for end in sorted({*range(0, len(whole), 5), *breaks, *(place + 1 for place in breaks)}):
        store = tmp_path / str(end)
        (store / ".jobs").mkdir(parents=True)
        (store / ".jobs" / "ledger.jsonl").write_bytes(whole[:end])
        entries = [json_of(line, old=b"{") for line in whole[:end].split(b"\n") if line in lines]
        before = Ledger.of(store)
        assert not capsys.readouterr().err
        jobs = {entry["token"]: entry["job"] for entry in entries}
        assert {token: one.job for token, one in before.submissions.items()} == jobs
        before.submitted(before.intend("more", store, {0: ["key e"]}, {}), "79")
        after = Ledger.of(store)
        assert after == before and [maker.job for maker in after.makers()["key e"]] == ["79"]
        capsys.readouterr()


def test_a_flipped_bit_costs_a_line_and_is_told(tmp_path: Path, capsys: Capture) -> None:
    """One of each byte of a ledger; a newline that is lost or won makes two lines of one."""
    whole = filled(tmp_path).file.read_bytes()
    expected = Ledger.of(tmp_path)
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        expected.file.write_bytes(damaged)
        ledger = Ledger.of(tmp_path)
        lines = capsys.readouterr().err.splitlines()
        assert all(one.elements == expected.submissions[token].elements for token, one in ledger.submissions.items())
        assert ledger == expected or lines or damaged[-1:] != b"\n"
        assert all(re.fullmatch(rf"{re.escape(str(ledger.file))}:\d+: damaged; .*", line) for line in lines)
        assert len(ledger.submissions) >= 1


def test_a_submission_that_was_cut_off_is_found_in_the_queue_by_its_token(tmp_path: Path) -> None:
    ledger = filled(tmp_path)
    first, second = ledger.submissions.values()
    others = [Queued("70", "RUNNING", "None", "(null)"), Queued("77_0", "RUNNING", "None", first.token)]
    ledger.adopt(others)
    assert ledger.cut() == {second.group}, "it is nowhere"
    ledger.adopt([*others, *(Queued(f"80_{i}", "PENDING", "None", second.token) for i in range(2))])
    assert [maker.job for maker in ledger.makers()["key d"]] == ["80_0", "80_1"]
    assert first.job == "77" and Ledger.of(tmp_path) == ledger and not ledger.cut()


def test_what_is_submitted_again_is_made_by_the_last_submission(tmp_path: Path) -> None:
    """And by all of it where it is made in shares."""
    ledger = filled(tmp_path)
    again = ledger.intend("it1-training", tmp_path, {0: ["key a"]}, {})
    assert ledger.makers()["key a"][-1].submission.group in ledger.cut(), "it is to be, whatever became of the first"
    ledger.submitted(again, "90")
    makers = ledger.makers()
    assert [maker.job for maker in makers["key a"]] == ["90"]
    assert [maker.job for maker in makers["key b"]] == [maker.job for maker in makers["key c"]] == ["77_2"]


# SLURM's words -----------------------------------------------------------------------------------------------------


def test_jobs_know_nothing_of_the_job_around_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("SLURM_JOB_ID", "SBATCH_PARTITION", "SRUN_DEBUG", "SLURM_CONF", "SLURMX", "SLURM"):
        monkeypatch.setenv(key, "x")
    names = {key for key in client.environment() if key.startswith(("SLURM", "SBATCH", "SRUN"))}
    assert names == {"SLURM_CONF", "SLURMX", "SLURM"} and "PATH" in client.environment()


def answers(monkeypatch: pytest.MonkeyPatch, **text: str) -> list[tuple[str, ...]]:
    """SLURM's commands print this; returns the words of each call."""
    calls: list[tuple[str, ...]] = []
    monkeypatch.setattr(client, "slurm", lambda *words: calls.append(words) or text[words[0]])
    return calls


def test_limits_are_read_of_the_configuration_and_of_the_account(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "Configuration data as of x\nMaxArraySize            = 8\nMaxJobCount = 20\nOther = a = b\n\nEmpty =\n"
    answers(monkeypatch, scontrol=text)
    assert client.limits() == Limits(array=8, jobs=19)
    text += "AccountingStorageType = accounting_storage/slurmdbd\n"
    for said, most in (("", 19), ("\n", 19), ("15\n", 15), ("15\n\n7\n", 7), ("100\n", 19)):
        calls = answers(monkeypatch, scontrol=text, sacctmgr=said)
        assert client.limits() == Limits(8, most) and f"user={getpass.getuser()}" in calls[-1], said
    answers(monkeypatch, scontrol="nothing")
    with pytest.raises(UserError, match="scontrol show config says no MaxArraySize or no MaxJobCount"):
        client.limits()


def test_the_queue_tells_elements_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody's comment of two lines hides no job."""
    lines = ["77|3|PENDING|Dependency|abcd1234", "78|N/A|RUNNING|None|(null)", "79|0|PENDING|Resources|mine | yours"]
    lines += ["70|N/A|PENDING|None|one", "two|three", "", "80|0|RUNNING|None|token", ""]
    answers(monkeypatch, squeue="\n".join(lines))
    wanted = [("77_3", "abcd1234"), ("78", "(null)"), ("79_0", "mine | yours"), ("80_0", "token")]
    assert [(one.job, one.token) for one in client.queue() if one.job != "70"] == wanted
    assert client.queue()[0] == Queued("77_3", "PENDING", "Dependency", "abcd1234")


def test_what_slurm_says_last_is_the_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with monkeypatch.context() as patch, pytest.raises(NoCluster, match="launcher: no sbatch on PATH"):
        patch.setenv("PATH", str(tmp_path))
        client.slurm("sbatch")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    kinds = {"configuration source": NoCluster, "connect failure": Fault, "no such job": UserError}
    for said, kind in kinds.items():
        lines = f"#!/bin/sh\necho 'sinfo: first' >&2; echo 'sinfo: last: {said}' >&2; exit 1\n"
        (stub := tmp_path / "sinfo").write_text(lines)
        stub.chmod(0o755)
        with pytest.raises(UserError) as error:
            client.slurm("sinfo")
        message, _, remedy = str(error.value).partition("; ")
        assert message == f"launcher: sinfo: last: {said}" and remedy and type(error.value) is kind
    monkeypatch.setattr(client, "TIMEOUT_S", 0.1)
    with pytest.raises(Fault, match="sleep has not answered"):
        client.slurm("sleep", "600")
