"""Answer log-probabilities in chunks against the slow, obvious twin. Run: python -m pytest -q tests/test_logps.py"""

from __future__ import annotations

import importlib
import math
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from jaxtyping import TypeCheckError, install_import_hook
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from src.logps import Alignment, AnswerLogps, Rows, answer_logps, bind_forward, head_of, pad_rows, token_logps
from src.model import load_policy
from src.prefix_logps import prefix_shared_logps

ARCHITECTURES = ("llama", "mistral", "gemma2")
ALIGNMENTS: tuple[Alignment, ...] = ("none", "sampled", "greedy")
WINDOW = 16  # of the mistral and gemma2 fixtures; the longest rows are three times as long
Sequences = list[tuple[list[int], list[int]]]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def folder(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


@pytest.fixture
def model(folder: Path) -> PreTrainedModel:
    return load_policy(folder, "float32", "cpu")


@pytest.fixture
def plain(folder: Path) -> PreTrainedModel:
    """The same policy as anyone else would load it. Eager attention honours windows and soft-caps by definition."""
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


def ragged(seed: int, lengths: list[tuple[int, int]] | None = None) -> Sequences:
    """Random (prompt, answer) ids: answers of one token, prompts of one token, rows beyond the window."""
    chance = random.Random(seed)
    drawn = [(chance.randint(1, 30), chance.randint(1, 18)) for _ in range(4)]
    return [
        ([chance.randrange(300) for _ in range(p)], [chance.randrange(300) for _ in range(a)])
        for p, a in lengths or [(1, 1), (9, 1), (1, 12), (30, 18), *drawn]
    ]


def naive(model: PreTrainedModel, prompt: list[int], answer: list[int], alignment: Alignment) -> tuple[Tensor, float]:
    """(log pi(y|x), mean log-weight) of one unpadded row, token by token from the full logits."""
    logits = model(input_ids=torch.tensor([prompt + answer])).logits[0].float()
    logp, weights = torch.zeros(()), []
    for t, token in enumerate(answer):
        log_pi = torch.log_softmax(logits[len(prompt) + t - 1], -1)  # the position before predicts this token
        logp = logp + log_pi[token]
        pi = log_pi.detach().double().exp()
        norm = {"none": pi[token], "sampled": (pi**2).sum(), "greedy": pi.max()}[alignment]
        weights.append(math.log(pi[token]) - math.log(norm))
    return logp, sum(weights) / len(weights)


def assert_close(got: Tensor, expected: list[float] | Tensor, largest: float, mean: float) -> None:
    """Both the largest and the mean absolute difference are bounded."""
    difference = (got.double() - torch.as_tensor(expected).double()).abs()
    assert difference.max() <= largest, f"largest difference {difference.max():.3g}"
    assert difference.mean() <= mean, f"mean difference {difference.mean():.3g}"


@pytest.mark.parametrize("alignment", ALIGNMENTS)
@pytest.mark.parametrize("seed", [0, 1])
def test_answer_logps_are_those_of_the_naive_loop(
    model: PreTrainedModel, plain: PreTrainedModel, alignment: Alignment, seed: int
) -> None:
    """Sums of up to 18 tokens, about -100 nats: fp32 leaves some 1e-5 of them."""
    sequences = ragged(seed)
    with torch.no_grad():
        got = answer_logps(model, pad_rows(sequences), alignment, chunk=7)
        expected = [naive(plain, prompt, answer, alignment) for prompt, answer in sequences]
    assert got.tokens.tolist() == [len(answer) for _, answer in sequences]
    assert_close(got.logp, [float(logp) for logp, _ in expected], largest=1e-4, mean=3e-5)
    assert_close(got.log_weight, [weight for _, weight in expected], largest=1e-4, mean=2e-5)
    assert all(value.dtype == torch.float32 for value in got)


@pytest.mark.parametrize(
    ("architecture", "setting", "off"),
    [
        ("mistral", "sliding_window", None),
        ("gemma2", "final_logit_softcapping", None),
        ("gemma2", "attn_logit_softcapping", None),
        ("gemma2", "sliding_window", 4096),
    ],
)
def test_the_fixtures_show_a_lost_window_or_softcap(
    architecture: str, setting: str, off: int | None, request: pytest.FixtureRequest
) -> None:
    """Each of them moves the log-probabilities far beyond the tolerance: the test above can fail."""
    path = request.getfixturevalue(architecture)
    told: Sequences = [([1], list(range(2, 50)))]
    without = AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager", **{setting: off}).eval()
    with torch.no_grad():
        logps = [answer_logps(m, pad_rows(told)).logp for m in (load_policy(path, "float32", "cpu"), without)]
    assert (logps[0] - logps[1]).abs().item() > 1e-2


def test_gradients_are_those_of_the_naive_loop(model: PreTrainedModel, plain: PreTrainedModel) -> None:
    """Of every parameter, with weights of both signs on the rows, as a preference loss has them."""
    sequences = ragged(2)
    signs = [(-1) ** i * (1 + i) for i in range(len(sequences))]
    (answer_logps(model, pad_rows(sequences), chunk=5).logp @ torch.tensor(signs, dtype=torch.float32)).backward()
    sum(s * naive(plain, *row, "none")[0] for s, row in zip(signs, sequences, strict=True)).backward()  # type: ignore
    twins = dict(plain.named_parameters())
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and twins[name].grad is not None, name
        scale = float(twins[name].grad.abs().max())
        assert scale > 0, name
        assert_close(parameter.grad / scale, twins[name].grad / scale, largest=2e-5, mean=2e-6)


@pytest.mark.parametrize("chunk", [1, 3, 10_000])
def test_the_chunk_size_does_not_matter(model: PreTrainedModel, chunk: int) -> None:
    rows = pad_rows(ragged(3))
    for alignment in ALIGNMENTS:
        with torch.no_grad():
            for got, expected in zip(
                answer_logps(model, rows, alignment, chunk), answer_logps(model, rows, alignment, 4), strict=True
            ):
                assert_close(got, expected, largest=5e-5, mean=1e-5)


def test_padding_does_not_matter(model: PreTrainedModel) -> None:
    """Neither the width of the batch nor what stands in the padding."""
    rows = pad_rows(ragged(4))
    noise = torch.where(rows.attention_mask.bool(), rows.input_ids, torch.randint(300, rows.input_ids.shape))
    wider = Rows(*(torch.nn.functional.pad(part, (0, 9)) for part in rows._replace(input_ids=noise)))
    with torch.no_grad():
        got, expected = answer_logps(model, wider, "sampled"), answer_logps(model, rows, "sampled")
    for one, other in zip(got, expected, strict=True):
        assert_close(one, other, largest=5e-5, mean=1e-5)


def test_rows_hold_prompt_answer_and_padding_and_nothing_else() -> None:
    rows = pad_rows([([5, 6], [7]), ([8], [9, 10, 11])])
    assert rows.input_ids.tolist() == [[5, 6, 7, 0], [8, 9, 10, 11]]
    assert rows.attention_mask.tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert rows.answer_mask.tolist() == [[False, False, True, False], [False, True, True, True]]


@pytest.mark.parametrize("alignment", ["sampled", "greedy"])
def test_the_log_weight_carries_no_gradient(model: PreTrainedModel, alignment: Alignment) -> None:
    got = answer_logps(model, pad_rows(ragged(5)), alignment)
    assert got.logp.requires_grad
    assert not got.log_weight.requires_grad


def test_bf16_matrix_products_cost_some_hundredths_of_a_nat_a_token(model: PreTrainedModel) -> None:
    """Autocast keeps fp32 weights; bf16 products keep 8 bits: logits of about 5 are off by some 5 * 2^-8 = .02."""
    rows = pad_rows(ragged(6))
    with torch.no_grad():
        exact = answer_logps(model, rows, "sampled")
        with torch.autocast("cpu", torch.bfloat16):
            rough = answer_logps(model, rows, "sampled")
    assert all(value.dtype == torch.float32 for value in rough)
    assert_close(rough.logp / rough.tokens, exact.logp / exact.tokens, largest=0.1, mean=0.025)
    assert_close(rough.log_weight, exact.log_weight, largest=0.1, mean=0.025)
    assert not torch.equal(rough.logp, exact.logp), "autocast did nothing"


def test_a_bound_forward_answers_with_log_probabilities(model: PreTrainedModel) -> None:
    rows = pad_rows(ragged(7))
    with torch.no_grad():
        expected = answer_logps(model, rows, "greedy", chunk=6)
        bind_forward(model, "greedy", chunk=6)
        got = model(rows)
    assert isinstance(got, AnswerLogps)
    assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=True))


# Shared prefixes


def test_a_shared_prefix_scores_as_each_answer_by_itself(model: PreTrainedModel) -> None:
    """Ragged K, a prompt without answers, empty and one-token answers, prompts beyond the window."""
    chance = random.Random(8)
    prompts = [[chance.randrange(300) for _ in range(n)] for n in (2, 40, 7, 19)]
    answers = [[[chance.randrange(300) for _ in range(n)] for n in some] for some in ([1, 18, 0], [20, 1], [], [5])]
    got = prefix_shared_logps(model, prompts, answers)
    assert [len(some) for some in got] == [3, 2, 0, 1]
    assert got[0][2] == 0
    for prompt, some, scores in zip(prompts, answers, got, strict=True):
        for answer, score in zip(some, scores, strict=True):
            if answer:
                with torch.no_grad():
                    expected = answer_logps(model, pad_rows([(prompt, answer)])).logp
                assert_close(torch.tensor([score]), expected, largest=1e-4, mean=1e-4)


# Shapes


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """src/logps.py imported anew with every annotation executed at every call."""
    import src

    monkeypatch.delitem(sys.modules, "src.logps")
    monkeypatch.setattr(src, "logps", None)  # put back, like the module, at the end
    with install_import_hook("src.logps", "beartype.beartype"):
        yield importlib.import_module("src.logps")


def test_the_shapes_of_logps_hold_when_executed(checked: ModuleType, llama: Path) -> None:
    model, sequences = load_policy(llama, "float32", "cpu"), ragged(9)
    for alignment in ALIGNMENTS:
        got = checked.answer_logps(model, checked.pad_rows(sequences), alignment, chunk=4)
        assert torch.equal(got.logp, answer_logps(model, pad_rows(sequences), alignment, chunk=4).logp)


def test_a_wrong_shape_is_refused_when_executed(checked: ModuleType, llama: Path) -> None:
    model = load_policy(llama, "float32", "cpu")
    weight, softcap = head_of(model)
    hidden, labels = torch.zeros(3, weight.shape[1]), torch.zeros(3, dtype=torch.long)
    checked.token_logps(hidden, labels, weight, softcap, "none", 2)
    for wrong in (
        (hidden[:, 1:], labels, weight, softcap, "none", 2),  # another width than the head
        (hidden, labels[:2], weight, softcap, "none", 2),  # fewer labels than tokens
        (hidden, labels.float(), weight, softcap, "none", 2),  # labels that are no integers
        (hidden, labels, weight, softcap, "no such alignment", 2),
    ):
        with pytest.raises(TypeCheckError):
            checked.token_logps(*wrong)
    with pytest.raises(TypeCheckError):
        checked.hidden_states(model, torch.ones(2, 5, dtype=torch.long), torch.ones(2, 4, dtype=torch.long))
    assert token_logps is not checked.token_logps
