"""Lineage: which artifacts a W&B run made and which it used, under the keys they have in the store.

An artifact is at W&B what it is in the store: its kind is name and type, its key is an alias, and its digest follows
from its files alone, so that what a sweep shares is one version used by many runs, whoever shows it and from where.
What a run made goes into the run's own file. What it used is told by `link`, after an upload: offline W&B refuses it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from src.artifact import Node, Store
from src.provenance import CARD, RECORD, read_record
from src.records import Row
from src.tracking.state import FOLDER

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
        "inputs": [f"{parent.stage.kind}:{parent.key}" for parent in node.inputs],
    } | {name: record.get(name) for name in ("rows", "config", "versions", "commit")}


def _card(folder: Path) -> str | None:
    card = folder / CARD
    return card.read_text(errors="replace")[:LONGEST_CARD] if card.is_file() else None


def states(folder: Path) -> dict[str, Row]:
    """Family -> its W&B run, as the mirror of a run folder remembers it."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob(f"{FOLDER}/*.json"))}


def _path(state: Row, api: Any) -> str:
    return f"{_project(state, api)}/{state['id']}"


def _project(state: Row, api: Any) -> str:
    return f"{state['entity'] or api.default_entity}/{state['project']}"


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


class _Artifact(NamedTuple):
    kind: str
    key: str
    inputs: list[Row]

    def __str__(self) -> str:
        return f"{self.kind}:{self.key}"


def link(folders: Iterable[Path], api: Any) -> list[str]:
    """Tell W&B which artifacts the runs of these run folders used, unless it knows; returns what there is to say.

    `api` is a `wandb.Api`. Called again it links what was missing, and nothing twice.
    """
    linker, lines = _Linker(api), []
    for folder in folders:
        artifacts = _artifacts(folder)
        for state in states(folder).values():
            lines += linker.link(state, artifacts)
    return lines


def _artifacts(folder: Path) -> dict[str, _Artifact]:
    """Key -> what the run folder shows under it."""
    from src.runner import LINKS  # which imports the mirror

    found = {}
    for place in sorted(folder.glob(f"{LINKS}/*/*")):
        if (place / RECORD).is_file():
            record = read_record(place)
            found[record["key"]] = _Artifact(record["kind"], record["key"], record["inputs"])
    return found


class _Linker:
    """Asks W&B for each artifact once, however many runs share it."""

    def __init__(self, api: Any) -> None:
        self.api, self.known = api, {}

    def link(self, state: Row, artifacts: dict[str, _Artifact]) -> list[str]:
        """What the run made and W&B lacks, and what it used; what a run made itself it did not use."""
        project, path = _project(state, self.api), _path(state, self.api)
        made = [artifacts[key] for key in state["artifacts"] if key in artifacts]
        own = {artifact.key for artifact in made}
        used = {(one["kind"], one["key"]) for artifact in made for one in artifact.inputs if one["key"] not in own}
        if not made:
            return []
        run = _run(self.api, path)
        if run is None:
            return [f"{path}: not at W&B yet"]
        logged = _aliases(run.logged_artifacts())
        lines = [
            f"{path}: {artifact}, which it made, did not arrive; sync with again=true"
            for artifact in made
            if artifact.key not in logged and self._find(project, str(artifact)) is None
        ]
        told = _aliases(run.used_artifacts())
        return lines + [self._use(run, path, project, f"{kind}:{key}") for kind, key in sorted(used) if key not in told]

    def _use(self, run: Any, path: str, project: str, name: str) -> str:
        artifact = self._find(project, name)
        if artifact is None:
            return f"{path}: {name}, which it used, is not at W&B yet; sync the run folder that made it"
        run.use_artifact(artifact)
        return f"{path}: used {name}"

    def _find(self, project: str, name: str) -> Any | None:
        name = f"{project}/{name}"
        if name not in self.known:
            self.known[name] = self.api.artifact(name) if self.api.artifact_exists(name) else None
        return self.known[name]


def _aliases(artifacts: Iterable[Any]) -> set[str]:
    return {alias for artifact in artifacts for alias in artifact.aliases}
