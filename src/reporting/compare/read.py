"""Run folders, read from their files alone: settings, evaluations, and scores of benchmarks."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from src.evaluation.benchmark import SCORES
from src.experiment.run_folder import LINKS
from src.experiment.selection import CONFIG
from src.kernel.config import REHEARSAL, UserError
from src.kernel.rows import METRICS
from src.reporting.compare.artifacts import Artifact, Numbers, artifacts_of, numbers_of, reading, rows_of
from src.reporting.compare.settings import Settings, flat

WIN = "win_over_base"
EVALUATED = re.compile(r"it([1-9][0-9]{0,5})/evaluation")
SCORED = re.compile(rf"(base|it[1-9][0-9]{{0,5}})/([\w.-]+)/{SCORES}")
OF_A_POLICY = re.compile(r"(base|null|it\d+)/(?!policy$)")
LENGTHS = re.compile(r"avg_length|longer_wins|(?:(?:base|it\d+)_)?(?:tokens|characters)")
"""Lengths of answers, and whether longer ones win: a win rate is not to be read without them."""
MIRRORED = re.compile(r"^(.+)_over_(.+)$")
OF_THE_POLICY = ("seed", "engine", "generator", "model", "content")
"""Settings of a stage in which two policies may differ and be measured alike."""


class Step(NamedTuple):
    """An iteration that has an evaluation."""

    iteration: int
    numbers: Numbers
    """Of the evaluation and the divergence, as far as they are known."""
    wins: Any
    """Win probability over the base by prompt, a Series."""
    yardstick: dict[str, str]
    """What the win rate is measured with; numbers of other yardsticks cannot be compared with it."""


class Scores(NamedTuple):
    """A benchmark of a policy."""

    benchmark: str
    iteration: int
    """0 is the start policy."""
    numbers: Numbers
    items: dict[str, Any]
    """Task of a leaderboard (else "") -> scores by item, a Series; means of what belongs together, such as turns."""
    key: str
    """Of the artifact."""
    yardstick: str
    """Equal where questions, opponents, decoding, judge and scoring are equal."""

    @property
    def measures(self) -> list[str]:
        """Numbers that have an interval, and mean lengths. Of `a_over_b` and `b_over_a` the last: they add up to 1."""
        known = [key for key in self.numbers if LENGTHS.fullmatch(key) or self.has_interval(key)]
        return [key for i, key in enumerate(known) if MIRRORED.sub(r"\2_over_\1", key) not in known[i + 1 :]]

    def has_interval(self, key: str) -> bool:
        return {f"{key}_low", f"{key}_high"} <= self.numbers.keys()


@dataclass(frozen=True, repr=False)
class RunFolder:
    path: Path
    settings: Settings
    config: dict[str, Any]
    command: str
    artifacts: dict[str, Artifact]
    steps: list[Step]
    benchmarks: list[Scores]

    @property
    def name(self) -> str:
        return self.path.name

    def configured(self, key: str) -> Any:
        """Returns the value of a dotted key; None where the config has none."""
        value: Any = self.config
        for name in key.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        return value

    @property
    def rehearsed(self) -> bool:
        return self.configured("hardware.name") == REHEARSAL

    @property
    def device(self) -> str:
        return "GPU" if self.configured("hardware.devices.device") == "cuda" else "CPU"

    @property
    def wanted(self) -> int:
        """Iterations that were asked for."""
        wanted = self.configured("iter")
        return max(wanted if isinstance(wanted, int) else 0, len(self.steps))

    @property
    def state(self) -> str:
        done = len(self.steps)
        return "finished" if done >= self.wanted else f"unfinished: {done} of {self.wanted} iterations evaluated"

    @property
    def confidence(self) -> float:
        confidence = self.configured("held_out.confidence")
        return float(confidence) if isinstance(confidence, int | float) else 0.95


class Damaged(NamedTuple):
    """A run folder that cannot be read."""

    name: str
    reason: str


def read_all(folders: Sequence[Path]) -> tuple[list[RunFolder], list[Damaged]]:
    """Reads run folders, and says of those that cannot be read why.

    Raises UserError where none of them can be read and has an evaluation.
    """
    runs: list[RunFolder] = []
    damaged: list[Damaged] = []
    for folder in folders:
        try:
            runs.append(read(folder))
        except UserError as error:
            damaged.append(Damaged(folder.name, " ".join(str(error).split())))
    if any(run.steps or run.benchmarks for run in runs):
        return runs, damaged
    if damaged:
        raise UserError(damaged[0].reason)
    raise UserError(
        f"runs: none of the {len(runs)} run folders has an evaluation yet ({folders[0]}, …); "
        "let at least one iteration finish"
    )


def read(folder: Path) -> RunFolder:
    """Reads a run folder. Raises UserError in one line that names the file that cannot be read."""
    from omegaconf import OmegaConf

    with reading(folder / CONFIG):
        config: Any = OmegaConf.to_container(OmegaConf.load(folder / CONFIG), resolve=False)
        if not isinstance(config, dict) or not config or not isinstance(config.get("tracking") or {}, dict):
            raise ValueError("no settings of a run")
        settings = flat(config)
        if strange := [k for k, v in settings.items() if not isinstance(v, str | None) and not math.isfinite(v)]:
            raise ValueError(f"{strange[0]} is no number that can be drawn")
    with reading(folder / "command.txt"):
        command = (folder / "command.txt").read_text().strip() if (folder / "command.txt").exists() else ""
    links = folder / LINKS
    artifacts = artifacts_of(links)
    evaluated = sorted(int(match[1]) for name in artifacts if (match := EVALUATED.fullmatch(name)))
    steps = [_step(t, artifacts, links) for t in evaluated]
    scored = [match for name in artifacts if (match := SCORED.fullmatch(name))]
    benchmarks = [_scores(match[1], match[2], artifacts, links) for match in scored]
    benchmarks.sort(key=lambda scores: (scores.benchmark, scores.iteration))
    return RunFolder(folder, settings, config, command, artifacts, steps, benchmarks)


def _step(t: int, artifacts: dict[str, Artifact], links: Path) -> Step:
    evaluation = links / f"it{t}/evaluation"
    numbers = numbers_of(evaluation)
    if missing := [key for key in ("prompts", WIN, f"{WIN}_low", f"{WIN}_high") if key not in numbers]:
        raise UserError(f"{evaluation / METRICS}: no {', '.join(missing)}; not an evaluation of this code")
    if f"it{t}/divergence" in artifacts:
        numbers |= {key: value for key, value in numbers_of(links / f"it{t}/divergence").items() if key != "prompts"}
    wins = rows_of(evaluation, "prompt_id", WIN).groupby("prompt_id")[WIN].mean()
    return Step(t, numbers, wins, _yardstick(t, artifacts))


def _yardstick(t: int, artifacts: dict[str, Artifact]) -> dict[str, str]:
    """Says what a win rate is measured with. Another seed draws other answers of the same base: it measures the same.

    A ranking's inputs are the answers it ranks and, behind them, the models it is made with.
    """
    base, prompts, policy = (artifacts.get(name) for name in ("base/answers", "held_out/prompts", "base/policy"))
    judge = artifacts.get("base/answers_ranking") or artifacts.get(f"it{t}/joint_ranking")
    return {
        "held-out prompts": prompts.key if prompts else "",
        "base policy": policy.key if policy else "",
        "sampling of held-out answers": base.settings("sampling") if base else "",
        "ranker": " ".join([judge.settings("ranker"), *judge.parents[1:]]) if judge else "",
        "estimator": artifacts[f"it{t}/evaluation"].settings("estimator"),
    }


def _scores(policy: str, benchmark: str, artifacts: dict[str, Artifact], links: Path) -> Scores:
    artifact = artifacts[f"{policy}/{benchmark}/{SCORES}"]
    rows = rows_of(links / artifact.name, "item_id", "score")
    rows = rows.assign(column=rows.get("column", ""), item=rows.get("cluster", rows["item_id"]))
    means = rows.groupby(["column", "item"])["score"].mean()
    items = {str(column): means[column] for column in means.index.unique("column")}
    yardstick = _made_from(artifact, policy, artifacts)
    for name, other in artifacts.items():
        if name.startswith(f"{policy}/{benchmark}/"):
            yardstick[name.removeprefix(f"{policy}/")] = _measurement(other)
        elif name.startswith(f"{benchmark}/"):
            yardstick[name] = other.key
    t = 0 if policy == "base" else int(policy[2:])
    return Scores(benchmark, t, numbers_of(links / artifact.name), items, artifact.key, str(sorted(yardstick.items())))


def _measurement(artifact: Artifact) -> str:
    """Returns the settings of an artifact without those that belong to the policy."""
    names = sorted(artifact.record.config.keys() - set(OF_THE_POLICY))
    return f"{names} {artifact.settings(*names)}"


def _made_from(scores: Artifact, policy: str, artifacts: dict[str, Artifact]) -> dict[str, str]:
    """Says what scores are made from beside the policies that the run trained, since those are what differs.

    These are held-out prompts and answers, an opponent, a ranker's models.
    """
    by_id = {artifact.id: artifact for artifact in artifacts.values()}
    sources: dict[str, str] = {}
    waiting = [scores]
    while waiting:
        artifact = waiting.pop()
        name = artifact.name.removeprefix(f"{policy}/")
        if name not in sources and name != "policy" and not re.fullmatch(r"it\d+/policy", artifact.name):
            sources[name] = _measurement(artifact) if OF_A_POLICY.match(artifact.name) else artifact.key
            waiting += [by_id[parent] for parent in artifact.parents if parent in by_id]
    return sources
