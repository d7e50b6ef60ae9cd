"""Trained policies to the hub, where `push_to_hub` asks for it: iteration t into `<push_to_hub>-Iter<t>`.

What goes there is what the record of a policy names, and its card. Everything on this machine stays as it is, and a
second upload of the same files changes nothing. The token is the hub's own business: it is never printed or kept.
"""

from __future__ import annotations

import glob
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from src.experiment.run import Run
from src.kernel.artifact import Node
from src.kernel.config import UserError
from src.kernel.record import CARD, STRANGE, damage, read_record
from src.kernel.store import Store
from src.reporting.card.facts import policy_name, repository
from src.reporting.card.markdown import scrubbed

STALE = ("*.safetensors", "*.safetensors.index.json")
"""Removed from a repository where they are not part of the policy: a model would be loaded from a mixture."""

LONGEST = 400
"""Characters of an error that are shown."""


class Upload(NamedTuple):
    repo: str
    node: Node


def check_push(run: Run) -> None:
    """Raises UserError, before any work and without asking the hub, where nothing could be uploaded."""
    if run.push_to_hub is None:
        return
    from huggingface_hub import constants

    if constants.is_offline_mode():
        raise UserError("push_to_hub: HF_HUB_OFFLINE forbids it; unset that, or leave push_to_hub for later")
    if _token() is None:
        raise UserError("push_to_hub: no token of the hub here; `hf auth login`, or leave push_to_hub for later")


def check_apart(runs: list[Run]) -> None:
    """Raises UserError where points of a sweep would go to the same repositories."""
    repos = [run.push_to_hub for run in runs if run.push_to_hub]
    doubled = next((repo for repo in repos if repos.count(repo) > 1), None)
    if doubled is not None:
        raise UserError(f"push_to_hub: points of the sweep would overwrite each other in {doubled}; sweep it too")


def print_push_plan(run: Run, nodes: list[Node], store: Store) -> None:
    """What `push` would upload; asks the hub nothing and says nothing where `push_to_hub` is null."""
    for upload in _uploads(run, nodes):
        print(f"push: {upload.node.name} -> {upload.repo} ({_visibility(run)}): {_listed(upload, store)}")


def push(run: Run, nodes: list[Node], store: Store) -> None:
    """Upload every policy of a finished run. Raises UserError for the first that fails; those before it are there."""
    uploads = _uploads(run, nodes)
    for number, upload in enumerate(uploads, 1):
        folder = store.path(upload.node)
        if damaged := [line for line in damage(folder) if not line.endswith(STRANGE)]:
            raise UserError(f"push_to_hub: {damaged[0]}; not uploaded; delete the folder, the next run makes it again")
        files = _files(folder)
        size = _megabytes(sum(path.stat().st_size for path in files))
        print(f"push: [{number}/{len(uploads)}] {upload.repo}: {len(files)} files, {size}", flush=True)
        start = time.monotonic()
        try:
            address = _upload(upload, folder, files, run.push_private)
        except UserError:
            raise
        except Exception as error:  # of the hub, the network, or the uploader, which has errors of its own
            raise UserError(
                f"push_to_hub: {upload.repo}: {_line(error)} (all is kept; the same command tries again)"
            ) from error
        print(f"push: [{number}/{len(uploads)}] {address} in {time.monotonic() - start:.0f} s", flush=True)


def _uploads(run: Run, nodes: list[Node]) -> list[Upload]:
    by_name = {node.name: node for node in nodes}
    repos = {t: repository(run, t) for t in range(1, run.iter + 1)}
    return [Upload(repo, by_name[policy_name(t)]) for t, repo in repos.items() if repo]


def _upload(upload: Upload, folder: Path, files: list[Path], private: bool) -> str:
    """Returns the address of the repository. One that was public before is left alone unless that is meant."""
    from huggingface_hub import HfApi

    api = HfApi()
    address = api.create_repo(upload.repo, private=private, exist_ok=True)
    if private and api.model_info(upload.repo).private is False:
        raise UserError(f"push_to_hub: {upload.repo} is public already; say push_private=false, or choose another name")
    with _reported():
        api.upload_folder(
            repo_id=upload.repo,
            folder_path=folder,
            allow_patterns=[glob.escape(str(path.relative_to(folder))) for path in files],
            delete_patterns=list(STALE),
            commit_message=f"{upload.node.name}, {upload.node.stage.kind}/{upload.node.key}",
        )
    return str(address)


def _files(folder: Path) -> list[Path]:
    """What the record names and the card, where they are."""
    names = sorted({*read_record(folder)["files"], CARD})
    return [folder / name for name in names if (folder / name).is_file()]


def _listed(upload: Upload, store: Store) -> str:
    if not store.has(upload.node):
        return "not made yet"
    files = _files(store.path(upload.node))
    shown = [f"{path.name} {_megabytes(path.stat().st_size)}" for path in files]
    return ", ".join(shown + [f"{CARD} not written yet"] * (CARD not in {path.name for path in files}))


def _visibility(run: Run) -> str:
    return "private" if run.push_private else "public"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size / 1e3:,.1f} kB"


def _line(error: Exception) -> str:
    """An error as one line, without the token: some say which header could not be sent."""
    token, said = _token(), str(error)
    said = scrubbed(said.replace(token, "…") if token else said)
    return " ".join(said.split())[:LONGEST] or type(error).__name__


def _token() -> str | None:
    from huggingface_hub import get_token

    try:
        return get_token()
    except Exception:  # a login that must be renewed asks the hub, which may fail in any way
        return None


@contextmanager
def _reported() -> Iterator[None]:
    """The uploader tells every half minute how far it is."""
    from huggingface_hub.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_info()
    try:
        yield
    finally:
        logging.set_verbosity(before)
