"""What training bought, over several seeds: the tables of docs/evaluation.md on controls.

    python -m bench.controls RUN ...                      # a run a seed, with benchmark=win_matrix of two policies
    python -m bench.controls RUN ... --best-by RUN ...    # best of K - 1 of the start policy's answers, in it1/ranking

Intervals are over seeds and prompts (src/evaluation/statistics.py, two_way), at 95%; of one run, over prompts.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from src.data import checks
from src.evaluation.statistics import mean_interval, two_way
from src.kernel.config import UserError
from src.kernel.rows import RANKING, RESPONSES, Row, last_user_message, read_rows
from src.pairing.win_probability import expit, lead, worth

CONFIDENCE = 0.95
Measures = dict[str, Callable[[Row, Row, int], float]]


def kept(row: Row, ranking: Row, which: int, unseen: bool) -> float:
    """Return the share of a prompt's checks of one kind that answer `which` keeps; NaN where there is none."""
    listed = [one for one in json.loads(row["checks"]) if (one["kind"] in checks.HELD_OUT_KINDS) == unseen]
    verdicts = checks.verdicts(listed, row["responses"][which]["text"])
    return float(np.mean(verdicts)) if verdicts else np.nan


def copied(row: Row, which: int) -> float:
    """Return the share of word trigrams of answer `which` that stand in the prompt."""
    return checks.echo(last_user_message(row), row["responses"][which]["text"])


def term(name: str) -> Callable[[Row, Row, int], float]:
    """Return a reader of a term of the ranking; NaN where the ranker has none of that name."""

    def read(row: Row, ranking: Row, which: int) -> float:
        values = {one["name"]: one["values"] for one in ranking["terms"] or []}
        return values[name][which] if name in values else np.nan

    return read


MEASURES: Measures = {
    "tokens": lambda row, ranking, which: len(row["responses"][which]["token_ids"]),
    "ended by itself": lambda row, ranking, which: float(row["responses"][which]["finish_reason"] == "stop"),
    "repetition": lambda row, ranking, which: checks.repetition(row["responses"][which]["text"]),
    "copied from the prompt": lambda row, ranking, which: copied(row, which),
    "checks kept, trained kinds": lambda row, ranking, which: kept(row, ranking, which, unseen=False),
    "checks kept, unseen kinds": lambda row, ranking, which: kept(row, ranking, which, unseen=True),
    "relevance": term("relevance"),
    "likelihood (nats per token)": term("likelihood"),
}
"""Name -> a number of answer `which` of a RESPONSES row, and its RANKING row."""


def terms_of(ranker: dict[str, Any]) -> Measures:
    """Return what each term of the ranker adds to an answer's score; none where its score is no sum of terms."""

    def part(name: str, weight: float) -> Callable[[Row, Row, int], float]:
        low, high = ranker.get(f"{name}_range", (-np.inf, np.inf))
        points = (-weight if name in ("repetition", "echo") else weight) / ranker["tau"]
        return lambda row, ranked, which: points * float(np.clip(term(name)(row, ranked, which), low, high))

    weights = ranker.get("weights", {})
    return {name: part(name, weight) for name, weight in weights.items() if name != "_target_"}


def interval(values: np.ndarray) -> str:
    """Write the mean of (seed, prompt) with its interval, without prompts of which nothing is said."""
    values = values[:, ~np.isnan(values).any(0)]
    if not values.size:
        return "–"
    low, high = two_way(values, CONFIDENCE)[0] if len(values) > 1 else mean_interval(values[0], CONFIDENCE)
    return f"{values.mean():.3f} [{low:.3f}, {high:.3f}]"


def ranked(runs: Sequence[Path], responses: str, ranking: str) -> list[list[tuple[Row, Row]]]:
    """Return, of each run, the answers to each prompt and what the ranker says of them, prompts in one order."""
    pairs = (zip(read_rows(run / responses, RESPONSES), read_rows(run / ranking, RANKING), strict=True) for run in runs)
    return [sorted(each, key=lambda pair: pair[0]["prompt_id"]) for each in pairs]


def ranker_of(runs: Sequence[Path], ranking: str) -> dict[str, Any]:
    """Return the config of the ranker that all runs have. Raises UserError where they have several."""
    configs = [json.loads((run / ranking / "record.json").read_text())["config"]["ranker"] for run in runs]
    if strange := next((run for run, one in zip(runs, configs, strict=True) if one != configs[0]), None):
        raise UserError(f"{strange}: ranked by another ranker than {runs[0]}; name the runs of one")
    return configs[0]


def win_matrices(runs: Sequence[Path]) -> Iterator[tuple[str, str]]:
    """Yield the lines of a table: the win rate of the last policy over the first, and both policies' measures."""
    places = {str(path.parent.relative_to(run)) for run in runs for path in run.glob("artifacts/it*/*/joint_ranking")}
    if len(places) != 1:
        raise UserError(f"{runs[0]}: the runs have {len(places)} kinds of win matrix, not one; docs/evaluation.md")
    (place,) = places
    ranker = ranker_of(runs, f"{place}/joint_ranking")
    every = ranked(runs, f"{place}/joint_answers", f"{place}/joint_ranking")

    def over(read: Callable[[Row, Row, int], float], which: int) -> np.ndarray:
        return np.array([[read(*each, which) for each in run] for run in every], float)

    leads = over(lambda _, ranking, which: lead(ranking)[which, 0], -1)
    yield f"win rate by {ranker['_target_']}, tau 1", interval(expit(leads))
    yield "hard win rate, ties 1/2", interval((np.sign(leads) + 1) / 2)
    for name, read in terms_of(ranker).items():
        rest = leads - (over(read, -1) - over(read, 0))
        yield f"win rate, had the judge no term `{name}`", interval(expit(rest))
    for name, read in MEASURES.items():
        first, last = (over(read, which) for which in (0, -1))
        yield name, f"{interval(first)} → {interval(last)}, difference {interval(last - first)}"


def best_of(runs: Sequence[Path], judging: Sequence[Path]) -> Iterator[tuple[str, str]]:
    """Yield how often the best of K - 1 answers beats the one left out, for each of K in turn: an independent answer.

    The ranker of `runs` says which is best, that of `judging` gives the verdict, on the same answers. The best of all K
    against the others of them would be biased: these are known to be worse.
    """

    def win(ranking: Row, verdict: Row) -> float:
        scores, leads = worth(ranking), lead(verdict)
        others = [np.delete(np.arange(len(scores)), left_out) for left_out in range(len(scores))]
        return float(np.mean([expit(leads[some[np.argmax(scores[some])], i]) for i, some in enumerate(others)]))

    places = ("artifacts/it1/responses", "artifacts/it1/ranking")
    chosen, verdicts = (ranked(each, *places) for each in (runs, judging))
    if [[row for row, _ in run] for run in chosen] != [[row for row, _ in run] for run in verdicts]:
        raise UserError("--best-by: wants a run for each of the others, with the same answers, in the same order")
    names = [ranker_of(each, places[1])["_target_"] for each in (runs, judging)]
    wins = np.array([[win(one, other) for (_, one), (_, other) in zip(*two, strict=True)]
                     for two in zip(chosen, verdicts, strict=True)])  # fmt: skip
    yield (
        "the best, by {}, of all answers of the start policy but one, over that one, by {}".format(*names),
        interval(wins),
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--best-by", nargs="+", type=Path, help="runs whose ranker chooses the best answer of the base")
    options: Any = parser.parse_args(argv)
    try:
        for name, text in best_of(options.best_by, options.runs) if options.best_by else win_matrices(options.runs):
            print(f"{name}: {text}")
    except (OSError, UserError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
