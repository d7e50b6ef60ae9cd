"""Where English sentences end, for nltk (its punkt_tab): files of an installed package, so that nothing is fetched."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

CARRIER = "llama-index-core"
CARRIED = "llama_index/core/_static/nltk_cache"
PUNKT = "tokenizers/punkt_tab/english"


def carried() -> Path | None:
    """Folder with those of the package, none of whose code is run; None: it is not installed."""
    try:
        folder = Path(str(metadata.distribution(CARRIER).locate_file(CARRIED))) / PUNKT
    except metadata.PackageNotFoundError:
        return None
    return folder if folder.is_dir() else None


def at_hand() -> bool:
    """Whether nltk can have them without fetching them."""
    if carried() is not None:
        return True
    import nltk

    try:
        nltk.data.find(f"{PUNKT}/")
    except (LookupError, OSError):
        return False
    return True


def copy_to(folder: Path) -> bool:
    """Make `folder` one that nltk finds them in; False where no package carries them.

    A copy, since nltk refuses files that have several names (uv links them so) or that others may write.
    """
    source = carried()
    if source is None:
        return False
    own = folder / PUNKT
    own.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        shutil.copyfile(file, own / file.name)
        (own / file.name).chmod(0o600)
    return True


@contextmanager
def found_by_nltk() -> Iterator[None]:
    """Inside, nltk of this process finds the package's first; what it has read then it keeps."""
    import nltk

    before = list(nltk.data.path)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        if copy_to(folder):
            nltk.data.path.insert(0, str(folder))
        try:
            yield
        finally:
            nltk.data.path[:] = before
