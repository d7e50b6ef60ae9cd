"""The text of a card: what the policy is, where it comes from, what was measured, how to make it again."""

from __future__ import annotations

import inspect
import os
import sys

from src.reporting.card import settings
from src.reporting.card.evaluation import evaluation, published_results
from src.reporting.card.facts import Facts, label, policy_name, repository, title
from src.reporting.card.licences import KNOWN
from src.reporting.card.markdown import fenced, link, literal, scrubbed
from src.reporting.card.metadata import hub_id
from src.reporting.report.tables import markdown

HUB = "https://huggingface.co"


def body(facts: Facts) -> str:
    run = facts.run
    parts = [
        f"# {title(run, facts.t)}\n",
        stands_in(facts) + _what(facts),
        "## Lineage\n",
        _lineage(facts),
        "## Evaluation\n",
        evaluation(facts),
        "## Published results\n",
        experiment(facts) + published_results(facts),
        "## Hyper-parameters\n",
        markdown(("key", "value"), settings.rows(run)),
        "## How to reproduce\n",
        reproduce(facts),
        "## Licence\n",
        _licence(facts),
    ]
    return "\n".join(parts)


def stands_in(facts: Facts) -> str:
    """Said first: a rehearsal must not be taken for what it rehearses."""
    if facts.stand_in is None:
        return ""
    model, of = facts.run.model, "was trained from" if facts.t else "is"
    return (
        f"**This policy has about {facts.stand_in:,} parameters, and {literal(model.id or model.name)} has "
        f"{model.weights or 0:,.0f}: it {of} a stand-in, of which nothing published says anything.**\n\n"
    )


def _what(facts: Facts) -> str:
    run = facts.run
    module = sys.modules[type(run.method).__module__].__doc__ or ""
    loss = inspect.getdoc(type(run.method)) or ""
    others = "".join(f", and {literal(name)} once" for name in run.data.answers)
    return (
        f"The policy after iteration {facts.t} of {run.iter} of iterated preference optimisation from {_start(facts)}. "
        f"In an iteration the policy answers every prompt {run.sampling.K} times{others}; "
        f"the ranker {literal(run.ranker.name)} compares the answers, pairs with win probabilities are formed, and the "
        f"next policy is trained on them.\n\nThe method is {literal(run.method.name)}: {literal(module)}\n\n"
        f"{fenced(loss)}"
    )


def _start(facts: Facts) -> str:
    """The start policy, with its page where the hub has one."""
    model = facts.run.model
    return link(model.id, f"{HUB}/{model.id}") if model.id and hub_id(model.id) else literal(model.name)


def _lineage(facts: Facts) -> str:
    rows = []
    for t in range(facts.run.iter + 1):
        node = facts.nodes[policy_name(t)]
        rows.append((f"iteration {t}" if t else "start policy", f"`{node.stage.kind}/{node.key}`", _where(facts, t)))
    return markdown(("policy", "in the store", ""), rows)


def _where(facts: Facts, t: int) -> str:
    """The page on the hub, or the folder beside this one."""
    place, repo = facts.place(policy_name(t)), repository(facts.run, t)
    if t == facts.t:
        return "this card"
    if place is None:
        return "not made yet"
    folder = link("folder", os.path.relpath(place, facts.store.path(facts.node)))
    if not t:
        return _start(facts) if repo else f"{_start(facts)}, {folder}"
    return link(repo, f"{HUB}/{repo}") if repo else folder


def experiment(facts: Facts) -> str:
    """Which one a run is; empty for one of none."""
    run = facts.run
    if run.experiment is None:
        return ""
    variant = f"variant {run.variant}" if run.variant else "no variant chosen"
    return (
        f"This run is the experiment {literal(run.experiment)} ({variant}). Where the paper, the public code and the "
        "model card disagree, and which of them a variant follows, is in docs/differences.md of the repository.\n\n"
    )


def reproduce(facts: Facts) -> str:
    """Commit, versions, command, and the keys of the iteration."""
    record, it = facts.record, f"{label(facts.t)}/"
    versions = literal(", ".join(f"{name} {version}" for name, version in sorted(record["versions"].items())))
    made, of = ("made the policy", "iteration") if facts.t else ("brought the policy here", "policy")
    own = [node for name, node in facts.nodes.items() if name.startswith(it)]
    keys = [(literal(node.name), f"`{node.stage.kind}/{node.key}`") for node in own]
    return (
        f"At commit {literal(record['commit'])} of the repository, with {versions} (this is what {made}):\n\n"
        f"{fenced(scrubbed(facts.command))}\n"
        "An artifact's key is the hash of all that can change its content: equal keys mean equal settings and inputs. "
        f"Those of this {of}:\n\n{markdown(('artifact', 'in the store'), keys)}"
    )


def _licence(facts: Facts) -> str:
    model = facts.run.model
    known = KNOWN.get(model.license or "")
    if known:
        terms = f"The start policy is under the {link(known.name, known.address)}. {known.asks}"
    elif model.license:
        terms = f"The start policy is under {literal(scrubbed(model.license))}."
    else:
        terms = "The licence of the start policy is not said here (model.license)."
    return f"{terms} Its terms hold for this policy too.\n" + (_NOT_WPOS if _is_wpo(facts) else "")


_NOT_WPOS = (
    "\nThe code and data that the authors of WPO published are for non-commercial use. None of it is used: the loss is "
    "written from the paper's formula, and answers are sampled and asked for anew, or are files of whoever ran this.\n"
)


def _is_wpo(facts: Facts) -> bool:
    experiment = facts.run.experiment or ""
    return "wpo" in f"{experiment} {facts.run.method.name}".lower() or experiment.endswith("_hb")
