"""Drive our trainer for the benchmark, whole or with one of its four parts taken out."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, SequentialSampler

from bench.worker import BETA
from src.methods.sppo import SPPOSingle
from src.modeling.logps import bind_forward
from src.modeling.packing import Group, Packed, pack, row_multiple
from src.training.batch import Collator, PairBatch, Step, StepSampler
from src.training.recipe import Devices, Lengths, Recipe
from src.training.stage import Train
from src.training.trainer import PairTrainer, arguments_of


def trainer_of(contender: str, model: Any, job: dict[str, Any], folder: Path, callbacks: list[Any]) -> PairTrainer:
    """`contender` is "ours", or "no_…" with that part taken out."""
    stage = stage_of(job)
    devices = stage.devices
    reference = copy.deepcopy(model) if contender == "no_cached_reference" else None
    bind_forward(model, "none", devices.head_chunk, devices.attention)
    if contender == "no_chunking":
        _unchunk(model)
    if devices.activation_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    arguments = arguments_of(stage.recipe, stage.devices, stage.seed, folder)
    arguments.max_steps = job["steps"]
    trainer = _InOrder(model=model, args=arguments, train_dataset=job["rows"], callbacks=callbacks)
    trainer.set_up(stage.method, stage.recipe, stage.devices)
    trainer.contender, trainer.reference = contender, reference
    if reference is not None:
        bind_forward(reference, "none", devices.head_chunk, devices.attention)
    return trainer


def stage_of(job: dict[str, Any]) -> Train:
    """Make the stage that a run would have, from the benchmark's settings."""
    limit = job["max_length"]
    recipe = Recipe(
        lr=job["lr"],
        batch_pairs=job["pairs"],
        epochs=1,
        schedule_epochs=10**6,  # a constant rate, as good as
        schedule="linear",
        warmup=0.0,
        optimizer="rmsprop",
        weight_decay=0.0,
        max_grad_norm=None,
        lengths=Lengths(max_prompt=limit // 2, max_total=limit, truncation="separate"),
        lora=None,
        save_dtype="float32",
    )
    devices = Devices(
        device=job["device"],
        count=1,
        nodes=1,
        precision=job["precision"],
        row_tokens=job["row_tokens"],
        head_chunk=job["head_chunk"],
        attention="flex" if job["device"] == "cuda" else "segments",
        activation_checkpointing=job["activation_checkpointing"],
        deepspeed=None,
        memory_gb=None,
        peak_tflops=None,
        save_minutes=1e6,
    )
    return Train(method=SPPOSingle(name="sppo", eta=1 / BETA), recipe=recipe, devices=devices, seed=0)


class _InOrder(PairTrainer):
    """A trainer that keeps pairs in the order of the file, as the peer does, without the contender's missing part."""

    contender: str
    reference: Any
    multiple: int

    def get_train_dataloader(self) -> DataLoader:
        rows: Any = self.train_dataset
        sampler = StepSampler(SequentialSampler(rows), self.recipe.batch_pairs, False)
        row_tokens = self.devices.row_tokens
        self.multiple = row_multiple(self.devices.attention, row_tokens)
        whole = Collator(lengths=self.recipe.lengths, row_tokens=row_tokens, multiple=self.multiple)
        return DataLoader(rows, batch_sampler=sampler, collate_fn=lambda pairs: self._collate(pairs, whole))

    def _collate(self, rows: list[Any], whole: Collator) -> Step:
        step = whole(rows)
        if self.contender not in ("no_packing", "no_sharing"):
            return step
        batches, longest = [], max(whole.lengths.group(row).tokens for row in rows)
        for row in rows:
            alone: PairBatch = whole([row]).batches[0]
            batches.append(alone._replace(packed=self._row(whole.lengths.group(row), longest)))
        return step._replace(batches=batches)

    def _row(self, group: Group, longest: int) -> Packed:
        if self.contender == "no_sharing":
            return pack([Group(group.prompt, [answer]) for answer in group.answers], self.multiple)
        filler = longest - group.tokens
        return pack([group, *([Group([0] * filler, [])] if filler else [])], self.multiple)

    def _row_loss(self, model: Any, batch: PairBatch, pairs_in_step: int) -> Tensor:
        if self.reference is not None:
            with torch.no_grad():
                batch = batch._replace(ref_logp=self.reference(batch.packed).logp.view(-1, 2))
        return super()._row_loss(model, batch, pairs_in_step)


def _unchunk(model: Any) -> None:
    """Let the head compute whole logits of a row's answer tokens, differentiated by autograd."""
    head = model.get_output_embeddings()
    softcap = getattr(model.config, "final_logit_softcapping", None)

    def forward(hidden: Tensor, labels: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        logits = torch.nn.functional.linear(hidden, head.weight).float()
        logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
        logp = logits.log_softmax(-1).gather(-1, labels[:, None]).squeeze(-1)
        return logp, torch.zeros_like(logp)

    head.forward = forward
