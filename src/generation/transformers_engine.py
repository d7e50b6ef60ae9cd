"""The transformers engine: continuous batching in slots, every answer with a random stream of its own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from pydantic import PositiveInt

from src.generation.engine import Answering, Engine, Keep, Request, Sampling
from src.kernel.config import Device, Free, UserError, config
from src.kernel.processes import keep_memory
from src.kernel.rows import NOT_FINITE
from src.modeling.packing import Span
from src.modeling.policy import Precision, load_policy, load_tokenizer, stop_ids

if TYPE_CHECKING:
    from torch import Tensor


@config
class TransformersEngine(Engine):
    """Sampling on one device. A prompt is computed once for all of its answers."""

    code_version: ClassVar[int] = 2

    dtype: Precision
    batch_answers: Free[PositiveInt]
    """Answers sampled side by side, rounded up to sixteens."""
    device: Free[Device]

    def open(self, policy: Path, sampling: Sampling) -> Answering:
        return _Sampler(self, policy, sampling).answer


class _Growing(NamedTuple):
    """An answer in the making."""

    request: Request
    ids: list[int]
    uniforms: Tensor


class _Sampler:
    """Answers side by side, a row each. A row whose answer has ended takes the next one at once."""

    def __init__(self, engine: TransformersEngine, policy: Path, sampling: Sampling) -> None:
        from src.modeling.attention import use_packed_attention

        if engine.device == "cpu":
            keep_memory()
        self.engine, self.sampling = engine, sampling
        self.tokenizer, self.stops = load_tokenizer(policy), stop_ids(policy)
        self.model: Any = load_policy(policy, engine.dtype, engine.device, None)
        use_packed_attention(self.model)

    def answer(self, requests: list[Request], keep: Keep) -> None:
        import torch

        from src.generation.slots import Slots, rows_of

        self.waiting = requests[::-1]
        most = self.engine.batch_answers
        count = rows_of(min(most, len(requests)) if self.engine.device == "cpu" else most)
        self.rows: list[_Growing | None] = [None] * count
        self.slots = Slots(count)
        self.prompt_id = ""
        with torch.inference_mode():
            while self.waiting or any(self.rows):
                for request, ids, _ in self._fill_rows() or self._step():
                    stopped = ids[-1] in self.stops
                    text = str(self.tokenizer.decode(ids[:-1] if stopped else ids, skip_special_tokens=True))
                    end = "stop" if stopped else "length"
                    keep(request, {"text": text, "token_ids": ids, "finish_reason": end})

    def _fill_rows(self) -> list[_Growing]:
        """Begin an answer in every free row; return those that ended with their first token."""
        ended: list[_Growing] = []
        for row, growing in enumerate(self.rows):
            while growing is None and self.waiting:
                growing = self._begin(self.waiting.pop())
                if self._ends(growing):
                    ended.append(growing)
                    growing = None
            if growing and not self.rows[row]:
                self.rows[row] = growing
                self.slots.put(row, self.prompt)
        return ended

    def _begin(self, request: Request) -> _Growing:
        """Draw an answer's first token. Its prompt is computed by itself, so that nothing depends on other prompts."""
        import torch

        from src.generation.sampling import seeded_uniforms
        from src.generation.slots import Prefilled
        from src.modeling.attention import Segments

        if self.prompt_id != request.prompt_id:
            self.prompt_id, self.prompt = request.prompt_id, Prefilled()
            ids = torch.tensor([request.token_ids], device=self.model.device)
            positions = torch.arange(ids.shape[1], device=ids.device)[None]
            self.first_logits = self._logits(ids, positions, self.prompt, Segments((Span(ids.shape[1], ()),)))
        growing = _Growing(request, [], seeded_uniforms(request.seed, self.sampling.max_new_tokens))
        growing.ids.extend(self._draw(self.first_logits, growing.uniforms[:1], [growing]))
        return growing

    def _step(self) -> list[_Growing]:
        """Sample one more token for every answer; return those that have ended."""
        import torch

        self._give_up_rows()
        alive = [(row, growing) for row, growing in enumerate(self.rows) if growing]
        answers = [growing for _, growing in alive]
        last = [[growing.ids[-1] if growing else 0] for growing in self.rows]
        ids = torch.tensor(last, device=self.model.device)
        logits = self._logits(ids, self.slots.advance(), self.slots, self.slots)
        uniforms = torch.stack([growing.uniforms[len(growing.ids)] for growing in answers])
        tokens = self._draw(logits[[row for row, _ in alive]], uniforms, answers)
        for growing, token in zip(answers, tokens, strict=True):
            growing.ids.append(token)
        ended = [(row, growing) for row, growing in alive if self._ends(growing)]
        for row, _ in ended:
            self.rows[row] = None
            self.slots.free(row)
        return [growing for _, growing in ended]

    def _ends(self, growing: _Growing) -> bool:
        return growing.ids[-1] in self.stops or len(growing.ids) == self.sampling.max_new_tokens

    def _logits(self, ids: Tensor, positions: Tensor, cache: Any, layout: Any) -> Tensor:
        """Compute logits [row, vocab] of the token after the last."""
        step = {"input_ids": ids, "position_ids": positions, "past_key_values": cache, "layout": layout}
        return self.model(**step, use_cache=False, logits_to_keep=1).logits[:, -1]

    def _draw(self, logits: Tensor, uniforms: Tensor, growing: list[_Growing]) -> list[int]:
        """Draw the next token of each."""
        from src.generation.sampling import draw, penalised

        faulty = (~logits.amax(-1).isfinite()).tolist()  # the largest is NaN where one is
        if any(faulty):
            prompt = growing[faulty.index(True)].request.prompt_id
            remedy = "try hardware.engine.dtype=float32, or look at what trained it"
            raise UserError(f"generate: the policy gives {NOT_FINITE} for prompt {prompt}; {remedy}")
        settings = self.sampling
        if settings.presence_penalty or settings.frequency_penalty:
            answers = [one.ids for one in growing]
            logits = penalised(logits, answers, settings.presence_penalty, settings.frequency_penalty)
        return draw(logits, settings.temperature, settings.top_p, uniforms, settings.top_k).tolist()

    def _give_up_rows(self) -> None:
        """Drop empty rows at the end, on CPUs only: elsewhere a row's last digits may depend on how many there are."""
        from src.generation.slots import rows_of

        alive = [row for row, growing in enumerate(self.rows) if growing]
        count = rows_of(len(alive))
        if self.waiting or self.engine.device != "cpu" or count == len(self.rows):
            return
        free = [row for row, growing in enumerate(self.rows) if not growing]
        kept = (alive + free)[:count]
        self.slots.keep(kept)
        self.rows = [self.rows[row] for row in kept]
