"""Answers that the policy did not give: from files or an endpoint, and added as candidates beside its own.

A source of answers makes a stage. In: prompts. Out: OUTSIDE rows in the order of the prompts, each prompt at most once,
and `metrics.json` with counts.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Protocol, runtime_checkable

import pyarrow as pa
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from src.data.checks import collapse_warnings, signs
from src.data.prompts import Columns
from src.data.source import Source, read_columns
from src.kernel.artifact import WORK, Stage
from src.kernel.cells import CELLS
from src.kernel.config import Free, Label, UserError, config
from src.kernel.rows import PROMPTS, RESPONSES, Row, read_rows, schema, write_metrics, write_rows
from src.modeling.asking import LimitName, ask_all
from src.modeling.endpoint import Endpoint
from src.modeling.policy import answer_ids, load_tokenizer, stop_ids

OUTSIDE = schema(
    prompt_id=pa.string(),
    text=pa.string(),  # may be empty; an empty answer is counted and not added
    finish_reason=pa.string(),  # "stop", or "length" (cut off)
    seed=pa.uint64(),  # null where none is known
    source=pa.string(),  # who gave it
)
Name = Annotated[str, Field(min_length=1)]


@runtime_checkable
class AnswerSource(Protocol):
    """A source of answers that the policy did not give."""

    max_answer_tokens: int
    """The policy's tokens in the longest answer that is added; a longer one is counted."""

    def stage(self, key: str) -> Stage:
        """Return the stage that reads prompts and writes OUTSIDE rows.

        `key` is the source's key in the config, for messages. Raises UserError where its file is missing.
        """
        ...


# Files ---------------------------------------------------------------------------------------------------------------


@config
class AnswerFile:
    """A column of answers beside the column that says which prompt each row answers."""

    path: Free[str]
    """A .jsonl or .parquet file, or a folder of them; with a split a hub id, or a folder laid out as a set."""
    split: str | None
    subset: str | None
    revision: Free[str | None]
    prompt_id: str | None
    """Column of prompt ids in this store; it takes precedence over `prompt` and `messages`."""
    prompt: str | None
    """Column of text."""
    messages: str | None
    """Column of turns, the last of them the user's."""
    answer: Name
    """Column of text, or of turns whose last is the answer; the turns before it are the prompt if none is named."""
    source: Name | None
    """Name of who gave the answers, where no `source_column` names them; null: the name of the file or set."""
    source_column: Name | None
    max_answer_tokens: PositiveInt

    def __post_init__(self) -> None:
        Columns(prompt=self.prompt, messages=self.messages)
        self.rows()

    def rows(self) -> Source:
        return Source(path=self.path, split=self.split, subset=self.subset, revision=self.revision)

    def stage(self, key: str) -> Stage:
        return ReadAnswers(file=self, content=self.rows().content(f"{key}.path"), key=key)


@config
class ReadAnswers(Stage):
    """Reads the answers of a file or data set.

    `metrics.json` counts the rows of the source, rows that answer none of the prompts (unused), and rows for a prompt
    that an earlier row answers (doubled).
    """

    kind: ClassVar[str] = "outside"

    file: AnswerFile
    content: str
    """Content of the file when the run was planned: the key follows what it says, not where it lies."""
    key: Free[str]

    def __call__(self, *inputs: Path, out: Path) -> None:
        file, source = self.file, self.file.rows()
        if source.content() != self.content:
            raise UserError(f"{self.key}.path: {source.path} changed since the run was started; start it again")
        asked = [row["prompt_id"] for row in read_rows(inputs[0], PROMPTS)]
        known, answers, rows_read, unused = set(asked), dict[str, Row](), 0, 0
        named = {file.prompt_id, file.prompt, file.messages, file.answer, file.source_column} - {None}
        for place, row in read_columns(source, {"prompt", "messages"} | named):
            answer = self._answer_row(place, row, source.label)
            rows_read += 1
            if answer["prompt_id"] in known:
                answers.setdefault(answer["prompt_id"], answer)  # the first row of each prompt
            else:
                unused += 1
        if not answers:
            none = f"no row of {source.name} answers a prompt (rows: {rows_read:,}, prompts: {len(asked):,})"
            raise UserError(f"{self.key}: {none}; the text of the prompts must match exactly")
        print(f"{self.key}: {rows_read:,} rows read: {len(answers):,} used, {unused:,} for other prompts", flush=True)
        rows = [answers[prompt] for prompt in asked if prompt in answers]
        write_rows(out, rows, OUTSIDE)
        write_metrics(out, {"rows": rows_read, "unused": unused, "doubled": rows_read - unused - len(answers)})

    def _answer_row(self, place: str, row: Row, label: str) -> Row:
        """Return the OUTSIDE row. Its prompt is found by its id, its column, or the turns before the answer."""
        file = self.file
        for column in filter(None, (file.answer, file.prompt_id, file.source_column)):
            if column not in row:
                raise UserError(f"{place}: no column {column!r}; name the right one below {self.key}")
        text, before = row[file.answer], list[Any]()
        if isinstance(text, list) and text:
            *before, last = text
            if not isinstance(last, dict) or last.get("role") != "assistant":
                raise UserError(f"{place}: {file.answer}: the last turn is not the assistant's; the answer is")
            text = last.get("content")
        if not isinstance(text, str | None):
            raise UserError(f"{place}: {file.answer}: neither text nor a list of turns; delete the row")
        source = row[file.source_column] if file.source_column else file.source or label
        if not isinstance(source, str) or not source:
            raise UserError(f"{place}: {file.source_column}: {source!r} names no source; say who answered")
        if file.prompt_id:
            prompt = row[file.prompt_id]
            if not isinstance(prompt, str) or not re.fullmatch("[0-9a-f]{16}", prompt):
                known = f"{prompt!r:.99} is no prompt_id of this store (16 hex digits)"
                raise UserError(f"{place}: {file.prompt_id}: {known}; name the prompt itself in {self.key}.prompt")
        else:
            columns = Columns(prompt=file.prompt, messages=file.messages)
            prompt_columns = row | {"source": "", "checks": ""}
            if before and not file.prompt and not file.messages:
                columns, prompt_columns = Columns(messages=file.answer), {file.answer: before}
            prompt = columns.prompt_row((place, prompt_columns), label)["prompt_id"]
        return {"prompt_id": prompt, "text": text or "", "finish_reason": "stop", "seed": None, "source": source}


# An endpoint ---------------------------------------------------------------------------------------------------------


@config
class AnswerEndpoint:
    """A chat model behind an OpenAI-compatible endpoint, asked once for each prompt."""

    endpoint: Endpoint
    source: Name
    """Name of who gives the answers, such as the model's."""
    temperature: NonNegativeFloat | None
    """null: not sent, for models that refuse it; the same holds for the next three."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None
    max_tokens: PositiveInt | None
    """Most tokens of an answer, as the server counts them."""
    seed: NonNegativeInt | None
    limit_name: LimitName
    max_answer_tokens: PositiveInt

    def stage(self, key: str) -> Stage:
        return AskAnswers(asked=self, key=key)

    def fields(self) -> dict[str, Any]:
        """Return the fields of every request."""
        limit = {self.limit_name: self.max_tokens}
        return self.endpoint.body(**limit, temperature=self.temperature, top_p=self.top_p)

    def seed_of(self, prompt_id: str) -> int | None:
        """Return a seed of 63 bits for a prompt's answer."""
        if self.seed is None:
            return None
        return int.from_bytes(hashlib.sha256(f"{self.seed}/{prompt_id}".encode()).digest()[:8], "big") >> 1


@config
class AskAnswers(Stage):
    """Asks a chat model.

    An answer is kept as a cell that depends on the prompt and the request, not on the policy. So it is paid for once.
    """

    kind: ClassVar[str] = "outside"
    resumable: ClassVar[bool] = True

    asked: AnswerEndpoint
    key: Free[str]

    def asks(self) -> tuple[str, Endpoint]:
        return f"{self.key}.endpoint", self.asked.endpoint

    def shared(self) -> Any:
        return [self.asked.fields(), self.asked.seed, self.version]

    def __call__(self, *inputs: Path, out: Path) -> None:
        prompts, asked = read_rows(inputs[0], PROMPTS), self.asked

        def request(row: Row) -> dict[str, Any]:
            seed = asked.seed_of(row["prompt_id"])
            return asked.fields() | {"messages": row["messages"]} | ({} if seed is None else {"seed": seed})

        questions, remedy = {row["prompt_id"]: row for row in prompts}, f"mend {self.key} as the server says"
        cells = ask_all(questions, request, asked.endpoint, self.asks()[0], out / WORK / CELLS, remedy=remedy)
        rows = [
            {"prompt_id": prompt, "seed": asked.seed_of(prompt), "source": asked.source}
            | {name: cells[prompt][name] for name in ("text", "finish_reason")}
            for prompt in (row["prompt_id"] for row in prompts)
            if prompt in cells and cells[prompt]["finish_reason"] in ("stop", "length")
        ]
        tokens = {name: sum(cell[name] for cell in cells.values()) for name in ("input_tokens", "output_tokens")}
        write_rows(out, rows, OUTSIDE)
        write_metrics(out, {"refused": len(prompts) - len(cells), "filtered": len(cells) - len(rows)} | tokens)


# Beside the policy's own ---------------------------------------------------------------------------------------------


@config
class AddAnswers(Stage):
    """Adds answers from elsewhere as further candidates beside the policy's own (WPO's hybrid data).

    In: the policy's responses, the policy, then OUTSIDE rows of each source. Out: RESPONSES rows; after a prompt's own
    answers come those of the sources, in their order, where they have one. For each source `metrics.json` counts the
    prompts whose answer is missing, empty, too_long or added. It also has the signs of collapse in all answers.
    """

    kind: ClassVar[str] = "responses"

    names: Free[Annotated[tuple[Label, ...], Field(strict=False)]]
    """Names of the sources, for counts and messages."""
    limits: Annotated[tuple[PositiveInt, ...], Field(strict=False)]
    """Tokens of the longest answer that is added, one number for each source."""

    def __call__(self, *inputs: Path, out: Path) -> None:
        responses, policy, *outside = inputs
        rows, metrics = read_rows(responses, RESPONSES), dict[str, float]()
        tokenizer, stops = load_tokenizer(policy), stop_ids(policy)
        for name, limit, folder in zip(self.names, self.limits, outside, strict=True):
            answers = {answer.pop("prompt_id"): answer for answer in read_rows(folder, OUTSIDE)}
            counts = dict.fromkeys(("added", "missing", "empty", "too_long"), 0)
            for row in rows:
                answer = answers.get(row["prompt_id"])
                if answer is None or not answer["text"].strip():
                    counts["missing" if answer is None else "empty"] += 1
                    continue
                finished = answer["finish_reason"] == "stop"
                ids = answer_ids(tokenizer, row["messages"], answer["text"], stops, finished)
                counts["added" if len(ids) <= limit else "too_long"] += 1
                if len(ids) <= limit:
                    row["responses"].append(answer | {"token_ids": ids})
            numbers = ", ".join(f"{count:,} {what.replace('_', ' ')}" for what, count in counts.items())
            print(f"answers {name}, of {len(rows):,} prompts: {numbers}", flush=True)
            metrics |= {f"{name}/{what}": count for what, count in counts.items()}
        metrics |= {"prompts": len(rows), "answers": sum(len(row["responses"]) for row in rows)} | signs(rows)
        write_rows(out, rows, RESPONSES)
        write_metrics(out, metrics)
        for line in collapse_warnings(metrics):
            print(f"answers: warning: {line}", flush=True)
