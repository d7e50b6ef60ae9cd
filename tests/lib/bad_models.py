"""Mistakes in start policies: what is no whole checkpoint, and what cannot be trained here."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from bad_inputs import Bad, Fine, Given, Setting, Table
from spoiled_models import (
    Change,
    cut,
    holding,
    nan,
    narrowed,
    renamed,
    saying,
    several,
    short_of_a_shard,
    weighing,
    without,
)

ANSWERED = "iter=1 only=it1/responses"
"""Ends the run once the policy has answered the prompts of the first iteration."""
TRAINED = "iter=1 only=it1/policy"
CONVERT = "…/model has no safetensors file; convert it first: load it where nothing is to be lost and save_pretrained() it into a folder, then give that (pickles are refused: reading one runs what it says)"
BROUGHT = ("policy", "prompts")
MODELS_BROUGHT = ("policy", "policy", "prompts")
"""The ranker's too."""
HALF = "no JSON (Expecting property name enclosed in double quotes: line 1 column 2 (char 1)); fetch it again"
AGAIN = "is it whole?"


def spoiled(change: Change, key: str = "model.repo") -> Given:
    """The model that the key names is a copy of the tiny one with a mistake."""

    def given(setting: Setting) -> list[str]:
        folder = Path(shutil.copytree(setting.model, setting.at / "model"))
        change(folder)
        return [f"{key}={folder}"]

    return given


def bad(what: str, change: Change, told: str, made: tuple[str, ...] = (), words: str = ANSWERED) -> Bad:
    return Bad(what, words, told, 2, spoiled(change), made, "run")


def named(what: str, repo: str, told: str, code: int = 2) -> Bad:
    return Bad(what, f"{ANSWERED} model.repo={repo}", told, code, offline, verb="run")


def offline(setting: Setting) -> None:
    """As HF_HUB_OFFLINE=1 has it when the library is imported; rows must not wait for a network."""
    import huggingface_hub.constants

    setting.patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def unreachable(setting: Setting) -> list[str]:
    import huggingface_hub.constants

    setting.patch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    return ["model.repo=me/nope"]


def dropped(tensors: dict[str, Any]) -> None:
    del tensors["model.layers.1.mlp.down_proj.weight"]


NOT_WHOLE = [
    named(
        "a model that is not there, and no hub",
        "models/nope",
        "model.repo: models/nope is no local folder and cannot be fetched: Cannot find an appropriate cached snapshot folder for the specified revision on the local disk and outgoing traffic has been disabled; is there a network? A folder will do as well",
        3,
    ),
    Bad(
        "a hub that cannot be reached",
        ANSWERED,
        "model.repo: me/nope is no local folder and cannot be fetched: …Connection refused; is there a network? A folder will do as well",
        3,
        unreachable,
        verb="run",
    ),
    named(
        "a path to no folder",
        "/no/such/folder",
        "model.repo: /no/such/folder is no local folder and cannot be fetched: no hub id (owner/name) either; mend it",
    ),
    bad("no config.json", without("config.json"), "…/model: no config.json beside the weights; bring the whole model"),
    bad("no weights", without("*.safetensors"), f"model.repo: {CONVERT}"),
    bad("a pickle of weights", renamed("pytorch_model.bin"), f"model.repo: {CONVERT}"),
    bad("weights that are still being fetched", renamed("model.safetensors.incomplete"), f"model.repo: {CONVERT}"),
    bad("a GGUF", several(without("*"), holding("model.Q4_1.gguf", "GGUF")), f"model.repo: {CONVERT}"),
    bad(
        "a shard that is not there",
        short_of_a_shard,
        "…/model.safetensors.index.json: names model-00002-of-00004.safetensors, which is not there; fetch it again",
    ),
    bad("weights that are cut off", cut, "…/model.safetensors: … bytes, and its head names …; fetch it again"),
    bad(
        "weights of no bytes",
        holding("model.safetensors", ""),
        "…/model.safetensors: no safetensors file, or one that is cut off in its head; fetch it again",
    ),
    bad("a config.json that is cut off", holding("config.json", "{"), f"…/config.json: {HALF}"),
    bad(
        "a config.json that is a list",
        holding("config.json", "[]"),
        "…/config.json: a list, not a JSON object; fetch it again",
    ),
    bad("a tokenizer that is cut off", holding("tokenizer.json", "{"), f"…/tokenizer.json: {HALF}"),
    bad(
        "a generation config that is cut off",
        holding("generation_config.json", "{"),
        f"…/generation_config.json: {HALF}",
    ),
    bad(
        "an adapter in place of a model",
        several(without("config.json"), renamed("adapter_model.safetensors"), holding("adapter_config.json", "{}")),
        "model.repo: …/model has an adapter_config.json: additions to another model; merge them into it first",
    ),
    bad(
        "a weight that is not there",
        weighing(dropped),
        "…/model: its files lack 1 of the model's weights, such as model.layers.1.mlp.down_proj.weight; is it whole?",
        BROUGHT,
    ),
    bad(
        "weights of other sizes than config.json has",
        saying(hidden_size=64),
        "…/model: config.json names other sizes than the weights have; are they of one model?",
        BROUGHT,
    ),
    bad(
        "a weight that is no number",
        nan("model.norm.weight"),
        "generate: the policy gives NaN or infinity for prompt …; try hardware.engine.dtype=float32, or look at what trained it; what was read is in …/not_finite/rows.parquet",
        BROUGHT,
    )._replace(begun=("responses",)),
]
TOKENS = [
    bad(
        "no tokenizer",
        without("tokenizer*"),
        "…/model: no tokenizer that can be loaded: none in it; bring its tokenizer.json too",
        BROUGHT,
    ),
    bad(
        "a tokenizer with more tokens than the model has",
        narrowed,
        "…/model: its tokenizer has the token …, its model only 300; are they of one model?",
        BROUGHT,
    ),
    bad(
        "a tokenizer of another model, no larger",
        saying("generation_config.json", eos_token_id=299),
        "…/model: answers end at token 299, which is none of the special or added ones of its tokenizer; are they of one model?",
        BROUGHT,
    ),
    bad(
        "no chat template",
        without("chat_template.jinja"),
        "…/model: the tokenizer has no chat template; add chat_template.jinja",
        BROUGHT,
    ),
    bad(
        "a chat template that is no Jinja",
        holding("chat_template.jinja", "{% for m in messages %}{{ m['content'] }"),
        "…/model: its chat template cannot be read: unexpected '}' in line 1; mend it",
        BROUGHT,
    ),
    bad(
        "a chat template that fails",
        holding("chat_template.jinja", "{% for m in messages %}{{ m['content'] + 1 }}{% endfor %}"),
        '…/model: its chat template refuses user: can only concatenate str (not "int") to str; mend the prompt, or name a model whose template takes it',
        BROUGHT,
    ),
    bad(
        "a chat template that leaves out the chat",
        holding("chat_template.jinja", "hello"),
        "…/model: its chat template leaves out what the user says; mend chat_template.jinja",
        BROUGHT,
    ),
    bad(
        "no token that ends an answer",
        saying("generation_config.json", eos_token_id=None),
        "…/model: generation_config.json names no eos_token_id; add the id that ends an answer",
        BROUGHT,
    ),
    bad(
        "a token that ends an answer, which the model does not have",
        saying("generation_config.json", eos_token_id=100_000),
        "…/model: generation_config.json has the token 100000, its model only …; are they of one model?",
        BROUGHT,
    ),
]
KINDS = [
    bad(
        "an architecture that nobody knows",
        saying(model_type="lama", architectures=["LamaForCausalLM"]),
        f"…/model: no model that can be loaded: The checkpoint you are trying to load has model type `lama` but Transformers does not recognize this architecture. …{AGAIN}",
        BROUGHT,
    ),
    bad(
        "an architecture that cannot be trained here",
        saying(model_type="gpt2", architectures=["GPT2LMHeadModel"]),
        "model: gpt2 is not supported; supported: llama, mistral, gemma2",
        MODELS_BROUGHT,
        TRAINED,
    ),
    bad(
        "a model that runs Python files of its own",
        saying(model_type="mine", auto_map={"AutoConfig": "mine.C", "AutoModelForCausalLM": "mine.M"}),
        f"…/model: no model that can be loaded: The repository …/model contains custom code …{AGAIN}",
        BROUGHT,
    ),
    bad(
        "dropout of attention",
        saying(attention_dropout=0.1),
        "model: config.json asks for attention dropout; set attention_dropout to 0",
        MODELS_BROUGHT,
        TRAINED,
    ),
    bad(
        "positions that depend on a neighbour",
        saying(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}),
        "model: config.json asks for dynamic rotary embeddings, which packed rows cannot have; name another model",
        MODELS_BROUGHT,
        TRAINED,
    ),
]
FINE = (
    Fine(
        "a tokenizer without a padding token",
        "nothing is padded",
        words=ANSWERED,
        given=spoiled(saying("tokenizer_config.json", pad_token=None)),
    ),
    Fine(
        "pairs that are no multiple of `train.batch_pairs`",
        "the last step of an epoch takes what is left, and the loss is the mean over its own pairs",
        words=f"{TRAINED} train.batch_pairs=3",
    ),
    Fine(
        "no generation config",
        "config.json says what ends an answer",
        words=ANSWERED,
        given=spoiled(without("generation_config.json")),
    ),
    Fine(
        "weights in another precision than asked for",
        "they are converted: `hardware.engine.dtype` and `hardware.devices.precision` say to what",
        words=ANSWERED,
        given=spoiled(weighing(lambda tensors: tensors.update({name: t.half() for name, t in tensors.items()}))),
    ),
)
MODELS = Table(
    "Start policies",
    "The tiny run with `model=mistral_7b_instruct_v02` and `model.repo` a folder with the mistake. What has to do with files is found before the folder is copied; the rest before anything is sampled but for weights. Not seen: a tokenizer of another model of no more tokens whose marks stand at the same ids.",
    [*NOT_WHOLE, *TOKENS, *KINDS],
    FINE,
)
