"""Whatever bytes a file or a reply of others holds, it is read, or refused in a line that names it: no other error.

Valid examples are changed until they are none. Input number n of a parser is the same in every run.
"""

from __future__ import annotations

import copy
import io
import json
import random
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, cast
from unittest import mock

import httpx2
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from judge_server import judge

from src.data import checks
from src.data.outside import AnswerFile, ReadAnswers
from src.data.prompts import Columns
from src.data.source import Source, read_columns
from src.evaluation.alpaca_eval.files import Annotation, Output, instruction_id, joined, read_official
from src.evaluation.mt_bench import questions
from src.evaluation.mt_bench.scores import SCORES, averages, rating, read_judgments
from src.evaluation.open_llm.columns import Column, read_results, score_columns
from src.experiment.run_folder import is_reported
from src.generation.openai_engine import _read
from src.kernel.cells import line_of, value_of
from src.kernel.config import UserError
from src.kernel.record import DIGEST, damage, digest, read_record
from src.kernel.rows import PROMPTS, prompt_id, read_rows, write_rows
from src.launch.slurm import client as slurm
from src.launch.slurm.ledger import Ledger
from src.modeling.endpoint import Client, Refused
from src.ranking.llm_judge import read_reply
from src.reporting.compare.read import read as read_run

# How examples are changed -------------------------------------------------------------------------------------------

DEEP, DIGITS = "@DEEP@", "@DIGITS@"
"""These stand for what Python does not write: brackets in brackets, and a number of 5,000 digits."""
NUMBERS = (None, True, False, 0, -1, 1, 2, 0.5, 1e-9, float("nan"), float("inf"), 2**31, 2**64, 10**400, 1e308, -1e308)
WORDS = ("", "0", "1e999", "nan", "null", "../..", "/", "{0}", "{prompt}", "%s", "${oc.env:HOME}", "[[11]]", "A", "[]")
TEXTS = ("2024-13-99", "<|im_end|>", "\0", "\ud800", "a\nb", "é🙂", "\u202e", "x" * 5000, "9" * 5000)
HOLDERS = ([], {}, [[]], [None], [1, "a", None], {"": None}, {"role": "user"}, [{"a": [{}]}], DEEP, DIGITS)
ODD: tuple[Any, ...] = (*NUMBERS, *WORDS, *TEXTS, *HOLDERS)
"""Values that nobody expects at a place."""
BYTES = (b"", b"\xfe\xff", b"\xef\xbb\xbf", b"\\ud800", *(bytes([byte]) for byte in b'\0\xff\r\n",{[\\|:'))


def write_json(value: Any) -> bytes:
    text = json.dumps(value).replace(f'"{DEEP}"', "[" * 99_999 + "]" * 99_999)
    return text.replace(f'"{DIGITS}"', "1" * 5000).encode()


def write_parquet(rows: Any) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), out)
    return out.getvalue()


Form = tuple[Callable[[bytes], Any], Callable[[Any], bytes]]
FORMS: dict[str, Form] = {
    "json": (json.loads, write_json),
    "yaml": (yaml.safe_load, write_json),  # JSON is YAML
    "jsonl": (
        lambda data: [json.loads(line) for line in data.splitlines()],
        lambda rows: b"".join(write_json(row) + b"\n" for row in rows),
    ),
    "parquet": (lambda data: pq.read_table(io.BytesIO(data)).to_pylist(), write_parquet),
    "ledger": (
        lambda data: [value_of(line) for line in data.splitlines()],
        lambda rows: "".join(map(line_of, rows)).encode(),
    ),
    "txt": (bytes.decode, str.encode),
}
"""How a file is read and written."""


def form_of(name: str) -> Form:
    return FORMS["ledger" if name.endswith("ledger.jsonl") else name.rpartition(".")[2]]


def mutated(data: bytes, name: str, chance: random.Random) -> bytes:
    """Return another structure of the same form half of the time, else other bytes."""
    if chance.random() < 0.6:
        read, write = form_of(name)
        try:
            return write(other_structure(read(data), chance))
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, pa.ArrowException):
            pass  # the form cannot hold it
    for _ in range(chance.choice((1, 1, 1, 2, 5))):
        start = chance.randrange(len(data) + 1)
        end = min(len(data), start + chance.choice((0, 1, 2, 8, 100)))
        flipped = bytes(byte ^ 1 << chance.randrange(8) for byte in data[start:end])
        other = chance.choice((*BYTES, *[chance.randbytes(chance.randrange(1, 9))] * 3, data[start:end] * 2, flipped))
        data = data[:start] + other + chance.choice((data[end:], data[end:], data[end:], b""))
    return data


def other_structure(value: Any, chance: random.Random) -> Any:
    """Return a JSON-able value with one to three places changed."""
    for _ in range(chance.choice((1, 1, 2, 3))):
        places = list(places_in(value))
        if not places:
            return copy.deepcopy(chance.choice(ODD))
        holder, key = chance.choice(places)
        match chance.randrange(7):
            case 0:
                del holder[key]
            case 1:
                other, place = chance.choice(places)
                holder[key] = copy.deepcopy(other[place])
            case 2:
                holder[key] = chance.choice(([holder[key]], {"a": holder[key]}, str(holder[key])))
            case 3 if isinstance(holder, dict):
                holder[str(chance.choice(ODD))] = holder.pop(key)
            case 4 if isinstance(holder, list):
                holder.insert(key, copy.deepcopy(holder[key]))
            case _:
                holder[key] = copy.deepcopy(chance.choice(ODD))
    return value


def places_in(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every place within, as what holds it and the key there."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in list(inner):
        yield value, key
        yield from places_in(item)


# Prompts and answers ------------------------------------------------------------------------------------------------

TEXT = "What is it? 何 <|im_end|> 🙂"
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": TEXT}]
CHECKS = [{"kind": "numbered_list", "n": 3}, {"kind": "json_keys", "keys": ["a", "b"]}, {"kind": "no_digits"}]
PROMPT_LINES = [
    {"prompt": TEXT, "source": "mine", "checks": json.dumps(CHECKS)},
    {"messages": CHAT, "source": None, "checks": [{"kind": "first_letter", "letter": "I"}]},
    {"messages": json.dumps(CHAT), "checks": [{"kind": "words_between", "low": 1, "high": 5}]},
]
TURNS = [{"role": "user", "content": "Q1"}, {"role": "assistant", "content": "A1"}]
BY_PROMPT = [{"prompt": "Q1", "answer": "A1", "who": "gpt"}, {"prompt": "Q2", "answer": None, "who": "me"}]
BY_TURNS = [{"chosen": TURNS}, {"chosen": [TURNS[0], {"role": "assistant", "content": "other"}]}]
ANSWERS = "data.answers.x"


def stored(rows: Any, schema: pa.Schema) -> list[dict[str, Any]]:
    """Return the rows as an artifact has them."""
    with tempfile.TemporaryDirectory() as place:
        write_rows(Path(place), rows, schema)
        return read_rows(Path(place), schema)


def prompts(folder: Path) -> None:
    """Read prompts as their stage does; every check of theirs gives a verdict."""
    source = Source(path=str(folder))
    rows = [Columns().prompt_row(placed, source.label) for placed in read_columns(source, Columns().wanted)]
    for row in stored(rows, PROMPTS):
        for answer in ('{"a": 1, "b": [2]}', "1. one\n2. two\n3. three", "It is (so) and so!"):
            checks.verdicts(json.loads(row["checks"]), answer)


def answers(folder: Path, **columns: Any) -> None:
    """Read answers to two prompts."""
    none = ("split", "subset", "revision", "prompt_id", "prompt", "messages", "source", "source_column")
    file = cast(Any, AnswerFile)(**(dict.fromkeys(none) | {"path": str(folder), "max_answer_tokens": 9} | columns))
    stage = ReadAnswers(file=file, content=file.rows().content(), key=ANSWERS)
    chats = [[{"role": "user", "content": question}] for question in ("Q1", "Q2")]
    rows = [{"prompt_id": prompt_id(chat), "messages": chat, "source": "s", "checks": "[]"} for chat in chats]
    with tempfile.TemporaryDirectory() as place, redirect_stdout(io.StringIO()):
        write_rows(Path(place), rows, PROMPTS)
        (out := Path(place) / "out").mkdir()
        stage(Path(place), out=out)


# Benchmarks ---------------------------------------------------------------------------------------------------------

OUTPUTS = [Output(f"Do {n}.", f"Done {n}.", "gpt", "helpful_base") for n in range(3)]
JUDGED = [Annotation(o.instruction, o.output, o.generator, o.dataset, "mine", "me", "judge", 1.5) for o in OUTPUTS]
CATEGORIES = {81: "writing", 101: "reasoning"}
QUESTIONS = [{"question_id": q, "category": c, "turns": [f"Ask {q}.", "And then?"]} for q, c in CATEGORIES.items()]
JUDGE_PROMPTS = [{"name": n, "system_prompt": "Judge.", "prompt_template": "{question}"} for n in questions.JUDGED_BY]
JUDGMENTS = [
    {"question_id": q, "model": "m", "judge": ["gpt-4", "single-v1"], "score": turn + q / 100, "turn": turn}
    for q in CATEGORIES
    for turn in (1, 2)
]
TOY = Column(key="toy", title="Toy", task="toy", shots=2, metrics=("acc,none", "other,none"), subtasks=2)
TASKS = {"toy": 2, "toy_a": 2, "toy_b": 2}
VALUES = {"acc,none": 0.5, "acc_stderr,none": 0.01, "other,none": 0.25, "other_stderr,none": "N/A"}
RESULTS = {
    "results": dict.fromkeys(TASKS, VALUES),
    "group_subtasks": {"toy": ["toy_a", "toy_b"]},
    "n-shot": TASKS,
    "config": {"model_args": {"pretrained": "me", "dtype": "float32"}, "limit": None},
    "chat_template": None,
}


def annotations(file: Path) -> None:
    joined(file, read_official(file, Annotation), [instruction_id(row.instruction) for row in OUTPUTS])


def judgments(file: Path) -> None:
    for rows in read_judgments([file]).values():
        stored(averages(str(file), rows, CATEGORIES, 0.95)[1], SCORES)


# Replies of servers and of SLURM ------------------------------------------------------------------------------------

URL, ASKED = "http://localhost:1/v1", "ranker.endpoint"
TOP = [{"token": "A", "logprob": -0.1, "bytes": [65]}, {"token": "B", "logprob": -2.5, "bytes": None}]
FIRST = {"token": "A", "logprob": -0.1, "bytes": None, "top_logprobs": TOP}
SPOKEN = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Verdict: A"}}
USAGE = {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10}
COMPLETION = {"id": "1", "object": "chat.completion", "model": "m", "created": 1, "usage": USAGE}
VERDICT = COMPLETION | {"choices": [SPOKEN | {"logprobs": {"content": [FIRST]}}]}
WRITTEN = {"index": 0, "finish_reason": "length", "text": "It is", "token_ids": [5, 6], "logprobs": None}
QUEUE = "77|3|RUNNING|None|done|a0b1c2d3\n78|N/A|PENDING|Dependency|two\nlines\n79|0|PENDING|Priority|\n"
heard = [b""]


@cache
def client() -> tuple[Client, list[Any]]:
    """Return a client whose server says what was heard last, and two judges that ask it."""
    judges = [judge(kind, URL, "endpoint.retries=0") for kind in ("pairwise", "points")]
    head = {"content-type": "application/json"}
    transport = httpx2.MockTransport(lambda _: httpx2.Response(200, content=heard[0], headers=head))
    with mock.patch("openai.DefaultHttpxClient", partial(httpx2.Client, transport=transport)):
        return Client(judges[1].endpoint, ASKED), judges


def reply(file: Path, request: Callable[[Any], Any], read: Callable[[Any], Any]) -> Any:
    """Return what is kept of a reply: it has gone through JSON."""
    heard[0] = file.read_bytes()
    try:
        return json.loads(json.dumps(client()[0].ask(request, read)))
    except Refused as refused:
        raise UserError(f"{ASKED}: {refused}") from None


def verdict(file: Path) -> None:
    chat = [{"role": "user", "content": "Q"}]
    cell = reply(file, lambda openai: openai.chat.completions.create(model="m", messages=chat), read_reply)
    for judging in client()[1]:
        judging.value(cell)


def completion(file: Path) -> None:
    cell = reply(file, lambda openai: openai.completions.create(model="m", prompt=[1]), _read)
    rating(cell["text"])
    assert all(0 <= token < 2**31 for token in cell["token_ids"] or ())


def queue(file: Path) -> None:
    ended = subprocess.CompletedProcess([], 0, file.read_bytes().decode(errors="replace"), "")
    with mock.patch("subprocess.run", return_value=ended):
        slurm.queue()


# The store, run folders and checkpoints -----------------------------------------------------------------------------

KEY = "0123456789abcdef0123"


def record(**files: str) -> dict[str, Any]:
    made: dict[str, Any] = {"name": "it1/evaluation", "kind": "evaluation", "key": KEY, "version": 1, "seconds": 1.5}
    made |= {"config": {"estimator": {"tau": 1.0}}, "inputs": [{"kind": "policy", "key": KEY}], "workload": "x 1"}
    made["files"] = {name: {"bytes": 1, "sha256": sha} for name, sha in files.items()}
    return made | {DIGEST: digest(made)}


ARTIFACT = {
    "a.txt": "a",
    "record.json": record(**{"a.txt": "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"}),
}
SETTINGS: dict[str, Any] = {"iter": 1, "method": {"name": "sppo", "eta": 1000.0}, "held_out": {"confidence": 0.95}}
SETTINGS |= {"seed": 0, "benchmark": {}, "hardware": {"name": "cpu", "devices": {"device": "cpu"}}}
METRICS = {"prompts": 2, "win_over_base": 0.5, "win_over_base_low": 0.4, "win_over_base_high": 0.6, "kl": None}
RUN: dict[str, Any] = {"config.yaml": SETTINGS, "command.txt": "python -m src.main iter=1\n"}
for place, scores in {
    "artifacts/it1/evaluation": [{"prompt_id": "a", "win_over_base": 0.5}, {"prompt_id": "b", "win_over_base": 0.6}],
    "artifacts/it1/ifeval/scores": [{"item_id": "1", "score": 0.5, "column": "x", "cluster": "c"}],
}.items():
    RUN |= {f"{place}/record.json": record(), f"{place}/metrics.json": METRICS, f"{place}/rows.parquet": scores}
JOB = {"token": "t1", "name": "generate", "folder": "/runs", "makes": {"0": ["k1"], "1": ["k2"]}, "waits": {}}


def artifact(folder: Path) -> None:
    if lines := damage(folder):
        raise UserError(lines[0])
    read_record(folder)


def run_folder(folder: Path) -> None:
    """Read it as a run of others, and as one that is asked for again."""
    point: Any = SimpleNamespace(folder=folder, container={"benchmark": {}}, run=SimpleNamespace(iter=1))
    is_reported(point)
    run = read_run(folder)
    assert all(isinstance(made.seconds, float) for made in run.artifacts.values())


def ledger(folder: Path) -> None:
    for maker in Ledger(folder).elements():
        maker.queued({})
        maker.submission.log(maker.index)
        assert all(isinstance(key, str) for key in (*maker.makes, *maker.waits))


# The law ------------------------------------------------------------------------------------------------------------


class Parser(NamedTuple):
    """Something that reads what others wrote."""

    name: str
    files: dict[str, Any]
    """A valid example: the content of each file; the end of its name says its form."""
    read: Callable[[Path], object]
    """Reads the folder."""
    named: str = "-"
    """What a refusal may name in place of the file or its folder."""
    changed: str = "*"
    """Pattern of the files that are changed."""
    slow: int = 1
    """How many times fewer inputs it gets."""


def of_file(name: str, value: Any, read: Callable[[Path], object], named: str = "-") -> Parser:
    return Parser(name, {name: value}, lambda folder: read(folder / name), named)


by_prompt = partial(answers, prompt="prompt", answer="answer", source_column="who")
PARSERS = [
    Parser("prompts in lines", {"prompts.jsonl": PROMPT_LINES}, prompts, slow=2),
    Parser("answers by prompt", {"a.jsonl": BY_PROMPT}, by_prompt, ANSWERS),
    Parser("answers by turns", {"a.parquet": BY_TURNS}, partial(answers, answer="chosen", source="gpt"), ANSWERS),
    of_file("annotations.json", [asdict(one) for one in JUDGED], annotations),
    of_file("question.jsonl", QUESTIONS, lambda file: stored(questions.read_questions(file), questions.QUESTIONS)),
    of_file("judge_prompts.jsonl", JUDGE_PROMPTS, questions.read_prompts),
    of_file("gpt-4_single.jsonl", JUDGMENTS, judgments),
    of_file("results.json", RESULTS, lambda file: score_columns(read_results([file], False), (TOY,), 0.95)),
    of_file("verdict.json", VERDICT, verdict, ASKED),
    of_file("completion.json", COMPLETION | {"object": "text_completion", "choices": [WRITTEN]}, completion, ASKED),
    of_file("squeue.txt", QUEUE, queue),
    Parser("record", ARTIFACT, artifact, changed="record.json"),
    Parser("run folder", RUN, run_folder, slow=4),
    Parser("ledger of jobs", {".jobs/ledger.jsonl": [JOB, JOB]}, ledger),
]
MANY = pytest.param(5000, marks=[pytest.mark.faults, pytest.mark.timeout(4 * 3600)])


@pytest.mark.parametrize("count", [200, MANY])
@pytest.mark.parametrize("parser", PARSERS, ids=lambda parser: parser.name)
def test_any_bytes_are_a_value_or_a_mistake_that_names_them(parser: Parser, count: int, tmp_path: Path) -> None:
    folder = tmp_path / "given"
    for name, value in parser.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(form_of(name)[1](value))
    parser.read(folder)
    paths = sorted(path for path in folder.rglob(parser.changed) if path.is_file())
    read = 0
    for number in range(count // parser.slow):
        chance = random.Random(f"{parser.name}/{number}")
        path = chance.choice(paths)
        valid = path.read_bytes()
        path.write_bytes(data := mutated(valid, path.name, chance))
        before = contents(folder)
        where = f"input {number} of {path.name}: {data[:2000]!r}"
        try:
            parser.read(folder)
            read += 1
        except UserError as error:
            line = str(error).strip().partition("\n")[0]  # what a user sees
            assert any(name in line for name in (path.name, folder.name, parser.named)), f"{line}; {where}"
        except Exception as error:
            raise AssertionError(f"{error!r}; {where}") from error
        assert contents(folder) == before, f"something was written; {where}"
        path.write_bytes(valid)
    assert read, "inputs that are all refused show little"


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
