"""The prompts of a run: which part an iteration uses, and what is held out.

The stage that writes them is `Prompts`; docs/data.md shows every data set.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import field
from itertools import pairwise
from pathlib import Path
from typing import Annotated

from pydantic import Field, NonNegativeInt, PositiveInt

from src.data.outside import AnswerSource
from src.data.prompts import Columns, Lots, Portion, Prompts
from src.data.source import Source
from src.kernel.config import CONF, Free, Label, UserError, YamlPath, config


@config
class Data(ABC):
    """Prompts in parts, and answers that the policy does not give.

    Iteration t asks part t; past the last part, the next slice of the first, and so on.
    """

    prompts_per_iteration: PositiveInt | None
    """Null: all of a part."""
    held_out_prompts: PositiveInt
    held_out_start: NonNegativeInt = 0
    """Held-out prompts passed over first: those that settings were chosen by, where a last number is wanted."""
    answers: dict[Label, AnswerSource] = field(default_factory=dict)
    """Further candidates beside the policy's own: `+answers@data.answers.<name>=file`; docs/data.md."""
    card_datasets: Free[list[str]] = field(default_factory=list)
    """Hub ids, for the cards of what is trained on them."""

    @abstractmethod
    def portions(self) -> list[Portion]:
        """Return the parts in their order."""

    @abstractmethod
    def held_out_portion(self) -> Portion:
        """Return all that is kept out of training; some of it are the held-out prompts."""

    def part(self, iteration: int) -> Prompts:
        """Return the stage that writes the prompts of iteration 1, 2, … Raises UserError where they are too few."""
        parts, count = self.portions(), self.prompts_per_iteration
        round, index = divmod(iteration - 1, len(parts))
        if round and count is None:
            asked = f"{iteration} comes after the last of {len(parts)} parts, and data.prompts_per_iteration=null"
            remedy = f"say iter={len(parts)}, or a number of prompts, of which part {index + 1} has more"
            raise UserError(f"iter: {asked} asks all of each; {remedy}")
        start = round * (count or 0)
        _check_enough("data.prompts_per_iteration", parts[index], start, count)
        earlier, held_out = tuple(parts[:index]), self.held_out_portion()
        return Prompts(part=parts[index], earlier=earlier, held_out=held_out, start=start, count=count)

    def held_out(self) -> Prompts:
        portion, start, count = self.held_out_portion(), self.held_out_start, self.held_out_prompts
        _check_enough("data.held_out_prompts", portion, start, count)
        return Prompts(part=portion, earlier=(), held_out=None, start=start, count=count)


@config
class PromptFiles(Data):
    """Files of prompts, one for each part."""

    parts: Annotated[tuple[YamlPath, ...], Field(strict=False, min_length=1)]
    held_out_file: YamlPath

    def portions(self) -> list[Portion]:
        return [_portion("data.parts", _file(file), Columns()) for file in self.parts]

    def held_out_portion(self) -> Portion:
        return _portion("data.held_out_file", _file(self.held_out_file), Columns())


@config
class DataSet(Data, ABC):
    """A file, a folder of files, or a data set of the hub."""

    path: str
    """A .jsonl or .parquet file, or a folder of them; with a split a hub id, or a folder laid out as a set."""
    subset: str | None
    revision: str | None
    """Commit, tag or branch of a hub id, null for `main`; give a commit where a number must be reproducible."""
    prompt: str | None
    messages: str | None

    def __post_init__(self) -> None:
        self.columns()

    def columns(self) -> Columns:
        return Columns(prompt=self.prompt, messages=self.messages)

    def portion(self, key: str, split: str | None, rows: int | None = None, lots: Lots | None = None) -> Portion:
        """Return a split of the data set, whole or between two lots."""
        return _portion(key, self.source(split, rows), self.columns(), lots)

    def source(self, split: str | None, rows: int | None = None) -> Source:
        return Source(path=self.path, split=split, subset=self.subset, revision=self.revision, rows=rows)


@config
class PublishedParts(DataSet):
    """A data set whose parts are splits of it."""

    parts: Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
    part_rows: Annotated[tuple[PositiveInt, ...], Field(strict=False)]
    """Rows of each part as published, so that a run can be planned before anything is fetched."""
    held_out_split: str

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.parts) != len(self.part_rows):
            raise ValueError(f"part_rows: {len(self.part_rows)} numbers for {len(self.parts)} parts; one each")

    def portions(self) -> list[Portion]:
        return [self.portion("data.path", split, rows) for split, rows in zip(self.parts, self.part_rows, strict=True)]

    def held_out_portion(self) -> Portion:
        return self.portion("data.path", self.held_out_split)


@config
class OwnParts(DataSet):
    """One data set cut into parts by lot."""

    split: str | None
    rows: PositiveInt | None
    """Rows of the split as published, so that a run can be planned before anything is fetched; null: unknown."""
    parts: PositiveInt
    split_seed: NonNegativeInt
    """Another seed draws other parts, and other held-out prompts where they are a share."""
    held_out_path: str | None
    """Null: `path`. Where this and `held_out_split` are null, a share of the data set itself is held out."""
    held_out_split: str | None
    held_out_share: Annotated[float, Field(gt=0, lt=1)]

    def __post_init__(self) -> None:
        super().__post_init__()
        self.source(self.split)

    @property
    def _holds_out_a_share(self) -> bool:
        return self.held_out_path is None and self.held_out_split is None

    def portions(self) -> list[Portion]:
        first = self.held_out_share if self._holds_out_a_share else 0.0
        edges = [first + (1 - first) * part / self.parts for part in range(self.parts)] + [1.0]
        return [self._between(start, stop) for start, stop in pairwise(edges)]

    def held_out_portion(self) -> Portion:
        if self._holds_out_a_share:
            return self._between(0.0, self.held_out_share)
        if self.held_out_path is None:
            return self.portion("data.held_out_split", self.held_out_split)
        source = Source(path=self.held_out_path, split=self.held_out_split)
        return _portion("data.held_out_path", source, self.columns())

    def _between(self, start: float, stop: float) -> Portion:
        return self.portion("data.path", self.split, self.rows, Lots(seed=self.split_seed, start=start, stop=stop))


def _file(path: Path) -> Source:
    """Return a file of this folder, or one that comes with the code, wherever the command is given."""
    bundled = CONF.parent / path
    return Source(path=str(bundled if bundled.exists() and not path.exists() else path))


def _portion(key: str, source: Source, columns: Columns, lots: Lots | None = None) -> Portion:
    content = source.content(key)
    if source.count() == 0:
        raise UserError(f"{key}: {source.name} has no rows; write a prompt a row, or name another file")
    return Portion(source=source, columns=columns, content=content, lots=lots)


def _check_enough(key: str, portion: Portion, start: int, count: int | None) -> None:
    """Raise UserError where there are fewer prompts than asked for. Doubled and leaked ones are not known yet."""
    present, wanted = portion.expected(), start + (count or 1)
    if present == 0 and portion.lots:
        remedy = "bring more, lower data.parts, or name data.held_out_path"
        raise UserError(f"data.path: {portion.source.name} has too few rows for a part and what is held out; {remedy}")
    if present is not None and present < wanted:
        where = " in this part" if portion.lots else ""
        has = f"{portion.source.name} has {present:,} prompt{'s' * (present != 1)}{where}"
        raise UserError(f"{key}: {has}, {start + 1:,} to {wanted:,} are asked for; lower it")
