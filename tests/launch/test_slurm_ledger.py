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
from src.launch.slurm.ledger import Ledger

Capture = pytest.CaptureFixture[str]


def filled(place: Path) -> Ledger:
    """Return the ledger of two submissions: an array, and shares."""
    ledger = Ledger(place)
    ledger.note("it1-training", place / "slurm", {0: ["key a"], 2: ["key b", "key c"]}, {0: ["key x"], 2: []})
    ledger.note("it2-generation", place / "slurm", {0: ["key d"], 1: ["key d"]}, {0: [], 1: []})
    return ledger


def content(place: Path) -> list[dict[str, Any]]:
    return [asdict(one) for one in Ledger(place).submissions]


def test_a_ledger_is_read_as_it_was_written_and_the_queue_says_which_of_its_jobs_live(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody's comment of two lines hides no job, and what SLURM is about to cancel does not live."""
    assert Ledger(tmp_path).submissions == [] and list(tmp_path.iterdir()) == []
    ledger = filled(tmp_path)
    assert content(tmp_path) == [asdict(one) for one in ledger.submissions]
    again = ledger.note("it1-training", tmp_path, {0: ["key a"]}, {0: []})  # one element is no array
    first, second, third = (one.token for one in ledger.submissions)
    assert len({first, second, third}) == 3
    makers = ledger.makers()
    assert [(maker.submission, maker.index) for maker in makers["key a"]] == [(ledger.submissions[0], 0), (again, 0)]
    assert makers["key b"] == makers["key c"] and len(makers["key d"]) == 2
    queue = f"77|2|RUNNING|None|{first}\n77|0|COMPLETING|None|{first}\ntwo|three\n\n91|N/A|RUNNING|None|(null)\n"
    queue += f"78|0|PENDING|DependencyNeverSatisfied|{second}\n90|N/A|PENDING|Priority|{third}\n7|0|mine | yours\n"
    monkeypatch.setattr(client, "slurm", lambda *words: queue)
    assert ledger.under_way(client.queue()) == {"key a": ["90"], "key b": ["77_2"], "key c": ["77_2"]}
    assert client.queue()[third, ""] == Queued("90", "PENDING", "Priority")


def test_a_ledger_that_is_cut_at_any_byte_has_what_was_whole(tmp_path: Path, capsys: Capture) -> None:
    """A crash or a full disk cuts it, of which nobody needs to hear. Whoever goes on writes behind it."""
    file = filled(tmp_path).file
    whole, submissions = file.read_bytes(), content(tmp_path)
    ends = [match.end() for match in re.finditer(rb"[^\n]+", whole)]
    for end in sorted({*range(0, len(whole), 5), *ends, *(end + 1 for end in ends)}):
        file.write_bytes(whole[:end])
        before = content(tmp_path)
        assert before == submissions[: sum(one <= end for one in ends)] and not capsys.readouterr().err
        Ledger(tmp_path).note("more", tmp_path, {0: ["key e"]}, {0: []})
        assert content(tmp_path)[:-1] == before
        capsys.readouterr()


def test_a_flipped_bit_costs_a_line_and_is_told(tmp_path: Path, capsys: Capture) -> None:
    """A bit of each byte of a ledger flips; a newline that is lost or won makes two lines of one."""
    file = filled(tmp_path).file
    whole, expected = file.read_bytes(), content(tmp_path)
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        file.write_bytes(damaged)
        capsys.readouterr()
        submissions, lines = content(tmp_path), capsys.readouterr().err.splitlines()
        assert all(one in expected for one in submissions) and len(submissions) >= 1
        assert submissions == expected or lines or damaged[-1:] != b"\n"
        assert all(re.fullmatch(rf"{re.escape(str(file))}:\d+: damaged; .*", line) for line in lines)


def test_jobs_know_nothing_of_the_job_around_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("SLURM_JOB_ID", "SBATCH_PARTITION", "SRUN_DEBUG", "SLURM_CONF", "SLURMX"):
        monkeypatch.setenv(key, "x")
    names = {key for key in client.environment() if key.startswith(("SLURM", "SBATCH", "SRUN"))}
    assert names == {"SLURM_CONF", "SLURMX"} and "PATH" in client.environment()


def test_what_slurm_says_last_is_the_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    kinds = {"configuration source": NoCluster, "connect failure": Fault, "no such job": UserError}
    for failure, kind in kinds.items():
        lines = f"#!/bin/sh\necho 'sinfo: first' >&2; echo 'sinfo: last: {failure}' >&2; exit 1\n"
        (stub := tmp_path / "sinfo").write_text(lines)
        stub.chmod(0o755)
        with pytest.raises(UserError) as error:
            client.slurm("sinfo")
        message, _, remedy = str(error.value).partition("; ")
        assert message == f"launcher: sinfo: last: {failure}" and remedy and type(error.value) is kind
    monkeypatch.setattr(client, "TIMEOUT_S", 0.1)
    with pytest.raises(Fault, match="sleep has not answered"):
        client.slurm("sleep", "600")
