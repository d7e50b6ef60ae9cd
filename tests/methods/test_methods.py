"""Laws that hold for every method of conf/method/"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from beartype import beartype
from conftest import inputs
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Float, jaxtyped
from omegaconf import OmegaConf
from torch import Tensor

from src.config import fingerprint
from src.methods.pair_logps import Method, PairLogps

ROOT = Path(__file__).parents[2]
YAMLS = {path.stem: path for path in sorted((ROOT / "conf/method").glob("*.yaml"))}
DATA = [field for field in PairLogps._fields if not field.startswith("policy_")]


def build(name: str, /, **changes: Any) -> Method:
    """The method of conf/method/<name>.yaml with some keys changed."""
    return instantiate(OmegaConf.merge(OmegaConf.load(YAMLS[name]), changes))


METHODS = {name: build(name) for name in YAMLS} | {
    "sppo, center .3": build("sppo", center=0.3),
    "ipo, averaged": build("ipo", average=True),
    "wpo, clamped": build("wpo", clamp=True),
    "wpo, greedy": build("wpo", alignment="greedy"),
}
EVERY_METHOD = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
# Nine methods share a law: fewer inputs each.
LAW = settings(max_examples=inputs(20, 500))
EVERY_YAML = pytest.mark.parametrize("name", YAMLS)


@jaxtyped(typechecker=beartype)
def value(method: Method, p: PairLogps, policy_chosen: Float[Tensor, " pair"]) -> Float[Tensor, " pair"]:
    """`method.loss`, its shape checked against the policy's log-probabilities."""
    return method.loss(p._replace(policy_chosen=policy_chosen))


def loss(method: Method, p: PairLogps) -> Tensor:
    return value(method, p, p.policy_chosen)


@st.composite
def batches(draw: st.DrawFn) -> PairLogps:
    """1 to 6 pairs; log-probabilities are quarters of a nat, at least -2000: their sums are exact in fp32."""
    size = draw(st.integers(1, 6))

    def column(elements: st.SearchStrategy[float]) -> Tensor:
        return torch.tensor(draw(st.lists(elements, min_size=size, max_size=size)))

    logp = st.integers(-8000, 0).map(lambda quarters: quarters / 4)
    tokens = st.integers(1, 1000).map(float)
    log_weight = st.floats(-8, 3, width=32)
    probability = st.floats(0.015625, 0.984375, width=32)
    kinds = [logp] * 4 + [tokens] * 2 + [log_weight] * 2 + [probability] * 3
    return PairLogps(*map(column, kinds))


def fresh_pairs() -> PairLogps:
    """Two pairs as at the first step (policy = reference), the chosen answer the better one."""
    logp, size = [torch.tensor([-20.0, -30.0]), torch.tensor([-15.0, -40.0])], torch.tensor([8.0, 5.0])
    log_weight = torch.tensor([-0.5, 0.25])
    return PairLogps(
        *logp,
        *logp,
        size,
        size + 3,
        log_weight,
        log_weight - 1,
        chosen_win=torch.tensor([0.9, 0.6]),
        rejected_win=torch.tensor([0.1, 0.25]),
        chosen_beats_rejected=torch.tensor([0.95, 0.75]),
    )


def with_gradient(p: PairLogps) -> PairLogps:
    return PairLogps(*(column.clone().requires_grad_() for column in p))


@EVERY_METHOD
@LAW
@given(p=batches())
def test_one_finite_loss_a_pair_of_the_same_type(method: Method, p: PairLogps) -> None:
    losses = loss(method, p)
    assert losses.shape == p.policy_chosen.shape and losses.dtype == torch.float32
    assert losses.isfinite().all() and (losses >= 0).all()


@EVERY_METHOD
@pytest.mark.parametrize("chosen", [-1e4, 0.0, 1e4])
@pytest.mark.parametrize("rejected", [-1e4, 0.0, 1e4])
def test_loss_and_gradient_are_finite_at_extreme_log_ratios(method: Method, chosen: float, rejected: float) -> None:
    p = fresh_pairs()
    p = with_gradient(p._replace(policy_chosen=p.ref_chosen + chosen, policy_rejected=p.ref_rejected + rejected))
    losses = loss(method, p)
    losses.sum().backward()
    assert losses.isfinite().all()
    for column in (p.policy_chosen, p.policy_rejected):
        assert column.grad is not None and column.grad.isfinite().all()


@EVERY_METHOD
@LAW
@given(p=batches(), shift=st.integers(-4000, 0).map(lambda quarters: quarters / 4))
def test_only_log_ratios_matter(method: Method, p: PairLogps, shift: float) -> None:
    """The same nats added to policy and reference of an answer change nothing: not even the last bit."""
    shifted = p._replace(policy_chosen=p.policy_chosen + shift, ref_chosen=p.ref_chosen + shift)
    assert torch.equal(loss(method, shifted), loss(method, p))
    shifted = p._replace(policy_rejected=p.policy_rejected + shift, ref_rejected=p.ref_rejected + shift)
    assert torch.equal(loss(method, shifted), loss(method, p))


@EVERY_METHOD
@LAW
@given(p=batches(), data=st.data())
def test_permuting_pairs_permutes_losses(method: Method, p: PairLogps, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(p.policy_chosen))))
    permuted = PairLogps(*(column[order] for column in p))
    torch.testing.assert_close(loss(method, permuted), loss(method, p)[order])


@EVERY_METHOD
@LAW
@given(p=batches())
def test_a_pair_does_not_see_the_others_of_its_batch(method: Method, p: PairLogps) -> None:
    alone = [loss(method, PairLogps(*(column[i : i + 1] for column in p))) for i in range(len(p.policy_chosen))]
    torch.testing.assert_close(torch.cat(alone), loss(method, p))


@EVERY_METHOD
def test_descent_raises_the_winner_and_lowers_the_loser(method: Method) -> None:
    p = with_gradient(fresh_pairs())
    loss(method, p).sum().backward()
    assert p.policy_chosen.grad is not None and (p.policy_chosen.grad < 0).all()
    assert p.policy_rejected.grad is not None and (p.policy_rejected.grad > 0).all()


@EVERY_METHOD
def test_reference_weights_lengths_and_probabilities_carry_no_gradient(method: Method) -> None:
    """Even if they come with `requires_grad`; lengths aside, where TRL's averaging divides by them."""
    p = with_gradient(fresh_pairs())
    loss(method, p).sum().backward()
    assert [name for name in DATA if "tokens" not in name and getattr(p, name).grad is not None] == []


@EVERY_METHOD
def test_is_a_method_with_positive_units(method: Method) -> None:
    assert isinstance(method, Method)
    assert method.beta > 0 and method.loss_unit > 0
    assert method.alignment in ("none", "sampled", "greedy")


@EVERY_METHOD
def test_cannot_be_changed_once_built(method: Method) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        method.name = "other"  # pyright: ignore


@EVERY_YAML
def test_the_label_is_the_file_name_and_no_part_of_the_key(name: str) -> None:
    assert build(name).name == name
    assert fingerprint(build(name, name="other")) == fingerprint(build(name))


@EVERY_YAML
def test_every_other_value_is_part_of_the_key(name: str) -> None:
    keys = set(OmegaConf.load(YAMLS[name])) - {"name"}
    assert set(fingerprint(build(name))) == keys
    assert fingerprint(build(name, **{dial(name): 7})) != fingerprint(build(name))


@EVERY_YAML
@pytest.mark.parametrize("bad", [-1, 0, True, float("nan"), float("inf"), "1000", None])
def test_bad_values_are_refused(name: str, bad: object) -> None:
    with pytest.raises(InstantiationException, match=dial(name)):
        build(name, **{dial(name): bad})


@EVERY_YAML
def test_unknown_keys_are_refused(name: str) -> None:
    with pytest.raises(InstantiationException, match="bta"):
        build(name, bta=1.0)


@EVERY_YAML
def test_missing_keys_are_refused(name: str) -> None:
    node = OmegaConf.load(YAMLS[name])
    for key in set(node) - {"_target_"}:
        with pytest.raises(InstantiationException, match=str(key)):
            instantiate({k: v for k, v in node.items() if k != key})


@pytest.mark.parametrize(
    ("name", "key", "bad"),
    [
        ("sppo", "center", 1.5),
        ("ipo", "average", 1),
        ("wpo", "clamp", "yes"),
        ("wpo", "alignment", "none"),
        ("wpo", "alignment", "sample"),
    ],
)
def test_bad_options_are_refused(name: str, key: str, bad: object) -> None:
    with pytest.raises(InstantiationException, match=key):
        build(name, **{key: bad})


@EVERY_YAML
def test_whole_numbers_are_numbers(name: str) -> None:
    assert build(name, **{dial(name): 2}) == build(name, **{dial(name): 2.0})


@EVERY_YAML
def test_every_key_has_a_comment(name: str) -> None:
    lines = YAMLS[name].read_text().splitlines()
    assert [line for line in lines if not line.startswith("_target_:") and "  # " not in line] == []


def test_composing_a_method_imports_no_torch() -> None:
    """A plan is made in a second; torch alone takes longer to import."""
    code = """
import pathlib, sys
from hydra.utils import instantiate
from omegaconf import OmegaConf
for path in pathlib.Path("conf/method").glob("*.yaml"):
    instantiate(OmegaConf.load(path))
print([module for module in ("torch", "transformers") if module in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def dial(name: str) -> str:
    """The key that people sweep: eta or beta."""
    return "eta" if "eta" in OmegaConf.load(YAMLS[name]) else "beta"
