"""Answers side by side in slots: each keeps its keys and values from position 0 on, and sees nothing of the others.

What a step of a slot computes depends, on CPUs to the bit, on itself alone: products have 16 rows or more, widths are
cut so that the blocks of a longer row are those of a shorter one, and what lies beyond a row's end counts nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

Queries = Float[Tensor, "row head 1 dim"]
Keys = Float[Tensor, "row kv_head width dim"]
ROWS = 16
"""With at least this many rows, the result of a row does not depend on the others (torch on CPUs; tested)."""
CHUNK = 128
"""Positions in one step of the width up to BLOCK, and in one product of soft-capped attention."""
BLOCK = 512
"""Keys that torch's attention on CPUs takes at a time: a wider row has whole blocks."""


class Prefilled:
    """Keys and values of one prompt, caught as the model computes them: [1, kv_head, position, dim] per layer."""

    def __init__(self) -> None:
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def update(self, key: Tensor, value: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        self.keys.append(key)
        self.values.append(value)
        return key, value


class Slots:
    """`rows` answers in the making: what the model takes for a cache, and the layout of a step's attention.

    A row without an answer has length 0 and its output is ignored.
    """

    def __init__(self, rows: int) -> None:
        self.lengths = [0] * rows
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._at = torch.zeros(0)
        self._width = 0
        self._masks: dict[int | None, Tensor] = {}

    def put(self, row: int, prompt: Prefilled) -> None:
        """Begin an answer: the row holds the prompt."""
        length = prompt.keys[0].shape[2]
        if not self._keys:
            shape = (len(self.lengths), prompt.keys[0].shape[1], 0, prompt.keys[0].shape[3])
            self._keys = [k.new_zeros(shape) for k in prompt.keys]
            self._values = [v.new_zeros(shape) for v in prompt.values]
        self._reserve(width_of(length + 1))
        for cache, states in ((self._keys, prompt.keys), (self._values, prompt.values)):
            for layer, layer_states in zip(cache, states, strict=True):
                layer[row, :, :length] = layer_states[0]
        self.lengths[row] = length

    def free(self, row: int) -> None:
        self.lengths[row] = 0

    def keep(self, rows: list[int]) -> None:
        """Go on with these rows only, in this order."""
        self._replace(lambda states: states[rows])
        self.lengths = [self.lengths[row] for row in rows]

    def advance(self) -> Int[Tensor, "row 1"]:
        """Make room for one more token in every row; return their positions."""
        self._at = torch.tensor(self.lengths, device=self._keys[0].device)
        self.lengths = [n + 1 if n else 0 for n in self.lengths]
        self._width = width_of(max(self.lengths))
        self._reserve(self._width)
        self._masks = {}
        return self._at[:, None]

    def update(self, key: Tensor, value: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Store a step's keys and values [row, kv_head, 1, dim]; return all of the rows up to the common width."""
        rows = torch.arange(len(self.lengths), device=key.device)
        self._keys[layer][rows, :, self._at] = key[:, :, 0]
        self._values[layer][rows, :, self._at] = value[:, :, 0]
        return self._keys[layer][:, :, : self._width], self._values[layer][:, :, : self._width]

    def attend(
        self, query: Queries, key: Keys, value: Keys, scaling: float, window: int | None, softcap: float | None
    ) -> Queries:
        """Attend to keys up to a row's last token. Heads that share keys are taken as so many queries of one head."""
        grouped = query.view(len(query), key.shape[1], -1, query.shape[3])
        count = grouped.shape[2]
        if query.device.type == "cpu":
            grouped = pad(grouped, (0, 0, 0, -count % ROWS))  # or results depend on which thread takes a row
        mask = self._mask(window)
        if softcap is None:
            context = scaled_dot_product_attention(grouped, key, value, attn_mask=mask, scale=scaling)
        else:
            context = _capped(grouped, key, value, mask, scaling, softcap)
        return context[:, :, :count].reshape(query.shape)

    def _mask(self, window: int | None) -> Tensor:
        """Mask [row, 1, 1, width] all but positions up to a row's last one, at most `window`. A free row sees one."""
        if window not in self._masks:
            last, place = self._at[:, None], torch.arange(self._width, device=self._at.device)
            seen = place <= last
            if window is not None and window < self._width:
                seen = seen & (last - place < window)
            self._masks[window] = seen[:, None, None]
        return self._masks[window]

    def _replace(self, change: Callable[[Tensor], Tensor]) -> None:
        """Change the layers one by one: there is no room for all twice."""
        for states in (self._keys, self._values):
            for layer in range(len(states)):
                states[layer] = change(states[layer])

    def _reserve(self, width: int) -> None:
        more = width - self._keys[0].shape[2]
        if more > 0:
            self._replace(lambda states: pad(states, (0, 0, 0, more)))


def width_of(length: int) -> int:
    """Return the positions that rows of up to `length` tokens are cut to."""
    step = CHUNK if length <= BLOCK else BLOCK
    return math.ceil(length / step) * step


def rows_of(answers: int) -> int:
    """Return the rows that `answers` answers take."""
    return math.ceil(answers / ROWS) * ROWS


def _capped(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float, softcap: float) -> Tensor:
    """Attend with soft-capped scores, which SDPA has not; chunk by chunk, so that all products have one shape."""
    scores = torch.cat([query @ part.transpose(2, 3) for part in key.split(CHUNK, 2)], 3).float()
    scores = (softcap * torch.tanh(scores * scaling / softcap)).masked_fill(~mask, -torch.inf)
    weights = scores.softmax(-1).to(value.dtype)
    parts = zip(weights.split(CHUNK, 3), value.split(CHUNK, 2), strict=True)
    contexts = [(w @ v).float() for w, v in parts]
    return torch.stack(contexts).cumsum(0)[-1].to(value.dtype)
