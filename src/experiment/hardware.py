"""Hardware: what a run runs on."""

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
    reference_engine: MeasuringEngine | None
    """Tells the reference log-probabilities in place of the training code."""
    seconds_per_unit: Free[dict[str, dict[str, PositiveFloat]]]
    """Model or ranker -> kind of work -> measured seconds a unit, for forecasts before there are records."""
    assumed: Free[Assumed | None]
    """For forecasts where nothing was measured; null: none."""

    def __post_init__(self) -> None:
        told = getattr(self.reference_engine, "dtype", "float32")
        if self.devices.precision == "float32" and told != "float32":
            raise ValueError(
                f"reference_engine.dtype: {told} beside devices.precision=float32, so log-ratios would not begin at "
                "zero; set both alike"
            )

    def devices_of(self, stage: Stage) -> int:
        """CUDA devices that a stage takes; 1 where it takes none."""
        if isinstance(stage, Train):
            return self.devices.count
        if isinstance(stage, LmEval):
            return stage.devices
        if isinstance(stage, Rank):
            work = getattr(stage.ranker, "work", None)
            return work.workers if work is not None and work.device == "cuda" else 1
        if isinstance(stage, Generate | EngineReference) and stage.engine.device == "cuda":
            return max(1, self.generation.workers * stage.engine.devices_each)
        return 1
