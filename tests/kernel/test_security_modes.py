"""A store that a group shares stays one: all files, locks too, have the modes of the umask."""

from __future__ import annotations

import os
from pathlib import Path

from tiny_run import call, tiny


def test_a_run_in_a_shared_store_leaves_everything_to_its_group(llama: Path, tmp_path: Path) -> None:
    """Also weights, which safetensors lets nobody else read, of start policies that are private where they were."""
    old = os.umask(0o002)
    try:
        assert call(*tiny(llama, tmp_path, "iter=1")) == 0
    finally:
        os.umask(old)
    assert list((tmp_path / "store").rglob("*.safetensors")) and list((tmp_path / "store" / ".locks").iterdir())
    made = [path for name in ("store", "runs") for path in (tmp_path / name).rglob("*") if not path.is_symlink()]
    assert [path for path in made if path.stat().st_mode & 0o060 != 0o060] == []
