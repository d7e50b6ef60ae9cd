"""Whether a policy is of another size than what is published under its name: then no published number says anything.

Rehearsals, and whatever else `model.repo` is read from, keep the published id.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from src.evaluation.benchmark import Result, results
from src.experiment.run import START, Run
from src.kernel.artifact import Node
from src.kernel.provenance import read_record
from src.kernel.store import Store


def stand_in(run: Run, folder: Path, record: dict[str, Any], trained: bool) -> int | None:
    """Parameters of the policy in `folder` where they are not as many as those of the published start policy; None
    where they are, or where nobody can tell."""
    names = {name: file["bytes"] for name, file in record["files"].items() if name.endswith(".safetensors")}
    if trained:
        parameters = sum(names.values()) // (4 if run.train.save_dtype == "float32" else 2)
    else:
        parameters = _parameters(folder / name for name in names)
    published = run.model.weights
    alike = published is None or abs(parameters - published) < 0.1 * published
    return parameters if parameters and not alike else None


def comparable_results(run: Run, nodes: Iterable[Node], store: Store) -> list[Result]:
    """`results`; of an experiment, where a stand-in's are told as a rehearsal's, which nothing published is held
    against. Raises UserError for files that cannot be read."""
    by_name = {node.name: node for node in nodes}
    found, stands_in = results(run.benchmark, by_name.values(), store, run.rehearsed), dict[str, bool]()
    if not run.experiment:
        return found
    for policy in {one.policy for one in found}:
        node = by_name[START if policy == "base" else f"{policy}/policy"]
        if store.has(node):  # which is cleaned away once it was measured
            folder = store.path(node)
            stands_in[policy] = stand_in(run, folder, read_record(folder), policy != "base") is not None
    return [one._replace(rehearsed=one.rehearsed or stands_in.get(one.policy, False)) for one in found]


def _parameters(files: Iterable[Path]) -> int:
    """By the heads of the files, as the precision of somebody else's checkpoint is anyone's; 0: cannot be read."""
    from huggingface_hub import parse_local_safetensors_file_metadata
    from huggingface_hub.errors import SafetensorsParsingError

    try:
        return sum(sum(parse_local_safetensors_file_metadata(file).parameter_count.values()) for file in files)
    except (OSError, SafetensorsParsingError):
        return 0
