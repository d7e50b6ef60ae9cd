"""lm-eval's checker of IFEval, without the network, and with fixed draws where it draws by lot."""

from __future__ import annotations

import logging
import random
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import metadata, util
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field
from typing_extensions import TypedDict

from src.evaluation.foreign_rows import Text
from src.kernel.config import UserError

PUNKT = "tokenizers/punkt_tab/english"
"""Where English sentences end, for nltk."""
CARRIER, CARRIED = "llama-index-core", "llama_index/core/_static/nltk_cache"
"""An installed package that carries these files, and where; none of its code is run."""


class Question(TypedDict):
    """A row of the official file."""

    key: int | Text
    prompt: Text
    instruction_id_list: Annotated[list[Text], Field(min_length=1)]
    kwargs: list[dict[str, Any]]


class Verdict(NamedTuple):
    """On one answer, an entry an instruction."""

    strict: list[bool]
    loose: list[bool]
    """By the best of eight readings: without asterisks, without its first line, its last, or both."""


def judge(question: Question, answer: str) -> Verdict:
    """Says which instructions the answer follows, the same every time."""
    checker, verdicts = _checker(), []
    for check in (checker.test_instruction_following_strict, checker.test_instruction_following_loose):
        with _fixed_lots():  # for each, so that both ask for the same where a question leaves something open
            verdicts.append(check(checker.InputExample(**question), answer).follow_instruction_list)
    return Verdict(*verdicts)


def check_installed() -> None:
    """Raises UserError where the checker, or the sentence boundaries that it needs, are not there."""
    if not all(map(util.find_spec, ("lm_eval", "nltk", "langdetect"))):
        raise UserError("benchmark=ifeval needs lm-eval[ifeval]: pip install 'iterpref[eval]', or `make install`")
    if _carried() is None:
        import nltk

        try:
            nltk.data.find(f"{PUNKT}/")
        except (LookupError, OSError):
            raise UserError(
                f"benchmark=ifeval needs nltk's punkt_tab: `make install` brings it in the package {CARRIER}, and "
                "`python -m nltk.downloader punkt_tab` fetches it"
            ) from None


def versions() -> str:
    """Names the versions of all that a verdict depends on. Raises UserError like `check_installed`."""
    check_installed()
    named = [f"{name} {metadata.version(name)}" for name in ("lm-eval", "nltk", "langdetect")]
    punkt = f"punkt_tab of {CARRIER} {metadata.version(CARRIER)}" if _carried() else "punkt_tab found by nltk"
    return ", ".join([*named, punkt])


def copy_punkt(folder: Path) -> bool:
    """Makes `folder` one in which nltk finds the sentence boundaries; False where no package carries them.

    A copy, since nltk refuses files that have several names (uv links them so) or that others may write.
    """
    if (source := _carried()) is None:
        return False
    (place := folder / PUNKT).mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        shutil.copyfile(file, place / file.name)
        (place / file.name).chmod(0o600)
    return True


def _carried() -> Path | None:
    try:
        folder = Path(str(metadata.distribution(CARRIER).locate_file(CARRIED))) / PUNKT
    except metadata.PackageNotFoundError:
        return None
    return folder if folder.is_dir() else None


@cache
def _checker() -> Any:
    """Imports lm-eval's module; its import looks for punkt_tab, and would download it."""
    check_installed()
    import nltk

    before = list(nltk.data.path)
    with tempfile.TemporaryDirectory() as name:
        if copy_punkt(folder := Path(name).resolve()):
            nltk.data.path.insert(0, str(folder))
        try:
            from lm_eval.tasks.ifeval import instructions_util, utils

            instructions_util.count_sentences("One. Two.")  # both keep what they read
            nltk.word_tokenize("One. Two.")
        except (LookupError, OSError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"benchmark=ifeval: nltk's punkt_tab cannot be read ({reason})") from None
        finally:
            nltk.data.path[:] = before
    logging.getLogger("lm_eval.tasks.ifeval.instructions").setLevel(logging.CRITICAL)  # repeats whole answers
    return utils


@contextmanager
def _fixed_lots() -> Iterator[None]:
    """Fixes the draws inside; those of everybody else go on as if nothing had been drawn."""
    from langdetect import DetectorFactory

    before, seed = random.getstate(), DetectorFactory.seed
    random.seed(0)
    DetectorFactory.seed = 0  # unset, it may judge one answer twice in two ways
    try:
        yield
    finally:
        random.setstate(before)
        DetectorFactory.seed = seed
