"""What submissions remember, and what is read of SLURM's words: the ledger, queue, limits and partitions."""

from __future__ import annotations

import getpass
import math
import re
from pathlib import Path

import pytest

from src.kernel.cells import json_of
from src.kernel.config import Fault, UserError
from src.launch.slurm import client
from src.launch.slurm.check import gpus, minutes
from src.launch.slurm.client import Limits, NoCluster, Queued
from src.launch.slurm.ledger import Alive, Ledger, Submission


def filled(place: Path) -> Ledger:
    """Two submissions: an array, and parts whose job's id was never noted."""
    ledger = Ledger.of(place)
    first = ledger.intend("it1-training", {0: ["key a"], 2: ["key b", "key c"]}, place / "slurm", "afterok:70")
    ledger.submitted(first, "77")
    ledger.intend("it2-generation", {0: ["key d"], 1: ["key d"]}, place / "slurm", "aftercorr:77")
    return ledger


def test_a_ledger_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert Ledger.of(tmp_path).submissions == {} and list(tmp_path.iterdir()) == []
    written, read = filled(tmp_path), Ledger.of(tmp_path)
    assert read == written and len(read.submissions) == 2
    first, second = read.submissions.values()
    keys = {0: ["key a"], 2: ["key b", "key c"]}
    assert first == Submission(first.token, "it1-training", f"{tmp_path}/slurm", keys, "afterok:70", "77", first.token)
    assert first.token != second.token and (second.job, second.after) == (None, "aftercorr:77")
    assert (first.element(2), first.log(2)) == ("77_2", tmp_path / "slurm/logs/it1-training-77_2.out")
    assert first.script == tmp_path / f"slurm/it1-training-{first.token}.sbatch"
    assert Submission("t", "x", "f", {3: []}, "", "77").element(3) == "77", "one element is no array"


def test_a_ledger_that_is_cut_at_any_byte_tells_of_what_was_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A crash, or a full disk, of which nobody needs to hear; whoever goes on writes behind it."""
    whole = filled(tmp_path / "whole").file.read_bytes()
    lines = [line for line in whole.split(b"\n") if line]
    breaks = [place for place, byte in enumerate(whole) if byte == ord("\n")]
    for end in sorted({*range(0, len(whole), 5), *breaks, *(place + 1 for place in breaks)}):
        store = tmp_path / str(end)
        (store / ".jobs").mkdir(parents=True)
        (store / ".jobs" / "ledger.jsonl").write_bytes(whole[:end])
        there = [line for line in whole[:end].split(b"\n") if line in lines]
        tokens = [entry["token"] for entry in (json_of(line, old=b"{") for line in there) if "elements" in entry]
        before = Ledger.of(store)
        assert not capsys.readouterr().err
        assert list(before.submissions) == tokens
        assert [told.job for told in before.submissions.values()][:1] == [None, "77"][len(there) > 1 :][: len(tokens)]
        before.submitted(before.intend("more", {0: ["key e"]}, store, ""), "79")
        after = Ledger.of(store)
        assert after == before and [made.job for made in after.makers()["key e"]] == ["79"]
        capsys.readouterr()


def test_a_flipped_bit_costs_a_line_and_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One of each byte of a ledger; a newline that is lost or won makes two lines of one."""
    whole = filled(tmp_path).file.read_bytes()
    expected = Ledger.of(tmp_path)
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        expected.file.write_bytes(damaged)
        found = Ledger.of(tmp_path)
        told = capsys.readouterr().err.splitlines()
        assert all(one.elements == expected.submissions[token].elements for token, one in found.submissions.items())
        assert found == expected or told or damaged[-1:] != b"\n"
        assert all(re.fullmatch(rf"{re.escape(str(found.file))}:\d+: damaged; .*", line) for line in told)
        assert len(found.submissions) >= 1


def test_a_damaged_line_is_named_and_the_rest_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = filled(tmp_path).file
    _, second = Ledger.of(tmp_path).submissions.values()
    file.write_text(file.read_text().replace("key a", "key z"))
    found = Ledger.of(tmp_path)
    assert capsys.readouterr().err == f"{file}:2: damaged; the jobs it told of are not known\n"
    assert list(found.submissions.values()) == [second]
    found.submitted(second, "78")
    assert Ledger.of(tmp_path).submissions[second.token].job == "78"


def test_lines_of_old_have_no_checksum(tmp_path: Path) -> None:
    ledger = filled(tmp_path)
    lines = ledger.file.read_text().split("\n")
    ledger.file.write_text("\n".join(line.partition(" ")[2] for line in lines))
    assert ledger.file.read_text().split("\n")[1].startswith('{"token": ')
    assert Ledger.of(tmp_path) == ledger
    ledger.cancel(["77_0"])
    assert Ledger.of(tmp_path) == ledger


def test_a_job_of_no_submission_is_no_line_of_a_ledger(tmp_path: Path) -> None:
    ledger = filled(tmp_path)
    ledger.submitted(Submission("nobody", "x", "f", {}, ""), "5")
    with pytest.raises(UserError, match=r"ledger.jsonl:8: no line of a ledger, .*; mend it or delete it"):
        Ledger.of(tmp_path)


def test_a_submission_that_was_cut_off_is_found_in_the_queue_by_its_token(tmp_path: Path) -> None:
    ledger = filled(tmp_path)
    first, second = ledger.submissions.values()
    assert ledger.cut() == {second.group}
    others = [Queued("70", "RUNNING", "None", "(null)"), Queued("77_0", "RUNNING", "None", first.token)]
    ledger.adopt([*others, *(Queued(f"80_{i}", "PENDING", "None", second.token) for i in range(2))])
    assert [made.job for made in ledger.makers()["key d"]] == ["80_0", "80_1"]
    assert first.job == "77" and Ledger.of(tmp_path) == ledger and not ledger.cut()
    lines = ledger.file.read_text()
    ledger.adopt([Queued("80_1", "RUNNING", "None", second.token)])
    assert ledger.file.read_text() == lines, "once"


def test_a_submission_that_is_nowhere_stays_cut(tmp_path: Path) -> None:
    ledger = filled(tmp_path)
    queue = [Queued("80", "RUNNING", "None", "another")]
    ledger.adopt(queue)
    made = ledger.makers()["key d"][0]
    assert ledger.cut() == {made.submission.group} and made.alive(Alive(queue)) is None


def test_what_is_submitted_again_is_made_by_the_last_submission(tmp_path: Path) -> None:
    """And by all of it where it is made in parts."""
    ledger = filled(tmp_path)
    again = ledger.intend("it1-training", {0: ["key a"]}, tmp_path, "")
    assert ledger.makers()["key a"][-1].submission.group in ledger.cut(), "it is to be, whatever became of the first"
    ledger.submitted(again, "90")
    makers = ledger.makers()
    assert [made.job for made in makers["key a"]] == ["90"]
    assert [made.job for made in makers["key b"]] == [made.job for made in makers["key c"]] == ["77_2"]


# SLURM's words -----------------------------------------------------------------------------------------------------


def test_jobs_know_nothing_of_the_job_around_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("SLURM_JOB_ID", "SBATCH_PARTITION", "SRUN_DEBUG", "SLURM_CONF", "SLURMX", "SLURM"):
        monkeypatch.setenv(key, "x")
    found = client.environment()
    assert {key for key in found if key.startswith(("SLURM", "SBATCH", "SRUN"))} == {"SLURM_CONF", "SLURMX", "SLURM"}
    assert "PATH" in found


def answers(monkeypatch: pytest.MonkeyPatch, **said: str) -> list[tuple[str, ...]]:
    """SLURM's commands say this; the words of each."""
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(client, "slurm", lambda *words: asked.append(words) or said[words[0]])
    return asked


def test_limits_are_read_of_the_configuration_and_of_the_account(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "Configuration data as of x\nMaxArraySize            = 8\nMaxJobCount = 20\nOther = a = b\n\nEmpty =\n"
    answers(monkeypatch, scontrol=text, squeue="1\n1\n2\n")
    assert client.limits() == Limits(array=8, submitted=19, free=16)
    text += "AccountingStorageType = accounting_storage/slurmdbd\n"
    for said, most in (("", 19), ("\n", 19), ("15\n", 15), ("15\n\n7\n", 7), ("100\n", 19)):
        asked = answers(monkeypatch, scontrol=text, sacctmgr=said, squeue="")
        assert client.limits() == Limits(8, most, 19) and f"user={getpass.getuser()}" in asked[-1], said


def test_the_queue_tells_elements_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody's comment of two lines hides no job."""
    lines = ["77|3|PENDING|Dependency|abcd1234", "78|N/A|RUNNING|None|(null)", "79|0|PENDING|Resources|mine | yours"]
    lines += ["70|N/A|PENDING|None|one", "two|three", "", "80|0|RUNNING|None|token", ""]
    answers(monkeypatch, squeue="\n".join(lines))
    wanted = [("77_3", "abcd1234"), ("78", "(null)"), ("79_0", "mine | yours"), ("80_0", "token")]
    assert [(one.job, one.token) for one in client.queue() if one.job != "70"] == wanted
    assert client.queue()[0] == Queued("77_3", "PENDING", "Dependency", "abcd1234")


def test_minutes_of_a_limit() -> None:
    cases = {"infinite": math.inf, "n/a": math.inf, "1:00:00": 60, "30:00": 30, "0:30": 0.5, "2-00:00:00": 2880}
    cases |= {"1-12:30:30": 2190.5}
    assert {limit: minutes(limit) for limit in cases} == cases


def test_gpus_of_a_node() -> None:
    """Types as SLURM names them itself have hyphens, those of parts of a GPU have dots."""
    two, mixed = "gpu:a100:4(S:0-1),gpu:v100:2(S:0,1)", "gpu:a100_3g.20gb:2,gpu:a100:1"
    long = "gpu:nvidia_a100-sxm4-80gb"
    cases = {("(null)", "gpu"): 0, ("", "gpu"): 0, ("gpu", "gpu"): 1, ("gpu:8(S:0-1)", "gpu"): 8, ("gpus:3", "gpu"): 0}
    cases |= {("gpu:a100:4", "gpu"): 4, ("gpu:a100:4", "gpu:a100"): 4, ("gpu:a100:4", "gpu:a10"): 0}
    cases |= {(two, "gpu"): 6, (two, "gpu:v100"): 2, (mixed, "gpu"): 3, (mixed, "gpu:a100_3g.20gb"): 2}
    cases |= {(f"{long}:8(S:0-1)", long): 8, ("nvme:2,gpu:3,mps:400", "gpu"): 3}
    assert {case: gpus(*case) for case in cases} == cases


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
        told, _, remedy = str(error.value).partition("; ")
        assert told == f"launcher: sinfo: last: {said}" and remedy and type(error.value) is kind
    monkeypatch.setattr(client, "TIMEOUT_S", 0.1)
    with pytest.raises(UserError, match="sleep has not answered"):
        client.slurm("sleep", "600")
