"""The hub in a folder, for rehearsals: every repository of the experiments by its id, tiny and with random weights.

Run: python tests/lib/rehearsal_models.py FOLDER, then python -m src.main experiment=... +size=rehearsal mirror=FOLDER/
Architectures, chat templates, kinds of tokenizer, names of files and of columns are the published ones.
"""

from __future__ import annotations

import json
import shutil
import string
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tiny_pairrm import SPREAD, build_vocabulary
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from bench.pairrm_shapes import LIMITS, build_pairrm

EMBEDDED = Path(__file__).parents[2] / "src" / "data" / "embedded"
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
"""The template of Mistral-7B-Instruct-v0.2 in spring 2024, when SPPO was trained; later revisions have another."""
GEMMA2 = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}"
    "{% endif %}{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
    "message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
PRINTABLE = string.printable.strip()
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
SPELT = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
GEMMA2_FIRST = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<2mass>", "[@BOS@]"]
GEMMA2_FIRST += [*(f"<unused{n}>" for n in range(99)), "<start_of_turn>", "<end_of_turn>"]
"""Ids 0 to 107, as published."""
LLAMA3_LAST = ["<|begin_of_text|>", "<|end_of_text|>", *(f"<|reserved_special_token_{n}|>" for n in range(4))]
LLAMA3_LAST += ["<|start_header_id|>", "<|end_header_id|>", "<|reserved_special_token_4|>", "<|eot_id|>"]
"""Behind all others, as published."""
LLAMA3_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
LLAMA3_SPLIT += r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LEARNED = 300
"""Tokens of a tokenizer beside those for marks and bytes."""


# Prompts -----------------------------------------------------------------------------------------------------------


@cache
def questions(part: str) -> list[str]:
    """Return the prompts of a bundled part, short ones first."""
    lines = (EMBEDDED / f"{part}.jsonl").read_text().splitlines()
    return sorted({json.loads(line)["messages"][-1]["content"] for line in lines}, key=lambda text: (len(text), text))


TRAPS = ("Is None a word? Say None.", "What do <s>[INST], </s>, <end_of_turn> and <|eot_id|> mean?", "  Why\n\nso?  ")
"""Prompts at which public code cuts, that could forge a turn, and that a template trims."""
TRAIN = {t: [f"{trap} (part{t})" for trap in TRAPS] + questions(f"part{t}")[:13] for t in (1, 2, 3)}


def build_snorkel(folder: Path) -> None:
    for t, prompts in TRAIN.items():
        write_split(folder, f"train_iteration_{t}", prompts)
        write_split(folder, f"test_iteration_{t}", questions("held_out")[4 * t : 4 * t + 4])


def build_ultrafeedback(folder: Path) -> None:
    write_split(folder, "train_prefs", [prompt for prompts in TRAIN.values() for prompt in prompts])
    write_split(folder, "test_prefs", questions("held_out")[:12])


def write_split(folder: Path, split: str, prompts: list[str]) -> None:
    """Write the columns that both data sets have."""
    rows = []
    for prompt in prompts:
        question = {"role": "user", "content": prompt}
        good, bad = ([question, {"role": "assistant", "content": answer}] for answer in ("Good.", "Bad."))
        rows.append({"prompt": prompt, "prompt_id": prompt, "chosen": good, "rejected": bad})
    (folder / "data").mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "data" / f"{split}-00000-of-00001.parquet")


# Tokenizers --------------------------------------------------------------------------------------------------------


def learn(raw: Tokenizer, first: list[str], bos: str, space: str = " ", letters: Sequence[str] = PRINTABLE) -> Any:
    """Learn words with the `space` before them, so that no token spans two; `first` come before what is learnt.

    Returns the step that adds a BOS: called plainly, all three tokenizers add one, and a rendered chat must not get it.
    """
    words = [f"{space}{word}" for prompt in questions("part1")[:300] for word in prompt.split()]
    size = LEARNED + len(first or letters)
    options = {"vocab_size": size, "special_tokens": first, "initial_alphabet": list(letters), "show_progress": False}
    raw.train_from_iterator(words, trainers.BpeTrainer(**options))
    if not first:
        raw.add_special_tokens(LLAMA3_LAST)
    return processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, raw.token_to_id(bos))])


def write_tokenizer(folder: Path, raw: Tokenizer, special: list[str], template: str, **settings: Any) -> None:
    """Write the two files of the hub. Only `special` ones are cut out of a text before anything else."""
    made = json.loads(raw.to_str())
    made["added_tokens"] = [token for token in made["added_tokens"] if token["content"] in special]
    (folder / "tokenizer.json").write_text(json.dumps(made))
    added = {str(token.pop("id")): token for token in made["added_tokens"]}
    usual = {"added_tokens_decoder": added, "chat_template": template, "clean_up_tokenization_spaces": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(usual | settings))


def write_llama3_tokenizer(folder: Path) -> None:
    """Bytes, in words as its pattern cuts them; the marks stand behind everything else."""
    raw = Tokenizer(models.BPE(ignore_merges=True))
    split = pre_tokenizers.Split(Regex(LLAMA3_SPLIT), "isolated")
    raw.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    raw.decoder = decoders.ByteLevel()
    add_bos = learn(raw, [], LLAMA3_LAST[0], letters=pre_tokenizers.ByteLevel.alphabet())
    raw.post_processor = processors.Sequence([processors.ByteLevel(), add_bos])
    names = {"bos_token": LLAMA3_LAST[0], "eos_token": LLAMA3_LAST[-1], "tokenizer_class": "PreTrainedTokenizerFast"}
    write_tokenizer(folder, raw, LLAMA3_LAST, LLAMA3, **names)


# Models ------------------------------------------------------------------------------------------------------------

SHAPE: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
SHAPE |= {"num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 8192}


def settings_of(folder: Path, kind: str, rope_theta: float, **more: Any) -> Any:
    """Return the config of a tiny model that fits the tokenizer in `folder`."""
    from transformers import AutoConfig, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    rope = {"rope_type": "default", "rope_theta": rope_theta}
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    return AutoConfig.for_model(kind, **SHAPE, vocab_size=len(tokenizer), rope_parameters=rope, **ids | more)


def randomise(model: Any) -> Any:
    """Draw weights in bf16, as published; far from uniform, so that answers and scores differ."""
    import torch

    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=SPREAD)
    return model.to(torch.bfloat16)


def save_policy(folder: Path, settings: Any, stops: int | list[int], **generation: Any) -> None:
    from transformers import AutoModelForCausalLM, GenerationConfig

    model = randomise(AutoModelForCausalLM.from_config(settings))
    model.get_output_embeddings().weight.data[stops] *= 2  # so that a good part of the answers end by themselves
    model.generation_config = GenerationConfig(bos_token_id=settings.bos_token_id, eos_token_id=stops, **generation)
    model.save_pretrained(folder)


def build_mistral(folder: Path) -> None:
    """Spaces are part of tokens, every text gets one in front, and what is not in the vocabulary is spelt in bytes."""
    raw = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.decoder = decoders.Sequence([*SPELT, decoders.Strip(" ", 1, 0)])
    special = ["<unk>", "<s>", "</s>"]
    raw.post_processor = learn(raw, special + BYTES, "<s>", space="")
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": None}
    more = {"add_bos_token": True, "add_eos_token": False, "legacy": True, "tokenizer_class": "LlamaTokenizer"}
    write_tokenizer(folder, raw, special, MISTRAL, **names, **more)
    save_policy(folder, settings_of(folder, "mistral", 1e6, sliding_window=None), stops=2)


def build_gemma2(folder: Path) -> None:
    """The tokenizer is as Mistral's, without the space in front. Soft caps and the rest are the architecture's."""
    raw = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    raw.normalizer = normalizers.Replace(" ", "▁")
    raw.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    raw.decoder = decoders.Sequence(SPELT)
    raw.post_processor = learn(raw, GEMMA2_FIRST + BYTES, "<bos>", letters="\n" + PRINTABLE)
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>"}
    more = {"add_bos_token": True, "add_eos_token": False, "tokenizer_class": "GemmaTokenizer"}
    turns = ["<start_of_turn>", "<end_of_turn>"]
    special = [*GEMMA2_FIRST[:5], *turns]
    write_tokenizer(folder, raw, special, GEMMA2, additional_special_tokens=turns, **names, **more)
    settings = settings_of(folder, "gemma2", 1e4, sliding_window=16, query_pre_attn_scalar=8, pad_token_id=0)
    save_policy(folder, settings, stops=[1, 107], pad_token_id=0, cache_implementation="hybrid")


def build_llama3(folder: Path) -> None:
    write_llama3_tokenizer(folder)
    settings = settings_of(folder, "llama", 5e5)
    stops = [settings.bos_token_id + 1, settings.eos_token_id]
    save_policy(folder, settings, stops, do_sample=True, temperature=0.6, top_p=0.9)


# Rankers -----------------------------------------------------------------------------------------------------------

ENCODER_ID = "microsoft/deberta-v3-large"


def build_ranker(folder: Path) -> None:
    """Make a PairRM with its own limits, so that whole prompts and answers are compared."""
    build_pairrm(folder, folder.parents[1] / ENCODER_ID, LIMITS, SPREAD)


def build_armorm(folder: Path) -> None:
    """Make a gate at the end of the prompt over objectives at the end of the chat, in Python files of its own."""
    from src.ranking.reward_model import supply_missing_names

    supply_missing_names()
    from armorm_like import RewardsWithGate

    write_llama3_tokenizer(folder)
    settings = settings_of(folder, "llama", 5e5, num_objectives=19)
    settings.gate_token_id = settings.bos_token_id + LLAMA3_LAST.index("<|end_header_id|>")
    randomise(RewardsWithGate(settings)).save_pretrained(folder)
    shutil.copy(Path(__file__).with_name("armorm_like.py"), folder / "modeling_custom.py")
    raw = json.loads((folder / "config.json").read_text())
    raw["auto_map"] = {"AutoModelForSequenceClassification": "modeling_custom.RewardsWithGate"}
    (folder / "config.json").write_text(json.dumps(raw))


REPOSITORIES: dict[str, Callable[[Path], object]] = {
    "mistralai/Mistral-7B-Instruct-v0.2": build_mistral, "google/gemma-2-9b-it": build_gemma2,
    "meta-llama/Meta-Llama-3-8B-Instruct": build_llama3, "llm-blender/PairRM": build_ranker,
    "RLHFlow/ArmoRM-Llama3-8B-v0.1": build_armorm, ENCODER_ID: build_vocabulary,
    "snorkelai/Snorkel-Mistral-PairRM-DPO-Dataset": build_snorkel,
    "HuggingFaceH4/ultrafeedback_binarized": build_ultrafeedback,
}  # fmt: skip


def build_mirror(folder: Path, *repositories: str) -> str:
    """Write what is missing of the hub in `folder`: these repositories, or all. Returns the value of `mirror`."""
    for repository in repositories or REPOSITORIES:
        if not (folder / repository).exists():
            (folder / repository).mkdir(parents=True)
            REPOSITORIES[repository](folder / repository)
    return f"{folder}/"


if __name__ == "__main__":
    print(f"mirror={build_mirror(Path(sys.argv[1]))}")
