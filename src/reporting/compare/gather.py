"""What run folders hold, read from their files alone: settings of any age, artifacts through the links, numbers."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from src.experiment.links import LINKS
from src.experiment.select import CONFIG
from src.kernel.config import REHEARSAL, UserError
from src.reporting.compare.artifacts import (
    Artifact,
    Numbers,
    artifacts_of,
    first_line,
    is_number,
    numbers_of,
    values_of,
)
from src.reporting.compare.benchmarks import Scored, scored
from src.reporting.compare.varied import Settings, flat

WIN = "win_over_base"
NOT_RECORDED = "not recorded"


@dataclass(frozen=True, repr=False)
class Step:
    """What is known of an iteration that has an evaluation."""

    iteration: int
    numbers: Numbers
    """Of the evaluation and the divergence; without those that are unknown."""
    wins: Numbers
    """prompt_id -> win probability over the base."""
    yardstick: dict[str, str]
    """What the win rate is measured with; numbers of other yardsticks cannot be compared with it."""


@dataclass(frozen=True, repr=False)
class Folder:
    """A run folder."""

    path: Path
    settings: Settings
    config: dict[str, Any]
    command: str
    artifacts: dict[str, Artifact]
    steps: list[Step]
    benchmarks: list[Scored]

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def rehearsed(self) -> bool:
        return self._hardware.get("name") == REHEARSAL

    @property
    def _hardware(self) -> dict[str, Any]:
        hardware = self.config.get("hardware")
        return hardware if isinstance(hardware, dict) else {}

    @property
    def wanted(self) -> int:
        """Iterations that were asked for; those that are there, where the settings do not say."""
        wanted = self.config.get("iter")
        return max(wanted if isinstance(wanted, int) else 0, len(self.steps))

    @property
    def state(self) -> str:
        if len(self.steps) >= self.wanted:
            return "finished"
        return f"unfinished: {len(self.steps)} of {self.wanted} iterations evaluated"

    @property
    def confidence(self) -> float:
        held_out = self.config.get("held_out")
        found = held_out.get("confidence") if isinstance(held_out, dict) else None
        return float(found) if isinstance(found, int | float) else 0.95

    @property
    def device(self) -> str:
        """`GPU` or `CPU`: what its hours are hours of."""
        devices = self._hardware.get("devices")
        return "GPU" if isinstance(devices, dict) and devices.get("device") == "cuda" else "CPU"


class Damaged(NamedTuple):
    """A run folder that cannot be read."""

    name: str
    reason: str
    """One line."""


def sort_out(folders: Sequence[Path]) -> tuple[list[Path], list[Damaged]]:
    """Those that can be read, and why the others cannot."""
    whole, damaged = list[Path](), list[Damaged]()
    for folder in folders:
        try:
            read(folder)
            whole.append(folder)
        except UserError as error:
            damaged.append(Damaged(folder.name, " ".join(str(error).split())))
    return whole, damaged


def gather(folders: Sequence[Path]) -> list[Folder]:
    """Read all; raises UserError where none has an evaluation, or a file cannot be read."""
    found = [read(folder) for folder in folders]
    if not any(run.steps or run.benchmarks for run in found):
        raise UserError(
            f"runs: none of the {len(found)} run folders has an evaluation yet ({found[0].path}, …); "
            "let at least one iteration finish"
        )
    return found


def read(folder: Path) -> Folder:
    config = _config(folder / CONFIG)
    settings = _settings(config, folder / CONFIG)
    artifacts = artifacts_of(folder)
    steps = [_step(t, artifacts, folder) for t in _evaluated(artifacts)]
    benchmarks = scored(artifacts, folder / LINKS)
    return Folder(folder, settings, config, _command(folder / "command.txt"), artifacts, steps, benchmarks)


def _config(path: Path) -> dict[str, Any]:
    from omegaconf import OmegaConf

    try:
        found = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except Exception as error:  # of YAML's and OmegaConf's many
        raise UserError(f"{path}: cannot be read ({first_line(error)})") from None
    if not isinstance(found, dict) or not found:
        raise UserError(f"{path}: no settings of a run")
    if not isinstance(found.get("tracking") or {}, dict):
        raise UserError(f"{path}: tracking is {found['tracking']!r}, no group of settings")
    return {str(key): value for key, value in found.items()}


def _settings(config: dict[str, Any], path: Path) -> Settings:
    try:
        found = flat(config)
    except TypeError as error:
        raise UserError(f"{path}: no settings of a run ({error})") from None
    for key, value in found.items():
        if not isinstance(value, str | None) and not is_number(value):
            raise UserError(f"{path}: {key} is no word, and no number that can be drawn")
    return found


def _command(path: Path) -> str:
    try:
        return path.read_text().strip() if path.exists() else ""
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None


def _evaluated(artifacts: dict[str, Artifact]) -> list[int]:
    """Iterations."""
    found = (re.fullmatch(r"it([1-9][0-9]{0,5})/evaluation", name) for name in artifacts)
    return sorted(int(match[1]) for match in found if match)


def _step(t: int, artifacts: dict[str, Artifact], folder: Path) -> Step:
    evaluation = folder / LINKS / f"it{t}/evaluation"
    numbers = numbers_of(evaluation)
    if missing := [key for key in ("prompts", WIN, f"{WIN}_low", f"{WIN}_high") if key not in numbers]:
        raise UserError(f"{evaluation}/metrics.json: no {', '.join(missing)}; not an evaluation of this code")
    if f"it{t}/divergence" in artifacts:
        numbers |= {k: v for k, v in numbers_of(folder / LINKS / f"it{t}/divergence").items() if k != "prompts"}
    return Step(t, numbers, values_of(evaluation, "prompt_id", WIN), _yardstick(t, artifacts))


def _yardstick(t: int, artifacts: dict[str, Artifact]) -> dict[str, str]:
    """From keys and records. Another seed draws other answers of the same base: it measures the same."""
    base = artifacts.get("base/answers")
    judge = artifacts.get("base/answers_ranking") or artifacts.get(f"it{t}/joint_ranking")
    return {
        "held-out prompts": _key(artifacts.get("held_out/prompts")),
        "base policy": _key(artifacts.get("base/policy")),
        "sampling of held-out answers": _recorded(base, "sampling"),
        "ranker": _recorded(judge, "ranker") + _models(judge),
        "estimator": _recorded(artifacts[f"it{t}/evaluation"], "estimator"),
    }


def _key(artifact: Artifact | None) -> str:
    return artifact.key if artifact else NOT_RECORDED


def _recorded(artifact: Artifact | None, name: str) -> str:
    if artifact is None or name not in artifact.record.get("config", {}):
        return NOT_RECORDED
    return json.dumps([artifact.record.get("version"), artifact.record["config"][name]], sort_keys=True)


def _models(judge: Artifact | None) -> str:
    """Those a ranking is made with come behind the answers it ranks."""
    return " ".join(parent["key"] for parent in judge.record.get("inputs", [])[1:]) if judge else ""
