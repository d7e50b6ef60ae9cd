"""Trained policies to the hub, where `push_to_hub` asks for it: iteration t into `<push_to_hub>-Iter<t>`.

What goes there is what the record of a policy names, and its card. A second upload of the same files changes nothing.
The token is the hub's own business: it is never printed or kept.
"""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence

from src.experiment.run import Run
from src.kernel.artifact import Node
from src.kernel.config import UserError
from src.kernel.record import CARD, damage, read_record
from src.kernel.store import Store
from src.reporting.card import repository
from src.reporting.tables import scrubbed


def check_push(run: Run) -> None:
    """Raise UserError, before any work and without asking the hub, where nothing could be uploaded."""
    from huggingface_hub import constants, get_token

    if run.push_to_hub is None:
        return
    if constants.is_offline_mode():
        raise UserError("push_to_hub: HF_HUB_OFFLINE forbids it; unset that, or leave push_to_hub for later")
    if get_token() is None:
        raise UserError("push_to_hub: no token of the hub here; `hf auth login`, or leave push_to_hub for later")


def check_apart(runs: Sequence[Run]) -> None:
    """Raise UserError where points of a sweep would go to the same repositories."""
    repos = [run.push_to_hub for run in runs if run.push_to_hub]
    if doubled := next((repo for repo in repos if repos.count(repo) > 1), None):
        raise UserError(f"push_to_hub: points of the sweep would overwrite each other in {doubled}; sweep it too")


def print_push_plan(run: Run, nodes: Sequence[Node]) -> None:
    """Print what `push` would upload, and nothing where `push_to_hub` is null."""
    for repo, node in _uploads(run, nodes):
        print(f"push: {node.name} -> {repo} ({'private' if run.push_private else 'public'})")


def push(run: Run, nodes: Sequence[Node], store: Store) -> None:
    """Upload every policy of a finished run. Raises UserError for the first that fails; those before it are there."""
    from huggingface_hub import HfApi, get_token

    api = HfApi()
    for repo, node in _uploads(run, nodes):
        folder = store.path(node)
        if damaged := damage(folder):
            raise UserError(f"push_to_hub: {damaged[0]}; not uploaded; delete the folder, the next run makes it again")
        print(f"push: {node.name} -> {repo}", flush=True)
        try:
            address = api.create_repo(repo, private=run.push_private, exist_ok=True)
            if run.push_private and api.model_info(repo).private is False:
                raise UserError(
                    f"push_to_hub: {repo} is public already; say push_private=false, or choose another name"
                )
            api.upload_folder(
                repo_id=repo,
                folder_path=folder,
                allow_patterns=[glob.escape(name) for name in sorted({*read_record(folder)["files"], CARD})],
                delete_patterns=["*.safetensors", "*.safetensors.index.json"],  # else a model would be a mixture
                commit_message=f"{node.name}, {node.stage.kind}/{node.key}",
            )
        except UserError:
            raise
        except Exception as error:  # of the hub, the network, or the uploader; some say which header could not be sent
            message = " ".join(scrubbed(str(error).replace(get_token() or "\n", "…")).split())
            raise UserError(f"push_to_hub: {repo}: {message} (all is kept; the same command tries again)") from error
        print(f"push: {address}", flush=True)


def _uploads(run: Run, nodes: Sequence[Node]) -> Iterator[tuple[str, Node]]:
    """Pair each repository with the policy that goes there."""
    by_name = {node.name: node for node in nodes}
    for t in range(1, run.iter + 1):
        if repo := repository(run, t):
            yield repo, by_name[f"it{t}/policy"]
