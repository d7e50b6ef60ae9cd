"""PairRM (arXiv:2306.02561): all K(K-1) ordered comparisons of the answers to a prompt.

C_ij = head([h_source; h_first]) - head([h_source; h_second]), logits, where answer i is shown first, of
  [CLS] <|source|> prompt [SEP] [CLS] <|candidate1|> answer i [SEP] [CLS] <|candidate2|> answer j [SEP]
"""

from __future__ import annotations

import re
from array import array
from itertools import permutations
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from src.kernel.artifact import Stage
from src.kernel.cells import cell_key
from src.kernel.config import Free, Label, UserError, config
from src.kernel.rows import Row
from src.modeling.policy import chat_text, load_tokenizer
from src.ranking.batching import Item, NumberType, Opener, Queue, Scorer, Texts, Work, work_off
from src.ranking.blender import load_collator
from src.ranking.deberta import FEWEST_ROWS, PackedDeberta, filled
from src.ranking.stage import in_batches

PREFIX = 1
"""Where the prefix token of a text stands: after its [CLS]."""
_MARKS = re.compile(r"<\|(?:source|candidate|candidate1|candidate2)\|>|\[(?:CLS|SEP|PAD|MASK|UNK)\]")


class Cut(NamedTuple):
    """What was read only in part."""

    prompt: bool
    answers: list[bool]


class PairRMTokens:
    """Each text once: the source up to 1224 tokens, answers up to 412 and half of what the source leaves free."""

    def __init__(self, checkpoint: Path, base: Path | None) -> None:
        self.collator = load_collator(checkpoint, base)

    def __call__(self, source: str, answers: list[str]) -> tuple[list[array[int]], Cut]:
        """Encodes [CLS] prefix text [SEP] of the source and of each answer, with the neutral candidate prefix."""
        marks = self.collator
        texts = [marks.source_prefix + without_marks(source)]
        texts += [marks.candidate_prefix + without_marks(answer) for answer in answers]
        whole, *candidates = marks.tokenizer(texts, verbose=False)["input_ids"]
        read = _cut(whole, marks.source_maxlength)
        room = marks.candidate_maxlength + (marks.source_maxlength - len(read)) // 2
        cut = Cut(len(whole) > len(read), [len(ids) > room for ids in candidates])
        return [array("i", ids) for ids in (read, *(_cut(ids, room) for ids in candidates))], cut


def without_marks(text: str) -> str:
    """Makes a text that cannot end its part or begin another one; llm-blender does so for [SEP] only."""
    return _MARKS.sub(" ", text)


def _cut(ids: list[int], limit: int) -> list[int]:
    return ids if len(ids) <= limit else [*ids[: limit - 1], ids[-1]]


@config
class PairRM:
    scalar: ClassVar[bool] = False
    code_version: ClassVar[int] = 1

    name: Free[Label]
    checkpoint: Stage
    """Brings the ranker, in the form of llm-blender/PairRM or of llm-blender/PairRM-hf."""
    base: Stage | None
    """Brings config and tokenizer of its encoder; null where the checkpoint has its own (PairRM-hf)."""
    backend: Literal["native", "llm_blender"]
    """native: all comparisons in one queue. llm_blender: its own `rank`, one prompt at a time, as the public code."""
    prompt_format: Literal["bare", "templated"]
    """bare: the instruction, which it was trained on. templated: the policy's chat template around it (public code)."""
    template_model: Free[Stage]
    """Brings the chat template of `templated`."""
    precision: NumberType
    work: Free[Work]

    def check_device(self) -> None:
        if (self.backend, self.precision, self.work.device) == ("llm_blender", "float16", "cpu"):
            raise UserError("ranker.precision: llm_blender has no float16 on CPUs; say float32")

    @property
    def models(self) -> tuple[Stage, ...]:
        template = (self.template_model,) if self.prompt_format == "templated" else ()
        return (self.checkpoint, *([self.base] if self.base else []), *template)

    def check_models(self, models: tuple[Path, ...]) -> None:
        """Raises UserError for a tokenizer or a config that are not PairRM's, and for a model without the template."""
        PairRMTokens(models[0], models[1] if self.base else None)
        if self.prompt_format == "templated":
            load_tokenizer(models[-1])

    def rank(self, rows: list[Row], models: tuple[Path, ...], work: Path) -> list[Row]:
        folders = Folders(models[0], models[1] if self.base else None, self.precision)
        sources = [bare(row["messages"]) for row in rows]
        if self.prompt_format == "templated":
            tokenizer = load_tokenizer(models[-1])
            sources = [chat_text(tokenizer, row["messages"]) for row in rows]
        tokens = PairRMTokens(folders.checkpoint, folders.base)
        if self.backend == "native":
            return rank_natively(rows, sources, tokens, folders, self.work, work)
        return _rank_by_blender(rows, sources, tokens, open_blender(folders, self.work), work)


class Folders(NamedTuple):
    """Where the ranker lies; opens it as a scorer of (source, first, second)."""

    checkpoint: Path
    base: Path | None
    precision: NumberType

    def __call__(self, work: Work) -> Scorer:
        return _Comparisons(self, work)


def bare(messages: list[dict[str, str]]) -> str:
    """Writes the instruction alone; a chat of several messages as lines of role and content."""
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n".join(f"{m['role'].upper()}: {m['content']}" for m in messages)


def open_blender(folders: Folders, work: Work) -> Any:
    import torch

    from src.ranking.blender import load_blender

    return load_blender(folders.checkpoint, folders.base, getattr(torch, folders.precision), work.device)


class _Comparisons:
    """Directed logits of packed comparisons."""

    def __init__(self, folders: Folders, work: Work) -> None:
        from src.modeling.policy import keep_memory

        if work.device == "cpu":
            keep_memory()
        blender = open_blender(folders, work)
        self.ranker, limits = blender.ranker, blender.ranker_config
        longest = limits.source_maxlength + 2 * limits.candidate_maxlength
        self.ranker.head_layer.float()  # its two outputs are close: half precision would eat their difference
        self.encoder = PackedDeberta(self.ranker.pretrained_model, work.attention)
        # One length of row is one compiled kernel.
        self.row_tokens = max(work.batch_tokens, longest) if work.attention == "flex" else FEWEST_ROWS

    def __call__(self, items: list[Texts]) -> list[float]:
        import torch

        first, second = self.ranker.tokenizer.cand1_prefix_id, self.ranker.tokenizer.cand2_prefix_id
        documents = [s + _prefixed(a, first) + _prefixed(b, second) for s, a, b in items]
        prefixes = [[PREFIX, len(s) + PREFIX, len(s) + len(a) + PREFIX] for s, a, _ in items]
        states = filled(self.encoder(documents, prefixes, self.row_tokens)).float()
        with torch.inference_mode():
            left, right, _ = self.ranker.reduce(*states.unbind(1))
        return (left - right).mean(-1)[: len(items)].tolist()


def _prefixed(candidate: array[int], prefix: int) -> array[int]:
    shown = candidate[:]
    shown[PREFIX] = prefix
    return shown


def rank_natively(
    rows: list[Row], sources: list[str], tokens: PairRMTokens, opener: Opener, work: Work, folder: Path
) -> list[Row]:
    """Compares all answers of all prompts in one queue; equal texts are compared once."""
    texts: list[array[int]] = []
    items: dict[str, Item] = {}
    places: list[tuple[dict[tuple[int, int], str], Cut]] = []
    for source, row in zip(sources, rows, strict=True):
        answers = [answer["text"] for answer in row["responses"]]
        ids, cut = tokens(source, answers)
        keys = {(i, j): cell_key(source, answers[i], answers[j]) for i, j in permutations(range(len(answers)), 2)}
        for (i, j), key in keys.items():
            named = f"prompt {row['prompt_id']}, answers {i + 1} and {j + 1}"
            items.setdefault(key, Item(key, (len(texts), len(texts) + 1 + i, len(texts) + 1 + j), named))
        texts += ids
        places.append((keys, cut))
    queue = Queue(texts, list(items.values()))
    logits = work_off(opener, queue, work, folder, "comparison")
    return [_row({place: logits[key] for place, key in keys.items()}, cut) for keys, cut in places]


def _rank_by_blender(rows: list[Row], sources: list[str], tokens: PairRMTokens, blender: Any, work: Path) -> list[Row]:
    from src.ranking.blender import rank_matrix

    known = {row["prompt_id"]: source for row, source in zip(rows, sources, strict=True)}

    def rank(rows: list[Row]) -> list[Row]:
        (row,) = rows
        source, answers = known[row["prompt_id"]], [answer["text"] for answer in row["responses"]]
        matrix = rank_matrix(blender, without_marks(source), [without_marks(text) for text in answers])
        _, cut = tokens(source, answers)
        return [_row({(i, j): float(matrix[i, j]) for i, j in permutations(range(len(answers)), 2)}, cut)]

    return in_batches(rank, rows, 1, work)


def _row(logits: dict[tuple[int, int], float], cut: Cut) -> Row:
    k = range(len(cut.answers))
    matrix = [[logits.get((i, j), float("nan")) for j in k] for i in k]
    return {
        "logits": matrix,
        "scores": None,
        "truncated": cut.answers,
        "prompt_truncated": cut.prompt,
        "terms": None,
    }
