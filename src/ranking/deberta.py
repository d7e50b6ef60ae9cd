"""DeBERTa's encoder on documents packed one after the other, without padding: the forward pass of the native ranker.

A token attends within its document only, by
  score_ij = (q_i k_j + q_i p^k_b + k_j p^q_b) / sqrt(3 width),  b = bucket(i - j).
The projections p of the relative positions, which transformers computes in every pass, are computed once; of the last
layer only the wanted tokens are computed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from src.kernel.config import UserError
from src.modeling.policy import AttentionKind

FEWEST_ROWS = 16
"""Fewest rows of a matrix product on CPUs: with fewer, the BLAS takes another way, and a row feels its neighbours."""
SCORES_AT_A_TIME = 1 << 21
"""Attention scores computed together on CPUs, few enough to stay in the cache."""
_NEEDED = {"share_att_key": True, "position_biased_input": False, "type_vocab_size": 0, "conv_kernel_size": 0}


class Positions(NamedTuple):
    """One layer's projections of the relative positions."""

    key: Float[Tensor, "head bucket width"]
    query: Float[Tensor, "head bucket width"]
    """Scaled by 1 / sqrt(3 width), as the queries of tokens are."""


Attend = Callable[[Tensor, Tensor, Tensor, Positions], Tensor]
"""Attention of queries [head, query, width] to keys and values [head, token, width]: [head, query, width]."""


class PackedDeberta:
    """A transformers DebertaV2Model that reads packed documents; its weights are shared, not copied.

    Raises UserError for an encoder whose layers are not those of DeBERTa-v3.
    """

    def __init__(self, model: Any, attention: AttentionKind) -> None:
        wrong = [key for key, value in _NEEDED.items() if getattr(model.config, key, 0) != value]
        if wrong:
            message = f"its encoder has another {wrong[0]} than DeBERTa-v3"
            raise UserError(f"ranker: {message}; take ranker.backend=llm_blender")
        self.model, self.layers, self.kind = model, model.encoder.layer, attention
        first = self.layers[0].attention.self
        self.heads, self.span = first.num_attention_heads, first.pos_ebd_size
        self.scale = (3 * first.attention_head_size) ** -0.5
        self.positions: list[Positions] = []
        with torch.inference_mode():
            embeddings = model.encoder.get_rel_embedding()[: 2 * self.span]
            for layer in self.layers:
                attend = layer.attention.self
                key, query = self._split(attend.key_proj(embeddings)), self._split(attend.query_proj(embeddings))
                self.positions.append(Positions(key.contiguous(), (query * self.scale).contiguous()))

    def _split(self, x: Float[Tensor, "token hidden"]) -> Float[Tensor, "head token width"]:
        return x.view(len(x), self.heads, -1).transpose(0, 1)

    @torch.inference_mode()
    def __call__(
        self, documents: Sequence[Sequence[int]], wanted: list[list[int]], row_tokens: int = FEWEST_ROWS
    ) -> Float[Tensor, "doc wanted hidden"]:
        """Return the last hidden states of `documents` at the positions `wanted` of each, as many in every document.

        The row is filled up to `row_tokens` by one more document: compiled attention wants rows of one length.
        """
        missing = row_tokens - sum(map(len, documents))
        packed = [*documents, [0] * missing] if missing > 0 else documents
        lengths = [len(document) for document in packed]
        starts = [0, *accumulate(lengths)]
        ids = torch.tensor([token for document in packed for token in document], device=self.model.device)
        hidden = self.model.embeddings(ids[None])[0]
        table = self.bucket_table(max(2, len(hidden))).to(hidden.device)
        places = torch.tensor([start + i for start, some in zip(starts, wanted, strict=False) for i in some])
        if self.kind == "flex":  # one length of row, one compiled kernel: the last layer is computed whole
            whole = last = _Flex(table, lengths)
        else:
            whole = _ByDocument(table, lengths, torch.arange(len(ids)), lengths)
            last = _ByDocument(table, lengths, places, [len(some) for some in wanted])
        for layer, positions in zip(self.layers[:-1], self.positions, strict=False):
            hidden = self._layer(layer, hidden, hidden, positions, whole)
        asking = hidden if whole is last else hidden[places]
        states = self._layer(self.layers[-1], hidden, asking, self.positions[-1], last)
        return (states[places] if whole is last else states).view(len(documents), -1, states.shape[-1])

    def bucket_table(self, tokens: int) -> Int[Tensor, " distance"]:
        """Return the row of the position embeddings for each distance i - j from -(tokens - 1) to tokens - 1."""
        from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

        attention = self.layers[0].attention.self
        buckets, most = attention.position_buckets, attention.max_relative_positions
        distance = make_log_bucket_position(torch.arange(1 - tokens, tokens), buckets, most).long()
        return (distance + self.span).clamp(0, 2 * self.span - 1)

    def _layer(self, layer: Any, hidden: Tensor, asking: Tensor, positions: Positions, attend: Attend) -> Tensor:
        """Apply a layer to the tokens `asking`, which attend to `hidden`; padded so that batches do not matter."""
        count, asking = len(asking), filled(asking)
        attention = layer.attention.self
        q = self._split(attention.query_proj(asking))[:, :count] * self.scale
        k, v = self._split(attention.key_proj(hidden)), self._split(attention.value_proj(hidden))
        context = attend(q, k, v, positions).transpose(0, 1).reshape(count, -1)
        attended = layer.attention.output(filled(context), asking)
        return layer.output(layer.intermediate(attended), attended)[:count]


def filled(rows: Float[Tensor, "row width"]) -> Float[Tensor, "filled width"]:
    """Repeat the last row until there are at least FEWEST_ROWS."""
    missing = FEWEST_ROWS - len(rows)
    return rows if missing <= 0 else torch.cat([rows, rows[-1:].expand(missing, *rows.shape[1:])])


class _ByDocument:
    """Attention one document at a time and a few heads at a time: of the tokens at `places`, `counts` a document."""

    def __init__(self, table: Tensor, lengths: list[int], places: Tensor, counts: list[int]) -> None:
        self.keys, self.queries = _slices(lengths), _slices(counts)
        zero = (len(table) - 1) // 2
        self.buckets = [
            table[places[queries, None] - torch.arange(keys.start, keys.stop)[None] + zero]
            for queries, keys in zip(self.queries, self.keys, strict=False)
        ]

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, positions: Positions) -> Tensor:
        out = torch.empty_like(q)
        for queries, keys, buckets in zip(self.queries, self.keys, self.buckets, strict=False):
            step = max(1, min(len(q), SCORES_AT_A_TIME // max(1, buckets.numel())))
            for first in range(0, len(q), step):
                heads = slice(first, first + step)
                query, key = q[heads, queries], k[heads, keys]
                index = buckets.expand(len(query), -1, -1)
                scores = query @ key.mT
                scores += torch.gather(query @ positions.key[heads].mT, -1, index)
                scores += torch.gather(positions.query[heads] @ key.mT, -2, index)
                out[heads, queries] = torch.softmax(scores, -1) @ v[heads, keys]
        return out


def _slices(lengths: list[int]) -> list[slice]:
    return [slice(end - length, end) for end, length in zip(accumulate(lengths), lengths, strict=True)]


class _Flex:
    """FlexAttention over the whole row: a document mask, and the position terms as a change of the score."""

    def __init__(self, table: Tensor, lengths: list[int]) -> None:
        from torch.nn.attention.flex_attention import create_block_mask

        number = torch.arange(len(lengths), device=table.device, dtype=torch.int32)
        document = number.repeat_interleave(torch.tensor(lengths, device=table.device))
        self.table, self.zero = table, (len(table) - 1) // 2

        def same_document(batch: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return document[i] == document[j]

        length = len(document)
        self.mask = create_block_mask(same_document, None, None, length, length, device=str(table.device))

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, positions: Positions) -> Tensor:
        from src.modeling.attention import flex_kernel

        of_query, of_key, table, zero = q @ positions.key.mT, k @ positions.query.mT, self.table, self.zero

        def with_positions(score: Tensor, batch: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
            bucket = table[i - j + zero]
            return score + of_query[head, i, bucket] + of_key[head, j, bucket]

        kernel = flex_kernel(q.device.type)
        return kernel(q[None], k[None], v[None], score_mod=with_positions, block_mask=self.mask, scale=1.0)[0]
