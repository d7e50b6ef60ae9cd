"""Run folders, read from their files alone: settings, artifacts, evaluations, and scores of benchmarks."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from src.evaluation.benchmark import SCORES
from src.experiment.run_folder import COMMAND, LINKS, settings_file
from src.kernel.artifact import Place, place_of
from src.kernel.config import REHEARSAL, UserError
from src.kernel.record import RECORD, damage, read_record
from src.kernel.rows import ROWS, read_metrics

Value = str | int | float | bool | None
Settings = dict[str, Value]
"""Dotted key -> value."""
Numbers = dict[str, float]

Table = Any
"""A DataFrame or a Series of pandas, whose types pyright cannot follow."""
WIN, SECOND = "win_over_base", "second_"
LENGTHS = ("tokens", "characters", "avg_length", "longer_wins")
"""Ends of the names of lengths: a win rate is not to be read without them."""
OF_THE_POLICY = ("seed", "engine", "generator", "model", "content")
"""Settings of a stage in which two policies may differ and be measured alike."""
USUAL = {"model.name": "model", "method.name": "method", "method.eta": "eta", "train.lr": "lr", "sampling.K": "K",
         "ranker.name": "ranker", "estimator.kind": "estimator", "pairing.rule._target_": "pairing",
         "seed": "seed"}  # fmt: skip
"""Short names of the usual keys, in the order in which tables have them."""
IRRELEVANT = (
    *("name", "experiment", "variant", "mirror", "iter", "benchmark", "tracking", "store", "runs", "launcher", "only"),
    *("part", "replace", "push_to_hub", "push_private", "hardware", "ranker.work", "ranker.device", "ranker.precision"),
    *("ranker.batch_prompts", "ranker.pmi_batch_prompts", "data.card_datasets", "_target_", "_convert_", "held_out"),
)
"""Keys that name places, machines and labels, with all keys below them."""


def flat(config: dict[str, Any]) -> Settings:
    """Return the dotted keys of a composed config that can change a result; `method.beta` becomes `method.eta`."""
    (settings,) = pd.json_normalize(config).to_dict("records")
    if beta := settings.pop("method.beta", None):
        settings["method.eta"] = float(f"{1 / beta:.12g}")
    usual = [key for key in USUAL if key in settings]
    keys = dict.fromkeys([*usual, *sorted(map(str, settings))])
    relevant = [key for key in keys if not f"{key}.".startswith(tuple(f"{name}." for name in IRRELEVANT))]
    return {key: _plain(settings[key]) for key in relevant}


def _plain(value: Any) -> Value:
    """Make 1000.0 and 1000 equal, and two paths equal that end in the same name."""
    if isinstance(value, list):
        return json.dumps(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return Path(value).name if isinstance(value, str) and value.startswith("/") else value


@dataclass(frozen=True)
class Artifact:
    """A finished artifact, as a run shows it."""

    name: str
    """Such as `it2/pairs`."""
    path: Path
    record: dict[str, Any]
    parents: list[str]
    """The ids of its inputs."""
    seconds: float
    """Seconds times devices."""

    @classmethod
    def read(cls, name: str, path: Path) -> Artifact:
        record = read_record(path)
        parents = [f"{parent['kind']}/{parent['key']}" for parent in record["inputs"]]
        devices = record["workload"].rpartition(" ")[2]  # the workload ends in their number
        return cls(name, path, record, parents, float(record["seconds"]) * (int(devices) if devices.isdigit() else 1))

    @property
    def id(self) -> str:
        return f"{self.record.get('kind', self.path.parent.name)}/{self.key}"

    @property
    def key(self) -> str:
        return str(self.record.get("key", self.path.name))  # the folder of a copy has another name

    @property
    def place(self) -> Place:
        return place_of(self.name)

    @property
    def settings(self) -> str:
        """The version and the settings of its stage, without those that belong to the policy."""
        config = {key: value for key, value in self.record["config"].items() if key not in OF_THE_POLICY}
        return json.dumps([self.record["version"], config], sort_keys=True)

    def numbers(self) -> Numbers:
        """Return its metrics, without those that are unknown."""
        metrics = read_metrics(self.path).items()
        return {key: value for key, value in metrics if isinstance(value, int | float) and math.isfinite(value)}


@dataclass(frozen=True)
class Measured:
    """A policy as held-out prompts or a benchmark measure it."""

    benchmark: str
    """Empty for win rates on held-out prompts."""
    iteration: int
    """0 is the start policy."""
    key: str
    """The key of the artifact."""
    numbers: Numbers
    items: dict[str, Table]
    """Task of a leaderboard (else "") -> win probability by prompt, or score by item."""
    measurement: dict[str, str]
    """The settings and keys that the numbers are measured with; numbers of other measurements cannot be compared."""
    second: Measured | None = None
    """The same answers under the second judge."""
    title: str = ""
    """The benchmark, and who judged a win matrix."""

    @property
    def measures(self) -> list[str]:
        """The numbers that have an interval, and mean lengths."""
        return [key for key in self.numbers if f"{key}_low" in self.numbers or key.endswith(LENGTHS)]


@dataclass(frozen=True, repr=False)
class RunFolder:
    path: Path
    settings: Settings
    command: str
    wanted: int
    """Iterations that were asked for."""
    confidence: float
    rehearsed: bool
    device: str
    """`GPU` or `CPU`."""
    judges: list[str | None]
    """Names of the judge of the held-out answers and of the second one; None: there is none, or it is not known."""
    artifacts: dict[str, Artifact]
    """By name."""
    steps: list[Measured]
    """Iterations that are evaluated."""
    benchmarks: list[Measured]

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def state(self) -> str:
        done = len(self.steps)
        return "finished" if done >= self.wanted else f"{done} of {self.wanted} iterations evaluated"


def read_all(folders: Sequence[Path]) -> tuple[list[RunFolder], list[str]]:
    """Read run folders; return also a sentence for each that cannot be read.

    Raises UserError where none of them can be read and has an evaluation.
    """
    runs: list[RunFolder] = []
    errors: dict[str, UserError] = {}
    for folder in folders:
        try:
            runs.append(read(folder))
        except UserError as error:
            errors[folder.name] = error
    if not any(run.steps or run.benchmarks for run in runs):
        none = f"runs: none of the {len(runs)} run folders has an evaluation yet; let at least one iteration finish"
        raise next(iter(errors.values()), UserError(none))
    return runs, [f"{name} cannot be read and is left out: {error}" for name, error in errors.items()]


def read(folder: Path) -> RunFolder:
    """Read a run folder. Raises UserError in one line that names what cannot be read."""
    from omegaconf import OmegaConf

    links = folder / LINKS
    try:
        loaded = OmegaConf.load(settings_file(folder))
        config: Any = OmegaConf.to_container(loaded)
        judges = [OmegaConf.select(loaded, f"held_out.{judge}.name") for judge in ("ranker", "second")]
        settings, wanted, hardware = flat(config), int(config["iter"]), config["hardware"]
        level = float(config["held_out"]["confidence"])
        rehearsed = hardware["name"] == REHEARSAL
        device = "GPU" if hardware["devices"]["device"] == "cuda" else "CPU"
        command = (folder / COMMAND).read_text().strip()
        places = [path for path in sorted(links.rglob("*")) if (path / RECORD).is_file()]
        names = [str(path.relative_to(links)) for path in places]
        artifacts = {name: Artifact.read(name, path.resolve()) for name, path in zip(names, places, strict=True)}
        by_id = {artifact.id: artifact for artifact in artifacts.values()}
        steps, benchmarks = list[Measured](), list[Measured]()
        for artifact in artifacts.values():
            scope, benchmark, stage = artifact.place
            if benchmark and stage == SCORES:
                benchmarks.append(_measured(artifact, by_id, "item_id", "score"))
            elif not benchmark and stage == "evaluation":
                others = [artifacts.get(f"{scope}/{name}") for name in ("divergence", f"{SECOND}evaluation")]
                steps.append(_measured(artifact, by_id, "prompt_id", WIN, *others))
    except Exception as error:  # of YAML, Arrow, the file system or our own readers
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"{folder}: cannot be read ({reason}); `verify` names what is damaged") from None
    steps.sort(key=lambda step: step.iteration)
    benchmarks.sort(key=lambda scores: (scores.benchmark, scores.iteration))
    return RunFolder(folder, settings, command, wanted, level, rehearsed, device, judges, artifacts, steps, benchmarks)


def _measured(
    artifact: Artifact,
    by_id: Mapping[str, Artifact],
    item: str,
    value: str,
    divergence: Artifact | None = None,
    second: Artifact | None = None,
) -> Measured:
    """Read an evaluation or scores; of rows that belong together, such as turns, the mean counts."""
    if lines := damage(artifact.path, weights=False):
        raise UserError(lines[0])
    rows: Table = pd.read_parquet(artifact.path / ROWS)
    groups = [rows.get("column", pd.Series("", rows.index)).astype(str), rows.get("cluster", rows[item])]
    means = rows[value].astype(float).groupby(groups).mean()
    items = {str(task): means[task] for task in means.index.unique(0)}
    numbers, again = divergence.numbers() if divergence else {}, second and _measured(second, by_id, item, value)
    numbers |= {f"{SECOND}{key}": value for key, value in again.numbers.items()} if again else {}
    numbers |= artifact.numbers()
    iteration, benchmark = artifact.place.iteration or 0, artifact.place.benchmark or ""
    title = f"{benchmark}, by {artifact.record['config'].get('judge', '')}".removesuffix(", by ")
    return Measured(benchmark, iteration, artifact.key, numbers, items, _measurement(artifact, by_id), again, title)


def _measurement(measured: Artifact, by_id: Mapping[str, Artifact]) -> dict[str, str]:
    """Say by the artifacts behind numbers what these are measured with: name -> settings or key.

    Of what is made with a policy the settings count; of prompts, questions and models the keys. Which policy is
    measured does not count, nor do others that the run trained.
    """
    parts: dict[str, str] = {}
    waiting = [measured]
    while waiting:
        artifact = waiting.pop()
        scope, benchmark, stage = artifact.place
        trained = scope == measured.place.scope or bool(artifact.place.iteration)
        name = "/".join(filter(None, ("policy" if trained else scope, benchmark, stage)))
        name = f"model {artifact.key}" if re.fullmatch(r"(.*/)?model\d+", stage) else name  # several may link to it
        if name in parts or name == "policy/policy":
            continue
        by_policy = trained or (scope in ("base", "null") and stage != "policy")
        parts[name] = artifact.settings if by_policy else artifact.key
        waiting += [by_id[parent] for parent in artifact.parents if parent in by_id]
    return parts
