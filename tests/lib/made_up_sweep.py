"""Run folders of a sweep over one store, written by hand: made-up numbers, and true records and links around them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from src.evaluation.statistics import mean_interval
from src.kernel.artifact import fingerprint_hash
from src.kernel.record import DIGEST, digest

ITEMS = 40
"""Items of a made-up benchmark."""
SECONDS = {"base/policy": 2.0, "responses": 100.0, "ranking": 40.0, "reference": 30.0, "policy": 200.0,
           "answers": 20.0, "answers_ranking": 10.0, "evaluation": 3.0, "divergence": 12.0}  # fmt: skip
"""Seconds of an artifact on one device, by its name or the end of that; 1 for all others."""


class MadeUpRun(NamedTuple):
    """The settings of one run."""

    eta: float = 1000.0
    lr: float = 1e-5
    seed: int = 0
    model: str = "tiny"
    method: str = "sppo"
    ranker: str = "embedded"
    second: str = ""
    """The second judge, if there is one."""
    iterations: int = 2
    wanted: int = 2
    devices: int = 1
    device: str = "cpu"
    questions: str = "held out"
    """Which held-out prompts there are."""


Wins = Callable[[MadeUpRun, int], np.ndarray]
"""The win probabilities of the held-out prompts of a run at an iteration."""


def smooth_wins(prompts: int = 48) -> Wins:
    """A ridge over eta and lr that grows by iteration, and prompts that are easy or hard for all points alike."""

    def wins(made: MadeUpRun, t: int) -> np.ndarray:
        easy = np.random.default_rng(7).normal(0, 0.9, prompts)
        noise = np.random.default_rng([made.seed, t, int(made.eta), int(made.lr * 1e9)]).normal(0, 0.5, prompts)
        ridge = 1.0 - 0.45 * abs(np.log10(made.eta) - 2.5) - 0.9 * abs(np.log10(made.lr) + 5)
        return 1 / (1 + np.exp(-(0.75 * ridge * (1 - 0.5**t) * 2 + easy + noise + 0.08 * (made.seed - 1))))

    return wins


def grid(etas: Iterable[float], rates: Iterable[float], seeds: Iterable[int] = (0,), **rest: Any) -> list[MadeUpRun]:
    return [MadeUpRun(eta, lr, seed, **rest) for eta, lr, seed in product(etas, rates, seeds)]


def write(place: Path, points: Sequence[MadeUpRun], wins: Wins | None = None, sweep: str = "") -> list[Path]:
    """Write run folders below `place/runs` and their artifacts in `place/store`; with `sweep`, a note of that name."""
    folders = []
    for made in points:
        name = f"{made.model}-{made.method}-s{made.seed}-{fingerprint_hash(made)[:6]}"
        folders.append(folder := place / "runs" / re.sub(r"[/<>\"'& ]", "_", name))
        folder.mkdir(parents=True)
        strength = {"eta": made.eta} if made.method.startswith("sppo") else {"beta": 1 / made.eta}
        config = {
            "iter": made.wanted, "seed": made.seed, "model": {"name": made.model}, "sampling": {"K": 5},
            "method": {"name": made.method, **strength}, "ranker": {"name": made.ranker}, "train": {"lr": made.lr},
            "held_out": {"confidence": 0.95, "ranker": {"name": "judge"}, "second": {"name": made.second}},
            "hardware": {"name": made.device, "devices": {"device": made.device}},
        }  # fmt: skip
        (folder / "config.yaml").write_text(json.dumps(config))  # YAML has JSON in it
        words = f"model.name={made.model} method.eta={made.eta:g} train.lr={made.lr:g} seed={made.seed}"
        (folder / "command.txt").write_text(f"python -m src.main {words}\n")
        _write_artifacts(folder, made, wins or smooth_wins())
    if sweep:
        note = place / "runs" / f"sweep-{len(folders)}-abc123" / "points.json"
        note.parent.mkdir(parents=True)
        note.write_text(json.dumps({"name": sweep, "points": [{"folder": folder.name} for folder in folders]}))
    return folders


def _write_artifacts(run: Path, made: MadeUpRun, wins: Wins) -> None:
    ranker, start = {"ranker": made.ranker}, _artifact(run, "base/policy", {"model": made.model})
    prompts = _artifact(run, "held_out/prompts", {"part": made.questions})

    def answers(scope: str, policy: Path, number: int) -> list[Path]:
        answered = _artifact(run, f"{scope}/answers", {"seed": made.seed * 1000 + number}, [prompts, policy])
        return [answered, _artifact(run, f"{scope}/answers_ranking", ranker, [answered])]

    base, null = answers("base", start, 0), answers("null", start, 1)
    previous, policy = base, start
    for t in range(1, made.iterations + 1):
        sampled = _artifact(run, f"it{t}/prompts", {"part": t})
        responses = _artifact(run, f"it{t}/responses", {"seed": made.seed}, [sampled, policy])
        ranking = _artifact(run, f"it{t}/ranking", ranker, [responses])
        pairs = _artifact(run, f"it{t}/pairs", {}, [responses, ranking])
        reference = _artifact(run, f"it{t}/reference", {}, [pairs, policy])
        trained = {"method": made.method, "eta": made.eta, "lr": made.lr, "seed": made.seed}
        policy = _artifact(run, f"it{t}/policy", trained, [reference, policy], devices=made.devices)
        current = answers(f"it{t}", policy, t + 1)
        inputs = [*current, *previous, *base, *null]
        _artifact(run, f"it{t}/evaluation", {}, inputs, **_evaluation(made, t, wins(made, t)))
        if made.second:
            again = {"ranker": made.second}
            _artifact(run, f"it{t}/second_evaluation", again, inputs, **_evaluation(made, t, wins(made, t)))
        kl = 0.004 * t * (made.lr * 1e5) ** 0.8 * (1 + made.seed / 4)
        numbers = {"kl_per_token": kl, "kl_per_token_low": 0.75 * kl, "kl_per_token_high": 1.25 * kl, "prompts": 16}
        _artifact(run, f"it{t}/divergence", {}, [current[0], policy, start], numbers=numbers)
        previous = current


def _evaluation(made: MadeUpRun, t: int, wins: np.ndarray) -> dict[str, Any]:
    null = 0.5 + np.linspace(-0.2, 0.21, len(wins))
    numbers: dict[str, float] = {"prompts": len(wins), "base_tokens": 64.0, "finished": 0.75}
    numbers["tokens"] = float(64 - 2 * t * np.log10(made.eta) + 2 * made.seed)
    for name, values in {"win_over_base": wins, "win_over_previous": wins, "null_win": null}.items():
        low, high = mean_interval(values, 0.95)
        numbers |= {name: float(values.mean()), f"{name}_low": low, f"{name}_high": high}
    rows = [{"prompt_id": f"p{i:03d}", "win_over_base": float(win)} for i, win in enumerate(wins)]
    return {"numbers": numbers, "rows": rows}


def _artifact(run: Path, name: str, config: dict[str, Any], inputs: Sequence[Path] = (), **content: Any) -> Path:
    """Write an artifact unless the store has it, and link it; its key follows from all that made it.

    `content`: `numbers` and `rows`, and the `devices` it took.
    """
    stage = name.rpartition("/")[2]
    key = fingerprint_hash([stage, config, list(map(str, inputs)), content])[:20]
    folder, link = run.parent.parent / "store" / stage / key, run / "artifacts" / name
    if not folder.exists():
        folder.mkdir(parents=True)
        parents = [{"kind": parent.parent.name, "key": parent.name} for parent in inputs]
        record = {"key": key, "version": 1, "config": config, "inputs": parents, "files": {}}
        record |= {"workload": f"on {content.get('devices', 1)}", "seconds": SECONDS.get(name, SECONDS.get(stage, 1.0))}
        (folder / "record.json").write_text(json.dumps(record | {DIGEST: digest(record)}))
        (folder / "metrics.json").write_text(json.dumps(content.get("numbers")))
        pq.write_table(pa.Table.from_pylist(content.get("rows", [])), folder / "rows.parquet")
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(folder.resolve())
    return folder


def put(run: Path, name: str, values: Sequence[float], **more: Any) -> None:
    """Write scores of a benchmark such as `it1/ifeval`, one per item.

    `more` has settings, and these: which `questions` there are; the names of the artifacts of the run that it `reads`;
    the `columns` to which the items belong in turn.
    """
    asked = _artifact(run, f"{name.partition('/')[2]}/questions", {"part": more.pop("questions", "")})
    inputs = [*((run / "artifacts" / other).resolve() for other in more.pop("reads", ())), asked]
    columns, mean = more.pop("columns", ("",)), float(np.mean(values))
    numbers: dict[str, Any] = {"items": len(values), "unread": None, "strict": mean}
    numbers |= {"strict_low": mean - 1.5, "strict_high": mean + 1.5}
    rows = [{"item_id": f"i{i}", "score": float(score), "column": columns[i % len(columns)]}
            for i, score in enumerate(values)]  # fmt: skip
    _artifact(run, f"{name}/scores", more, inputs, numbers=numbers, rows=rows)
