"""Whatever an outside file or a reply holds, it is read or refused by name: never another error."""

from __future__ import annotations

from pathlib import Path

import fuzz_files
import fuzz_replies
import fuzz_store
import pytest
from fuzzing import Target, fuzz

FEW, MANY = 200, 5000
MODULES = [fuzz_files, fuzz_replies, fuzz_store]
ALL = [*(target for one in MODULES for target in one.TARGETS), *fuzz_store.HEAVY]


@pytest.mark.parametrize("targets", [one.TARGETS for one in MODULES], ids=[one.__name__ for one in MODULES])
def test_any_bytes_are_a_value_or_a_mistake_that_names_the_file(targets: list[Target], tmp_path: Path) -> None:
    check(targets, FEW, tmp_path)


@pytest.mark.faults
@pytest.mark.timeout(4 * 3600)
@pytest.mark.parametrize(
    "target", [target for one in MODULES for target in one.TARGETS] + fuzz_store.HEAVY, ids=lambda target: target.name
)
def test_any_of_many_bytes_are_a_value_or_a_mistake_that_names_the_file(target: Target, tmp_path: Path) -> None:
    check([target], MANY, tmp_path)


def check(targets: list[Target], count: int, place: Path) -> None:
    failures = []
    for number, target in enumerate(targets):
        try:
            read, refused = fuzz(target, place / f"given{number}", count // target.cost)
            print(f"{target.name}: {read} read, {refused} refused")
            assert read, f"{target.name}: inputs that are all refused show little"
        except AssertionError as failure:
            failures.append(str(failure))
    assert failures == []
