"""Lineage: which artifacts a W&B run made and which it used, under the keys they have in the store.

An artifact is at W&B what it is in the store: its kind is name and type, its key is an alias, and its digest follows
from its files alone, so that what a sweep shares is one version used by many runs, whoever shows it and from where.
What a run made goes into the run's own file. What it used is told by `link`, after an upload: offline W&B refuses it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from src.kernel.artifact import Node
from src.kernel.config import UserError
from src.kernel.record import CARD, RECORD, read_record
from src.kernel.rows import Row
from src.kernel.store import Store
from src.reporting.tracking.families import label
from src.reporting.tracking.state import State, mark_linked, states

COPIED = ("metrics.json", "metrics.jsonl")
"""Uploaded beside the record; all else stays where it is, and W&B knows its place, size and sha256."""
MOST_COPIED = 1_000_000
"""Bytes of an artifact that are uploaded."""
LONGEST_CARD = 100_000
"""Characters."""
SPOOL = "lineage"
"""Folder of copies beside the run's own file: they wait there for the upload, and go when it goes."""


def log_outputs(run: Any, nodes: Sequence[Node], store: Store) -> None:
    """Log every finished artifact of `nodes` as an output of the W&B run, each once however often this is called.

    What nothing was read for and no run shows, such as the start policy, is logged as used by those that read it. Reads
    no big file, and waits for nothing.
    """
    if run.disabled:
        return
    made = {node.key: node for node in nodes if store.has(node)}
    parents = {parent.key: parent for node in made.values() for parent in node.inputs}
    for key, parent in parents.items():
        if not parent.inputs and key not in made and store.has(parent):
            _log(run, parent, store, used=True)
    for node in made.values():
        _log(run, node, store, used=False)


def _log(run: Any, node: Node, store: Store, used: bool) -> None:
    place = Path(run.settings.sync_dir) / SPOOL / f"{node.stage.kind}-{node.key}"
    if place.exists():
        return
    artifact = _artifact(node, store.path(node), place)
    artifact.finalize()
    # As `log_artifact` and `use_artifact` do after asking the server, which takes 20 s each when the network is gone;
    # and what they hand over online is not in the run's file, from which it could be uploaded later.
    aliases, kind = ["latest", node.key], {"is_user_created": used, "use_after_commit": used}
    run._interface.publish_artifact(run, artifact, aliases, None, finalize=True, **kind)


def _artifact(node: Node, folder: Path, place: Path) -> Any:
    """The card is its description: a file would change the digest whenever a run with more measurements writes it."""
    import wandb

    record = read_record(folder)
    told = _card(folder) if CARD not in record["files"] else None
    artifact = wandb.Artifact(node.stage.kind, node.stage.kind, description=told, metadata=_metadata(node, record))
    copied = _copied(folder, record)
    place.mkdir(parents=True)
    for name in copied:
        shutil.copyfile(folder / name, place / name)
        artifact.add_file(str(place / name), name=name, policy="immutable", skip_cache=True)
    for name, file in sorted(record["files"].items()):
        if name not in copied:
            artifact.manifest.add_entry(_reference(folder, name, file))
    return artifact


def _reference(folder: Path, name: str, file: Row) -> Any:
    """What `add_reference` makes of a file, with the sha256 of the record instead of a digest of bytes read again."""
    from wandb.sdk.artifacts.artifact_manifest_entry import ArtifactManifestEntry
    from wandb.sdk.lib.hashutil import ETag
    from wandb.sdk.lib.paths import LogicalPath, URIStr

    place = URIStr((folder.resolve() / name).as_uri())
    return ArtifactManifestEntry(path=LogicalPath(name), ref=place, digest=ETag(file["sha256"]), size=file["bytes"])


def _copied(folder: Path, record: Row) -> list[str]:
    """The record, and of COPIED what there is room for."""
    names, room = [RECORD], MOST_COPIED - (folder / RECORD).stat().st_size
    for name in COPIED:
        size = record["files"].get(name, {}).get("bytes")
        if size is not None and size <= room:
            names.append(name)
            room -= size
    return names


def _metadata(node: Node, record: Row) -> dict[str, Any]:
    """Without what differs by run: `it2/pairs` of one is `it1/pairs` of none, but both are `pairs`."""
    return {
        "key": node.key,
        "name": node.name.partition("/")[2] or node.name,
        "bytes": sum(file["bytes"] for file in record["files"].values()),
        "inputs": [label(parent) for parent in node.inputs],
    } | {name: record.get(name) for name in ("rows", "config", "versions", "commit")}


def _card(folder: Path) -> str | None:
    card = folder / CARD
    return card.read_text(errors="replace")[:LONGEST_CARD] if card.is_file() else None


def _run(api: Any, path: str) -> Any | None:
    """None where W&B has none of this path."""
    from wandb.apis.public.runs import RunNotFoundError
    from wandb.errors import CommError

    try:
        return api.run(path)
    except CommError as error:
        if not isinstance(error.exc, RunNotFoundError):
            raise
        return None


def unlinked(folders: Iterable[Path], again: bool) -> Iterator[tuple[Path, str, State]]:
    """Run folder, family and W&B run: those that W&B may have to be told something about."""
    for folder in folders:
        for family, runs in states(folder).items():
            yield from ((folder, family, run) for run in runs if run.artifacts.keys() - set(run.linked * (not again)))


def link(folders: Iterable[Path], api: Any, again: bool = False) -> list[str]:
    """Tell W&B which artifacts the runs of these run folders used, unless it knows; returns what there is to say.

    `api` is a `wandb.Api`. Called again it links what was missing, and nothing twice; `again` asks W&B about all.
    """
    entity, linker = _entity(api), _Linker(api)
    for folder, family, run in unlinked(folders, again):
        if linker.link(run):
            mark_linked(folder, family, run, run.entity or entity)
    return linker.told


def _entity(api: Any) -> str | None:
    """Raises UserError for one that a state file could not keep."""
    entity = api.default_entity
    with suppress(AttributeError, UnicodeEncodeError):
        if entity is None or entity.encode():
            return entity
    raise UserError(f"sync: W&B says that its default entity is {entity!r:.60}; is WANDB_BASE_URL its server?")


class _Linker:
    """Asks W&B for each artifact once, however many runs share it."""

    def __init__(self, api: Any) -> None:
        self.api, self.known = api, {}
        self.told: list[str] = []

    def link(self, state: State) -> bool:
        """Whether nothing is left: all that the run made arrived, and W&B knows what it used and did not make."""
        used = {name for inputs in state.artifacts.values() for name in inputs} - state.artifacts.keys()
        project = f"{state.entity or self.api.default_entity}/{state.project}"
        path = f"{project}/{state.id}"
        run = _run(self.api, path)
        if run is None:
            self.told.append(f"{path}: not at W&B yet")
            return False
        logged, told = _aliases(run.logged_artifacts()), _aliases(run.used_artifacts())
        missing = [
            name for name in state.artifacts if _key(name) not in logged and self._find(f"{project}/{name}") is None
        ]
        self.told += [f"{path}: {name}, which it made, did not arrive; sync with again=true" for name in missing]
        done = [self._use(run, path, project, name) for name in sorted(used) if _key(name) not in told]
        return all(done) and not missing

    def _use(self, run: Any, path: str, project: str, name: str) -> bool:
        artifact = self._find(f"{project}/{name}")
        if artifact is None:
            self.told.append(f"{path}: {name}, which it used, is not at W&B yet; sync the run folder that made it")
            return False
        run.use_artifact(artifact)
        self.told.append(f"{path}: used {name}")
        return True

    def _find(self, name: str) -> Any | None:
        if name not in self.known:
            self.known[name] = self.api.artifact(name) if self.api.artifact_exists(name) else None
        return self.known[name]


def _key(name: str) -> str:
    return name.rpartition(":")[2]


def _aliases(artifacts: Iterable[Any]) -> set[str]:
    return {alias for artifact in artifacts for alias in artifact.aliases}
