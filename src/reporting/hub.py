"""Trained policies to the hub, where `push_to_hub` asks for it: iteration t into `<push_to_hub>-Iter<t>`.

What goes there is what the record of a policy names, and its card. A second upload of the same files changes nothing.
The token is the hub's own business: it is never printed or kept.
"""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path

from src.experiment.run import Run
from src.kernel.artifact import Node
from src.kernel.config import UserError
from src.kernel.record import CARD, damage, read_record
from src.kernel.store import Store
from src.reporting.card import repository
from src.reporting.tables import scrubbed

STALE = ["*.safetensors", "*.safetensors.index.json"]
"""Removed from a repository where they are not part of the policy: a model would be loaded from a mixture."""
LONGEST = 400
"""Characters of an error that are shown."""


def check_push(run: Run) -> None:
    """Raises UserError, before any work and without asking the hub, where nothing could be uploaded."""
    from huggingface_hub import constants

    if run.push_to_hub is None:
        return
    if constants.is_offline_mode():
        raise UserError("push_to_hub: HF_HUB_OFFLINE forbids it; unset that, or leave push_to_hub for later")
    if _token() is None:
        raise UserError("push_to_hub: no token of the hub here; `hf auth login`, or leave push_to_hub for later")


def check_apart(runs: Sequence[Run]) -> None:
    """Raises UserError where points of a sweep would go to the same repositories."""
    repos = [run.push_to_hub for run in runs if run.push_to_hub]
    if doubled := next((repo for repo in repos if repos.count(repo) > 1), None):
        raise UserError(f"push_to_hub: points of the sweep would overwrite each other in {doubled}; sweep it too")


def print_push_plan(run: Run, nodes: Sequence[Node], store: Store) -> None:
    """Prints what `push` would upload; asks the hub nothing, and prints nothing where `push_to_hub` is null."""
    for repo, node in _uploads(run, nodes):
        files = _files(store.path(node)) if store.has(node) else []
        sizes = ", ".join(f"{path.name} {_size([path])}" for path in files) or "not made yet"
        print(f"push: {node.name} -> {repo} ({'private' if run.push_private else 'public'}): {sizes}")


def push(run: Run, nodes: Sequence[Node], store: Store) -> None:
    """Uploads every policy of a finished run. Raises UserError for the first that fails; those before it are there."""
    for repo, node in _uploads(run, nodes):
        folder = store.path(node)
        if damaged := damage(folder):
            raise UserError(f"push_to_hub: {damaged[0]}; not uploaded; delete the folder, the next run makes it again")
        print(f"push: {repo}: {len(_files(folder))} files, {_size(_files(folder))}", flush=True)
        print(f"push: {_upload(repo, node, folder, run.push_private)}", flush=True)


def _upload(repo: str, node: Node, folder: Path, private: bool) -> str:
    """Returns the address of the repository. One that was public before is left alone unless that is meant."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils import logging

    api, verbosity = HfApi(), logging.get_verbosity()
    logging.set_verbosity_info()  # the uploader then says every half minute how far it is
    try:
        address = api.create_repo(repo, private=private, exist_ok=True)
        if private and api.model_info(repo).private is False:
            raise UserError(f"push_to_hub: {repo} is public already; say push_private=false, or choose another name")
        api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            allow_patterns=[glob.escape(str(path.relative_to(folder))) for path in _files(folder)],
            delete_patterns=STALE,
            commit_message=f"{node.name}, {node.stage.kind}/{node.key}",
        )
    except UserError:
        raise
    except Exception as error:  # of the hub, the network, or the uploader, which has errors of its own
        message = f"push_to_hub: {repo}: {_line(error)} (all is kept; the same command tries again)"
        raise UserError(message) from error
    finally:
        logging.set_verbosity(verbosity)
    return str(address)


def _uploads(run: Run, nodes: Sequence[Node]) -> list[tuple[str, Node]]:
    """Pairs each policy with its repository."""
    by_name = {node.name: node for node in nodes}
    repos = {t: repository(run, t) for t in range(1, run.iter + 1)}
    return [(repo, by_name[f"it{t}/policy"]) for t, repo in repos.items() if repo]


def _files(folder: Path) -> list[Path]:
    """Lists what the record names, and the card, as far as they are there."""
    names = sorted({*read_record(folder)["files"], CARD})
    return [folder / name for name in names if (folder / name).is_file()]


def _size(files: Sequence[Path]) -> str:
    size = sum(path.stat().st_size for path in files)
    return f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size / 1e3:,.1f} kB"


def _line(error: Exception) -> str:
    """Writes an error as one line, without the token: some say which header could not be sent."""
    token, message = _token(), str(error)
    message = scrubbed(message.replace(token, "…") if token else message)
    return " ".join(message.split())[:LONGEST] or type(error).__name__


def _token() -> str | None:
    from huggingface_hub import get_token

    try:
        return get_token()
    except Exception:  # a login that must be renewed asks the hub, which may fail in any way
        return None
