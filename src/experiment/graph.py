"""The one place that knows the order of the stages: plain functions that take nodes and return a node."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from src.data.outside import AddAnswers
from src.evaluation.benchmark import Policy
from src.experiment.run import Run
from src.kernel.artifact import Node, with_ancestors
from src.pairing.stage import Pair
from src.training.reference import Reference
from src.training.stage import Train

START = "base/policy"
"""The policy the first iteration starts from."""


def nodes_of(run: Run) -> list[Node]:
    """Return every artifact of the run, inputs before what reads them.

    Models, prompts and questions come first: what is wrong with them shows before anything is sampled.
    """
    start = run.node(START, run.model, work=1, kind="checkpoint")
    held_out = run.node("held_out/prompts", run.data.held_out(), rows=run.data.held_out_prompts)
    policies = {"base": run.answer("base", start, held_out, turn=0)}
    prompts = [prompts_of(run, t) for t in range(1, run.iter + 1)]
    iterations = list(iterate(run, policies, held_out, prompts)) if run.iter else []
    benchmarks = [node for name, benchmark in run.benchmark.items() for node in benchmark.nodes(name, run, policies)]
    first = [start, *prompts, *(node for node in with_ancestors(*benchmarks) if not node.inputs)]
    if run.iter:
        judges = [model for judge in run.judges.values() for model in run.ranker_models(judge)]
        first = [held_out, *first, *run.ranker_models(), *judges]
    return with_ancestors(*first, *iterations, *benchmarks)


def iterate(run: Run, policies: dict[str, Policy], held_out: Node, prompts: Sequence[Node]) -> Iterator[Node]:
    """Yield what each iteration trains and how it is evaluated; add its policy to `policies`."""
    base = previous = policies["base"]
    null = run.answer("null", base.policy, held_out, turn=1)
    for t, prompts_node in enumerate(prompts, 1):
        outside = outside_answers(run, t, prompts_node)
        responses = responses_of(run, t, prompts_node, previous.policy, outside)
        ranking = ranking_of(run, t, responses)
        pairs = pairs_of(run, t, responses, ranking)
        reference = reference_of(run, t, pairs, previous.policy)
        policy = policy_of(run, t, reference, previous.policy)
        policies[f"it{t}"] = current = run.answer(f"it{t}", policy, held_out, turn=t + 1)
        yield from (*outside, policy, *run.held_out.nodes(t, run, current, previous, base, null))
        previous = current


def prompts_of(run: Run, t: int) -> Node:
    """Return the prompts x of iteration t."""
    part = run.data.part(t)
    return run.node(f"it{t}/prompts", part, rows=part.expected)


def outside_answers(run: Run, t: int, prompts: Node) -> tuple[Node, ...]:
    """Return the nodes of answers that others give, one per source."""
    count = prompts.rows
    stages = {name: source.stage(f"data.answers.{name}") for name, source in run.data.answers.items()}
    return tuple(
        run.node(f"it{t}/outside_{name}", stage, (prompts,), count, count if stage.resumable else 0, by=name)
        for name, stage in stages.items()
    )


def responses_of(run: Run, t: int, prompts: Node, policy: Node, outside: tuple[Node, ...]) -> Node:
    """Return K answers y ~ π_t-1(·|x) to each prompt; behind them stand those of others, if there are any."""
    count, name = prompts.rows, f"it{t}/own_responses" if outside else f"it{t}/responses"
    generate = run.generate(run.sampling, run.seed_of(0))
    work = count * run.sampling.K or None
    responses = run.node(name, generate, (prompts, policy), rows=count, work=work, job="generation")
    if not outside:
        return responses
    sources = run.data.answers
    add = AddAnswers(names=tuple(sources), limits=tuple(source.max_answer_tokens for source in sources.values()))
    return run.node(f"it{t}/responses", add, (responses, policy, *outside), rows=count, job="ranking")


def ranking_of(run: Run, t: int, responses: Node) -> Node:
    """Return the comparisons, or the scores, of all answers to each prompt."""
    return run.rank(f"it{t}/ranking", responses, responses.rows, run.candidates, job="ranking")


def pairs_of(run: Run, t: int, responses: Node, ranking: Node) -> Node:
    """Return pairs of a chosen and a rejected answer, with their win probabilities P(y > π_t-1 | x)."""
    rule = run.pairing.rule
    pair = Pair(rule=rule, filters=run.pairing.filters, estimator=run.estimator, seed=run.seed)
    most = responses.rows * rule.per_prompt(run.candidates)
    return run.node(f"it{t}/pairs", pair, (responses, ranking), rows=most, job="reference")


def reference_of(run: Run, t: int, pairs: Node, policy: Node) -> Node:
    """Return log π_t-1(y|x) of the pairs, under the policy that the training starts from."""
    hardware, lengths = run.hardware, run.train.lengths
    names = ("precision", "device", "head_chunk", "attention")
    how: dict[str, Any] = {name: getattr(hardware.devices, name) for name in names}
    stage = Reference(lengths=lengths, batch_pairs=hardware.reference_batch_pairs, **how)
    return run.node(f"it{t}/reference", stage, (pairs, policy), pairs.rows, pairs.rows or None, job="reference")


def policy_of(run: Run, t: int, reference: Node, policy: Node) -> Node:
    """Return π_t, which is trained from π_t-1 with the loss of the method."""
    train = Train(method=run.method, recipe=run.train, devices=run.hardware.devices, seed=run.seed)
    work = reference.rows * run.train.epochs or None
    return run.node(f"it{t}/policy", train, (reference, policy), work=work, job="training")
