"""Hardware: what a run runs on, and what is assumed of its speed."""

from __future__ import annotations

from pydantic import PositiveFloat, PositiveInt

from src.generation.engine import Engine
from src.generation.stage import Dealing
from src.kernel.config import Free, Label, Share, config
from src.ranking.batching import Work
from src.training.recipe import Devices


@config
class Assumed:
    """Assumptions on the speed of hardware where nothing was measured. A record of the same work replaces them."""

    prompt_tokens: PositiveFloat
    """Mean length of a prompt."""
    answer_tokens: PositiveFloat
    """Mean length of an answer."""
    sampling: Share
    """Share of the devices' peak that sampling reaches."""
    scoring: Share
    """Share that forward passes reach."""
    training: Share
    """Share that forward and backward passes reach; what is computed twice does not count."""

    def seconds(self, weights: float, peak_flops: float, answers: float) -> dict[str, float]:
        """Return kind of work -> seconds per unit, for a model of so many `weights` on `peak_flops`.

        2 operations a weight and token forward, 6 with the backward pass. `answers` a comparison or score reads.
        """
        prompt, answer = self.prompt_tokens, self.answer_tokens
        pair, forward = prompt + 2 * answer, 2 * weights / peak_flops
        return {
            "responses": forward * (prompt + answer) / self.sampling,
            "ranking": forward * (prompt + answers * answer) / self.scoring,
            "reference": forward * pair / self.scoring,
            "policy": 3 * forward * pair / self.training,
            "divergence": 2 * forward * (prompt + answer) / self.scoring,
        }


@config
class Hardware:
    """The machine. It changes how fast a result comes, and through `precision` its last digits."""

    name: Free[Label]
    engine: Engine
    generation: Dealing
    devices: Devices
    ranking: Work
    """The settings of rankers that are models of their own."""
    reference_batch_pairs: Free[PositiveInt]
    """Pairs scored at a time by the reference stage; no gradients are kept."""
    seconds_per_unit: Free[dict[str, dict[str, PositiveFloat]]]
    """Model or ranker -> kind of work -> measured seconds per unit, for forecasts before there are records."""
    assumed: Free[Assumed | None]
    """For forecasts where nothing was measured; null: none."""
