"""Start policies and other published models, brought into the store as ordinary checkpoint folders.

Out: safetensors, config.json, tokenizer with chat template, generation_config.json.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
from collections.abc import Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import ClassVar

from pydantic import PositiveFloat

from src.kernel.config import Fault, Free, Label, UserError, config
from src.kernel.record import RECORD

_SMALL = ("*.json", "*.model", "*.jinja", "*.txt")
_WEIGHTS = "*.safetensors"
_ADAPTER = "adapter_config.json"
"""transformers would go on to the model that this names, wherever it lies."""
_INDEX = ".safetensors.index.json"
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
    """Where it stands in the config, for messages."""
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
    """Where it stands in the config, for messages."""
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
    """Where it stands in the config, for messages."""
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
    """Where it stands in the config, for messages."""
    repo: str
    """Hub id such as `microsoft/deberta-v3-large`, or a local folder."""
    revision: str

    def source_version(self) -> str:
        return _local_version(self.repo, _SMALL)

    def __call__(self, *inputs: Path, out: Path) -> None:
        bring(self.repo, self.revision, _SMALL, out, f"{self.place}.repo")


def bring(repo: str, revision: str, wanted: tuple[str, ...], out: Path, key: str) -> None:
    """Copies or links the `wanted` files of a local folder or a hub repository into `out`, or none of them.

    `key` is where `repo` stands in the config.
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
            continue
        (out / path.name).unlink(missing_ok=True)
        try:
            os.link(path.resolve(), out / path.name)
        except OSError:
            shutil.copy2(path.resolve(), out / path.name)


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
        message = f"{key}: {repo} is no local folder and cannot be fetched: {reason}"
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
        if isinstance(error, ValueError) or (status is not None and status < 500 and status not in (408, 429)):
            raise UserError(f"{message}; mend the id, its revision or the path, or `hf auth login`") from None
        raise Fault(f"{message}; is there a network? A folder will do as well") from None


def refuse_broken(files: Sequence[Path]) -> None:
    """Raises UserError for JSON that is none, weights that are cut off, and for what is not there.

    Of weights only the heads are read: whether the bytes are those that were published is for who fetched them to say.
    """
    from safetensors import SafetensorError, safe_open

    names = {file.name for file in files}
    weights = [file for file in files if file.match(_WEIGHTS)]
    if weights and "config.json" not in names:
        raise UserError(f"{weights[0].parent}: no config.json beside the weights; bring the whole model")
    for file in weights:
        try:
            with safe_open(file, "np"):
                pass
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file}: no whole safetensors file ({error}); fetch it again") from None
    for file in files:
        if file.suffix != ".json":
            continue
        try:
            content = json.loads(file.read_bytes())
            if not isinstance(content, dict) and file.name.endswith(("config.json", _INDEX)):
                raise ValueError(f"a {type(content).__name__}, not an object")
        except (ValueError, RecursionError) as error:
            raise UserError(f"{file}: no JSON of a model ({error}); fetch it again") from None
        shards = content.get("weight_map") if file.name.endswith(_INDEX) else None
        missing = sorted({str(shard) for shard in shards.values()} - names) if isinstance(shards, dict) else []
        if missing:
            raise UserError(f"{file}: names {missing[0]}, which is not there ({len(missing)} such); fetch it again")


def _local_version(repo: str, wanted: tuple[str, ...]) -> str:
    """Hashes names, sizes and times of a local folder's files; of a hub repository the revision says it all."""
    files = _files(Path(repo), wanted) if Path(repo).is_dir() else []
    seen = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(repr(seen).encode()).hexdigest() if seen else ""


def _files(folder: Path, wanted: tuple[str, ...]) -> list[Path]:
    matching = {path for pattern in wanted for path in folder.glob(pattern)}
    return sorted(path for path in matching if path.name != RECORD)  # the folder may be an artifact itself


def _convert(folder: Path, file: str, out: Path) -> None:
    """Saves a GGUF model as safetensors. Loaded from GGUF it refuses to be saved; a fresh one with its weights does."""
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
    """Gives a checkpoint's weights, which safetensors lets nobody else read, the mode of a file beside them."""
    for weights in folder.glob(_WEIGHTS):
        shutil.copymode(folder / beside, weights)


def package_folder(package: str, key: str) -> Path:
    """Finds the folder of an installed package without importing it. Raises UserError, naming `key` of the config."""
    # Looking up a dotted name would import its parent.
    spec = None if "." in package else importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise UserError(f"{key}: no package {package} is installed; mend the name, or `make install` where it is right")
    return Path(spec.origin).parent


def package_version(package: str, key: str) -> str:
    """Returns `name version`; the version is empty for a package installed without metadata. Raises as above."""
    package_folder(package, key)
    return _version(package)


@cache
def _version(package: str) -> str:
    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return f"{package} "
