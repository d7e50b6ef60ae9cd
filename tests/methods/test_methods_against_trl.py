"""Our losses against TRL's DPOTrainer: one tiny Llama, one batch, our log-probabilities by a naive loop."""

from __future__ import annotations

import copy
import string
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

from src.methods.dpo import DPO
from src.methods.ipo import IPO
from src.methods.pair_logps import Method, PairLogps
from src.methods.sppo import SPPO
from src.methods.wpo import WPO

# TRL 1.16 uses names of transformers that transformers calls deprecated.
pytestmark = [pytest.mark.full, pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")]

BETA = 0.25
WORDS = ["<pad>", "<eos>", "<unk>", *string.ascii_lowercase]
PAIRS = [  # prompts and answers of unequal lengths, so that every row but one is padded
    {"prompt": "a b c", "chosen": " d e f g h", "rejected": " i j"},
    {"prompt": "k l", "chosen": " m", "rejected": " n o p q r s"},
    {"prompt": "t s r q", "chosen": " p o n", "rejected": " m l k"},
]
ROWS = list(range(len(PAIRS)))


def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def llama(seed: int) -> LlamaForCausalLM:
    """2 layers, 16 wide; weights large enough for a policy and a reference that clearly differ."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.2,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config)


class Bench:
    """One DPOTrainer, a twin of its policy that TRL has not touched, and its reference."""

    def __init__(self, folder: Path) -> None:
        policy, self.reference = llama(1), llama(11)
        self.policy = copy.deepcopy(policy).eval()
        self.trainer = DPOTrainer(
            model=policy,
            ref_model=copy.deepcopy(self.reference),
            args=DPOConfig(
                output_dir=str(folder),
                beta=BETA,
                use_weighting=True,
                use_cpu=True,
                bf16=False,
                report_to="none",
            ),
            train_dataset=Dataset.from_list(PAIRS),
            processing_class=tokenizer(),
        )
        self.trainer.model.eval()

    def batch(self, rows: list[int]) -> dict[str, Tensor]:
        """TRL's own tokens and padding: first the chosen answers, then the rejected."""
        return self.trainer.data_collator([self.trainer.train_dataset[row] for row in rows])

    def trl_loss(self, loss_type: str, weighted: bool, rows: list[int]) -> Tensor:
        """TRL's loss, a mean over `rows`."""
        self.trainer.loss_types, self.trainer.use_weighting = [loss_type], weighted
        return self.trainer.compute_loss(self.trainer.model, self.batch(rows))

    def our_loss(self, method: Method, rows: list[int]) -> Tensor:
        """One value for each of `rows`."""
        batch = self.batch(rows)
        logp, log_weight, tokens = naive_pass(self.policy, batch, method.alignment)
        with torch.no_grad():
            ref_logp, _, _ = naive_pass(self.reference, batch, "none")
        ones, zeros = torch.ones(len(rows)), torch.zeros(len(rows))
        halves = [half for column in (logp, ref_logp, tokens, log_weight) for half in column.chunk(2)]
        return method.loss(PairLogps(*halves, chosen_win=ones, rejected_win=zeros, chosen_beats_rejected=ones))


def naive_pass(model: LlamaForCausalLM, batch: dict[str, Tensor], alignment: str) -> tuple[Tensor, Tensor, Tensor]:
    """Summed log-probability, mean log-weight and length of every answer: row by row, token by token."""
    norm: dict[str, Callable[[Tensor], Tensor]] = {
        "none": lambda pi: pi.new_tensor(1.0),
        "sampled": lambda pi: (pi**2).sum(),
        "greedy": lambda pi: pi.max(),
    }
    logps, log_weights, lengths = [], [], []
    for ids, attended, answered in zip(
        batch["input_ids"], batch["attention_mask"], batch["completion_mask"], strict=True
    ):
        end = int(attended.sum())
        logits = model(ids[None, :end]).logits[0]
        at = [t for t in range(end) if answered[t]]
        pis = [logits[t - 1].softmax(-1) for t in at]
        of_tokens = torch.stack([pi[ids[t]].log() for pi, t in zip(pis, at, strict=True)])
        norms = torch.stack([norm[alignment](pi).log() for pi in pis])
        logps.append(of_tokens.sum())
        log_weights.append((of_tokens - norms).mean() * (alignment != "none"))
        lengths.append(float(len(at)))
    return torch.stack(logps), torch.stack(log_weights), torch.tensor(lengths)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("trl"))


def sppo_hard() -> SPPO:
    """TRL's P is 1 for the winner and 0 for the loser, its eta is 1/beta, and it does not halve the sum."""
    return SPPO(name="sppo", eta=1 / BETA, center=0.5)


CASES: dict[str, tuple[Method, float, str, bool]] = {
    "sppo_hard": (sppo_hard(), 2.0, "sppo_hard", False),
    "dpo": (DPO(name="dpo", beta=BETA), 1.0, "sigmoid", False),
    "ipo, averaged": (IPO(name="ipo", beta=BETA, average=True), 1.0, "ipo", False),
    "wpo, sampled": (WPO(name="wpo", beta=BETA, alignment="sampled", clamp=False), 1.0, "sigmoid", True),
}
CASE = pytest.mark.parametrize(("method", "factor", "loss_type", "weighted"), CASES.values(), ids=CASES)


@CASE
def test_loss_and_the_gradient_of_every_weight_are_those_of_trl(
    bench: Bench, method: Method, factor: float, loss_type: str, weighted: bool
) -> None:
    ours, theirs = factor * bench.our_loss(method, ROWS).mean(), bench.trl_loss(loss_type, weighted, ROWS)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    found, expected = (dict(model.named_parameters()) for model in (bench.policy, bench.trainer.model))
    for model, loss in ((bench.policy, ours), (bench.trainer.model, theirs)):
        model.zero_grad()
        loss.backward()
    for name, weight in found.items():
        torch.testing.assert_close(weight.grad, expected[name].grad, rtol=1e-4, atol=1e-5, msg=name)
