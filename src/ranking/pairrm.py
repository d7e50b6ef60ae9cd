"""PairRM (arXiv:2306.02561): all K(K-1) ordered comparisons of the answers to a prompt.

C_ij = head([h_source; h_first]) - head([h_source; h_second]), logits, where answer i is shown first, of
  [CLS] <|source|> prompt [SEP] [CLS] <|candidate1|> answer i [SEP] [CLS] <|candidate2|> answer j [SEP]
"""

from __future__ import annotations

import math
import re
from array import array
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import Any, ClassVar, Literal

from src.kernel.artifact import Takes
from src.kernel.cells import cell_key
from src.kernel.config import Free, config
from src.kernel.processes import keep_memory
from src.kernel.rows import Row
from src.modeling.checkpoints import PublishedModel
from src.modeling.policy import chat_text, load_tokenizer
from src.ranking.batching import Item, NumberType, Opener, Texts, Work, work_off
from src.ranking.blender import load_blender, load_collator, rank_matrix
from src.ranking.stage import Ranker, in_batches

PREFIX = 1
"""Place of the prefix token of a text: after its [CLS]."""
_MARKS = re.compile(r"<\|(?:source|candidate|candidate1|candidate2)\|>|\[(?:CLS|SEP|PAD|MASK|UNK)\]")


@config
class PairRM(Ranker):
    scalar: ClassVar[bool] = False
    code_version: ClassVar[int] = 1

    checkpoint: PublishedModel
    """Brings the ranker, in the form of llm-blender/PairRM."""
    base: PublishedModel
    """Brings config and tokenizer of its encoder."""
    backend: Literal["native", "llm_blender"]
    """native: all comparisons in one queue. llm_blender: its own `rank`, one prompt at a time, as the public code."""
    prompt_format: Literal["bare", "templated"]
    """bare: the instruction, which it was trained on. templated: the policy's chat template around it (public code)."""
    template_model: Free[PublishedModel]
    """Brings the chat template of `templated`."""
    precision: NumberType
    work: Free[Work]

    def __post_init__(self) -> None:
        if (self.backend, self.precision, self.work.device) == ("llm_blender", "float16", "cpu"):
            raise ValueError("precision: llm_blender has no float16 on CPUs; say float32")

    @property
    def models(self) -> tuple[PublishedModel, ...]:
        template = (self.template_model,) if self.prompt_format == "templated" else ()
        return (self.checkpoint, self.base, *template)

    def takes(self) -> Takes:
        takes = self.work.takes()
        return takes if self.backend == "native" else takes._replace(devices=1, per_node=1)

    def check_models(self, models: tuple[Path, ...]) -> None:
        """Raise UserError for a tokenizer or a config that are not PairRM's, and for a model without the template."""
        PairRMTokens(*models[:2])
        if self.prompt_format == "templated":
            load_tokenizer(models[-1])

    def rank(self, rows: list[Row], models: tuple[Path, ...], work: Path) -> list[Row]:
        checkpoint, base, *_ = models
        if self.prompt_format == "templated":
            tokenizer = load_tokenizer(models[-1])
            sources = [chat_text(tokenizer, row["messages"]) for row in rows]
        else:
            sources = [bare(row["messages"]) for row in rows]
        tokens = PairRMTokens(checkpoint, base)
        if self.backend == "native":
            opener = partial(Comparisons, checkpoint, base, self.precision)
            return rank_natively(rows, sources, tokens, opener, self.work, work)
        blender = load_blender(checkpoint, base, self.precision, self.work.device)
        known = {row["prompt_id"]: source for row, source in zip(rows, sources, strict=True)}

        def rank(batch: list[Row]) -> list[Row]:
            (row,) = batch
            source, answers = known[row["prompt_id"]], [answer["text"] for answer in row["responses"]]
            matrix = rank_matrix(blender, without_marks(source), [without_marks(text) for text in answers])
            pairs = permutations(range(len(answers)), 2)
            return [_row({pair: float(matrix[pair]) for pair in pairs}, tokens(source, answers)[1])]

        return in_batches(rank, rows, 1, work)


def bare(messages: list[dict[str, str]]) -> str:
    """Write the instruction alone; a chat of several messages as lines of role and content."""
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n".join(f"{m['role'].upper()}: {m['content']}" for m in messages)


def without_marks(text: str) -> str:
    """Make a text that cannot end its part or begin another one; llm-blender does so for [SEP] only."""
    return _MARKS.sub(" ", text)


class PairRMTokens:
    """Tokenises each text once: the source up to 1224 tokens, answers up to 412 and half of the source's unused."""

    def __init__(self, checkpoint: Path, base: Path) -> None:
        self.collator = load_collator(checkpoint, base)

    def __call__(self, source: str, answers: list[str]) -> tuple[list[array[int]], Row]:
        """Encode [CLS] prefix text [SEP] of the source and of each answer, with the neutral candidate prefix.

        Also returns the columns that say what was read only in part.
        """
        marks = self.collator
        texts = [marks.source_prefix + without_marks(source)]
        texts += [marks.candidate_prefix + without_marks(answer) for answer in answers]
        whole, *candidates = marks.tokenizer(texts, verbose=False)["input_ids"]
        free = max(0, marks.source_maxlength - len(whole))
        limits = [marks.source_maxlength] + [marks.candidate_maxlength + free // 2] * len(answers)
        cut = [len(ids) > limit for ids, limit in zip((whole, *candidates), limits, strict=True)]
        read = [
            array("i", [*ids[: limit - 1], ids[-1]] if short else ids)
            for ids, limit, short in zip((whole, *candidates), limits, cut, strict=True)
        ]
        return read, {"truncated": cut[1:], "prompt_truncated": cut[0]}


class Comparisons:
    """The loaded ranker: directed logits of packed comparisons (source, first, second)."""

    def __init__(self, checkpoint: Path, base: Path, precision: NumberType, work: Work) -> None:
        from src.ranking.deberta import FEWEST_ROWS, PackedDeberta

        if work.device == "cpu":
            keep_memory()
        blender = load_blender(checkpoint, base, precision, work.device)
        self.ranker, limits = blender.ranker, blender.ranker_config
        longest = limits.source_maxlength + 2 * limits.candidate_maxlength
        self.ranker.head_layer.float()  # its two outputs are close: half precision would eat their difference
        self.encoder = PackedDeberta(self.ranker.pretrained_model, work.attention)
        # One length of row is one compiled kernel.
        self.row_tokens = max(work.batch_tokens, longest) if work.attention == "flex" else FEWEST_ROWS

    def __call__(self, items: list[Texts]) -> list[float]:
        import torch

        from src.ranking.deberta import filled

        def prefixed(candidate: array[int], prefix: int) -> array[int]:
            return candidate[:PREFIX] + array("i", [prefix]) + candidate[PREFIX + 1 :]

        first, second = self.ranker.tokenizer.cand1_prefix_id, self.ranker.tokenizer.cand2_prefix_id
        documents = [s + prefixed(a, first) + prefixed(b, second) for s, a, b in items]
        prefixes = [[PREFIX, len(s) + PREFIX, len(s) + len(a) + PREFIX] for s, a, _ in items]
        states = filled(self.encoder(documents, prefixes, self.row_tokens)).float()
        with torch.inference_mode():
            left, right, _ = self.ranker.reduce(*states.unbind(1))
        return (left - right).mean(-1)[: len(items)].tolist()


def rank_natively(
    rows: list[Row], sources: list[str], tokens: PairRMTokens, opener: Opener, work: Work, folder: Path
) -> list[Row]:
    """Compare all answers of all prompts in one queue; equal texts are compared once."""
    items: list[Item] = []
    places: list[tuple[dict[tuple[int, int], str], Row]] = []
    for source, row in zip(sources, rows, strict=True):
        texts = [answer["text"] for answer in row["responses"]]
        (asked, *answers), cut = tokens(source, texts)
        pairs = list(permutations(range(len(texts)), 2))
        keys = {(i, j): cell_key(source, texts[i], texts[j]) for i, j in pairs}
        for i, j in pairs:
            name = f"prompt {row['prompt_id']}, answers {i + 1} and {j + 1}"
            items.append(Item(keys[i, j], (asked, answers[i], answers[j]), name))
        places.append((keys, cut))
    logits = work_off(opener, items, work, folder, "comparison")
    return [_row({pair: logits[key] for pair, key in keys.items()}, cut) for keys, cut in places]


def _row(logits: dict[tuple[int, int], float], cut: dict[str, Any]) -> Row:
    k = range(len(cut["truncated"]))
    matrix = [[logits.get((i, j), math.nan) for j in k] for i in k]
    return {"logits": matrix, "scores": None, "terms": None} | cut
