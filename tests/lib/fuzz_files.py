"""Files of others that fuzzing changes: prompts, answers, questions, judgments, results."""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from fuzzing import Target, of_file

from src.data import checks
from src.data.outside import AnswerFile, ReadAnswers
from src.data.prompts import Columns
from src.data.source import Source, read_columns
from src.evaluation.alpaca_eval.files import (
    Annotation,
    Output,
    instruction_id,
    joined,
    read_annotations,
    read_gamed,
    read_outputs,
)
from src.evaluation.mt_bench.questions import (
    JUDGED_BY,
    QUESTIONS,
    read_prompts,
    read_questions,
    read_references,
)
from src.evaluation.mt_bench.scores import SCORES, averages, read_judgments
from src.evaluation.open_llm.columns import Column, read_results, score_columns
from src.kernel import rows as kernel_rows
from src.kernel.rows import prompt_id, write_rows

Rows = Sequence[Any]
TEXT = "What is it? 何 <|im_end|> 🙂"
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": TEXT}]
CHECKS = [{"kind": "numbered_list", "n": 3}, {"kind": "json_keys", "keys": ["a", "b"]}, {"kind": "no_digits"}]
ANSWERS = ('{"a": 1, "b": [2]}', "1. one\n2. two\n3. three", "It is (so) and so!")
CATEGORIES = {81: "writing", 101: "reasoning"}


def stored(rows: Rows, schema: pa.Schema) -> list[dict[str, Any]]:
    """Written as an artifact has them, and read again."""
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), file)
    return pq.read_table(io.BytesIO(file.getvalue())).to_pylist()


# Prompts and answers -----------------------------------------------------------------------------------------------


def prompts(folder: Path) -> object:
    """As the prompts stage has them; every check of theirs gives a verdict."""
    source = Source(path=str(folder))
    rows = [Columns().prompt_row(placed, source.label) for placed in read_columns(source, Columns().wanted)]
    source.count()
    for row in stored(rows, kernel_rows.PROMPTS):
        for answer in ANSWERS:
            checks.verdicts(json.loads(row["checks"]), answer)
    return rows


PROMPTS: Rows = [
    {"prompt": TEXT, "source": "mine", "checks": json.dumps(CHECKS)},
    {"messages": CHAT, "source": None, "checks": [{"kind": "first_letter", "letter": "I"}]},
    {"messages": json.dumps(CHAT), "checks": [{"kind": "words_between", "low": 1, "high": 5}]},
    {"prompt": "Another one?"},
]
IN_COLUMNS: Rows = [{"prompt": None, "messages": CHAT}, {"prompt": TEXT, "messages": None}]


def answers(**columns: Any) -> Callable[[Path], None]:
    """Reads a file of answers to two prompts."""
    chats = [[{"role": "user", "content": question}] for question in ("Q1", "Q2")]
    own = [{"prompt_id": prompt_id(c), "messages": c, "source": "s", "checks": "[]"} for c in chats]
    none = ("split", "subset", "revision", "prompt_id", "prompt", "messages", "source", "source_column")

    def read(folder: Path) -> None:
        file = AnswerFile(**(dict.fromkeys(none) | {"path": str(folder), "max_answer_tokens": 9} | columns))
        stage = ReadAnswers(file=file, content=file.rows().content(), key=KEY)
        with tempfile.TemporaryDirectory() as place, redirect_stdout(io.StringIO()):
            write_rows(Path(place), own, kernel_rows.PROMPTS)
            (out := Path(place) / "out").mkdir()
            stage(Path(place), out=out)

    return read


KEY = "data.answers.x"
TURNS = [{"role": "user", "content": "Q1"}, {"role": "assistant", "content": "A1"}]
BY_PROMPT: Rows = [{"prompt": "Q1", "answer": "A1", "who": "gpt"}, {"prompt": "Q2", "answer": None, "who": "me"}]
BY_TURNS: Rows = [{"chosen": TURNS}, {"chosen": [*TURNS[:1], {"role": "assistant", "content": "other"}]}]

# Benchmarks --------------------------------------------------------------------------------------------------------

OUTPUTS = [Output(f"Do {n}.", f"Done {n}.", "gpt", "helpful_base") for n in range(3)]
JUDGED = [Annotation(o.instruction, o.output, o.generator, o.dataset, "mine", "me", "judge", 1.5) for o in OUTPUTS]


def annotated(path: Path) -> object:
    return joined(path, read_annotations(path), [instruction_id(row.instruction) for row in OUTPUTS])


GAMED = "index,preference,std_delta_len,instruction_difficulty\n" + "\n".join(
    f"{index},{index % 2},{index / 900 - 0.4},{index / 100 - 4}" for index in range(805)
)
QUESTION_ROWS: Rows = [
    {"question_id": q, "category": category, "turns": [f"Ask {q}.", "And then?"]} for q, category in CATEGORIES.items()
]
REFERENCES: Rows = [{"question_id": 101, "choices": [{"index": 0, "turns": ["One.", "Two."]}]}]
JUDGE_PROMPTS: Rows = [{"name": name, "system_prompt": "Judge.", "prompt_template": "{question}"} for name in JUDGED_BY]


JUDGMENTS: Rows = [
    {"question_id": q, "model": "m", "judge": ["gpt-4", "single-v1"], "score": turn + q / 100, "turn": turn}
    for q in CATEGORIES
    for turn in (1, 2)
]


def references(path: Path) -> object:
    found = read_references(path)
    return stored([QUESTION_ROWS[0] | {"reference": turns} for turns in found.values()], QUESTIONS)


def judged(path: Path) -> object:
    found = read_judgments([path]).values()
    return [stored(averages(str(path), rows, CATEGORIES, 0.95)[1], SCORES) for rows in found]


TOY = Column(key="toy", title="Toy", task="toy", shots=2, metrics=("acc,none", "other,none"), subtasks=2)
HARD = Column(key="hard", title="Hard", task="hard", shots=0, metrics=("acc,none",), choices={"hard_a": 2, "hard_b": 3})
NUMBERS = {"acc,none": 0.5, "acc_stderr,none": 0.01, "other,none": 0.25, "other_stderr,none": "N/A"}
TASKS = ("toy", "toy_a", "toy_b", "hard_a", "hard_b")
RESULTS = {
    "results": {task: NUMBERS for task in TASKS},
    "group_subtasks": {"toy": ["toy_a", "toy_b"]},
    "n-shot": {task: 2 if task.startswith("toy") else 0 for task in TASKS},
    "config": {"model_args": {"pretrained": "me", "dtype": "float32"}, "limit": None},
    "chat_template": None,
}


def results(path: Path) -> object:
    return score_columns(read_results([path], chat_template=False), (TOY, HARD), confidence=0.95)


TARGETS = [
    Target("prompts.jsonl", {"prompts.jsonl": PROMPTS}, prompts, cost=2),
    Target("prompts.parquet", {"prompts.parquet": IN_COLUMNS}, prompts),
    Target("answers", {"a.jsonl": BY_PROMPT}, answers(prompt="prompt", answer="answer", source_column="who"), KEY),
    Target("answers by turns", {"a.parquet": BY_TURNS}, answers(answer="chosen", source="gpt"), KEY),
    of_file("outputs of AlpacaEval", "outputs.json", [asdict(one) for one in OUTPUTS], read_outputs),
    of_file("annotations of AlpacaEval", "annotations.json", [asdict(one) for one in JUDGED], annotated),
    of_file("df_gamed.csv", "gamed.csv", GAMED, read_gamed, cost=10),
    of_file("question.jsonl", "question.jsonl", QUESTION_ROWS, lambda file: stored(read_questions(file), QUESTIONS)),
    of_file("reference answers", "gpt-4.jsonl", REFERENCES, references),
    of_file("judge_prompts.jsonl", "judge_prompts.jsonl", JUDGE_PROMPTS, read_prompts),
    of_file("judgments", "gpt-4_single.jsonl", JUDGMENTS, judged),
    of_file("results of lm-eval", "results.json", RESULTS, results),
]
