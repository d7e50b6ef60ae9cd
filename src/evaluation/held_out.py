"""The run's own gauge, on held-out prompts: win rates, what they can hide, and the exact KL from the base."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import PositiveInt

from src.data import checks
from src.data.checks import repetition
from src.evaluation.benchmark import Planner, Policy
from src.evaluation.statistics import mean_interval, ratio_interval
from src.generation.engine import Sampling
from src.kernel.artifact import Node, Stage, Takes
from src.kernel.config import Confidence, Device, Free, UserError, config
from src.kernel.rows import NOT_FINITE, RANKING, RESPONSES, Row, read_rows, schema, write_metrics, write_rows
from src.modeling.packing import Group, pack
from src.modeling.policy import load_policy
from src.pairing.win_probability import Estimator, expit
from src.ranking.stage import Ranker

if TYPE_CHECKING:
    from torch import Tensor

CURRENT, PREVIOUS, BASE, NULL = range(4)
"""Places of the four policies among the inputs of an evaluation, and in a joint ranking."""
CHECKS = ("seen_checks", "seen_kept", "unseen_checks", "unseen_kept")
Quality = ("tokens", "words", "finished", "empty", "repetition", *CHECKS, "relevance", "pmi", "echo", "likelihood")
"""Columns of one answer; counts for the checks, 0 or 1 for `finished` and `empty`, NaN for terms a ranker lacks."""
WINS = ("win_over_base", "win_over_previous", "null_win", "hard_win_over_base")
EVALUATION = schema(prompt_id=pa.string(), **dict.fromkeys((*WINS, *Quality), pa.float64()))


@config
class HeldOut:
    """Win rates on held-out prompts, and what they cost in KL.

    Ranker, estimator and sampling are its own, so that runs that train with others are measured alike.
    """

    ranker: Ranker
    """Who judges: only its verdicts on policies are read, and nothing is trained on them."""
    estimator: Estimator
    """Says P(answer > answer). tau=spread: that of two answers of the base, the same in all runs from it."""
    sampling: Sampling
    """How all policies answer, once: K is always 1."""
    second: Ranker | None = None
    """Another judge, whose win rates stand beside; one that shares no model with those that policies are trained on."""
    confidence: Confidence
    divergence_prompts: PositiveInt
    """Held-out prompts on which the KL from the base is measured."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "sampling", replace(self.sampling, K=1))

    def nodes(
        self, t: int, run: Planner, current: Policy, previous: Policy, base: Policy, null: Policy
    ) -> Iterator[Node]:
        """Plan the evaluation of iteration t: answers under each judge, and the KL from the base."""
        four, count = (current, previous, base, null), current.answers.rows
        answers = tuple(policy.answers for policy in four)
        for which, judge in run.judges.items():
            rankings = tuple(ranking for policy in four if (ranking := policy.rankings[which]) is not None)
            if not rankings:  # the ranker has to see both answers at once
                merged = run.node(f"it{t}/joint_answers", Merge(), answers, rows=count, job="evaluation")
                rankings = (run.rank(f"it{t}/{which}joint_ranking", merged, count, len(four), judge),)
            evaluation = HeldOutEvaluation(confidence=self.confidence, estimator=self.estimator)
            yield run.node(f"it{t}/{which}evaluation", evaluation, answers + rankings, rows=count, job="evaluation")
        divergence = Divergence(prompts=self.divergence_prompts, confidence=self.confidence, **run.machine._asdict())
        inputs, work = (current.answers, current.policy, base.policy), self.divergence_prompts
        yield run.node(f"it{t}/divergence", divergence, inputs, work=work, job="evaluation")


@config
class Merge(Stage):
    """Puts the answers of several responses artifacts over the same prompts side by side, in the order given."""

    kind: ClassVar[str] = "responses"

    def __call__(self, *inputs: Path, out: Path) -> None:
        first, *others = [read_rows(path, RESPONSES) for path in inputs]
        for path, rows in zip(inputs[1:], others, strict=True):
            if [row["prompt_id"] for row in rows] != [row["prompt_id"] for row in first]:
                raise UserError(f"{path}: answers other prompts than {inputs[0]}")
            for row, other in zip(first, rows, strict=True):
                row["responses"] += other["responses"]
        write_rows(out, first, RESPONSES)


@config
class HeldOutEvaluation(Stage):
    """Does the new policy beat the base and the previous policy on prompts it never saw, and at what price?

    In: responses of [current, previous, base, base with other seeds (the null)], one answer per prompt, then their
    rankings: four, or one joint ranking of all four answers for rankers that give no comparable scores.
    Out: one row per prompt, and `metrics.json`.
    """

    kind: ClassVar[str] = "evaluation"
    version: ClassVar[int] = 4

    confidence: Confidence
    """Level of the intervals, such as 0.95."""
    estimator: Estimator
    """Says P(answer > answer)."""

    def __call__(self, *inputs: Path, out: Path) -> None:
        responses = [read_rows(path, RESPONSES) for path in inputs[:4]]
        rankings = list(zip(*(read_rows(path, RANKING) for path in inputs[4:]), strict=True))
        four = [ranked[0] if len(ranked) == 1 else _side_by_side(ranked) for ranked in rankings]
        estimator = self.estimator.measured(_of_the_base(ranking) for ranking in four)
        rows = [
            {"prompt_id": row["prompt_id"]} | _wins(estimator.matrix(ranking)) | _quality(CURRENT, row, ranked)
            for row, ranking, ranked in zip(responses[CURRENT], four, rankings, strict=True)
        ]
        write_rows(out, rows, EVALUATION)
        before = [_quality(BASE, row, ranked) for row, ranked in zip(responses[BASE], rankings, strict=True)]
        metrics: dict[str, float] = {"prompts": len(rows), "tau": float(estimator.tau)}
        lengths = [np.array([row["tokens"] for row in side], float) for side in (rows, before)]
        wins = np.array([row["win_over_base"] for row in rows])
        controlled = length_controlled(wins, lengths[0] - lengths[1], self.confidence)
        metrics |= {
            f"lc_win_over_base{end}": value for end, value in zip(("", "_low", "_high"), controlled, strict=True)
        }
        for name in WINS:
            values = np.array([row[name] for row in rows])
            low, high = mean_interval(values, self.confidence)
            metrics |= {name: float(values.mean()), f"{name}_low": low, f"{name}_high": high}
        metrics |= summarise(rows) | {f"base_{name}": value for name, value in summarise(before).items()}
        write_metrics(out, {name: None if math.isnan(value) else value for name, value in metrics.items()})


def _side_by_side(rankings: Sequence[Row]) -> Row:
    """Return the joint ranking of four answers that were scored apart."""
    return {"scores": [ranking["scores"][0] for ranking in rankings]}


def _of_the_base(ranking: Row) -> Row:
    """Return what a joint ranking says of the base's two answers."""
    two = (BASE, NULL)
    if ranking["scores"] is not None:
        return {"scores": [ranking["scores"][i] for i in two]}
    return {"scores": None, "logits": [[ranking["logits"][i][j] for j in two] for i in two]}


def _wins(matrix: np.ndarray) -> dict[str, float]:
    """Return P(current > base), P(current > previous), P(null > base) and whether current beats base, ties 1/2."""
    pairs = ((CURRENT, BASE), (CURRENT, PREVIOUS), (NULL, BASE))
    wins = [float(matrix[pair]) for pair in pairs]
    return dict(zip(WINS, [*wins, (np.sign(wins[0] - 0.5) + 1) / 2], strict=True))


def length_controlled(wins: np.ndarray, longer: np.ndarray, confidence: float) -> tuple[float, float, float]:
    """Return the win rate at equal length, with its interval: sigma(a) of the fit P(win) = sigma(a + b tanh(d / sd)).

    As AlpacaEval 2 controls for length, without its term for an instruction's difficulty. `wins` (prompt,) in [0, 1];
    `longer` (prompt,): by how many tokens the answer is longer, d, whose standard deviation is sd. The interval is
    normal in a, by the sandwich estimator, since win probabilities are no coin flips.
    """
    from scipy.stats import norm
    from sklearn.linear_model import LogisticRegression

    spread = longer.std(ddof=1) if len(longer) > 1 else 0.0
    if not spread:
        return float(wins.mean()), *mean_interval(wins, confidence)
    x = np.stack([np.ones_like(longer), np.tanh(longer / spread)], 1)
    # A soft win is a win and a loss, each with its weight.
    fit = LogisticRegression(C=1e4, fit_intercept=False, tol=1e-8)
    fit.fit(np.concatenate([x, x]), np.repeat([1, 0], len(x)), np.concatenate([wins, 1 - wins]))
    (a, _), p = fit.coef_[0], fit.predict_proba(x)[:, 1]
    bread = np.linalg.inv((x * (p * (1 - p))[:, None]).T @ x)
    scores = x * (wins - p)[:, None]
    half = norm.ppf((1 + confidence) / 2) * math.sqrt((bread @ scores.T @ scores @ bread)[0, 0])
    low, middle, high = expit(np.array([a - half, a, a + half])).tolist()
    return middle, low, high


def _quality(who: int, row: Row, rankings: tuple[Row, ...]) -> dict[str, float]:
    """Return the columns Quality of policy `who`, whose answer is the only one of a RESPONSES row.

    The answer is the first of its own ranking, or number `who` of a joint one.
    """
    ranking, position = (rankings[0], who) if len(rankings) == 1 else (rankings[who], 0)
    answer = row["responses"][0]
    terms = {term["name"]: term["values"][position] for term in ranking["terms"] or []}
    listed = json.loads(row["checks"])
    kept = checks.verdicts(listed, answer["text"])
    unseen = [check["kind"] in checks.HELD_OUT_KINDS for check in listed]
    return {
        "tokens": len(answer["token_ids"]),
        "words": len(answer["text"].split()),
        "finished": float(answer["finish_reason"] == "stop"),
        "empty": float(not answer["text"].strip()),
        "repetition": repetition(answer["text"]),
        "seen_checks": unseen.count(False),
        "seen_kept": sum(k for k, new in zip(kept, unseen, strict=True) if not new),
        "unseen_checks": unseen.count(True),
        "unseen_kept": sum(k for k, new in zip(kept, unseen, strict=True) if new),
    } | {name: terms.get(name, np.nan) for name in ("relevance", "pmi", "echo", "likelihood")}


def summarise(rows: list[Row]) -> dict[str, float]:
    """Return means over the prompts; accuracies are shares of single checks, NaN where there are none."""
    column = {name: np.array([row[name] for row in rows], dtype=float) for name in Quality}
    numbers = {name: float(column[name].mean()) for name in Quality if name not in CHECKS}
    for kind in ("seen", "unseen"):
        asked, kept = (int(column[f"{kind}_{what}"].sum()) for what in ("checks", "kept"))
        numbers |= {f"{kind}_checks": asked, f"{kind}_accuracy": kept / asked if asked else math.nan}
    return numbers


@config
class Divergence(Stage):
    """KL of the new policy from the base, summed over the vocabulary at every position of its held-out answers.

    Both at temperature 1, along answers that were sampled as held_out.sampling says: so it is the KL neither of what
    is sampled nor of whole answers. In: responses of the policy, the policy, the base. Out: `metrics.json` with KL per
    token, with its interval over the prompts, and per answer, nats.
    """

    kind: ClassVar[str] = "divergence"
    version: ClassVar[int] = 3

    prompts: PositiveInt
    """The first so many held-out prompts."""
    confidence: Confidence
    """Level of the interval over these prompts, such as 0.95."""
    device: Free[Device]
    batch_answers: Free[PositiveInt]
    head_chunk: Free[PositiveInt]
    """Answer tokens that meet the LM heads at a time."""

    def takes(self) -> Takes:
        return Takes("hardware.devices.device", cuda=self.device == "cuda")

    def __call__(self, *inputs: Path, out: Path) -> None:
        import torch

        from src.modeling.head import capped_logits

        rows = read_rows(inputs[0], RESPONSES)[: self.prompts]
        policies = [self._states(folder, rows) for folder in inputs[1:]]
        parts = []
        with torch.inference_mode():
            for chunks in zip(*(states for states, *_ in policies), strict=True):
                log_policy, log_base = (
                    capped_logits(chunk.to(self.device), head, softcap).log_softmax(-1)
                    for chunk, (_, head, softcap) in zip(chunks, policies, strict=True)
                )
                parts.append((log_policy.exp() * (log_policy - log_base)).sum(-1))
        kl = torch.cat(parts)  # KL(policy || base) (token,), in nats
        counts = [len(row["responses"][0]["token_ids"]) for row in rows]
        per_answer = [float(part.sum()) for part in kl.split(counts)]
        for row, value in zip(rows, per_answer, strict=True):
            if not math.isfinite(value):
                what = f"{NOT_FINITE} for the answer to prompt {row['prompt_id']}; look at what trained the policy"
                raise UserError(f"divergence: KL of the policy from the base is {what}")
        interval = ratio_interval(np.array(per_answer), np.array(counts), self.confidence) if len(rows) > 1 else None
        low, high = interval or (None, None)
        metrics = {"kl_per_token": float(np.sum(per_answer) / np.sum(counts)), "kl_per_token_low": low}
        metrics |= {"kl_per_token_high": high, "kl_per_answer": float(np.mean(per_answer)), "prompts": len(rows)}
        write_metrics(out, metrics)

    def _states(self, folder: Path, rows: list[Row]) -> tuple[list[Tensor], Tensor, float | None]:
        """Return the last hidden states (token, width) of all answers, in chunks on the CPU, the head and its softcap.

        The rest of the model is freed, so that one model at a time is in memory.
        """
        import torch

        from src.modeling.logps import answer_states, head_of, make_scorer

        # fp32: one iteration moves most weights by less than a bf16 step.
        model, states = make_scorer(load_policy(folder, "float32", self.device)), []
        groups = [Group(row["prompt_token_ids"], [row["responses"][0]["token_ids"]]) for row in rows]
        with torch.inference_mode():
            for start in range(0, len(groups), self.batch_answers):
                packed = pack(groups[start : start + self.batch_answers]).to(self.device)
                states += [chunk.cpu() for chunk in answer_states(model, packed).split(self.head_chunk)]
        return states, *head_of(model)
