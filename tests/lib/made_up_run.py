"""A finished run whose artifacts were written by hand: for what only reads artifacts (report, metrics)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tiny_run import HELD_OUT, PROMPTS, K, composed, tiny, typed

from src.evaluation.held_out import EVALUATION, Quality
from src.experiment.graph import nodes_of
from src.experiment.point import Point
from src.experiment.run import Run
from src.kernel.artifact import WORK, Node
from src.kernel.record import RECORD
from src.kernel.rows import PAIRS, RANKING, RESPONSES, Row, write_rows
from src.kernel.store import Store
from src.launch import compose

STEPS = 3
WINS = ("win_over_base", "win_over_previous", "null_win")


COMMIT = "c0ffee" + "0" * 34
PAIR_NUMBERS = ("chosen_win", "rejected_win", "chosen_beats_rejected", "chosen_tokens", "rejected_tokens",
                "near_ties", "expected_loss_unit")  # fmt: skip
PAIR_COUNTS = {"prompts": PROMPTS, "pairs": PROMPTS, "identical_left_out": 0, "margin_left_out": 1,
               "length_left_out": 2, "prompts_without_pair": 3, "win_histogram": [1, 0, 3, 0]}  # fmt: skip
RANKING_NUMBERS = ("intransitive_triads", "first_place_flips", "length_correlation")
RANKING_COUNTS = {"answers": PROMPTS * K, "truncated_answers": 5, "truncated_prompts": 1, "identical_answers": 2,
                  "position_bias": None, "position_bias_abs": None, "malformed_verdicts": 7}  # fmt: skip


class MadeUp(NamedTuple):
    run: Run
    nodes: list[Node]
    store: Store
    folder: Path


def made_up(place: Path, question: str = "what", answer: str = "this", iterations: int = 2, **metrics: Any) -> MadeUp:
    """Every prompt is `question`, every answer `answer`; `metrics` overrides numbers of the evaluations."""
    run = typed(*tiny(Path("nowhere"), place, f"iter={iterations}"))
    Store(run.store).mark()
    story = MadeUp(run, nodes_of(run), Store(run.store), run.runs / "made_up")
    story.folder.mkdir(parents=True)
    (story.folder / "command.txt").write_text("python -m src.main\n")
    for node in story.nodes:
        write_artifact(story.store.path(node), node.name, question, answer, metrics)
    return story


def point_of(story: MadeUp, *words: str) -> Point:
    """The point of a run that was made up, in its folder."""
    place = story.folder.parents[1]
    given = [*tiny(Path("nowhere"), place, f"iter={story.run.iter}", f"name={story.folder.name}"), *words]
    return compose.point_of(composed(*given), given, ())


def under_way(story: MadeUp, steps: int) -> None:
    """Leave the training of iteration 2 unfinished, with some of its steps made."""
    (node,) = [node for node in story.nodes if node.name == "it2/policy"]
    attempt = story.store.path(node).with_name(f"{node.key}.partial-00000000")
    if story.store.has(node):
        shutil.move(story.store.path(node), attempt / WORK)
    rows = [{"step": step, "loss": float(step)} for step in range(1, steps + 1)]
    (attempt / WORK / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_artifact(folder: Path, name: str, question: str, answer: str, metrics: dict[str, Any]) -> None:
    folder.mkdir(parents=True)
    (folder / RECORD).write_text(json.dumps({"files": {}, "commit": COMMIT, "versions": {"torch": "9.9"}}))
    iteration, _, stage = name.partition("/")
    if stage in ("answers", "responses"):
        count, k = (HELD_OUT, 1) if stage == "answers" else (PROMPTS, K)
        write_rows(folder, [responses(i, question, answer, k) for i in range(count)], RESPONSES)
    if stage == "ranking":
        write_rows(folder, [ranking(i) for i in range(PROMPTS)], RANKING)
    if stage == "pairs":
        write_rows(folder, [pair(i) for i in range(PROMPTS)], PAIRS)
    if stage == "evaluation":
        write_rows(folder, [evaluated(i) for i in range(HELD_OUT)], EVALUATION)
    numbers = {
        "pairs": dict.fromkeys(PAIR_NUMBERS, 0.125) | PAIR_COUNTS,
        "ranking": dict.fromkeys(RANKING_NUMBERS, 0.375) | RANKING_COUNTS,
        "divergence": {"kl_per_token": 0.25, "kl_per_answer": 2.0, "prompts": 3},
    }
    numbers["evaluation"] = evaluation() | metrics
    if stage in numbers:
        (folder / "metrics.json").write_text(json.dumps(numbers[stage]))
    if stage == "policy" and iteration != "base":
        lines = [json.dumps(step(number)) + "\n" for number in range(STEPS)]
        (folder / "metrics.jsonl").write_text("".join(lines))


def responses(number: int, question: str, answer: str, k: int) -> Row:
    one = {"text": answer, "token_ids": [1] * (number + 1), "finish_reason": "stop", "seed": 0, "source": "policy"}
    chat = [{"role": "user", "content": question}]
    rest = {"source": "", "checks": "[]", "prompt_token_ids": [0], "responses": [one] * k}
    return {"prompt_id": f"p{number}", "messages": chat} | rest


def ranking(number: int) -> Row:
    scores = [float(k) for k in range(K)]
    seen = {"truncated": [False] * K, "prompt_truncated": False}
    return {"prompt_id": f"p{number}", "logits": None, "scores": scores, "terms": None} | seen


def pair(number: int) -> Row:
    ids: Callable[[int], list[int]] = lambda n: [1] * (n + 1)  # noqa: E731
    return (
        {"prompt_id": f"p{number}", "prompt_token_ids": [0], "chosen_token_ids": ids(2), "rejected_token_ids": ids(3)}
        | {"chosen_win": 0.75, "rejected_win": 0.25, "chosen_beats_rejected": 0.9, "chosen_index": 2}
        | {"rejected_index": 0, "chosen_source": "policy", "rejected_source": "policy"}
    )


def evaluated(number: int) -> Row:
    wins = {"win_over_base": number / HELD_OUT, "win_over_previous": 0.5, "null_win": 0.5}
    return {"prompt_id": f"p{number}"} | wins | dict.fromkeys(Quality, 0.3)


def step(number: int) -> dict[str, float]:
    names = ("loss", "loss_scaled", "chosen_logratio", "rejected_logratio", "reward_margin")
    return {"step": number + 1} | {name: number + 0.5 for name in names}


def evaluation() -> dict[str, float]:
    """Win rates of .6 in [.55, .65], a null of .5 in [.45, .55]; .3 for all else of the policy, .2 of the base."""
    counts = {"prompts": HELD_OUT, "seen_checks": 3, "unseen_checks": 2, "base_seen_checks": 3, "base_unseen_checks": 2}
    names = [name for name in Quality if not name.endswith(("_checks", "_kept"))] + ["seen_accuracy", "unseen_accuracy"]
    numbers = {name: 0.3 for name in names} | {f"base_{name}": 0.2 for name in names}
    for name in WINS:
        center = 0.5 if name == "null_win" else 0.6
        numbers |= {name: center, f"{name}_low": center - 0.05, f"{name}_high": center + 0.05}
    return counts | numbers
