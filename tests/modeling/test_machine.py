"""What is said of the machine before any work."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_run import composed, typed

from src import machine

OLD, NEW = "flags\t\t: fpu avx2 avx512f\n", "flags\t\t: fpu avx512f avx512_bf16\n"


def test_a_processor_without_bf16_instructions_is_told_of_fp32(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "cpuinfo")
    failed = []
    for cpuinfo, words, told in (
        ("", [], False),
        (OLD, [], True),
        (OLD, ["hardware=cpu_fp32"], False),
        (OLD, ["hardware=1xa100_80gb"], False),
        (NEW, [], False),
        (NEW.replace("avx512_bf16", "amx_bf16"), [], False),
    ):
        if cpuinfo:
            machine.CPUINFO.write_text(cpuinfo)
        run = typed("iter=1", *words)
        if ("hardware=cpu_fp32" in machine.slow_bf16(run, run.nodes())) != told or machine.slow_bf16(run, []):
            failed.append((cpuinfo, words))
    assert not failed


def test_fp32_is_fp32_throughout() -> None:
    run = composed("hardware=cpu_fp32")
    assert {run.hardware.devices.precision, run.hardware.engine.dtype, run.ranker.precision} == {"float32"}
