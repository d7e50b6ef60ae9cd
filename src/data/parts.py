"""Where prompts come from: which part an iteration asks, and what is held out.

The stage that writes them is `Prompts`; docs/data.md shows every data set.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import field
from typing import Annotated, Protocol, runtime_checkable

from pydantic import Field, NonNegativeInt, PositiveInt

from src.data.outside.source import AnswerSource
from src.data.prompts import Columns, Lots, Portion, Prompts
from src.data.source import Source
from src.kernel.config import Free, Label, Share, UserError, YamlPath, config


@runtime_checkable
class Data(Protocol):
    """Where prompts come from, and answers that the policy does not give."""

    held_out_prompts: int
    answers: dict[str, AnswerSource]
    card_datasets: list[str]
    """Hub ids, for the cards of what is trained on them."""

    def part(self, iteration: int) -> Prompts:
        """Writes the prompts of iteration 1, 2, …"""
        ...

    def held_out(self) -> Prompts: ...


class _Parts(ABC):
    """Iteration t asks part t; past the last part, the next slice of the first, and so on."""

    prompts_per_iteration: int | None
    held_out_prompts: int

    @abstractmethod
    def portions(self) -> list[Portion]:
        """Returns the parts in their order."""

    @abstractmethod
    def held_out_portion(self) -> Portion:
        """Returns all that is kept out of training; the first of it are the held-out prompts."""

    def part(self, iteration: int) -> Prompts:
        parts, count = self.portions(), self.prompts_per_iteration
        turn, index = divmod(iteration - 1, len(parts))
        if turn and count is None:
            raise UserError(
                f"data.prompts_per_iteration: null asks all of a part, and iteration {iteration} comes after the last "
                f"of {len(parts)}; give a number of prompts, so that it can ask the next ones of part {index + 1}"
            )
        start = turn * (count or 0)
        _check_enough("data.prompts_per_iteration", parts[index], start, count)
        earlier, held_out = tuple(parts[:index]), self.held_out_portion()
        return Prompts(part=parts[index], earlier=earlier, held_out=held_out, start=start, count=count)

    def held_out(self) -> Prompts:
        portion, count = self.held_out_portion(), self.held_out_prompts
        _check_enough("data.held_out_prompts", portion, 0, count)
        return Prompts(part=portion, earlier=(), held_out=None, start=0, count=count)


@config
class PromptFiles(_Parts):
    """A file a part: iteration t asks part t; past the last part, the next slice of the first, and so on."""

    parts: Annotated[tuple[YamlPath, ...], Field(strict=False, min_length=1)]
    held_out_file: YamlPath
    prompts_per_iteration: PositiveInt | None
    """Null: all of a part."""
    held_out_prompts: PositiveInt
    answers: dict[Label, AnswerSource] = field(default_factory=dict)
    """Further candidates beside the policy's own: `+answers@data.answers.<name>=file`; docs/data.md."""
    card_datasets: Free[list[str]] = field(default_factory=list)

    def portions(self) -> list[Portion]:
        return [_portion("data.parts", Source(path=str(file)), Columns()) for file in self.parts]

    def held_out_portion(self) -> Portion:
        return _portion("data.held_out_file", Source(path=str(self.held_out_file)), Columns())


@config
class PublishedParts(_Parts):
    """A data set whose parts are splits of it: iteration t asks part t, as `PromptFiles` does."""

    path: str
    """Hub id, or a folder laid out as a data set."""
    subset: str | None
    revision: str | None
    """Of a hub id: commit, tag or branch, null for `main`; give a commit where a number must be reproducible."""
    prompt: str | None
    messages: str | None
    parts: Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
    part_rows: Annotated[tuple[PositiveInt, ...], Field(strict=False)]
    """As published, so that a run can be planned before anything is fetched."""
    held_out_split: str
    held_out_rows: PositiveInt
    prompts_per_iteration: PositiveInt | None
    held_out_prompts: PositiveInt
    answers: dict[Label, AnswerSource] = field(default_factory=dict)
    """Further candidates beside the policy's own: `+answers@data.answers.<name>=file`; docs/data.md."""
    card_datasets: Free[list[str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        Columns(prompt=self.prompt, messages=self.messages)
        if len(self.parts) != len(self.part_rows):
            raise ValueError(f"part_rows: {len(self.part_rows)} numbers for {len(self.parts)} parts; one each")

    def portions(self) -> list[Portion]:
        return [self._split(split, rows) for split, rows in zip(self.parts, self.part_rows, strict=True)]

    def held_out_portion(self) -> Portion:
        return self._split(self.held_out_split, self.held_out_rows)

    def _split(self, split: str, rows: int) -> Portion:
        source = Source(path=self.path, split=split, subset=self.subset, revision=self.revision, rows=rows)
        return _portion("data.path", source, Columns(prompt=self.prompt, messages=self.messages))


@config
class OwnParts(_Parts):
    """One data set cut into parts by lot: iteration t asks part t, as `PromptFiles` does."""

    path: str
    """A .jsonl, .parquet or .csv file, or a folder of them; with a split a hub id, or a folder laid out as a set."""
    split: str | None
    subset: str | None
    revision: str | None
    """Of a hub id: commit, tag or branch, null for `main`; give a commit where a number must be reproducible."""
    rows: PositiveInt | None
    """Of a split as published, so that a run can be planned before anything is fetched; null: unknown."""
    prompt: str | None
    messages: str | None
    parts: PositiveInt
    split_seed: NonNegativeInt
    """Another seed draws other parts, and other held-out prompts where they are a share."""
    held_out_path: str | None
    """Null: `path`. Where this and `held_out_split` are null, a share of the data set itself is held out."""
    held_out_split: str | None
    held_out_rows: PositiveInt | None
    held_out_share: Share
    prompts_per_iteration: PositiveInt | None
    held_out_prompts: PositiveInt
    answers: dict[Label, AnswerSource] = field(default_factory=dict)
    """Further candidates beside the policy's own: `+answers@data.answers.<name>=file`; docs/data.md."""
    card_datasets: Free[list[str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._source()
        self._columns()
        if self._shares and not 0 < self.held_out_share < 1:
            raise ValueError(f"held_out_share: {self.held_out_share} leaves nothing to ask or to hold out")

    @property
    def _shares(self) -> bool:
        return self.held_out_path is None and self.held_out_split is None

    def portions(self) -> list[Portion]:
        least = self.held_out_share if self._shares else 0.0
        cuts = [least + (1 - least) * part / self.parts for part in range(self.parts)] + [1.0]
        return [self._portion(start, stop) for start, stop in zip(cuts, cuts[1:], strict=False)]

    def _source(self) -> Source:
        return Source(path=self.path, split=self.split, subset=self.subset, revision=self.revision, rows=self.rows)

    def _columns(self) -> Columns:
        return Columns(prompt=self.prompt, messages=self.messages)

    def _portion(self, start: float, stop: float) -> Portion:
        lots = Lots(seed=self.split_seed, start=start, stop=stop)
        return _portion("data.path", self._source(), self._columns(), lots)

    def held_out_portion(self) -> Portion:
        if self._shares:
            return self._portion(0.0, self.held_out_share)
        own = self.held_out_path is None
        source = Source(
            path=self.held_out_path or self.path,
            split=self.held_out_split,
            subset=self.subset if own else None,
            revision=self.revision if own else None,
            rows=self.held_out_rows,
        )
        return _portion("data.held_out_split" if own else "data.held_out_path", source, self._columns())


def _portion(key: str, source: Source, columns: Columns, lots: Lots | None = None) -> Portion:
    """Makes a portion; an error names `key`, where its source stands in the config."""
    try:
        return Portion(source=source, columns=columns, content=source.content(), lots=lots)
    except UserError as error:
        raise UserError(f"{key}: {error}") from None


def _check_enough(key: str, portion: Portion, start: int, count: int | None) -> None:
    """Raises UserError where there are fewer prompts than asked for. Doubled and leaked ones are not known yet."""
    present = portion.expected()
    if present == 0 and portion.lots is None:
        raise UserError(f"{portion.source.name}: no prompts in it; is it the right file?")
    if present is not None and present < start + (count or 1):
        raise UserError(
            f"{key}: {portion.source.name} has {present:,} prompts{' in this part' if portion.lots else ''}, "
            f"{start + 1:,} to {start + (count or 1):,} are asked for; lower it"
        )
