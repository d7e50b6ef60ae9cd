"""Start policies and other published models, brought into the store as ordinary checkpoint folders.

Out: safetensors, config.json, tokenizer with chat template, generation_config.json.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import ClassVar

from pydantic import PositiveFloat

from src.config import Free, Label, UserError, config
from src.packages import package_folder, package_version
from src.provenance import RECORD

_SMALL = ("*.json", "*.model", "*.jinja", "*.txt")
_WEIGHTS = "*.safetensors"
_WANTED = (_WEIGHTS, *_SMALL)
_WITH_CODE = (*_WANTED, "*.py")


@config
class GgufPackage:
    """A GGUF file shipped inside an installed Python package, dequantised once to fp32."""

    kind: ClassVar[str] = "policy"
    version: ClassVar[int] = 1
    resumable: ClassVar[bool] = False

    name: Free[Label]
    package: str
    """Importable name; its code is never run, only its folder is looked up."""
    file: str
    id: Free[str | None] = None
    """Of the same model on the hub, for the cards of what is trained from it."""
    license: Free[str | None] = None
    """As the hub spells it, such as apache-2.0."""
    weights: Free[PositiveFloat | None] = None
    """Parameters as published, for forecasts."""

    def source_version(self) -> str:
        return package_version(self.package)

    def __call__(self, *inputs: Path, out: Path) -> None:
        from transformers import AutoTokenizer

        folder = package_folder(self.package)
        if not (folder / self.file).is_file():
            raise UserError(f"{self.name}: the file {self.file} is not in the package {self.package}")
        _convert(folder, self.file, out)
        AutoTokenizer.from_pretrained(folder, gguf_file=self.file).save_pretrained(out)


@config
class Checkpoint:
    """A published checkpoint: a hub id, or a folder of safetensors on this machine."""

    kind: ClassVar[str] = "policy"
    version: ClassVar[int] = 1
    resumable: ClassVar[bool] = True

    name: Free[Label]
    repo: str
    """Hub id such as `google/gemma-2-9b-it`, or a local folder."""
    revision: str
    """Commit, tag or branch of the hub repository; give a commit where a number must be reproducible."""
    id: Free[str | None] = None
    """On the hub, whatever `repo` is; for the cards of what is trained from it."""
    license: Free[str | None] = None
    """As the hub spells it, such as gemma."""
    weights: Free[PositiveFloat | None] = None
    """Parameters as published, for forecasts."""

    def source_version(self) -> str:
        return _local_version(self.repo, _WANTED)

    def __call__(self, *inputs: Path, out: Path) -> None:
        bring(self.repo, self.revision, _WANTED, out)


@config
class CheckpointWithCode:
    """A published checkpoint with the Python files that its model runs."""

    kind: ClassVar[str] = "policy"
    version: ClassVar[int] = 1
    resumable: ClassVar[bool] = True

    name: Free[Label]
    repo: str
    """Hub id such as `RLHFlow/ArmoRM-Llama3-8B-v0.1`, or a local folder."""
    revision: str
    """Give a commit: what runs is then what was read."""
    trusted: Free[bool]
    """Nothing is brought without it, and the run ends before anything is sampled."""
    weights: Free[PositiveFloat | None] = None
    """Parameters as published, for forecasts."""

    def source_version(self) -> str:
        return _local_version(self.repo, _WITH_CODE)

    def check_trusted(self) -> None:
        if not self.trusted:
            raise UserError(
                f"ranker.trust_remote_code: {self.repo} runs Python files of its own; read them, then set it to true"
            )

    def __call__(self, *inputs: Path, out: Path) -> None:
        self.check_trusted()
        bring(self.repo, self.revision, _WITH_CODE, out)


@config
class Vocabulary:
    """Config and tokenizer of a published checkpoint, for a model that has weights of its own."""

    kind: ClassVar[str] = "vocabulary"
    version: ClassVar[int] = 1
    resumable: ClassVar[bool] = True

    name: Free[Label]
    repo: str
    """Hub id such as `microsoft/deberta-v3-large`, or a local folder."""
    revision: str

    def source_version(self) -> str:
        return _local_version(self.repo, _SMALL)

    def __call__(self, *inputs: Path, out: Path) -> None:
        bring(self.repo, self.revision, _SMALL, out)


def bring(repo: str, revision: str, wanted: tuple[str, ...], out: Path) -> None:
    """Copy or link the `wanted` files of a local folder or a hub repository into `out`, or none of them."""
    local = Path(repo).is_dir()
    files = _files(Path(repo) if local else _download(repo, revision, wanted), wanted)
    if _WEIGHTS in wanted and not any(path.match(_WEIGHTS) for path in files):
        raise UserError(f"repo: {repo} has no safetensors file; convert it first (pickles are refused)")
    for path in files:
        if local:  # its owner may change it
            shutil.copy2(path, out / path.name)
        else:
            _link_or_copy(path.resolve(), out / path.name)


def _download(repo: str, revision: str, wanted: tuple[str, ...]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=list(wanted)))
    except GatedRepoError:
        raise UserError(f"repo: {repo} is gated; accept its licence, then `hf auth login`") from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"repo: {repo} is no local folder and cannot be fetched: {reason}") from None


def _local_version(repo: str, wanted: tuple[str, ...]) -> str:
    """Names, sizes and times of a local folder's files; of a hub repository the revision says it all."""
    files = _files(Path(repo), wanted) if Path(repo).is_dir() else []
    seen = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(repr(seen).encode()).hexdigest() if seen else ""


def _files(folder: Path, wanted: tuple[str, ...]) -> list[Path]:
    found = {path for pattern in wanted for path in folder.glob(pattern)}
    return sorted(path for path in found if path.name != RECORD)  # the folder may be an artifact itself


def _convert(folder: Path, file: str, out: Path) -> None:
    """A model loaded from GGUF refuses to be saved; a fresh one with its weights does not."""
    import torch
    from transformers import AutoModelForCausalLM

    quantised = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
    settings = quantised.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "dtype"):
        settings.pop(key, None)
    model = AutoModelForCausalLM.from_config(type(quantised.config)(**settings), dtype=torch.float32)
    model.load_state_dict(quantised.state_dict())
    model.generation_config = quantised.generation_config
    model.save_pretrained(out)


def _link_or_copy(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
