"""Start policies and other published models, brought into the store as ordinary checkpoint folders.

Out: safetensors, config.json, tokenizer with chat template, generation_config.json.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import ClassVar

from src.artifact import RECORD
from src.config import Free, Label, UserError, config
from src.packages import package_folder, package_version

_WANTED = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.model", "*.jinja", "*.txt")


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

    def source_version(self) -> str:
        """Names, sizes and times of a local folder's files; of a hub repository the revision says it all."""
        files = _checkpoint_files(Path(self.repo)) if Path(self.repo).is_dir() else []
        seen = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
        return hashlib.sha256(repr(seen).encode()).hexdigest() if seen else ""

    def __call__(self, *inputs: Path, out: Path) -> None:
        local = Path(self.repo).is_dir()
        files = _checkpoint_files(Path(self.repo) if local else self._download())
        if not any(path.suffix == ".safetensors" for path in files):
            raise UserError(f"model.repo: {self.repo} has no safetensors file; convert it first (pickles are refused)")
        for path in files:
            if local:  # its owner may change it
                shutil.copy2(path, out / path.name)
            else:
                _link_or_copy(path.resolve(), out / path.name)

    def _download(self) -> Path:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError

        try:
            return Path(snapshot_download(self.repo, revision=self.revision, allow_patterns=list(_WANTED)))
        except GatedRepoError:
            raise UserError(f"model.repo: {self.repo} is gated; accept its licence, then `hf auth login`") from None
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"model.repo: {self.repo} is no local folder and cannot be fetched: {reason}") from None


def _checkpoint_files(folder: Path) -> list[Path]:
    found = {path for pattern in _WANTED for path in folder.glob(pattern)}
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
