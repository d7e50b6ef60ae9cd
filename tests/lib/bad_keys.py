"""Mistakes in the keys and groups of a command's words."""

from __future__ import annotations

from bad_inputs import Bad

KEYS = [
    Bad(
        "a key that is misspelt",
        "method.etta=5",
        "method.etta: unknown key; did you mean method.eta? --cfg job shows all keys",
    ),
    Bad(
        "a key without what it is part of",
        "lr=1e-6",
        "lr: unknown key; did you mean train.lr? --cfg job shows all keys",
    ),
    Bad(
        "a group that is misspelt in a key",
        "tain.lr=1e-6",
        "tain.lr: unknown key; did you mean train.lr? --cfg job shows all keys",
    ),
    Bad("a key like no other", "pairing.estimator=score", "pairing.estimator: unknown key; --cfg job shows all keys"),
    Bad(
        "a key of a part that this choice does not have",
        "model=mistral_7b_instruct_v02 model.checkpoint.repo=models/mine",
        "model.checkpoint.repo: unknown key; did you mean model.repo? --cfg job shows all keys",
    ),
    Bad(
        "a key whose part is left out",
        "ranker=reward_model ranker.repo=models/mine",
        "ranker.repo: unknown key; did you mean ranker.checkpoint.repo? --cfg job shows all keys",
    ),
    Bad(
        "a folder for the model that comes with a package",
        "model.repo=models/mine",
        "model.repo: no key of this model; model=gemma2_9b_it, model=llama3_8b_instruct, model=mistral_7b_instruct_v02: these have it",
    ),
    Bad(
        "repo, misspelt",
        "model=mistral_7b_instruct_v02 model.rep=models/mine",
        "model.rep: unknown key; did you mean model.repo? --cfg job shows all keys",
    ),
    Bad(
        "a key of another choice of the group",
        "hardware.engine.attention=flash",
        "hardware.engine.attention: unknown key; --cfg job shows all keys",
    ),
    Bad("a key that nothing reads, added", "+foo=1", "foo: unknown key; --cfg job shows all keys"),
    Bad(
        "a key that nothing reads, added to a group",
        "+method.eat=3",
        "method.eat: unknown key; --cfg job shows all keys",
    ),
    Bad(
        "a key that nothing reads, added two groups down",
        "+train.lengths.max=1",
        "train.lengths.max: unknown key; --cfg job shows all keys",
    ),
    Bad(
        "a key that the chosen rule does not have",
        "+pairing.rule.gap=1",
        "pairing.rule.gap: unknown key; --cfg job shows all keys",
    ),
    Bad("a key taken out", "~train.lr", "train.lr: missing; give it a value"),
    Bad("a key without a value", "sampling.K=???", "sampling.K: missing; give it a value"),
    Bad(
        "a choice that there is not",
        "method=spo",
        "method: no file spo.yaml in conf/method; there are dpo, ipo, sppo, sppo_single, wpo, wpo_clamped",
    ),
    Bad(
        "a choice of another group",
        "estimator=sppo",
        "estimator: no file sppo.yaml in conf/estimator; there are pairwise, score, two_answers",
    ),
    Bad("a group without a choice", "model=null", "model=null: model wants the name of a file of conf/model"),
    Bad(
        "a group chosen twice",
        "+method=dpo",
        "method: chosen twice; say it once, and without + where config.yaml has the group",
    ),
    Bad(
        "a file of a group as a value",
        "train.lora=rank16",
        "train.lora: 'rank16' is no value of it; choose a file of conf/lora: +lora@train.lora=rank16",
    ),
    Bad(
        "a group that is not there by default, without +",
        "deepspeed@hardware.devices.deepspeed=zero2",
        "…To append to your default list use +deepspeed@hardware.devices.deepspeed=zero2",
    ),
    Bad(
        "a reference to no key",
        "'method.eta=${nope}'",
        "method.eta=${nope}: there is no key nope; --cfg job shows all keys",
    ),
    Bad(
        "a class that there is not",
        "method._target_=src.methods.sppo.Nope",
        "method: Error loading 'src.methods.sppo.Nope': …; mend method._target_: package.module.Class, as the files in conf have it",
    ),
]
