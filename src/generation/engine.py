"""What an engine is, and what is sampled: asked for answers, it gives each as soon as it has it, in any order."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

from pydantic import Field, NonNegativeFloat, PositiveInt

from src.kernel.config import Device, config


@config
class Sampling:
    """How answers are sampled."""

    K: PositiveInt
    """Answers per prompt."""
    temperature: NonNegativeFloat
    """0: the likeliest token always (greedy)."""
    top_p: Annotated[float, Field(gt=0, le=1)]
    max_new_tokens: PositiveInt
    max_prompt_tokens: PositiveInt
    """A longer prompt is left out of the run, and counted."""


Penalty = Annotated[float, Field(ge=-2, le=2)]


@config
class PenalisedSampling(Sampling):
    """Further settings, which published evaluations sample with; the settings of others keep their keys.

    In this order: penalties, temperature, the `top_k` likeliest tokens, of these the nucleus `top_p`.
    """

    top_k: PositiveInt | None
    """Of the likeliest tokens one is drawn, and of those that are as likely as the last of them; null: of all."""
    presence_penalty: Penalty
    """Subtracted from the logit of each token that the answer has already; its prompt does not count."""
    frequency_penalty: Penalty
    """Subtracted from it once for each time."""


class Shape(NamedTuple):
    """The settings that a PenalisedSampling adds."""

    top_k: int | None
    presence: float
    frequency: float

    @property
    def penalised(self) -> bool:
        return bool(self.presence or self.frequency)


def shape_of(sampling: Sampling) -> Shape:
    """Returns the further settings; those of an ordinary Sampling are off."""
    if isinstance(sampling, PenalisedSampling):
        return Shape(sampling.top_k, sampling.presence_penalty, sampling.frequency_penalty)
    return Shape(None, 0.0, 0.0)


class Answer(NamedTuple):
    """One sampled answer: ids as sampled, EOS included exactly where it was sampled."""

    text: str
    token_ids: list[int]
    finish_reason: Literal["stop", "length"]


class Request(NamedTuple):
    """A prompt, and the answers to it that are wanted."""

    prompt_id: str
    messages: list[dict[str, str]]
    token_ids: list[int]
    """The prompt as the policy reads it, up to where the answer begins."""
    seeds: dict[int, int]
    """k -> the 63-bit seed of answer k, all that its randomness comes from."""


class Made(NamedTuple):
    """Answer k to a prompt."""

    prompt_id: str
    k: int
    answer: Answer


@runtime_checkable
class Engine(Protocol):
    """Something that samples answers."""

    device: Device
    apart: ClassVar[bool]
    """True: always in a process of its own, whose end gives the device back."""

    @property
    def source(self) -> str:
        """Who gives its answers: "policy", or the name of another model."""
        ...

    @property
    def devices_each(self) -> int:
        """CUDA devices that one worker takes; 0: it waits for others, so that one worker is enough."""
        ...

    def open(self, policy: Path, sampling: Sampling) -> Sampler: ...


@runtime_checkable
class Extra(Protocol):
    """An engine that need not be installed."""

    def check_installed(self, key: str) -> None:
        """Raises UserError, naming the config's `key`, where it is not."""
        ...


@runtime_checkable
class Served(Protocol):
    """An engine that is a server of its own."""

    @property
    def endpoint(self) -> Any: ...

    def check_sampling(self, sampling: Sampling) -> None:
        """Raises UserError for what this server cannot sample with."""
        ...


class Sampler(Protocol):
    """A loaded engine."""

    def answers(self, requests: list[Request]) -> Iterator[Made]:
        """Yields every answer asked for, once. Raises UserError when that cannot be had."""
        ...


class Sequence(NamedTuple):
    prompt: list[int]
    answer: list[int]


@runtime_checkable
class Measuring(Protocol):
    """An engine that also tells how likely given answers are."""

    def measure(self, policy: Path, longest: int) -> Measurer:
        """Loads the engine to measure; `longest` counts the tokens of the longest prompt and answer together."""
        ...


class Measurer(Protocol):
    def logps(self, sequences: list[Sequence]) -> list[list[float]]:
        """Returns each answer token's log-probability given all before it: nats, temperature 1, whole vocabulary."""
        ...
