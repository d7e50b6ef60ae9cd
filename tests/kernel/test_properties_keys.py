"""Laws of keys and of what is planned: equal settings are one artifact, made once and after what it reads."""

from __future__ import annotations

import copy
import dataclasses
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar, cast

from hypothesis import assume, given
from hypothesis import strategies as st
from toy_graph import closure, random_sweep

from src.kernel.artifact import Node, Stage, fingerprint_hash, with_ancestors
from src.kernel.config import Free, config, fingerprint

# Keys --------------------------------------------------------------------------------------------------------------


@config
class Part:
    number: float
    label: Free[str]


@config
class Whole:
    kind: ClassVar[str] = "toy"
    version: ClassVar[int] = 1
    resumable: ClassVar[bool] = False

    text: str
    count: int
    share: float | None
    named: dict[str, Any]
    parts: tuple[Part, ...]
    place: Path
    threads: Free[int]

    def __call__(self, *inputs: Path, out: Path) -> None: ...


numbers = st.floats(allow_nan=False, allow_infinity=False)
words = st.text(st.sampled_from("ab é\n\"'🙂"), max_size=3)
plain = st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from([0.5, 1e300, -0.25]) | words
toys = st.builds(
    Whole,
    text=words,
    count=st.integers(),
    share=st.none() | numbers,
    named=st.dictionaries(words, plain | st.dictionaries(words, plain, max_size=2), max_size=3),
    parts=st.lists(st.builds(Part, number=numbers, label=words), max_size=2).map(tuple),
    place=words.map(Path),
    threads=st.integers(),
)


def key(toy: Whole, *inputs: Node) -> str:
    return Node("x", cast(Stage, toy), inputs).key


def without_free(toy: Whole) -> Any:
    """What may change a result, as a value that can be compared; types tell 1, 1.0 and True apart."""
    kept = [repr(value) for value in (toy.text, toy.count, toy.share, toy.place)]
    return kept, [repr(part.number) for part in toy.parts], json.dumps(toy.named, sort_keys=True)


@given(toys)
def test_equal_settings_are_one_key_whatever_the_order_of_their_names(toy: Whole) -> None:
    turned = {name: toy.named[name] for name in reversed(toy.named)}
    assert key(copy.deepcopy(toy)) == key(dataclasses.replace(toy, named=turned)) == key(toy)
    assert fingerprint_hash(json.loads(json.dumps(fingerprint(toy)))) == fingerprint_hash(fingerprint(toy))


@given(toys, toys, st.sets(st.sampled_from([field.name for field in dataclasses.fields(Whole)])))
def test_the_key_changes_exactly_with_what_can_change_a_result(one: Whole, other: Whole, names: set[str]) -> None:
    mixed = dataclasses.replace(one, **{name: getattr(other, name) for name in names})
    assert (key(mixed) == key(one)) == (without_free(mixed) == without_free(one))


@given(toys, toys)
def test_what_is_read_is_part_of_the_key_and_so_is_its_order(one: Whole, other: Whole) -> None:
    assume(key(one) != key(other))
    first, second = (Node("a", cast(Stage, toy)) for toy in (one, other))
    assert len({key(one), key(one, first), key(one, second), key(one, first, second), key(one, second, first)}) == 5


# Plans -------------------------------------------------------------------------------------------------------------

graphs = st.integers(0, 2**32)


def of_one_point(seed: int) -> list[Node]:
    return random_sweep(random.Random(seed), most_points=1)[0]


@given(graphs, st.data())
def test_with_ancestors_is_the_closure_once_each_and_in_order(seed: int, data: st.DataObject) -> None:
    nodes = of_one_point(seed)
    asked = data.draw(st.lists(st.sampled_from(nodes), min_size=1, max_size=4))
    found = with_ancestors(*asked)
    keys = [node.key for node in found]
    assert all(parent.key in keys[:place] for place, node in enumerate(found) for parent in node.inputs)
    inputs = {node.key: [parent.key for parent in node.inputs] for node in nodes}
    reached = closure(inputs, lambda one: inputs[one])
    assert Counter(keys) == Counter({node.key for node in asked}.union(*(reached[node.key] for node in asked)))
