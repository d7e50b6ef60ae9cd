"""Start policies and other published models, brought into the store as ordinary checkpoint folders."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from contextlib import suppress
from dataclasses import field
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field, PositiveFloat

from src.kernel.artifact import Node, Stage
from src.kernel.config import Fault, Free, Label, UserError, YamlPath, config
from src.kernel.record import RECORD, kept_sha256, package_folder, package_version
from src.modeling.policy import TEMPLATE, TOKENIZERS, first_line

_SMALL = ("*.json", "*.model", "*.jinja", "*.txt")
_WEIGHTS = "*.safetensors"
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_POINTER = b"version https://git-lfs"
_ADAPTER = "adapter_config.json"
"""transformers would go on to the model that this names, wherever it lies."""
MODEL = "model"


@config
class PublishedModel(Stage):
    """A published model: what a run shows of it."""

    name: Free[Label]
    place: Free[str] = MODEL
    """The model's config key, for messages."""
    id: Free[str | None] = None
    """The model's id on the hub. Used in the cards of policies trained from it, even if the files are local."""
    license: Free[str | None] = None
    """The licence in the hub's spelling, such as apache-2.0."""
    weights: Free[PositiveFloat | None] = None
    """Parameters as published, for forecasts."""

    def check_trusted(self) -> None:
        """Raise UserError where it brings code of its own that may not run."""

    def here(self) -> Path | None:
        """Return the folder of all its files where this machine has it before the store does, else None."""


@config
class GgufPackage(PublishedModel):
    """A GGUF file shipped inside an installed Python package, dequantised once to fp32."""

    kind: ClassVar[str] = "policy"

    package: str
    """Importable name; its code is never run, only its folder is looked up."""
    file: str
    rest: Free[list[str]] = field(default_factory=list)
    """`<package>/<file>` of the further parts, where the file is in parts; the versions of the packages say which."""

    def source_version(self) -> str:
        packages = (self.package, *(part.partition("/")[0] for part in self.rest))
        return ", ".join(package_version(package, f"{self.place}.package") for package in packages)

    def __call__(self, *inputs: Path, out: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        paths = []
        for part in (f"{self.package}/{self.file}", *self.rest):
            package, _, file = part.partition("/")
            paths.append(package_folder(package, f"{self.place}.package") / file)
            if not paths[-1].is_file():
                raise UserError(f"{self.place}.file: the package {package} has no {file}; mend the name")
        whole, fp32 = out / "whole.gguf", torch.float32
        with whole.open("wb") as joined:
            for path in paths:
                joined.write(path.read_bytes())
        given = AutoModelForCausalLM.from_pretrained(out, gguf_file=whole.name, dtype=fp32, trust_remote_code=False)
        unwanted = ("quantization_config", "_name_or_path", "dtype")
        settings = {key: value for key, value in given.config.to_dict().items() if key not in unwanted}
        # Loaded from GGUF it refuses to be saved; a fresh model with its weights does not.
        fresh = type(given.config)(**settings)
        model = AutoModelForCausalLM.from_config(fresh, dtype=fp32, trust_remote_code=False)
        model.load_state_dict(given.state_dict())
        model.generation_config = given.generation_config
        tokenizer = AutoTokenizer.from_pretrained(out, gguf_file=whole.name, trust_remote_code=False)
        whole.unlink()
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)
        share_weights(out)


@config
class Checkpoint(PublishedModel):
    """A published checkpoint: files of a hub repository, or of a folder on this machine."""

    kind: ClassVar[str] = "policy"
    resumable: ClassVar[bool] = True
    wanted: ClassVar[tuple[str, ...]] = (_WEIGHTS, *_SMALL)
    located_by: ClassVar[tuple[str, ...]] = ("repo", "revision")

    repo: Annotated[str, Field(min_length=1)]
    """Hub id such as `google/gemma-2-9b-it`, or a local folder."""
    revision: str
    """Commit, tag or branch of the hub repository; give a commit where a number must be reproducible."""

    def source_version(self) -> str:
        """Hash the content of a local folder's files; of a hub repository the revision says it all."""
        files = self._wanted(self._local) if self._is_local else []
        contents = [(path.name, kept_sha256(path)) for path in files if path.is_file()]
        return hashlib.sha256(repr(contents).encode()).hexdigest() if contents else ""

    @property
    def _local(self) -> Path:
        return Path(self.repo).expanduser()

    @property
    def _is_local(self) -> bool:
        return os.path.isdir(self._local)  # False too for what can be no path

    def check(self, node: Node) -> None:
        """Raise UserError where its files are on this machine and not whole, or nowhere to be had."""
        self.here()

    def here(self) -> Path | None:
        """Return the local folder, or the hub's snapshot of it. Raises UserError where nothing can mend it.

        A snapshot that looks incomplete is none, unless no network can complete it.
        """
        from huggingface_hub import constants

        final = self._is_local or constants.HF_HUB_OFFLINE or not HUB_ID.fullmatch(self.repo)
        try:
            self._whole(folder := self._folder(cached=True))
        except UserError:
            if final:
                raise
            return None
        return folder if final or any(next(folder.glob(name), None) for name in TOKENIZERS) else None

    def __call__(self, *inputs: Path, out: Path) -> None:
        """Copy or link the wanted files into `out`, or none of them."""
        for path in self._whole(self._folder()):
            target = out / path.name
            target.unlink(missing_ok=True)
            if not self._is_local:  # the owner of a local folder may change its files
                with suppress(OSError):
                    os.link(path.resolve(), target)
            if not target.exists():
                shutil.copyfile(path, target)

    def _whole(self, folder: Path) -> list[Path]:
        """Return the wanted files. Raises UserError where they are no whole model, or are not to be read."""
        files, key = self._wanted(folder), f"{self.place}.repo"
        if _WEIGHTS in self.wanted and not any(path.match(_WEIGHTS) for path in files):
            if half := next(folder.glob("*.incomplete"), None):
                raise UserError(f"{key}: {half} is half a download; fetch the model again")
            how = "load it where nothing is to be lost and save_pretrained() it into a folder, then give that"
            how += " (pickles are refused: reading one runs what it says)"
            raise UserError(f"{key}: {self.repo} has no safetensors file; convert it first: {how}")
        if any(path.name == _ADAPTER for path in files):
            raise UserError(f"{key}: {self.repo} has an {_ADAPTER}: additions to a model; merge them into it first")
        refuse_broken(tuple((file, file.lstat().st_mtime_ns) for file in files))
        return files

    def _wanted(self, folder: Path) -> list[Path]:
        matching = {path for pattern in self.wanted for path in folder.glob(pattern)}
        return sorted(path for path in matching if path.name != RECORD)  # the folder may be an artifact itself

    def _folder(self, cached: bool = False) -> Path:
        """Return the local folder, or that of the hub's snapshot, which is brought unless it must be `cached`."""
        if self._is_local:
            if not os.access(self._local, os.R_OK | os.X_OK):
                raise UserError(f"{self.place}.repo: no permission to read {self._local}; ask its owner")
            return self._local
        from huggingface_hub import errors, snapshot_download

        key, wanted = f"{self.place}.repo", list(self.wanted)
        try:
            found = snapshot_download(self.repo, revision=self.revision, allow_patterns=wanted, local_files_only=cached)
            return Path(found)
        except errors.GatedRepoError:
            raise UserError(f"{key}: {self.repo} is gated; accept its licence, then `hf auth login`") from None
        except Exception as error:  # the hub's reply is somebody else's
            reason = first_line(error).partition(". ")[0].rstrip(".")
            message = f"{key}: {self.repo:.80} is no local folder and cannot be fetched: {reason}"
            mistakes = errors.RepositoryNotFoundError | errors.RevisionNotFoundError | errors.HFValidationError
            if isinstance(error, mistakes):
                raise UserError(f"{message}; mend the id, its revision or the path, or `hf auth login`") from None
            raise Fault(f"{message}; is there a network? A folder will do as well") from None


@config
class CheckpointWithCode(Checkpoint):
    """A published checkpoint with the Python files that its model runs. With a commit, what runs is what was read."""

    wanted: ClassVar[tuple[str, ...]] = (_WEIGHTS, *_SMALL, "*.py")

    trusted: Free[bool]
    """Nothing is brought without it, and the run ends before anything is sampled."""

    def check_trusted(self) -> None:
        if not self.trusted:
            own = f"{self.repo} runs Python files of its own"
            raise UserError(f"ranker.trust_remote_code: {own}; read them, then set it to true")

    def __call__(self, *inputs: Path, out: Path) -> None:
        self.check_trusted()
        super().__call__(*inputs, out=out)


@config
class CheckpointUnderTemplate(Checkpoint):
    """A published checkpoint under another chat template than its own, such as an earlier one."""

    chat_template: Free[YamlPath]
    """A file in Jinja; what it holds is part of the key."""

    def source_version(self) -> str:
        return f"{super().source_version()} {hashlib.sha256(self._template()).hexdigest()}"

    def here(self) -> None:
        super().here()  # the folder whose template counts is there only when it was made

    def __call__(self, *inputs: Path, out: Path) -> None:
        super().__call__(*inputs, out=out)
        (out / TEMPLATE).unlink(missing_ok=True)  # it may be a link into the hub's cache
        (out / TEMPLATE).write_bytes(self._template())

    def _template(self) -> bytes:
        if not self.chat_template.is_file():
            raise UserError(f"{self.place}.chat_template: no file {self.chat_template}; mend the path")
        return self.chat_template.read_bytes()


@config
class Vocabulary(Checkpoint):
    """Config and tokenizer of a published checkpoint, for a model whose weights come from elsewhere."""

    kind: ClassVar[str] = "vocabulary"
    wanted: ClassVar[tuple[str, ...]] = _SMALL


@cache  # many stages ask for the same ones, and a tokenizer.json is long
def refuse_broken(dated: tuple[tuple[Path, int], ...]) -> None:
    """Raise UserError for files that are cut off or no JSON, and for weights without their config or other shards.

    They come with their times, which show a change. Only the heads of weights are read.
    """
    from safetensors import safe_open

    files = [file for file, _ in dated]
    names = {file.name for file in files}
    for file in files:
        if file.match(_WEIGHTS) and "config.json" not in names:
            raise UserError(f"{file.parent}: no config.json beside the weights; bring the whole model")
        try:
            if file.open("rb").read(len(_POINTER)) == _POINTER:
                raise ValueError("Git LFS has left its pointer here; `git lfs pull` brings the file itself")
            if file.match(_WEIGHTS):
                with safe_open(file, "np"):
                    pass
            content = json.loads(file.read_bytes()) if file.suffix == ".json" else {}
            shards = content["weight_map"].values() if file.name.endswith(".safetensors.index.json") else ()
            missing = sorted(set(shards) - names)
        except Exception as error:  # the files are somebody else's
            raise UserError(f"{file}: no whole {file.suffix[1:]} file ({error}); fetch it again") from None
        if missing:
            raise UserError(f"{file}: names {missing[0]}, which is not there ({len(missing)} such); fetch it again")


def start_of(policy: Node) -> Any:
    """Return the stage that brings the model from which a policy is trained."""
    while policy.inputs:
        policy = policy.inputs[1]
    return policy.stage


def share_weights(folder: Path, beside: str = "config.json") -> None:
    """Give a checkpoint's weights, which safetensors lets nobody else read, the mode of a file beside them."""
    for weights in folder.glob(_WEIGHTS):
        shutil.copymode(folder / beside, weights)
