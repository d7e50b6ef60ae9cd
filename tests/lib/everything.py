"""A run of seconds that makes artifacts of every kind there is: two iterations, outside answers and all benchmarks."""

from __future__ import annotations

import importlib
import inspect
import json
import math
import pkgutil
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from alpaca_eval_made_up import INSTRUCTIONS, baseline, gamed
from answer_server import IMPATIENT, AnswerServer, answering
from judge_server import Step, completion
from tiny_pairrm import build_pairrm, build_vocabulary
from tiny_run import World, tiny

import src
from src.artifact import Stage
from src.evaluation.alpaca_eval import annotations

BENCHMARKS = ("alpaca_eval", "ifeval", "mt_bench", "open_llm_v1", "win_matrix")


def all_kinds() -> set[str]:
    """Of every class below src that is a stage."""
    names = [found.name for found in pkgutil.walk_packages(src.__path__, "src.")]
    classes = [one for name in names for one in vars(importlib.import_module(name)).values() if inspect.isclass(one)]
    own = {one for one in classes if one is not Stage and one.__module__.startswith("src.")}
    return {kind for one in own if isinstance(kind := one.__dict__.get("kind"), str) and "version" in one.__dict__}


def said(server: AnswerServer) -> Any:
    """The server's script: what is said depends on the text alone, so that whatever is asked again is as before."""

    def say(body: dict[str, Any], number: int) -> str | Step:
        text = body["messages"][-1]["content"]
        if body["model"] == "gpt-4-1106-preview":
            first, second = re.findall(r'"output": """(.*?)"""\n', text, re.DOTALL)
            p = 0.7 if len(first) > len(second) else 0.2
            return Step(body=json.dumps(completion(Step("m", top={"m": math.log(p), "M": math.log(0.9 - p)}), body)))
        return f"Rating: [[{len(text) % 10 + 1}]]" if body["model"] == "gpt-4" else f"an answer to {len(text)} letters"

    return say


LM_EVAL = """
import json, sys
from pathlib import Path
told = json.loads(Path(sys.argv[sys.argv.index("--config") + 1]).read_text())
(task,) = told["tasks"]
Path(told["use_cache"] + "_rank0.db").write_text("answers")
(out := Path(told["output_path"]) / "model").mkdir(parents=True)
value = int(told["model_args"]["pretrained"][-2:], 16) / 256
results = {"results": {task: {"acc,none": value, "acc_stderr,none": 0.1}}, "n-shot": {task: told["num_fewshot"]}}
(out / "results_2024-01-01T00-00-00.000001.json").write_text(json.dumps(results))
lines = [json.dumps({"metrics": ["acc"], "doc_id": n, "filter": "none", "acc": float(n % 2)}) for n in range(4)]
(out / f"samples_{task}_2024-01-01T00-00-00.000001.jsonl").write_text("\\n".join(lines) + "\\n")
"""


def lm_eval(place: Path) -> Path:
    """The stand-in for another environment's Python, with another number a policy; the real one says what is there."""
    script, python = place / "lm_eval.py", place / "python"
    script.write_text(LM_EVAL)
    python.write_text(f'#!/bin/sh\n[ "$1" = -c ] && exec {sys.executable} "$@"\nexec {sys.executable} {script} "$@"\n')
    python.chmod(0o755)
    return python


def questions(file: Path) -> Path:
    """Of IFEval."""
    row = {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    file.write_text("".join(json.dumps(row | {"key": n, "prompt": f"Say {n} without commas."}) + "\n" for n in (1, 2)))
    return file


def benchmarks(place: Path, url: str) -> list[str]:
    """Overrides of all of them, of two policies; PairRM judges the matrix."""
    base = build_vocabulary(place / "base")
    column = "{_target_:src.evaluation.open_llm.columns.Column,key:toy,title:Toy,task:toy,shots:1,metrics:['acc,none']}"
    words = {
        "alpaca_eval": [
            f"baseline={baseline(place / 'base.json')}",
            f"gamed={gamed(place / 'gamed.csv', len(INSTRUCTIONS))}",
            f"judge.endpoint.base_url={url}",
            "decodings.default.max_new_tokens=8",
        ],
        "ifeval": [f"path={questions(place / 'ifeval.jsonl')}", "max_new_tokens=8"],
        "mt_bench": [f"judge.base_url={url}", "first=1", "max_new_tokens=6"],
        "open_llm_v1": [f"python={lm_eval(place)}", f"columns=[{column}]", "batch_size=1", "dtype=float32"],
        "win_matrix": [
            "resamples=100",
            f"ranker.checkpoint.repo={build_pairrm(place / 'pairrm', base)}",
            f"ranker.base.repo={base}",
            "ranker.precision=float32",
        ],
    }
    chosen = [f"benchmark=[{','.join(BENCHMARKS)}]", "ranker@benchmark.win_matrix.ranker=pairrm"]
    own = [f"benchmark.{name}.{word}" for name in BENCHMARKS for word in (*words[name], "of=[base,it2]")]
    return chosen + own


def outside(url: str) -> list[str]:
    own = ("max_answer_tokens=50", f"endpoint.base_url={url}", *IMPATIENT)
    return ["+answers@data.answers.gpt=endpoint", *(f"data.answers.gpt.{word}" for word in own)]


@contextmanager
def everything(llama: Path, place: Path) -> Iterator[World]:
    """The finished run; its server speaks, and its instructions are the leaderboard's, until it is left."""
    ids = place / "official.txt"
    ids.write_text("\n".join(map(annotations.instruction_id, INSTRUCTIONS)))
    with answering() as server, pytest.MonkeyPatch.context() as patch:
        server.say = said(server)
        patch.setattr(annotations, "_OFFICIAL", ids)
        annotations.official_ids.cache_clear()
        words = tiny(llama, place, "iter=2", *outside(server.url), *benchmarks(place, server.url))
        world = World(place, [word for word in words if not word.startswith(("store=", "runs="))])
        try:
            assert world.run() == 0
            yield world
        finally:
            annotations.official_ids.cache_clear()
