"""What submissions remember, and what is read of SLURM's words: the ledger and the queue."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from src.kernel.config import Fault, UserError
from src.launch.slurm import client
from src.launch.slurm.client import NoCluster, Queued
from src.launch.slurm.ledger import Ledger, living

Capture = pytest.CaptureFixture[str]


def filled(place: Path) -> Ledger:
    """Two submissions: an array, and shares."""
    ledger = Ledger(place)
    ledger.note("it1-training", place / "slurm", {0: ["key a"], 2: ["key b", "key c"]}, {0: ["key x"], 2: []})
    ledger.note("it2-generation", place / "slurm", {0: ["key d"], 1: ["key d"]}, {0: [], 1: []})
    return ledger


def content(ledger: Ledger) -> list[dict[str, Any]]:
    return [asdict(one) for one in ledger.submissions]


def test_a_ledger_is_read_as_it_was_written_and_the_queue_says_which_of_its_jobs_live(tmp_path: Path) -> None:
    assert Ledger(tmp_path).submissions == [] and list(tmp_path.iterdir()) == []
    written, ledger = filled(tmp_path), Ledger(tmp_path)
    assert content(ledger) == content(written)
    first, second = ledger.submissions
    again = ledger.note("it1-training", tmp_path, {0: ["key a"]}, {0: []})
    assert len({first.token, second.token, again.token}) == 3
    makers = ledger.makers()
    assert [(maker.submission, maker.index) for maker in makers["key a"]] == [(first, 0), (again, 0)]
    assert makers["key b"] == makers["key c"] and len(makers["key d"]) == 2
    queued = [
        Queued("77_2", "RUNNING", "None", first.token),
        Queued("77_0", "COMPLETING", "None", first.token),
        Queued("78_0", "PENDING", "DependencyNeverSatisfied", second.token),
        Queued("90", "PENDING", "Priority", again.token),  # one element is no array
        Queued("91", "RUNNING", "None", "(null)"),
    ]
    alive = {maker: job.job for maker in ledger.elements() if (job := maker.queued(living(queued)))}
    assert list(alive.values()) == ["77_2", "90"] and [maker.makes for maker in alive] == [
        ["key b", "key c"],
        ["key a"],
    ]


def test_a_ledger_that_is_cut_at_any_byte_has_what_was_whole(tmp_path: Path, capsys: Capture) -> None:
    """A crash, or a full disk, of which nobody needs to hear; whoever goes on writes behind it."""
    whole = filled(tmp_path / "whole").file.read_bytes()
    submissions = content(Ledger(tmp_path / "whole"))
    ends = [
        place for place, byte in enumerate(whole) if byte == ord("\n") and whole[place - 1 : place] not in (b"\n", b"")
    ]
    for end in sorted({*range(0, len(whole), 5), *ends, *(place + 1 for place in ends)}):
        store = tmp_path / str(end)
        (store / ".jobs").mkdir(parents=True)
        (store / ".jobs" / "ledger.jsonl").write_bytes(whole[:end])
        before = Ledger(store)
        assert content(before) == submissions[: sum(place <= end for place in ends)] and not capsys.readouterr().err
        before.note("more", store, {0: ["key e"]}, {0: []})
        assert content(Ledger(store)) == content(before)
        capsys.readouterr()


def test_a_flipped_bit_costs_a_line_and_is_told(tmp_path: Path, capsys: Capture) -> None:
    """One of each byte of a ledger; a newline that is lost or won makes two lines of one."""
    whole = filled(tmp_path).file.read_bytes()
    expected = content(Ledger(tmp_path))
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        (file := Ledger(tmp_path).file).write_bytes(damaged)
        capsys.readouterr()
        found = content(Ledger(tmp_path))
        lines = capsys.readouterr().err.splitlines()
        assert all(one in expected for one in found) and len(found) >= 1
        assert found == expected or lines or damaged[-1:] != b"\n"
        assert all(re.fullmatch(rf"{re.escape(str(file))}:\d+: damaged; .*", line) for line in lines)


# SLURM's words -----------------------------------------------------------------------------------------------------


def test_jobs_know_nothing_of_the_job_around_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("SLURM_JOB_ID", "SBATCH_PARTITION", "SRUN_DEBUG", "SLURM_CONF", "SLURMX", "SLURM"):
        monkeypatch.setenv(key, "x")
    names = {key for key in client.environment() if key.startswith(("SLURM", "SBATCH", "SRUN"))}
    assert names == {"SLURM_CONF", "SLURMX", "SLURM"} and "PATH" in client.environment()


def test_the_queue_tells_elements_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody's comment of two lines hides no job."""
    lines = ["77|3|PENDING|Dependency|abcd1234", "78|N/A|RUNNING|None|(null)", "79|0|PENDING|Resources|mine | yours"]
    lines += ["70|N/A|PENDING|None|one", "two|three", "", "80|0|RUNNING|None|token", ""]
    monkeypatch.setattr(client, "slurm", lambda *words: "\n".join(lines))
    wanted = [("77_3", "abcd1234"), ("78", "(null)"), ("79_0", "mine | yours"), ("70", "one"), ("80_0", "token")]
    assert [(one.job, one.token) for one in client.queue()] == wanted
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
