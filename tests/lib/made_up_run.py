"""A finished run whose artifacts were written by hand: for what only reads artifacts (report, card, metrics, W&B)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from tiny_run import HELD_OUT, PROMPTS, K, tiny, typed_point

from src.evaluation.held_out import EVALUATION, Quality
from src.experiment.point import Point
from src.experiment.run import Run
from src.kernel.artifact import WORK, Node
from src.kernel.record import RECORD
from src.kernel.rows import PAIRS, RANKING, RESPONSES, Row, write_rows
from src.kernel.store import Store

STEPS = 3
WINS = dict.fromkeys(("win_over_base", "win_over_previous", "hard_win_over_base"), 0.6) | {"null_win": 0.5}
"""Each with an interval of .05 to both sides."""
RECORDED = {"files": {}, "commit": "c0ffee" + "0" * 34, "versions": {"torch": "9.9"}}
PAIR_NUMBERS = {
    **dict.fromkeys(("chosen_win", "rejected_win", "chosen_beats_rejected", "near_ties"), 0.125),
    **dict.fromkeys(("chosen_tokens", "rejected_tokens", "expected_loss_unit"), 0.125),
    **{"prompts": PROMPTS, "pairs": PROMPTS, "prompts_without_pair": 3, "tau": 1.0, "win_histogram": [1, 0, 3, 0]},
    **{"identical_left_out": 0, "margin_left_out": 1, "length_left_out": 2},
}
RANKING_NUMBERS = {
    **dict.fromkeys(("intransitive_triads", "first_place_flips", "length_correlation"), 0.375),
    **{"answers": PROMPTS * K, "truncated_answers": 5, "truncated_prompts": 1, "identical_answers": 2},
    **{"position_bias": None, "position_bias_abs": None, "malformed_verdicts": 7},
}


class MadeUp(NamedTuple):
    point: Point
    run: Run
    nodes: list[Node]
    store: Store
    folder: Path

    def node(self, name: str) -> Node:
        return next(node for node in self.nodes if node.name == name)

    def path(self, name: str) -> Path:
        """The folder of an artifact."""
        return self.store.path(self.node(name))


def story_of(place: Path, *words: str, iterations: int = 2) -> MadeUp:
    """A run of which nothing is made, or whose artifacts another process has written."""
    point = typed_point(*tiny(Path("nowhere"), place, f"iter={iterations}", "name=made_up", *words))
    return MadeUp(point, point.run, point.nodes, Store(point.run.store), point.folder)


def made_up(
    place: Path, question: str = "what", answer: str = "this", iterations: int = 2, words: Any = (), **win: Any
) -> MadeUp:
    """Every prompt is `question`, every answer `answer`; `win` overrides numbers of the evaluations."""
    story = story_of(place, *words, iterations=iterations)
    story.store.mark()
    story.folder.mkdir(parents=True)
    (story.folder / "command.txt").write_text("python -m src.main\n")
    for node in story.nodes:
        _write_artifact(story.store.path(node), node.name, question, answer, win)
    return story


def under_way(story: MadeUp, steps: int) -> None:
    """Leave the training of iteration 2 unfinished, with some of its steps made."""
    node = story.node("it2/policy")
    attempt = story.store.path(node).with_name(f"{node.key}.partial-00000000")
    if story.store.has(node):
        shutil.move(story.store.path(node), attempt / WORK)
    rows = [{"step": step, "loss": float(step)} for step in range(1, steps + 1)]
    (attempt / WORK / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _write_artifact(folder: Path, name: str, question: str, answer: str, win: dict[str, Any]) -> None:
    folder.mkdir(parents=True)
    (folder / RECORD).write_text(json.dumps(RECORDED))
    iteration, _, stage = name.partition("/")
    evaluated = dict.fromkeys(WINS, 0.5) | dict.fromkeys(Quality, 0.3)
    rows: dict[str, tuple[list[Row], Any]] = {
        "answers": ([responses(i, question, answer, 1) for i in range(HELD_OUT)], RESPONSES),
        "responses": ([responses(i, question, answer, K) for i in range(PROMPTS)], RESPONSES),
        "ranking": ([ranking(i) for i in range(PROMPTS)], RANKING),
        "pairs": ([pair(i) for i in range(PROMPTS)], PAIRS),
        "evaluation": ([{"prompt_id": f"p{i}"} | evaluated for i in range(HELD_OUT)], EVALUATION),
    }
    numbers = {"pairs": PAIR_NUMBERS, "ranking": RANKING_NUMBERS, "evaluation": evaluation() | win,
               "divergence": {"kl_per_token": 0.25, "kl_per_answer": 2.0, "prompts": 3}}  # fmt: skip
    if stage in rows:
        write_rows(folder, *rows[stage])
    if stage in numbers:
        (folder / "metrics.json").write_text(json.dumps(numbers[stage]))
    if stage == "policy" and iteration != "base":
        names = ("loss", "loss_scaled", "chosen_logratio", "rejected_logratio", "reward_margin")
        steps = [{"step": k + 1} | dict.fromkeys(names, k + 0.5) for k in range(STEPS)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))


def responses(number: int, question: str, answer: str, k: int) -> Row:
    one = {"text": answer, "token_ids": [1] * (number + 1), "finish_reason": "stop", "seed": 0, "source": "policy"}
    chat = [{"role": "user", "content": question}]
    rest = {"source": "", "checks": "[]", "prompt_token_ids": [0], "responses": [one] * k}
    return {"prompt_id": f"p{number}", "messages": chat} | rest


def ranking(number: int) -> Row:
    scores = [float(k) for k in range(K)]
    cut = {"truncated": [False] * K, "prompt_truncated": False}
    return {"prompt_id": f"p{number}", "logits": None, "scores": scores, "terms": None} | cut


def pair(number: int) -> Row:
    ids = {"prompt_token_ids": [0], "chosen_token_ids": [1] * 3, "rejected_token_ids": [1] * 4}
    wins = {"chosen_win": 0.75, "rejected_win": 0.25, "chosen_beats_rejected": 0.9}
    sides = {"chosen_index": 2, "rejected_index": 0, "chosen_source": "policy", "rejected_source": "policy"}
    return {"prompt_id": f"p{number}"} | ids | wins | sides


def evaluation() -> dict[str, float]:
    """The win rates of WINS; .3 for all else of the policy, .2 of the base."""
    names = [name for name in Quality if not name.endswith(("_checks", "_kept"))] + ["seen_accuracy", "unseen_accuracy"]
    numbers: dict[str, float] = {"prompts": HELD_OUT, "tau": 1.0, "lc_win_over_base": 0.6}
    for side, value in (("", 0.3), ("base_", 0.2)):
        numbers |= {f"{side}seen_checks": 3, f"{side}unseen_checks": 2} | {f"{side}{name}": value for name in names}
    for name, win in WINS.items():
        numbers |= {name: win, f"{name}_low": win - 0.05, f"{name}_high": win + 0.05}
    return numbers
