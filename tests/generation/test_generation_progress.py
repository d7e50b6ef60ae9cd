"""The bar of a generation: tokens a second, an answer now and then, and what others have made."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from slow_engine import Bar
from tiny_generation import EVERY, Small, processes_find_the_engine, small  # noqa: F401

from src.artifact import WORK
from src.cells import CELLS, Cells
from src.generation import counter as counter_module
from src.generation.contract import Answer, Made, Request
from src.generation.counter import LOOK_S, SHOWN, Counter, cell

# ruff: noqa: F811


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> list[Bar]:
    """Those that were opened."""
    found: list[Bar] = []

    def bar(name: str, total: int, done: int, unit: str) -> Bar:
        found.append(Bar(total=total, n=done, begun=done, lines=[], closed=False))
        return found[-1]

    monkeypatch.setattr(counter_module, "bar", bar)
    return found


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """It is put forward by hand."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(counter_module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


ASKED = [Request("p", [{"role": "user", "content": "what\n is  it?"}], [1], {k: k for k in range(4)})]


def answer(k: int, tokens: int, text: str = "a") -> Made:
    return Made("p", k, Answer(text, list(range(tokens)), "length"))


def test_the_bar_tells_tokens_a_second_and_once_a_minute_an_answer(
    clock: SimpleNamespace, bars: list[Bar], tmp_path: Path
) -> None:
    with Counter(9, Cells(tmp_path), ASKED) as counter:
        (bar,) = bars
        for seconds, made in ((2, answer(0, 10)), (58, answer(1, 20)), (1, answer(2, 31, "it\nis " + 200 * "x"))):
            clock.now += seconds
            counter.add(made)
            assert len(bar.lines) == (made.k == 2)
        assert (bar.postfix, bar.begun, bar.n) == ("1 tokens/s", 5, 8)
        assert bar.lines == [f"generate: 'what is it?' -> 'it is {'x' * (SHOWN - 6)}'"]
        assert not bar.closed
    assert bar.closed


def test_answers_of_other_processes_are_counted_once_and_looked_for_once_a_second(
    clock: SimpleNamespace, bars: list[Bar], tmp_path: Path
) -> None:
    """One is there twice, one is nobody's."""
    counter = Counter(4, Cells(tmp_path), ASKED)
    (bar,) = bars
    clock.now += 10
    counter.look()
    for found in ((answer(0, 30), answer(1, 10)), (answer(1, 10), answer(9, 1000))):
        Cells(tmp_path).add({cell(made.prompt_id, made.k): made.answer._asdict() for made in found})
    seen = []
    for seconds in (LOOK_S / 2, LOOK_S / 2, 10):
        clock.now += seconds
        counter.look()
        seen.append(bar.n)
    assert seen == [0, 2, 2]
    assert bar.postfix == f"{40 / (10 + LOOK_S):.0f} tokens/s"


def test_the_bar_goes_on_where_the_last_start_was_and_ends_full(bars: list[Bar], small: Small) -> None:
    small.run("first")
    (file,) = (small.folder / "out" / WORK / CELLS).glob("*.jsonl")
    file.write_text("".join(line + "\n" for line in file.read_text().splitlines()[:5]))
    small.run("again")
    assert [(bar.total, bar.begun, bar.n) for bar in bars] == [(EVERY, 0, EVERY), (EVERY, 5, EVERY)]
