"""TRL's DPOTrainer with its SPPO loss in its best configuration: cached reference, chunked head, dynamic padding."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from datasets import Dataset
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer

from bench.worker import BETA


def trainer_of(contender: str, model: Any, job: dict[str, Any], folder: Path, callbacks: list[Any]) -> DPOTrainer:
    """`job["micro_pairs"]` pairs a forward pass, or one for "trl_by_pair", accumulated to `job["pairs"]`."""
    on_gpu = job["device"] == "cuda"
    micro_pairs = 1 if contender == "trl_by_pair" else job["micro_pairs"]
    settings = DPOConfig(
        output_dir=str(folder),
        loss_type=["sppo_hard"],
        beta=BETA,
        max_length=job["max_length"],
        per_device_train_batch_size=micro_pairs,
        gradient_accumulation_steps=job["pairs"] // micro_pairs,
        precompute_ref_log_probs=True,
        gradient_checkpointing=job["activation_checkpointing"],
        gradient_checkpointing_kwargs={"use_reentrant": False},
        use_liger_kernel=on_gpu and find_spec("liger_kernel") is not None,
        use_cpu=not on_gpu,
        bf16=job["precision"] == "bfloat16",
        optim="rmsprop",
        learning_rate=job["lr"],
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        max_steps=job["steps"],
        train_sampling_strategy="sequential",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    word = [{"prompt": "a", "chosen": "b", "rejected": "c"}]
    trainer = DPOTrainer(
        model=model,
        args=settings,
        train_dataset=Dataset.from_list(word),
        processing_class=_any_tokenizer(),
        callbacks=callbacks,
    )
    trainer.train_dataset = Dataset.from_list(
        [
            {
                "prompt_ids": pair["prompt_token_ids"],
                "chosen_ids": pair["chosen_token_ids"],
                "rejected_ids": pair["rejected_token_ids"],
                "ref_chosen_logps": pair["ref_chosen_logp"],
                "ref_rejected_logps": pair["ref_rejected_logp"],
            }
            for pair in job["rows"]
        ]
    )
    return trainer


def _any_tokenizer() -> Any:
    """Return a tokenizer for the trainer, which demands one; our rows are tokens already."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<eos>": 0, "a": 1, "b": 2, "c": 3}, unk_token="<eos>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<eos>", eos_token="<eos>", unk_token="<eos>")
