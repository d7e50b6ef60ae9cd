"""Run: the whole experiment as one typed object, and the one place that knows the order of the stages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import field, replace
from typing import Annotated, ClassVar, Protocol, runtime_checkable

from pydantic import Field

from src.data.outside.add import AddAnswers
from src.data.stage import Data
from src.evaluation.plan import RESERVED, Benchmark, HeldOut, Policy
from src.experiment.forecast import workload
from src.experiment.hardware import Hardware
from src.experiment.launcher import Launcher
from src.experiment.sources import Variant
from src.generation.contract import Sampling
from src.generation.stage import Generate
from src.kernel.artifact import Job, Node, Stage, with_ancestors
from src.kernel.config import REHEARSAL, Free, Label, YamlPath, config
from src.methods.pair_logps import Method
from src.pairing.rules import NO_SCORES
from src.pairing.stage import Pair, Pairing
from src.pairing.win_probability import Estimator
from src.ranking.stage import Rank, Ranker
from src.reporting.wandb import Tracking
from src.training.engine_reference import EngineReference
from src.training.reference import Reference
from src.training.stage import Recipe, Train

START = "base/policy"
"""The policy the first iteration starts from."""


@runtime_checkable
class Model(Stage, Protocol):
    """A stage that brings a start policy."""

    @property
    def name(self) -> str: ...

    @property
    def id(self) -> str | None: ...

    @property
    def license(self) -> str | None: ...

    @property
    def weights(self) -> float | None: ...


@config
class Run:
    """Iteration t: π_t-1 answers, the ranker compares, pairs are formed, π_t is trained; then π_t is evaluated."""

    SEEDS_PER_RUN: ClassVar[int] = 1000
    """Sampling seeds of a run: `seed * 1000` for training answers, then one a set of held-out answers."""

    name: Free[Label | None]
    """Folder under `runs`; null: model, method, seed and a fingerprint."""
    experiment: Free[Label | None]
    """The published system that is reproduced; its file in conf/experiment says so."""
    variant: Free[Variant | None]
    """Whom the experiment follows where its sources disagree; null: its card, then its paper, then its code."""
    mirror: Free[str]
    """Put before every hub id, so that `models/` makes `models/google/gemma-2-9b-it` of one; empty: the hub."""
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
    """Further evaluations of its policies; docs/evaluation.md."""
    hardware: Hardware
    tracking: Free[Tracking]
    store: Free[YamlPath]
    runs: Free[YamlPath]
    launcher: Free[Launcher]
    only: Free[str | list[str] | None]
    """An artifact such as `it1/responses`, or several: they and what they need are made, and no report."""
    part: Free[Annotated[str, Field(pattern=r"^[1-9]\d*/[1-9]\d*$")] | None]
    """With `only`, such as 3/16: this share of its cells is made; whoever comes last makes the artifact."""
    push_to_hub: Free[str | None]
    """Hub id such as me/Gemma-2-9B-It-SPPO: iteration t is uploaded as that and -Iter<t>; null: nothing is."""
    push_private: Free[bool]
    """Whether a repository that is created for it is private."""
    debug: Free[bool]
    """Looked for in the command's words (src/main.py), for a config that cannot be built has mistakes too."""

    @property
    def rehearsed(self) -> bool:
        return self.hardware.name == REHEARSAL

    def __post_init__(self) -> None:
        if self.variant and not self.experiment:
            raise ValueError("variant: says which source an experiment follows; choose one: experiment=<name>")
        if self.rehearsed and not self.experiment:
            raise ValueError("size: rehearses an experiment; choose one: experiment=<name>")
        if taken := next((name for name in self.benchmark if RESERVED.fullmatch(name)), None):
            raise ValueError(f"benchmark.{taken}: this name is taken; choose another: +benchmark@benchmark.<name>=…")
        if not self.iter and self.push_to_hub:
            raise ValueError("push_to_hub: iter=0 trains nothing that could be uploaded; leave it null")
        if not self.iter and not self.benchmark:
            raise ValueError(
                "iter: 0 trains nothing; choose what to do with the start policy, such as benchmark=ifeval"
            )
        if self.mirror and not self.mirror.endswith("/"):
            raise ValueError(f"mirror: a folder of repositories, its slash included: {self.mirror}/")
        if self.push_to_hub is not None:
            from src.reporting.card.hub_id import check_hub_id

            check_hub_id(self.push_to_hub, self.iter)
        if self.part and len(self.wanted) != 1:
            raise ValueError("part: says a share of what `only` names; give both")
        if self.part and int(self.part.split("/")[0]) > int(self.part.split("/")[1]):
            raise ValueError(f"part: {self.part} is beyond the last one")
        if self.sampling.K < 2:
            raise ValueError(f"sampling.K: {self.sampling.K} answer cannot make a pair; at least 2")
        if self.sampling.temperature == 0:
            raise ValueError("sampling.temperature: at 0 all K answers are the same; raise it")
        if self.pairing.rule.needs_scores and not self.ranker.scalar:
            raise ValueError(NO_SCORES)
        if self.held_out.divergence_prompts > self.data.held_out_prompts:
            raise ValueError(
                f"held_out.divergence_prompts: {self.held_out.divergence_prompts} of the "
                f"{self.data.held_out_prompts} data.held_out_prompts cannot be taken; lower it"
            )

    @property
    def wanted(self) -> list[str]:
        """What `only` names."""
        return [self.only] if isinstance(self.only, str) else self.only or []

    def nodes(self) -> list[Node]:
        """Every artifact of iterations 1 to `iter`, inputs before what reads them."""
        return with_ancestors(*self._walk())

    def _walk(self) -> Iterator[Node]:
        start = self.node(START, self.model, work=1, kind="checkpoint")
        held_out = self.node("held_out/prompts", self.data.held_out(), rows=self.data.held_out_prompts)
        policies = {"base": self.answer("base", start, held_out, turn=0)}
        iterations = list(self._iterations(policies, held_out)) if self.iter else []
        benchmarks = [
            node for name, benchmark in self.benchmark.items() for node in benchmark.nodes(name, self, policies)
        ]
        if self.iter:
            yield held_out
        yield start
        # What is wrong with these, prompts of the last iteration too, shows before anything is sampled.
        yield from map(self._prompts, range(1, self.iter + 1))
        yield from (node for node in with_ancestors(*benchmarks) if not node.inputs)
        yield from self.ranker_models() if self.iter else ()
        yield from iterations
        yield from benchmarks

    def _iterations(self, policies: dict[str, Policy], held_out: Node) -> Iterator[Node]:
        """Adds the policies that it trains."""
        base = previous = policies["base"]
        null = self.answer("null", base.policy, held_out, turn=1)
        for t in range(1, self.iter + 1):
            trained = yield from self._train(t, previous.policy)
            current = policies[f"it{t}"] = self.answer(f"it{t}", trained, held_out, turn=t + 1)
            yield from self.held_out.nodes(t, self, current, previous, base, null)
            previous = current

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
        """`kind` of work where it is not the stage's kind, done `by` what else than the policy."""
        told = workload(kind or stage.kind, by or self.model.name, self.hardware.name, self.hardware.devices_of(stage))
        return Node(name, stage, inputs, rows, work, told, job)

    def _train(self, t: int, policy: Node) -> Iterator[Node]:
        it, hardware, prompts = f"it{t}", self.hardware, self._prompts(t)
        count = prompts.rows
        outside = self._outside(it, prompts, count)
        yield from outside  # what is wrong with them shows before anything is sampled
        responses = self._responses(it, prompts, policy, outside)
        candidates = self.sampling.K + len(outside)
        ranking = self.rank(f"{it}/ranking", responses, count, candidates, "ranking")
        rule = self.pairing.rule
        pair = Pair(rule=rule, filters=self.pairing.filters, estimator=self.estimator, seed=self.seed)
        most = count * rule.per_prompt(candidates)
        pairs = self.node(f"{it}/pairs", pair, (responses, ranking), rows=most, job="reference")
        size = {"rows": most, "work": most or None}
        reference = self.node(f"{it}/reference", self._reference(), (pairs, policy), **size, job="reference")
        train = Train(method=self.method, recipe=self.train, devices=hardware.devices, seed=self.seed)
        work = most * self.train.epochs or None
        trained = self.node(f"{it}/policy", train, (reference, policy), work=work, job="training")
        yield trained
        return trained

    def _prompts(self, t: int) -> Node:
        part = self.data.part(t)
        return self.node(f"it{t}/prompts", part, rows=part.expected)

    def _reference(self) -> Reference | EngineReference:
        hardware, lengths = self.hardware, self.train.lengths
        if hardware.reference_engine is not None:
            workers, nodes = hardware.generation.workers, hardware.generation.nodes
            return EngineReference(lengths=lengths, engine=hardware.reference_engine, workers=workers, nodes=nodes)
        return Reference(
            lengths=lengths,
            precision=hardware.devices.precision,
            device=hardware.devices.device,
            batch_pairs=hardware.reference_batch_pairs,
            head_chunk=hardware.devices.head_chunk,
            attention=hardware.devices.attention,
        )

    def _outside(self, it: str, prompts: Node, count: int) -> tuple[Node, ...]:
        """Answers that the policy does not give, a node a source."""
        stages = {name: source.stage(f"data.answers.{name}") for name, source in self.data.answers.items()}
        return tuple(
            self.node(f"{it}/outside_{name}", stage, (prompts,), count, count if stage.resumable else 0, by=name)
            for name, stage in stages.items()
        )

    def _responses(self, it: str, prompts: Node, policy: Node, outside: tuple[Node, ...]) -> Node:
        """The policy's answers, and behind them those of others."""
        count, answers = prompts.rows, self.data.answers
        generate = self.generate(self.sampling, self.seed * self.SEEDS_PER_RUN)
        name = f"{it}/own_responses" if outside else f"{it}/responses"
        work = count * self.sampling.K or None
        own = self.node(name, generate, (prompts, policy), rows=count, work=work, job="generation")
        if not outside:
            return own
        add = AddAnswers(names=tuple(answers), limits=tuple(s.max_answer_tokens for s in answers.values()))
        return self.node(f"{it}/responses", add, (own, policy, *outside), rows=count, job="ranking")

    def generate(self, sampling: Sampling, seed: int) -> Generate:
        hardware = self.hardware
        return Generate(sampling=sampling, engine=hardware.engine, seed=seed, dealing=hardware.generation)

    def ranker_models(self) -> tuple[Node, ...]:
        return tuple(
            self.node(f"ranker/model{i}", stage, work=1, kind="checkpoint", by=self.ranker.name)
            for i, stage in enumerate(self.ranker.models)
        )

    def rank(self, name: str, responses: Node, prompts: int, answers: int, job: Job = "evaluation") -> Node:
        rank = Rank(ranker=self.ranker)
        work = prompts * answers * (1 if self.ranker.scalar else answers - 1) or None
        inputs = (responses, *self.ranker_models())
        return self.node(name, rank, inputs, rows=prompts, work=work, by=self.ranker.name, job=job)

    def answer(self, name: str, policy: Node, prompts: Node, turn: int) -> Policy:
        """One held-out answer a prompt, from a sampling seed nothing else uses."""
        once = replace(self.sampling, K=1)
        seed = self.seed * self.SEEDS_PER_RUN + 1 + turn
        count = self.data.held_out_prompts
        generate = self.generate(once, seed)
        answers = self.node(f"{name}/answers", generate, (prompts, policy), rows=count, work=count, job="evaluation")
        ranking = self.rank(f"{name}/answers_ranking", answers, count, 1) if self.ranker.scalar else None
        return Policy(policy, answers, ranking)
