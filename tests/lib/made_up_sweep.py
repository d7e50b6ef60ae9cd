"""Run folders of a sweep over one store, written by hand: made-up numbers, and true records and links around them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from src.evaluation.statistics import mean_interval
from src.kernel.artifact import fingerprint_hash
from src.kernel.record import DIGEST, digest, read_record

ITEMS = 40
"""Of a made-up benchmark."""
COMMIT = "c0ffee" + "0" * 34
SECONDS = {"prompts": 0.5, "checkpoint": 2.0, "responses": 100.0, "ranking": 40.0, "pairs": 1.0, "reference": 30.0,
           "policy": 200.0, "answers": 20.0, "answers_ranking": 10.0, "evaluation": 3.0,
           "divergence": 12.0}  # fmt: skip
"""Of an artifact, by the name within its iteration, on one device."""


class Made(NamedTuple):
    """What one run is made with, and its per-prompt win probabilities by iteration."""

    eta: float = 1000.0
    lr: float = 1e-5
    seed: int = 0
    model: str = "tiny"
    method: str = "sppo"
    ranker: str = "embedded"
    iterations: int = 2
    wanted: int = 2
    devices: int = 1
    device: str = "cpu"
    null: float = 0.5
    """Win rate of the base over itself."""
    confidence: float = 0.95
    questions: str = "held out"
    """Which held-out prompts there are."""


Wins = Callable[[Made, int], np.ndarray]


def config(made: Made, place: Path) -> dict[str, Any]:
    """As a composed one, without what nobody compares."""
    strength = {"eta": made.eta} if made.method.startswith("sppo") else {"beta": 1 / made.eta}
    devices = {"_target_": "src.training.recipe.Devices", "device": made.device, "count": made.devices}
    return {
        "_target_": "src.experiment.run.Run",
        "name": None,
        "iter": made.wanted,
        "seed": made.seed,
        "model": {
            "_target_": "src.modeling.checkpoints.Checkpoint",
            "name": made.model,
            "repo": f"/somewhere/{made.model}",
        },
        "method": {"_target_": f"src.methods.{made.method}", "name": made.method, **strength},
        "sampling": {"K": 5, "temperature": 0.7},
        "ranker": {"name": made.ranker, "device": made.device},
        "estimator": {"kind": "pairwise"},
        "pairing": {"rule": {"_target_": "src.pairing.rules.BestWorst"}},
        "train": {"lr": made.lr, "epochs": 1},
        "held_out": {"confidence": made.confidence},
        "hardware": {"name": made.device, "devices": devices},
        "tracking": {"mode": "offline"},
        "store": str(place / "store"),
        "runs": str(place / "runs"),
    }


def smooth_wins(prompts: int = 48) -> Wins:
    """A ridge over eta and lr that grows by iteration, and prompts that are easy or hard for all points alike."""

    def wins(made: Made, t: int) -> np.ndarray:
        easy = np.random.default_rng(7).normal(0, 0.9, prompts)
        own = np.random.default_rng([made.seed, t, int(made.eta), int(made.lr * 1e9)]).normal(0, 0.5, prompts)
        ridge = 1.0 - 0.45 * abs(np.log10(made.eta) - 2.5) - 0.9 * abs(np.log10(made.lr) + 5)
        return 1 / (1 + np.exp(-(0.75 * ridge * (1 - 0.5**t) * 2 + easy + own + 0.08 * (made.seed - 1))))

    return wins


def grid(etas: Iterable[float], rates: Iterable[float], seeds: Iterable[int] = (0,), **rest: Any) -> list[Made]:
    return [Made(eta, lr, seed, **rest) for eta, lr, seed in product(etas, rates, seeds)]


def write(place: Path, points: Sequence[Made], wins: Wins | None = None, sweep: str = "") -> list[Path]:
    """Run folders below `place/runs` and their artifacts in `place/store`; with `sweep`, a note of that name."""
    found = [_write_run(place, made, wins or smooth_wins()) for made in points]
    if sweep:
        note = place / "runs" / f"sweep-{len(found)}-abc123" / "points.json"
        note.parent.mkdir(parents=True, exist_ok=True)
        told = {"name": sweep, "command": [], "points": [{"folder": f.name, "overrides": []} for f in found]}
        note.write_text(json.dumps(told))
    return found


def _write_run(place: Path, made: Made, wins: Wins) -> Path:
    settings = config(made, place)
    name = f"{made.model}-{made.method}-s{made.seed}-{fingerprint_hash(made)[:6]}"
    folder = place / "runs" / name.translate({ord(sign): "_" for sign in "/<>\"'& "})
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(json.dumps(settings))  # YAML has JSON in it
    words = f"model.name={made.model} method.eta={made.eta:g} train.lr={made.lr:g} seed={made.seed}"
    (folder / "command.txt").write_text(f"python -m src.main {words}\n")
    _Writer(place, folder, made, wins).write()
    return folder


class _Writer:
    """The artifacts of a run: keys follow from what made them, so that runs share what they have in common."""

    def __init__(self, place: Path, folder: Path, made: Made, wins: Wins) -> None:
        self.place, self.folder, self.made, self.wins = place, folder, made, wins

    def write(self) -> None:
        made = self.made
        held_out = self._artifact("held_out/prompts", "prompts", {"part": made.questions})
        start = self._artifact("base/policy", "policy", {"model": made.model})
        base, null = (
            self._answers(name, start, held_out, made.seed * 1000 + i) for i, name in enumerate(("base", "null"))
        )
        previous, policy = base, start
        for t in range(1, made.iterations + 1):
            policy = self._trained(t, policy)
            current = self._answers(f"it{t}", policy, held_out, made.seed * 1000 + 1 + t)
            inputs = [current[0], previous[0], base[0], null[0], current[1], previous[1], base[1], null[1]]
            self._artifact(f"it{t}/evaluation", "evaluation", {}, inputs, self._evaluation(t))
            kl = {"kl_per_token": 0.004 * t * (made.lr * 1e5) ** 0.8, "kl_per_answer": 0.25 * t, "prompts": 16}
            self._artifact(f"it{t}/divergence", "divergence", {}, [current[0], policy, start], kl)
            previous = current

    def _trained(self, t: int, policy: str) -> str:
        it, made = f"it{t}", self.made
        prompts = self._artifact(f"{it}/prompts", "prompts", {"part": t})
        responses = self._artifact(f"{it}/responses", "responses", {"seed": made.seed, "K": 5}, [prompts, policy])
        ranking = self._artifact(f"{it}/ranking", "ranking", {"ranker": {"name": made.ranker}}, [responses])
        pairs = self._artifact(f"{it}/pairs", "pairs", {}, [responses, ranking])
        reference = self._artifact(f"{it}/reference", "reference", {}, [pairs, policy])
        trained = {"method": made.method, "eta": made.eta, "lr": made.lr, "seed": made.seed}
        return self._artifact(f"{it}/policy", "policy", trained, [reference, policy])

    def _answers(self, head: str, policy: str, prompts: str, seed: int) -> tuple[str, str]:
        asked = {"seed": seed, "sampling": {"K": 1, "temperature": 0.7}}
        answers = self._artifact(f"{head}/answers", "responses", asked, [prompts, policy])
        ranker = {"ranker": {"name": self.made.ranker}}
        return answers, self._artifact(f"{head}/answers_ranking", "ranking", ranker, [answers])

    def _artifact(
        self, name: str, kind: str, config: dict[str, Any], inputs: Sequence[str] = (), numbers: Any = None
    ) -> str:
        """Returns `<kind>/<key>`."""
        key = fingerprint_hash([kind, config, list(inputs)])[:20]
        folder, link = self.place / "store" / kind / key, self.folder / "artifacts" / name
        if not folder.exists():
            folder.mkdir(parents=True)
            self._record(folder, name, kind, key, config, inputs)
            if numbers is not None:
                rows = numbers.pop("rows", None)
                (folder / "metrics.json").write_text(json.dumps(numbers))
                if rows is not None:
                    pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(folder.resolve())
        return f"{kind}/{key}"

    def _record(
        self, folder: Path, name: str, kind: str, key: str, config: dict[str, Any], inputs: Sequence[str]
    ) -> None:
        parents = [dict(zip(("kind", "key"), parent.split("/"), strict=True)) for parent in inputs]
        stage = "checkpoint" if name == "base/policy" else name.partition("/")[2]
        count = self.made.devices if stage == "policy" else 1
        record = {"name": name, "kind": kind, "key": key, "version": 1, "config": config, "inputs": parents}
        record |= {"workload": f"{kind} {self.made.model} {self.made.device} {count}", "seconds": SECONDS[stage]}
        record |= {"resumed": False, "files": {}, "commit": COMMIT, "versions": {"torch": "9.9"}}
        (folder / "record.json").write_text(json.dumps(record | {DIGEST: digest(record)}))

    def _evaluation(self, t: int) -> dict[str, Any]:
        wins = self.wins(self.made, t)
        null = np.full(len(wins), self.made.null) + np.linspace(-0.2, 0.21, len(wins))
        numbers: dict[str, Any] = {"prompts": len(wins), "base_tokens": 64.0, "finished": 0.75, "base_finished": 0.5}
        numbers["tokens"] = 64 - 2 * t * np.log10(self.made.eta) + 2 * self.made.seed
        for name, values in {"win_over_base": wins, "win_over_previous": wins, "null_win": null}.items():
            low, high = mean_interval(values, self.made.confidence)
            numbers |= {name: float(values.mean()), f"{name}_low": low, f"{name}_high": high}
        ids = [f"p{i:03d}" for i in range(len(wins))]
        return numbers | {"rows": [{"prompt_id": i, "win_over_base": float(w)} for i, w in zip(ids, wins, strict=True)]}


def put(
    run: Path,
    name: str,
    values: Sequence[float],
    questions: str = "a" * 20,
    reads: Sequence[str] = (),
    columns: Sequence[str] = (),
    **config: Any,
) -> None:
    """Scores of a benchmark in a run folder, as `it1/ifeval`: one score an item, of the next of `columns` each; made
    from other artifacts of the run, `reads`."""
    links = run / "artifacts"
    parents = [read_record(links / other) for other in reads]
    inputs = [{"kind": parent["kind"], "key": parent["key"]} for parent in parents]
    key = fingerprint_hash([name, list(map(float, values))])[:20]
    for link, own, kind, made_from in (
        (f"{name}/scores", key, "scores", [*inputs, {"kind": "questions", "key": questions}]),
        (f"{name.partition('/')[2]}/questions", questions, "questions", []),
    ):
        target = run.parent.parent / "store" / kind / own
        target.mkdir(parents=True, exist_ok=True)
        record = {"name": name, "version": 1, "config": config, "inputs": made_from, "seconds": 1.0, "files": {}}
        record |= {"key": own, "kind": kind, "workload": ""}
        (target / "record.json").write_text(json.dumps(record | {DIGEST: digest(record)}))
        (links / link).parent.mkdir(parents=True, exist_ok=True)
        (links / link).unlink(missing_ok=True)
        (links / link).symlink_to(target.resolve())
    mean = float(np.mean(values))
    numbers = {
        "items": len(values),
        "strict": mean,
        "strict_low": mean - 1.5,
        "strict_high": mean + 1.5,
        "unread": None,
    }
    (links / name / "scores" / "metrics.json").write_text(json.dumps(numbers))
    rows = {"item_id": [f"i{i}" for i in range(len(values))], "score": list(map(float, values))}
    rows |= {"column": [columns[i % len(columns)] for i in range(len(values))]} if columns else {}
    pq.write_table(pa.table(rows), links / name / "scores" / "rows.parquet")
