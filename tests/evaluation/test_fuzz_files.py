"""Whatever a file of prompts, answers, judgments or results holds, it is read, or refused in a line that names it."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
from foreign_files import PLACE, Reader, law_of, of_file

from src.data import checks
from src.data.outside import AnswerFile, ReadAnswers
from src.data.prompts import Columns
from src.data.source import Source, read_columns
from src.evaluation.alpaca_eval import files
from src.evaluation.alpaca_eval.files import Annotation, Output
from src.evaluation.alpaca_eval.scores import scores
from src.evaluation.benchmark import read_table
from src.evaluation.ifeval import Question, checkable
from src.evaluation.mt_bench import questions
from src.evaluation.mt_bench.scores import SCORES, averages, read_judgments
from src.evaluation.open_llm.columns import Column, read_results, score_columns
from src.kernel.rows import PROMPTS, prompt_id, read_rows, write_rows

# Prompts and answers ------------------------------------------------------------------------------------------------

TEXT = "What is it? 何 <|im_end|> 🙂"
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": TEXT}]
CHECKS = [{"kind": "numbered_list", "n": 3}, {"kind": "json_keys", "keys": ["a", "b"]}, {"kind": "no_digits"}]
PROMPT_LINES = [
    {"prompt": TEXT, "source": "mine", "checks": json.dumps(CHECKS)},
    {"messages": CHAT, "source": None, "checks": [{"kind": "first_letter", "letter": "I"}]},
    {"messages": json.dumps(CHAT), "checks": [{"kind": "words_between", "low": 1, "high": 5}]},
]
PROMPT_ROWS = [{"messages": CHAT, "checks": json.dumps(CHECKS)}, {"messages": CHAT[1:], "checks": None}]
TURNS = [{"role": "user", "content": "Q1"}, {"role": "assistant", "content": "A1"}]
BY_PROMPT = [{"prompt": "Q1", "answer": "A1", "who": "gpt"}, {"prompt": "Q2", "answer": None, "who": "me"}]
BY_ID = [{"id": one, "answer": "A1", "who": "gpt"} for one in (prompt_id(TURNS[:1]), "0123456789abcdef")]
BY_TURNS = [{"chosen": TURNS}, {"chosen": [TURNS[0], {"role": "assistant", "content": "other"}]}]
ANSWERS = "data.answers.x"


place = Path(PLACE.name)


def stored(rows: Any, schema: pa.Schema) -> list[dict[str, Any]]:
    """Return the rows as an artifact has them."""
    write_rows(place, rows, schema)
    return read_rows(place, schema)


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
    write_rows(place, rows, PROMPTS)
    (out := place / "out").mkdir(exist_ok=True)
    with redirect_stdout(io.StringIO()):
        stage(place, out=out)


# Benchmarks ---------------------------------------------------------------------------------------------------------

OUTPUTS = [Output(f"Do {n}.", f"Done {n}.", "gpt", "helpful_base") for n in range(3)]
JUDGED = [Annotation(o.instruction, o.output, o.generator, o.dataset, "mine", "me", "judge", 1.5) for o in OUTPUTS]
GAMED = "index,preference,std_delta_len,instruction_difficulty\n"
GAMED += 2 * "".join(f"{number},0.5,-1.5,0.25\n" for number in range(len(files.official_ids())))
CATEGORIES = {81: "writing", 101: "reasoning"}
QUESTIONS = [{"question_id": q, "category": c, "turns": [f"Ask {q}.", "And then?"]} for q, c in CATEGORIES.items()]
BOTH = "{question_1} {answer_1} {question_2} {answer_2}"
TEMPLATES = ("{question} {answer}", "{question} {answer} {ref_answer_1}", BOTH, BOTH + "{ref_answer_2}")
JUDGE_PROMPTS = [
    {"name": name, "system_prompt": "Judge.", "prompt_template": template}
    for name, template in zip(questions.JUDGED_BY, TEMPLATES, strict=True)
]
REFERENCES = [{"question_id": q, "choices": [{"index": 0, "turns": ["One.", "Two."]}]} for q in CATEGORIES]
JUDGMENT = {"model": "m", "judge": ["gpt-4", "single-v1"], "score": 1.5}
JUDGMENTS = [JUDGMENT | {"question_id": question, "turn": turn} for question in CATEGORIES for turn in (1, 2)]
KINDS = {"keywords:frequency": {"keyword": "a", "frequency": 2, "relation": "at least"}, "punctuation:no_comma": {}}
INSTRUCTION = {"prompt": "Write.", "instruction_id_list": list(KINDS), "kwargs": list(KINDS.values())}
TOY = Column(key="toy", title="Toy", task="toy", shots=2, metric="acc,none", subtasks=2)
TASKS = {"toy": 2, "toy_a": 2, "toy_b": 2}
VALUES = {"acc,none": 0.5, "acc_stderr,none": 0.01, "other,none": 0.25, "other_stderr,none": "N/A"}
RESULTS = {"results": dict.fromkeys(TASKS, VALUES), "group_subtasks": {"toy": ["toy_a", "toy_b"]}, "n-shot": TASKS}
OLD = Column(key="arc", title="ARC", task="arc_challenge", shots=25, metric="acc_norm,none")
ARCHIVED = {"config_general": {"model_name": "me"}, "results": {"harness|arc:challenge|25": {"acc_norm": 0.5}}}
RESULTS |= {"config": {"model_args": {"pretrained": "me", "dtype": "float32"}, "limit": None}, "chat_template": None}


def judged(file: Path) -> None:
    rows = files.joined(
        file, files.read_official(file, Annotation), [files.instruction_id(row.instruction) for row in OUTPUTS]
    )
    scores(file, rows, None, 0.95)


def judge_prompts(file: Path) -> None:
    """Read the judge's prompts, and fill them in."""
    prompts = questions.read_prompts(file)
    for category in CATEGORIES.values():
        question = {"question_id": 1, "category": category, "turns": ["Q", "R"], "reference": ["S", "T"]}
        for turn in (1, 2):
            questions.request(prompts, question, ["A", "B"], turn)


def instructions(file: Path) -> None:
    for place, question in read_table(Question, Source(path=str(file))):
        checkable(place, question)


def judgments(file: Path) -> None:
    for rows in read_judgments([file]).values():
        stored(averages(str(file), rows, CATEGORIES, 0.95)[1], SCORES)


# The law ------------------------------------------------------------------------------------------------------------

by_prompt = partial(answers, prompt="prompt", answer="answer", source_column="who")
by_turns = partial(answers, answer="chosen", source="gpt")
by_id = partial(answers, prompt_id="id", answer="answer", source_column="who")
READERS = [
    Reader("prompts in lines", {"prompts.jsonl": PROMPT_LINES}, prompts),
    Reader("prompts in Parquet", {"prompts.parquet": PROMPT_ROWS}, prompts),
    Reader("answers by prompt", {"a.jsonl": BY_PROMPT}, by_prompt, ANSWERS),
    Reader("answers by turns", {"a.parquet": BY_TURNS}, by_turns, ANSWERS),
    Reader("answers by prompt_id", {"a.jsonl": BY_ID}, by_id, ANSWERS),
    of_file("model_outputs.json", [asdict(one) for one in OUTPUTS], lambda file: files.read_official(file, Output)),
    of_file("annotations.json", [asdict(one) for one in JUDGED], judged),
    of_file("gamed.csv", GAMED, files.read_gamed),
    of_file("question.jsonl", QUESTIONS, lambda file: stored(questions.read_questions(file), questions.QUESTIONS)),
    of_file("judge_prompts.jsonl", JUDGE_PROMPTS, judge_prompts),
    of_file("reference.jsonl", REFERENCES, questions.read_references),
    of_file("gpt-4_single.jsonl", JUDGMENTS, judgments),
    of_file("results.json", RESULTS, lambda file: score_columns(read_results([file], False), (TOY,), 0.95)),
    of_file("archived.json", ARCHIVED, lambda file: score_columns(read_results([file], False), (OLD,), 0.95)),
    of_file("instructions.jsonl", [INSTRUCTION | {"key": key} for key in (1, "b")], instructions),
]


test_any_bytes_are_a_value_or_a_mistake_that_names_them = law_of(READERS)
