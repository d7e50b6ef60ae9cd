"""Whatever an outside file or a reply holds, it is read or refused by name: never another error."""

from __future__ import annotations

from pathlib import Path

import fuzz_files
import fuzz_models
import fuzz_replies
import fuzz_store
import fuzz_tracking
import fuzz_words
import pytest
from fuzzing import Target, fuzz

from src.config import UserError

TARGETS = [
    *fuzz_files.TARGETS,
    *fuzz_models.TARGETS,
    *fuzz_replies.TARGETS,
    *fuzz_store.TARGETS,
    *fuzz_tracking.TARGETS,
    *fuzz_words.TARGETS,
]
FEW, MANY = 25, 5000
LONG = [pytest.mark.faults, pytest.mark.timeout(4 * 3600)]
BOTH = [
    pytest.param(target, count, marks=LONG if count == MANY else [pytest.mark.full] if target.slow else [])
    for count in (FEW, MANY)
    for target in TARGETS
]


@pytest.mark.parametrize(("target", "count"), BOTH, ids=str)
def test_any_bytes_are_a_value_or_a_mistake_that_names_the_file(target: Target, count: int, tmp_path: Path) -> None:
    read, refused = fuzz(target, tmp_path / "given", max(10, count // target.cost))
    print(f"{target}: {read} read, {refused} refused")
    assert read or count == FEW, "inputs that are all refused show little"


def test_a_reader_that_breaks_is_found(tmp_path: Path) -> None:
    """The law can fail: of a reader that believes its file, of one that hides its name, and of one that writes."""

    def believing(folder: Path) -> object:
        return (folder / "a.json").read_text()[10]

    def hiding(folder: Path) -> object:
        try:
            return believing(folder)
        except (IndexError, ValueError):
            raise UserError("something is wrong") from None

    def writing(folder: Path) -> object:
        return (folder / "log").write_text("read") if (folder / "a.json").read_bytes() != b'{"a": [1, 2]}' else None

    make = fuzz_files.text("a.json", '{"a": [1, 2]}')
    for number, reader in enumerate((believing, hiding, writing)):
        with pytest.raises(AssertionError, match="input [0-9]+ of toy"):
            fuzz(Target("toy", make, reader), tmp_path / str(number), 50)
