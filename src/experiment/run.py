"""Run: the whole experiment as one typed object, and what a benchmark may ask of it."""

from __future__ import annotations

import re
from dataclasses import field
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Protocol, runtime_checkable

from pydantic import Field

from src.data.parts import Data
from src.evaluation.benchmark import RESERVED, Benchmark, Machine, Policy
from src.evaluation.held_out import HeldOut
from src.experiment.hardware import Hardware
from src.generation.engine import Sampling
from src.generation.stage import SAMPLING, Generate
from src.kernel.artifact import Computing, Job, Node, Stage, fingerprint_hash
from src.kernel.config import REHEARSAL, Free, Label, YamlPath, config, fingerprint, matching
from src.methods.method import Method
from src.pairing.rules import NO_SCORES
from src.pairing.stage import Pairing
from src.pairing.win_probability import Estimator
from src.ranking.stage import Rank, Ranker
from src.training.recipe import Recipe

Variant = Literal["paper", "code", "card"]
"""The source that an experiment follows where its sources disagree: the paper, the public code or the model card."""
HubId = Annotated[str, matching(r"\w[\w.-]*/\w[\w.-]{0,87}", "not a hub id; write <owner>/<model>, such as me/sppo")]


@runtime_checkable
class Model(Stage, Protocol):
    """A stage that brings a start policy."""

    name: str
    id: str | None
    """Its name on the hub."""
    license: str | None
    weights: float | None
    """The number of its weights."""

    def here(self) -> Path | None:
        """Return its folder where this machine has it before the store does, else None."""


@config
class Run:
    """Iteration t: π_t-1 answers, the ranker compares, pairs are formed, π_t is trained; then π_t is evaluated."""

    SEEDS_PER_RUN: ClassVar[int] = 1000
    """Sampling seeds of a run: the first is for training answers, and each set of held-out answers has one more."""

    name: Free[Label | None]
    """Folder under `runs`; null: model, method, seed and a fingerprint."""
    experiment: Free[Label | None]
    """The published system that is reproduced; set by its file in conf/experiment."""
    variant: Free[Variant | None]
    """The source that the experiment follows; null: its card, then its paper, then its code."""
    mirror: Free[str]
    """Folder that stands for the hub: `models/` makes an id `models/google/gemma-2-9b-it`; empty: the hub itself."""
    iter: Free[Annotated[int, Field(ge=0, le=900)]]
    """Iterations that exist afterwards; 0: the start policy alone, for a benchmark of it."""
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    model: Model
    method: Method
    data: Data
    sampling: Sampling
    ranker: Ranker
    estimator: Estimator
    pairing: Pairing
    train: Recipe
    held_out: HeldOut
    benchmark: Free[dict[Label, Benchmark]] = field(default_factory=dict)
    """Further evaluations of its policies, by their names; docs/evaluation.md."""
    hardware: Hardware
    store: Free[YamlPath]
    runs: Free[YamlPath]
    only: Free[str | Annotated[list[str], Field(min_length=1)] | None]
    """Names of artifacts, such as `it1/responses`: they and what they need are made, and no report."""
    part: Free[str | None]
    """Share of the cells of the artifact in `only`, such as 3/16; whoever makes the last share makes the artifact."""
    replace: Free[bool] = False
    """Whether it takes over the run folder of another experiment, whose report and links go."""
    push_to_hub: Free[HubId | None]
    """Hub id such as me/Gemma-2-9B-It-SPPO: iteration t is uploaded as that and -Iter<t>; null: nothing is."""
    push_private: Free[bool]
    """Whether a repository that is created for it is private."""

    @property
    def rehearsed(self) -> bool:
        return self.hardware.name == REHEARSAL

    @property
    def judge(self) -> Ranker:
        """The ranker of the held-out answers; where it is the run's own, that object, whose keys messages name."""
        same = fingerprint(self.held_out.ranker) == fingerprint(self.ranker)
        return self.ranker if same else self.held_out.ranker

    @property
    def judges(self) -> dict[str, Ranker]:
        """The judge, and the second one where there is one, by what the names of their artifacts start with."""
        return {"": self.judge} | ({"second_": self.held_out.second} if self.held_out.second else {})

    def verdict_of(self, which: str = "") -> str:
        """Say whose verdict a win rate is, for whoever reads it; `which` is that of `judges`."""
        judge = self.judges[which]
        models = [fingerprint(model) for model in self.ranker.models]
        alike = judge.name == self.ranker.name or any(fingerprint(model) in models for model in judge.models)
        servers = [ranker.server and ranker.server.model for ranker in (judge, self.ranker)]
        if servers[0] and servers[0] == servers[1] and judge.name != self.ranker.name:
            return f"{judge.name}, whose model also judged what it was trained on"
        if type(judge) is not type(self.ranker) or not alike:
            return f"{judge.name}, on which it was not trained"
        others = ", under other settings" * (fingerprint(judge) != fingerprint(self.ranker))
        return f"{judge.name}, the judge it was trained on{others}"

    @property
    def machine(self) -> Machine:
        """The part of the hardware that a benchmark may use."""
        devices = self.hardware.devices
        return Machine(devices.device, devices.head_chunk, self.hardware.reference_batch_pairs)

    def seed_of(self, offset: int) -> int:
        """Return the run's sampling seed number `offset`."""
        return self.seed * self.SEEDS_PER_RUN + offset

    def __post_init__(self) -> None:
        part = re.fullmatch(r"(\d+)/(\d+)", "1/1" if self.part is None else self.part)
        taken = next((name for name in self.benchmark if RESERVED.fullmatch(name)), None)
        divergence, most = self.held_out.divergence_prompts, self.data.held_out_prompts
        for wrong, message in (
            (self.variant and not self.experiment, "variant: is that of an experiment; choose one: experiment=<name>"),
            (self.rehearsed and not self.experiment, "size: rehearses an experiment; choose one: experiment=<name>"),
            (taken, f"benchmark.{taken}: this name is taken; choose another: +benchmark@benchmark.<name>=…"),
            (not self.iter and self.push_to_hub, "push_to_hub: iter=0 trains nothing that could be uploaded"),
            (not self.iter and not self.benchmark, "iter: 0 trains nothing; say what to do, such as benchmark=ifeval"),
            (self.mirror and not self.mirror.endswith("/"), f"mirror: {self.mirror} must end in /, as a folder does"),
            (not part or not 1 <= int(part[1]) <= int(part[2]), f"part: {self.part!r} is no share such as 1/3 or 3/3"),
            (self.part and len(self.wanted) != 1, "part: says a share of what `only` names; give both"),
            (self.sampling.K < 2, f"sampling.K: {self.sampling.K} answer cannot make a pair; at least 2"),
            (self.sampling.temperature == 0, "sampling.temperature: at 0 all K answers are the same; raise it"),
            (self.pairing.rule.needs_scores and not self.ranker.scalar, NO_SCORES),
            (divergence > most, f"held_out.divergence_prompts: {divergence} of data.held_out_prompts={most}; lower it"),
        ):  # fmt: skip
            if wrong:
                raise ValueError(message)

    @property
    def wanted(self) -> list[str]:
        """The names in `only`."""
        return [self.only] if isinstance(self.only, str) else self.only or []

    @property
    def candidates(self) -> int:
        """Number of answers to a prompt that are compared: the policy's own and those from outside."""
        return self.sampling.K + len(self.data.answers)

    @property
    def folder(self) -> Path:
        """The run folder. Its name follows from the config, and is the same for every `iter` but 0."""
        model = f"{REHEARSAL}-{self.model.name}" if self.rehearsed else self.model.name
        model = model if self.iter else f"start-{model}"
        name = f"{model}-{self.method.name}-s{self.seed}-{fingerprint_hash(fingerprint(self))[:8]}"
        return self.runs / (self.name or name)

    def node(
        self,
        name: str,
        stage: Stage,
        inputs: tuple[Node, ...] = (),
        rows: int = 0,
        work: int | None = 0,
        kind: str = "",
        by: str = "",
        job: Job = "setup",
    ) -> Node:
        """Return a node. `kind`: of the work, if not the stage's; `by`: the model that does it, if not the policy."""
        devices = stage.takes().devices if isinstance(stage, Computing) else 1
        workload = f"{kind or stage.kind} {by or self.model.name} {self.hardware.name} {devices}"
        return Node(name, stage, inputs, rows, work, workload, job)

    def generate(self, sampling: Sampling, seed: int, key: str = SAMPLING) -> Generate:
        """Return the stage that samples with the run's engine; `key` is the config key of the sampling."""
        engine, dealing = self.hardware.engine, self.hardware.generation
        return Generate(sampling=sampling, engine=engine, seed=seed, dealing=dealing, key=key)

    def ranker_models(self, ranker: Ranker | None = None) -> tuple[Node, ...]:
        """Return the models of a ranker (None: the run's), named after its config key."""
        ranker = ranker or self.ranker
        place = ranker.place.removeprefix("benchmark.").replace(".", "/")
        models = [(f"{place}/model{number}", stage) for number, stage in enumerate(ranker.models)]
        return tuple(self.node(*model, work=1, kind="checkpoint", by=ranker.name) for model in models)

    def rank(
        self, name: str, responses: Node, rows: int, answers: int, ranker: Ranker | None = None, job: Job = "evaluation"
    ) -> Node:
        ranker, inputs = ranker or self.ranker, (responses, *self.ranker_models(ranker))
        work = rows * answers * (1 if ranker.scalar else answers - 1) or None
        return self.node(name, Rank(ranker=ranker), inputs, rows, work, by=ranker.name, job=job)

    def answer(self, name: str, policy: Node, prompts: Node, turn: int) -> Policy:
        """Return the policy with one held-out answer per prompt, from a sampling seed that nothing else uses."""
        count = self.data.held_out_prompts
        generate = self.generate(self.held_out.sampling, self.seed_of(1 + turn), "held_out.sampling")
        answers = self.node(f"{name}/answers", generate, (prompts, policy), rows=count, work=count, job="evaluation")
        rankings = {
            which: self.rank(f"{name}/{which}answers_ranking", answers, count, 1, judge) if judge.scalar else None
            for which, judge in self.judges.items()
        }
        return Policy(policy, answers, rankings)
