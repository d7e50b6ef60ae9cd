"""The transformers engine: continuous batching in slots, every answer with a random stream of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from pydantic import PositiveInt

from src.generation.engine import Answer, Made, Measurer, Request, Sampler, Sampling, Sequence, shape_of
from src.kernel.config import Device, Free, UserError, config
from src.kernel.rows import NOT_FINITE
from src.modeling.policy import Precision

if TYPE_CHECKING:
    from torch import Tensor

    from src.generation.slots import Prefilled


@config
class TransformersEngine:
    """How answers are sampled on one device. A prompt is computed once for all of its answers."""

    apart: ClassVar[bool] = False
    code_version: ClassVar[int] = 2
    source: ClassVar[str] = "policy"
    devices_each: ClassVar[int] = 1

    dtype: Precision
    batch_answers: Free[PositiveInt]
    """Answers sampled side by side, rounded up to sixteens."""
    device: Free[Device]

    def open(self, policy: Path, sampling: Sampling) -> Sampler:
        return _Sampler(self, policy, sampling)

    def measure(self, policy: Path, longest: int) -> Measurer:
        return _Measurer(self, policy)


class _Measurer:
    """One sequence at a time, through the attention that prompts go through."""

    def __init__(self, engine: TransformersEngine, policy: Path) -> None:
        self.model = _load(engine, policy)

    def logps(self, sequences: list[Sequence]) -> list[list[float]]:
        return [self._of_answer(*sequence) for sequence in sequences]

    def _of_answer(self, prompt: list[int], answer: list[int]) -> list[float]:
        import torch

        from src.modeling.attention import Segments
        from src.modeling.packing import Span

        ids = torch.tensor([prompt + answer[:-1]], device=self.model.device)
        layout = Segments((Span(ids.shape[1], ()),))
        positions = torch.arange(ids.shape[1], device=ids.device)[None]
        with torch.inference_mode():
            out = self.model(
                input_ids=ids, position_ids=positions, layout=layout, use_cache=False, logits_to_keep=len(answer)
            )
            logps = out.logits[0].float().log_softmax(-1)
            return logps[range(len(answer)), answer].tolist()


def _load(engine: TransformersEngine, policy: Path) -> Any:
    from src.modeling.attention import use_packed_attention
    from src.modeling.policy import keep_memory, load_policy

    if engine.device == "cpu":
        keep_memory()
    model = load_policy(policy, engine.dtype, engine.device, None)
    use_packed_attention(model)
    return model


class _Growing(NamedTuple):
    """Answer k to a prompt in the making."""

    prompt_id: str
    k: int
    ids: list[int]
    uniforms: Tensor


class _Prompt(NamedTuple):
    """What all answers to a prompt begin with: the logits [1, vocab] of their first token, keys and values before."""

    prompt_id: str
    states: Prefilled
    logits: Tensor


class _Sampler:
    def __init__(self, engine: TransformersEngine, policy: Path, sampling: Sampling) -> None:
        from src.modeling.policy import load_tokenizer, stop_ids

        self.engine, self.sampling, self.shape = engine, sampling, shape_of(sampling)
        self.tokenizer, self.stops = load_tokenizer(policy), stop_ids(policy)
        self.model = _load(engine, policy)

    def answers(self, requests: list[Request]) -> Iterator[Made]:
        import torch

        batch = _Batch(self, requests)
        while batch.goes_on():
            try:
                with torch.inference_mode():  # not around the yield, where it would be the caller's too
                    ended = batch.fill() or batch.step()
            except RuntimeError as error:
                if type(error).__name__ != "OutOfMemoryError" and "allocate memory" not in str(error):
                    raise
                raise UserError("generate: out of memory; lower hardware.engine.batch_answers") from error
            yield from map(self._made, ended)

    def prefill(self, request: Request) -> _Prompt:
        """Computes a prompt by itself, so that nothing of it depends on what else is asked."""
        import torch

        from src.generation.slots import Prefilled
        from src.modeling.attention import Segments
        from src.modeling.packing import Span

        states = Prefilled()
        ids = torch.tensor([request.token_ids], device=self.model.device)
        positions = torch.arange(ids.shape[1], device=ids.device)[None]
        layout = Segments((Span(ids.shape[1], ()),))
        return _Prompt(request.prompt_id, states, self.logits(ids, positions, states, layout))

    def logits(self, ids: Tensor, positions: Tensor, cache: Any, layout: Any) -> Tensor:
        """Computes logits [row, vocab] of the token after the last."""
        out = self.model(
            input_ids=ids,
            position_ids=positions,
            past_key_values=cache,
            layout=layout,
            use_cache=False,
            logits_to_keep=1,
        )
        return out.logits[:, -1]

    def ended(self, growing: _Growing) -> bool:
        return growing.ids[-1] in self.stops or len(growing.ids) == self.sampling.max_new_tokens

    def _made(self, growing: _Growing) -> Made:
        ids = growing.ids
        stopped = ids[-1] in self.stops
        text = str(self.tokenizer.decode(ids[:-1] if stopped else ids, skip_special_tokens=True))
        return Made(growing.prompt_id, growing.k, Answer(text, ids, "stop" if stopped else "length"))


class _Batch:
    """Answers side by side. A row whose answer has ended takes the next one at once."""

    def __init__(self, sampler: _Sampler, requests: list[Request]) -> None:
        from src.generation.slots import Slots, rows_of

        self._sampler = sampler
        self._waiting = [(r, k) for r in reversed(requests) for k in sorted(r.seeds, reverse=True)]
        asked, most = len(self._waiting), sampler.engine.batch_answers
        count = rows_of(min(most, asked) if sampler.engine.device == "cpu" else most)
        self._rows: list[_Growing | None] = [None] * count
        self._slots = Slots(count)
        self._prompt: _Prompt | None = None

    def goes_on(self) -> bool:
        return bool(self._waiting) or any(self._rows)

    def fill(self) -> list[_Growing]:
        """Begins an answer in every free row; returns those that ended with their first token."""
        ended: list[_Growing] = []
        for row, growing in enumerate(self._rows):
            while growing is None and self._waiting:
                growing = self._begin(*self._waiting.pop())
                if self._sampler.ended(growing):
                    ended.append(growing)
                    growing = None
            if growing and not self._rows[row]:
                assert self._prompt
                self._rows[row] = growing
                self._slots.put(row, self._prompt.states)
        return ended

    def step(self) -> list[_Growing]:
        """Samples one more token for every answer; returns those that have ended."""
        import torch

        self._give_up_rows()
        alive = [(row, growing) for row, growing in enumerate(self._rows) if growing]
        last = [[growing.ids[-1] if growing else 0] for growing in self._rows]
        ids = torch.tensor(last, device=self._sampler.model.device)
        logits = self._sampler.logits(ids, self._slots.advance(), self._slots, self._slots)
        uniforms = torch.stack([growing.uniforms[len(growing.ids)] for _, growing in alive])
        tokens = self._draw(logits[[row for row, _ in alive]], uniforms, [growing for _, growing in alive])
        for (_, growing), token in zip(alive, tokens, strict=True):
            growing.ids.append(token)
        ended = [(row, growing) for row, growing in alive if self._sampler.ended(growing)]
        for row, _ in ended:
            self._rows[row] = None
            self._slots.free(row)
        return [growing for _, growing in ended]

    def _begin(self, request: Request, k: int) -> _Growing:
        from src.generation.sampling import seeded_uniforms

        if self._prompt is None or self._prompt.prompt_id != request.prompt_id:
            self._prompt = self._sampler.prefill(request)
        uniforms = seeded_uniforms(request.seeds[k], self._sampler.sampling.max_new_tokens)
        growing = _Growing(request.prompt_id, k, [], uniforms)
        growing.ids.extend(self._draw(self._prompt.logits, uniforms[:1], [growing]))
        return growing

    def _draw(self, logits: Tensor, uniforms: Tensor, growing: list[_Growing]) -> list[int]:
        """Draws the next token of each."""
        from src.generation.sampling import draw, penalised

        faulty = (~logits.amax(-1).isfinite()).tolist()  # the largest is NaN where one is
        if any(faulty):
            raise UserError(
                f"generate: the policy gives {NOT_FINITE} for prompt {growing[faulty.index(True)].prompt_id}; "
                "try hardware.engine.dtype=float32, or look at what trained it"
            )
        sampling, shape = self._sampler.sampling, self._sampler.shape
        if shape.penalised:
            logits = penalised(logits, [one.ids for one in growing], shape.presence, shape.frequency)
        return draw(logits, sampling.temperature, sampling.top_p, uniforms, shape.top_k).tolist()

    def _give_up_rows(self) -> None:
        """Drops empty rows at the end, on CPUs only: elsewhere a row's last digits may depend on how many there are."""
        from src.generation.slots import rows_of

        alive = [row for row, growing in enumerate(self._rows) if growing]
        if self._waiting or self._sampler.engine.device != "cpu" or rows_of(len(alive)) == len(self._rows):
            return
        free = [row for row, growing in enumerate(self._rows) if not growing]
        kept = (alive + free)[: rows_of(len(alive))]
        self._slots.keep(kept)
        self._rows = [self._rows[row] for row in kept]
