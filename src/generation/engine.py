"""Engines, and the settings of sampling: an engine hands on each answer as soon as it has it, in any order."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, ClassVar, Literal, NamedTuple, TypedDict

from pydantic import Field, NonNegativeFloat, PositiveInt

from src.kernel.config import Device, UserError, config


@config
class Sampling:
    """The settings of sampling."""

    K: PositiveInt
    """Answers per prompt."""
    temperature: NonNegativeFloat
    """0: the likeliest token always (greedy)."""
    top_p: Annotated[float, Field(gt=0, le=1)]
    max_new_tokens: PositiveInt
    max_prompt_tokens: PositiveInt
    """A longer prompt is left out of the run, and counted."""

    top_k: ClassVar[int | None] = None
    presence_penalty: ClassVar[float] = 0.0
    frequency_penalty: ClassVar[float] = 0.0

    def further(self) -> dict[str, float]:
        """Return the settings of PenalisedSampling that are on, under the names that they have everywhere."""
        names = ("top_k", "presence_penalty", "frequency_penalty")
        return {name: value for name in names if (value := getattr(self, name))}


Penalty = Annotated[float, Field(ge=-2, le=2)]


@config
class PenalisedSampling(Sampling):
    """Further settings, which published evaluations sample with. A class of their own: other keys stay as they are.

    In this order: penalties, temperature, the `top_k` likeliest tokens, of these the nucleus `top_p`.
    """

    top_k: PositiveInt | None  # pyright: ignore[reportIncompatibleVariableOverride]
    """Number of the likeliest tokens that are drawn from, with those that are as likely as the last; null: all."""
    presence_penalty: Penalty  # pyright: ignore[reportIncompatibleVariableOverride]
    """Logits subtracted from each token that the answer has already; its prompt does not count."""
    frequency_penalty: Penalty  # pyright: ignore[reportIncompatibleVariableOverride]
    """Logits subtracted for each time that the answer has the token."""


class Request(NamedTuple):
    """An answer that is wanted."""

    prompt_id: str
    k: int
    token_ids: list[int]
    """The prompt as the policy reads it, up to where the answer begins."""
    seed: int
    """Source of all the answer's randomness, 63 bits."""

    @property
    def cell(self) -> str:
        """The answer's name among the cells."""
        return f"{self.prompt_id}/{self.k}"


class Answer(TypedDict):
    """A sampled answer, as cells and rows hold it."""

    text: str
    token_ids: list[int]
    """Ids as sampled, EOS included exactly where it was sampled."""
    finish_reason: Literal["stop", "length"]


Keep = Callable[[Request, Answer], None]
Answering = Callable[[list[Request], Keep], None]
"""A loaded engine: hands each answer to `keep` once. The answers to one prompt are asked for side by side."""


class Engine(ABC):
    """Something that samples answers; its config classes inherit from it."""

    device: Device
    own_process: ClassVar[bool] = False
    """True: it always runs in a process of its own, whose end gives the device back."""
    devices_each: ClassVar[int] = 1
    """CUDA devices that one worker takes."""

    def check_installed(self) -> None:  # noqa: B027 (a choice)
        """Raise UserError where the engine is not installed."""

    def check_sampling(self, sampling: Sampling) -> None:  # noqa: B027 (a choice)
        """Raise UserError where the engine cannot sample as `sampling` says."""

    @abstractmethod
    def open(self, policy: Path, sampling: Sampling) -> Answering:
        """Load the engine. Raises UserError where that cannot be done."""
        ...

    def greedy(self, policy: Path, requests: list[Request], most: int) -> list[tuple[list[int], list[float]]]:
        """Return each prompt's likeliest answer of at most `most` tokens, and the log-probabilities of these, nats."""
        raise UserError(f"hardware.engine: {type(self).__name__} cannot be compared; bench.parity is for engine=vllm")
