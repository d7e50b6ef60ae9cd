"""Files of others that fuzzing changes: prompts, answers, questions, judgments, results."""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from fuzzing import Target

from src import checks, records
from src.data.reading import Source, read_columns
from src.data.rows import Columns
from src.evaluation.alpaca_eval.annotations import Annotation, Output, expected, joined, read_annotations, read_outputs
from src.evaluation.alpaca_eval.gamed import read_gamed
from src.evaluation.ifeval.questions import IFEvalQuestions
from src.evaluation.mt_bench.judge_prompts import RATING, SHOWN, asked, check_prompts
from src.evaluation.mt_bench.question_files import read_questions, read_references
from src.evaluation.mt_bench.rows import QUESTIONS
from src.evaluation.mt_bench.score import SCORES, judged_in, score_file
from src.evaluation.open_llm.columns import Column
from src.evaluation.open_llm.results import model_of, score_files
from src.evaluation.open_llm.scores import SCORES as ITEMS
from src.evaluation.open_llm.scores import _rows as items_of
from src.outside.file import AnswerFile, ReadAnswers

Rows = Sequence[Any]
TEXT = "What is it? 何 <|im_end|> 🙂"
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": TEXT}]
CHECKS = [{"kind": "numbered_list", "n": 3}, {"kind": "json_keys", "keys": ["a", "b"]}, {"kind": "no_digits"}]
ANSWERS = ('{"a": 1, "b": [2]}', "1. one\n2. two\n3. three", "It is (so) and so!")
CATEGORIES = {81: "writing", 101: "reasoning"}


def text(name: str, content: str) -> Callable[[Path], None]:
    """Writes it."""

    def make(folder: Path) -> None:
        (folder / name).write_text(content)

    return make


def lines(name: str, rows: Rows) -> Callable[[Path], None]:
    """Writes them as JSON lines."""
    return text(name, "".join(json.dumps(row) + "\n" for row in rows))


def whole(name: str, value: Any) -> Callable[[Path], None]:
    """Writes it as JSON."""
    return text(name, json.dumps(value, indent=1))


def parquet(name: str, rows: Rows) -> Callable[[Path], None]:
    return lambda folder: pq.write_table(pa.Table.from_pylist(list(rows)), folder / name)


def stored(rows: Rows, schema: pa.Schema) -> list[dict[str, Any]]:
    """Written as an artifact has them, and read again."""
    file = io.BytesIO()
    records.write_table(file, rows, schema)
    return pq.read_table(io.BytesIO(file.getvalue())).to_pylist()


# Prompts and answers -----------------------------------------------------------------------------------------------


def prompts(folder: Path) -> object:
    """As the prompts stage has them; every check of theirs gives a verdict."""
    source = Source(path=str(folder))
    rows = [Columns().prompt_row(placed, source.label) for placed in read_columns(source, Columns().wanted)]
    source.count()
    for row in stored(rows, records.PROMPTS):
        for answer in ANSWERS:
            checks.verdicts(json.loads(row["checks"]), answer)
    return rows


PROMPTS: Rows = [
    {"prompt": TEXT, "source": "mine", "checks": json.dumps(CHECKS)},
    {"messages": CHAT, "source": None, "checks": [{"kind": "first_letter", "letter": "I"}]},
    {"messages": json.dumps(CHAT), "checks": [{"kind": "words_between", "low": 1, "high": 5}]},
    {"prompt": "Another one?"},
]
IN_COLUMNS: Rows = [
    {"prompt": None, "messages": CHAT, "source": "a"},
    {"prompt": TEXT, "messages": None, "source": None},
]
TABLE = 'prompt,source,other\n"What, ""is"" it?",mine,1\n"two\nlines",yours,2\nlast,,3\n'


def answers(**columns: Any) -> Callable[[Path], object]:
    """Reads a file of answers to two prompts."""
    first = records.prompt_id([{"role": "user", "content": "Q1"}])
    chats = [[{"role": "user", "content": question}] for question in ("Q1", "Q2")]
    given: dict[str, Any] = dict.fromkeys(("split", "subset", "revision", "prompt_id", "prompt", "messages", "source"))

    def read(folder: Path) -> object:
        file = AnswerFile(**(given | {"path": str(folder), "source_column": None, "max_answer_tokens": 9} | columns))
        stage = ReadAnswers(file=file, content=file.rows().content(), key="data.answers.x")
        with tempfile.TemporaryDirectory() as place:
            own = [{"prompt_id": records.prompt_id(c), "messages": c, "source": "s", "checks": "[]"} for c in chats]
            assert own[0]["prompt_id"] == first
            records.write_rows(Path(place), own, records.PROMPTS)
            (out := Path(place) / "out").mkdir()
            stage(Path(place), out=out)
            return None

    return read


TURNS = [{"role": "user", "content": "Q1"}, {"role": "assistant", "content": "A1"}]
BY_PROMPT: Rows = [{"prompt": "Q1", "answer": "A1", "who": "gpt"}, {"prompt": "Q2", "answer": None, "who": "me"}]
BY_TURNS: Rows = [{"chosen": TURNS}, {"chosen": [*TURNS[:1], {"role": "assistant", "content": "other"}]}]
BY_ID: Rows = [{"id": records.prompt_id(TURNS[:1]), "answer": "A1"}]

# Benchmarks --------------------------------------------------------------------------------------------------------

OUTPUTS = [Output(f"Do {n}.", f"Done {n}.", "gpt", "helpful_base") for n in range(3)]
JUDGED = [Annotation(o.instruction, o.output, o.generator, o.dataset, "mine", "me", "judge", 1.5) for o in OUTPUTS]


def annotated(folder: Path) -> object:
    path = folder / "annotations.json"
    return joined(path, read_annotations(path), expected(OUTPUTS))


def gamed(folder: Path) -> None:
    rows = [f"{index},{index % 2},{index / 900 - 0.4},{index / 100 - 4}" for index in range(805)]
    (folder / "gamed.csv").write_text("index,preference,std_delta_len,instruction_difficulty\n" + "\n".join(rows))


QUESTION_ROWS: Rows = [
    {"question_id": q, "category": category, "turns": [f"Ask {q}.", "And then?"]} for q, category in CATEGORIES.items()
]
REFERENCES: Rows = [{"question_id": 101, "choices": [{"index": 0, "turns": ["One.", "Two."]}]}]
JUDGE_PROMPTS: Rows = [
    {"name": name, "system_prompt": "Judge.", "output_format": RATING}
    | {"prompt_template": " ".join(f"{{{part}}}" for part in shown) + " {{not}} [[5]]"}
    for name, shown in SHOWN.items()
]


JUDGMENTS: Rows = [
    {"question_id": q, "model": "m", "judge": ["gpt-4", "single-v1"], "score": turn + q / 100, "turn": turn}
    for q in CATEGORIES
    for turn in (1, 2)
]


def questions(folder: Path) -> object:
    return stored(read_questions(folder / "question.jsonl"), QUESTIONS)


def references(folder: Path) -> object:
    found = read_references(folder / "gpt-4.jsonl")
    return stored([QUESTION_ROWS[0] | {"reference": turns} for turns in found.values()], QUESTIONS)


def judge_prompts(folder: Path) -> object:
    found = check_prompts(folder / "judge_prompts.jsonl")
    rows = [row | {"reference": ["One.", "Two."] if row["question_id"] == 101 else None} for row in QUESTION_ROWS]
    return [asked(found, row, ["{x}", "b"], turn) for row in rows for turn in (1, 2)]


def judged(folder: Path) -> object:
    path = folder / "gpt-4_single.jsonl"
    judged_in(path)
    return stored(score_file(path, categories=CATEGORIES).rows, SCORES)


TOY = Column(key="toy", title="Toy", task="toy", shots=2, metrics=("acc,none", "other,none"), subtasks=2)
HARD = Column(key="hard", title="Hard", task="hard", shots=0, metrics=("acc,none",), choices={"hard_a": 2, "hard_b": 3})
NUMBERS = {"acc,none": 0.5, "acc_stderr,none": 0.01, "other,none": 0.25, "other_stderr,none": "N/A"}
TASKS = ("toy", "toy_a", "toy_b", "hard_a", "hard_b")
RESULTS = {
    "results": {task: NUMBERS for task in TASKS},
    "group_subtasks": {"toy": ["toy_a", "toy_b"]},
    "n-shot": {task: 2 if task.startswith("toy") else 0 for task in TASKS},
    "n-samples": {task: {"original": 9, "effective": 9} for task in TASKS},
    "config": {"model_args": {"pretrained": "me", "dtype": "float32"}, "limit": None},
    "chat_template": None,
}


def results(folder: Path) -> object:
    path = folder / "results.json"
    model_of(path)
    return score_files([path], (TOY, HARD), chat_template=False, confidence=0.95)


SAMPLES: Rows = [{"doc_id": n, "filter": "none", "metrics": ["acc"], "acc": n % 2} for n in range(3)]


def samples(folder: Path) -> object:
    return stored(list(items_of(TOY, folder / "samples_toy_a_2024-01-01T00-00-00.jsonl")), ITEMS)


def ifeval(folder: Path) -> object:
    source = Source(path=str(folder / "input_data.jsonl"))
    with tempfile.TemporaryDirectory() as out:
        return IFEvalQuestions(source=source, content=source.content(), first=None)(out=Path(out))


def instruction(number: int, name: str, **kwargs: Any) -> dict[str, Any]:
    """A row of IFEval; as on the hub, values that an instruction does not have are null."""
    own = {"language": None} | kwargs
    return {"key": number, "prompt": f"Say {number}.", "instruction_id_list": [name], "kwargs": [own]}


IFEVAL: Rows = [
    instruction(1, "punctuation:no_comma"),
    instruction(2, "keywords:frequency", keyword="x", frequency=2, relation="at least"),
    instruction(3, "detectable_format:number_bullet_lists", num_bullets=3),
    instruction(4, "keywords:letter_frequency", letter="q", let_frequency=2, let_relation="less than"),
    instruction(5, "language:response_language", language="de"),
    instruction(6, "combination:repeat_prompt", prompt_to_repeat="Say"),
    instruction(7, "keywords:existence", keywords=["a", "b"]),
    instruction(8, "length_constraints:nth_paragraph_first_word", num_paragraphs=3, nth_paragraph=1, first_word="a"),
]
TARGETS = [
    Target("prompts.jsonl", lines("prompts.jsonl", PROMPTS), prompts),
    Target("prompts.csv", text("prompts.csv", TABLE), prompts),
    Target("prompts.parquet", parquet("prompts.parquet", IN_COLUMNS), prompts),
    Target(
        "answers by prompt",
        lines("a.jsonl", BY_PROMPT),
        answers(prompt="prompt", answer="answer", source_column="who"),
        ("data.answers.x",),
    ),
    Target(
        "answers by turns", parquet("a.parquet", BY_TURNS), answers(answer="chosen", source="gpt"), ("data.answers.x",)
    ),
    Target(
        "answers by id",
        lines("a.jsonl", BY_ID),
        answers(prompt_id="id", answer="answer", source="gpt"),
        ("data.answers.x",),
    ),
    Target(
        "model_outputs.json",
        whole("outputs.json", [o._asdict() for o in OUTPUTS]),
        lambda f: read_outputs(f / "outputs.json"),
    ),
    Target("annotations.json", whole("annotations.json", [a._asdict() for a in JUDGED]), annotated),
    Target("df_gamed.csv", gamed, lambda folder: read_gamed(folder / "gamed.csv"), cost=2),
    Target("question.jsonl", lines("question.jsonl", QUESTION_ROWS), questions),
    Target("reference answers", lines("gpt-4.jsonl", REFERENCES), references),
    Target("judge_prompts.jsonl", lines("judge_prompts.jsonl", JUDGE_PROMPTS), judge_prompts),
    Target("judgments", lines("gpt-4_single.jsonl", JUDGMENTS), judged),
    Target("results of lm-eval", whole("results.json", RESULTS), results, ("no file has results of",)),
    Target("samples of lm-eval", lines("samples_toy_a_2024-01-01T00-00-00.jsonl", SAMPLES), samples),
    Target("questions of IFEval", lines("input_data.jsonl", IFEVAL), ifeval, slow=True),
]
