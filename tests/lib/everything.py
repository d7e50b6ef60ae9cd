"""A run of seconds that makes artifacts of every kind there is: two iterations, outside answers and all benchmarks."""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from alpaca_eval_made_up import INSTRUCTIONS, baseline, gamed
from answer_server import IMPATIENT, AnswerServer, answering
from judge_server import Step, completion
from test_alpaca_eval_judging import longer
from test_ifeval import row, written
from test_mt_bench_judge import graded
from test_open_llm_run import PYTHON
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
        if body["model"] == "gpt-4-1106-preview":
            step = longer(server, number)
            return Step(body=json.dumps(completion(step, body)))
        if body["model"] == "gpt-4":
            return graded(body, number)
        return f"an answer to {len(body['messages'][-1]['content'])} letters"

    return say


def lm_eval(place: Path) -> Path:
    """The stand-in for another environment's Python, with another number a policy; the real one says what is there."""
    script, python = place / "lm_eval.py", place / "python"
    own = PYTHON.replace('"acc,none": 0.5', '"acc,none": int(told["model_args"]["pretrained"][-2:], 16) / 256')
    script.write_text(own.format(python=sys.executable, notes=place / "notes", fails=""))
    python.write_text(f'#!/bin/sh\n[ "$1" = -c ] && exec {sys.executable} "$@"\nexec {sys.executable} {script} "$@"\n')
    python.chmod(0o755)
    return python


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
        "ifeval": [f"path={written(place / 'ifeval.jsonl', [row(1), row(2)])}", "max_new_tokens=8"],
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
