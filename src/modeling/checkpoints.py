"""Start policies and other published models, brought into the store as ordinary checkpoint folders.

Out: safetensors, config.json, tokenizer with chat template, generation_config.json.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import struct
from collections.abc import Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

from pydantic import PositiveFloat

from src.kernel.config import Fault, Free, Label, UserError, config
from src.kernel.provenance import RECORD


def package_folder(package: str, key: str) -> Path:
    """Folder of an installed package, found without importing it. Raises UserError, naming the config's `key`, when it
    is not installed.
    """
    # Looking up a dotted name would import its parent.
    spec = None if "." in package else importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise UserError(f"{key}: no package {package} is installed; mend the name, or `make install` where it is right")
    return Path(spec.origin).parent


def package_version(package: str, key: str) -> str:
    """`name version`; the version is empty for a package installed without metadata. Raises UserError as above."""
    package_folder(package, key)
    return _version(package)


@cache
def _version(package: str) -> str:
    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return f"{package} "


INDEX = ".safetensors.index.json"
AGAIN = "fetch it again"
_LENGTH = 8
"""Bytes that say how long the head of a safetensors file is."""


def refuse_broken(files: Sequence[Path]) -> None:
    """Raises UserError for JSON that is none, weights that are cut off, and for what is not there."""
    weights = [file for file in files if file.suffix == ".safetensors"]
    if weights and not any(file.name == "config.json" for file in files):
        raise UserError(f"{weights[0].parent}: no config.json beside the weights; bring the whole model")
    for file in files:
        if file.suffix == ".json":
            found = _object(file)
            if file.name.endswith(INDEX):
                _refuse_missing_shards(file, found, {other.name for other in files})
        elif file.suffix == ".safetensors":
            _refuse_cut_off(file)


def _object(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: no JSON ({error}); {AGAIN}") from None
    if not isinstance(found, dict) and file.name.endswith(("config.json", INDEX)):
        raise UserError(f"{file}: a {type(found).__name__}, not a JSON object; {AGAIN}")
    return found


def _refuse_missing_shards(file: Path, index: dict[str, Any], there: set[str]) -> None:
    named = index.get("weight_map")
    missing = sorted({str(shard) for shard in named.values()} - there) if isinstance(named, dict) else []
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(f"{file}: names {missing[0]}{more}, which is not there; {AGAIN}")


def _refuse_cut_off(file: Path) -> None:
    """The head says where the last weight ends, and so how long the file is."""
    size = file.stat().st_size
    try:
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(_LENGTH))
            if length > size - _LENGTH:
                raise ValueError
            head = json.loads(opened.read(length))
        ends = [found["data_offsets"][1] for name, found in head.items() if name != "__metadata__"]
        whole = _LENGTH + length + max(ends, default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError, struct.error):
        raise UserError(f"{file}: no safetensors file, or one that is cut off in its head; {AGAIN}") from None
    if size != whole:
        raise UserError(f"{file}: {size:,} bytes, and its head names {whole:,}; {AGAIN}")


_SMALL = ("*.json", "*.model", "*.jinja", "*.txt")
_WEIGHTS = "*.safetensors"
_ADAPTER = "adapter_config.json"
"""transformers would go on to the model that this names, wherever it lies."""
_WANTED = (_WEIGHTS, *_SMALL)
_WITH_CODE = (*_WANTED, "*.py")
MODEL = "model"


@config
class GgufPackage:
    """A GGUF file shipped inside an installed Python package, dequantised once to fp32."""

    kind: ClassVar[str] = "policy"
    version: ClassVar[int] = 1
    resumable: ClassVar[bool] = False

    name: Free[Label]
    place: Free[str] = MODEL
    """In the config, for messages."""
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
        return package_version(self.package, f"{self.place}.package")

    def __call__(self, *inputs: Path, out: Path) -> None:
        from transformers import AutoTokenizer

        folder = package_folder(self.package, f"{self.place}.package")
        if not (folder / self.file).is_file():
            raise UserError(f"{self.place}.file: the package {self.package} has no {self.file}; mend the name")
        _convert(folder, self.file, out)
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=self.file, trust_remote_code=False)
        tokenizer.save_pretrained(out)


@config
class Checkpoint:
    """A published checkpoint: a hub id, or a folder of safetensors on this machine."""

    kind: ClassVar[str] = "policy"
    version: ClassVar[int] = 1
    resumable: ClassVar[bool] = True

    name: Free[Label]
    place: Free[str] = MODEL
    """In the config, for messages."""
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
        bring(self.repo, self.revision, _WANTED, out, f"{self.place}.repo")


@config
class CheckpointWithCode:
    """A published checkpoint with the Python files that its model runs."""

    kind: ClassVar[str] = "policy"
    version: ClassVar[int] = 1
    resumable: ClassVar[bool] = True

    name: Free[Label]
    place: Free[str] = MODEL
    """In the config, for messages."""
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
        bring(self.repo, self.revision, _WITH_CODE, out, f"{self.place}.repo")


@config
class Vocabulary:
    """Config and tokenizer of a published checkpoint, for a model that has weights of its own."""

    kind: ClassVar[str] = "vocabulary"
    version: ClassVar[int] = 1
    resumable: ClassVar[bool] = True

    name: Free[Label]
    place: Free[str] = MODEL
    """In the config, for messages."""
    repo: str
    """Hub id such as `microsoft/deberta-v3-large`, or a local folder."""
    revision: str

    def source_version(self) -> str:
        return _local_version(self.repo, _SMALL)

    def __call__(self, *inputs: Path, out: Path) -> None:
        bring(self.repo, self.revision, _SMALL, out, f"{self.place}.repo")


def bring(repo: str, revision: str, wanted: tuple[str, ...], out: Path, key: str) -> None:
    """Copy or link the `wanted` files of a local folder or a hub repository into `out`, or none of them.

    `key` of the config is where `repo` stands.
    """
    local = Path(repo).is_dir()
    files = _files(Path(repo) if local else _download(repo, revision, wanted, key), wanted)
    if _WEIGHTS in wanted and not any(path.match(_WEIGHTS) for path in files):
        raise UserError(
            f"{key}: {repo} has no safetensors file; convert it first: load it where nothing is to be lost and "
            "save_pretrained() it into a folder, then give that (pickles are refused: reading one runs what it says)"
        )
    if _WEIGHTS in wanted and any(path.name == _ADAPTER for path in files):
        raise UserError(f"{key}: {repo} has an {_ADAPTER}: additions to another model; merge them into it first")
    refuse_broken(files)
    for path in files:
        if local:  # its owner may change it
            shutil.copyfile(path, out / path.name)  # not its mode: weights that one user saves are that user's alone
        else:
            _link_or_copy(path.resolve(), out / path.name)


def _download(repo: str, revision: str, wanted: tuple[str, ...], key: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError

    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=list(wanted)))
    except GatedRepoError:
        raise UserError(f"{key}: {repo} is gated; accept its licence, then `hf auth login`") from None
    except HFValidationError:
        raise UserError(
            f"{key}: {repo} is no local folder and cannot be fetched: no hub id (owner/name) either; mend it"
        ) from None
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0].partition(". ")[0].rstrip(".")
        told = f"{key}: {repo} is no local folder and cannot be fetched: {reason}"
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
        if isinstance(error, ValueError) or (status is not None and status < 500 and status not in (408, 429)):
            raise UserError(f"{told}; mend the id, its revision or the path, or `hf auth login`") from None
        raise Fault(f"{told}; is there a network? A folder will do as well") from None


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

    quantised = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=file, dtype=torch.float32, trust_remote_code=False
    )
    settings = quantised.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "dtype"):
        settings.pop(key, None)
    model = AutoModelForCausalLM.from_config(
        type(quantised.config)(**settings), dtype=torch.float32, trust_remote_code=False
    )
    model.load_state_dict(quantised.state_dict())
    model.generation_config = quantised.generation_config
    model.save_pretrained(out)
    share_weights(out)


def share_weights(folder: Path, beside: str = "config.json") -> None:
    """Give a checkpoint's weights, which safetensors lets nobody else read, the mode of a file beside them."""
    for weights in folder.glob(_WEIGHTS):
        shutil.copymode(folder / beside, weights)


def _link_or_copy(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
