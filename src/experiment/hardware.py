"""Hardware: what a run runs on, and what is taken for granted of its speed."""

from __future__ import annotations

from pydantic import PositiveFloat, PositiveInt

from src.evaluation.open_llm.lm_eval import LmEval
from src.experiment.forecast import Assumed
from src.generation.contract import Engine
from src.generation.stage import Dealing, Generate
from src.kernel.artifact import Stage
from src.kernel.config import Free, Label, config
from src.ranking.stage import Rank
from src.ranking.work import Work
from src.training.engine_reference import EngineReference, MeasuringEngine
from src.training.stage import Devices, Train


@config
class Hardware:
    """What the machine is; changes how fast a result comes, and its last digits through `precision`."""

    name: Free[Label]
    engine: Engine
    generation: Dealing
    devices: Devices
    ranking: Work
    """Of rankers that are models of their own."""
    reference_batch_pairs: Free[PositiveInt]
    """Pairs scored at a time by the reference stage; no gradients are kept."""
    seconds_per_unit: Free[dict[str, dict[str, PositiveFloat]]]
    """Model or ranker -> kind of work -> measured seconds a unit, for forecasts before there are records."""
    assumed: Free[Assumed | None]
    """For forecasts where nothing was measured; null: none."""


def devices_of(stage: Stage) -> int:
    """Return how many devices the stage computes on; 1 for a stage that does not say."""
    return stage.takes().devices if isinstance(stage, Computing) else 1
