"""Mistakes in the words of a command: types, ranges, contradictions, what is not there."""

from __future__ import annotations

from bad_inputs import Bad, Given, Table
from bad_keys import KEYS

from src.compose import OPTIONS

WORDS = [
    Bad("a verb behind the words", "iter=1 plan", "plan: a verb stands first: python -m src.main plan ..."),
    Bad(
        "a verb that is misspelt",
        "comprae",
        "comprae: neither key=value (without spaces around =) nor a verb; did you mean compare?",
    ),
    Bad(
        "a word that is nothing",
        "help",
        "help: neither key=value (without spaces around =) nor a verb; the verbs are plan, parity, status, …",
    ),
    Bad("an option that there is not", "--bogus", f"unrecognized arguments: --bogus; {OPTIONS}"),
    Bad("an option of another verb", "--yes", f"unrecognized arguments: --yes; {OPTIONS}"),
    Bad("two equal signs", "method.eta==", "method.eta==: Hydra cannot read this value; quote it"),
    Bad("a list that does not end", "'method.eta=[1'", "method.eta=[1: Hydra cannot read this value; quote it"),
    Bad(
        "several values without -m",
        "method.eta=1,2",
        "method.eta=1,2: several values are a sweep, which wants -m, or a list: key=[1,2], or a text: \"key='a,b'\"",
    ),
    Bad("a sweep without -m", "+sweep=eta", "+sweep=eta: a sweep wants -m too"),
    Bad(
        "a sweep with a bad point",
        "-m iter=1,0",
        "iter: 0 trains nothing; choose what to do with the start policy, such as benchmark=ifeval",
    ),
    Bad(
        "a sweep whose points share a folder",
        "-m name=mine method.eta=1,2",
        "name: points of the sweep share the run folder …; leave it null or sweep it too",
    ),
    Bad("a share without what it is a share of", "part=1/2", "part: says a share of what `only` names; give both"),
    Bad(
        "an artifact that no run has",
        "only=it1/nonsense",
        "only: no artifact is called it1/nonsense; there are held_out/prompts, base/policy, it1/prompts, …",
    ),
]
TYPES = [
    Bad("a word for a number", "method.eta=abc", "method.eta: Input should be a valid number (got 'abc')"),
    Bad(
        "a number in quotes",
        "'sampling.temperature=\"0.7\"'",
        "sampling.temperature: Input should be a valid number (got '0.7')",
    ),
    Bad("true for a number", "method.eta=true", "method.eta: Input should be a valid number (got True)"),
    Bad("null for a number", "method.eta=null", "method.eta: Input should be a valid number (got None)"),
    Bad("a fraction for a count", "sampling.K=2.5", "sampling.K: Input should be a valid integer (got 2.5)"),
    Bad("true for a count", "sampling.K=true", "sampling.K: Input should be a valid integer (got True)"),
    Bad("1 for true", "estimator.include_self=1", "estimator.include_self: Input should be a valid boolean (got 1)"),
    Bad(
        "null for true or false",
        "pairing.filters.drop_identical=null",
        "pairing.filters.drop_identical: Input should be a valid boolean (got None)",
    ),
    Bad(
        "null for a group",
        "train.lengths=null",
        "train.lengths: wants the keys of a Lengths, as the files in conf have them (got None)",
    ),
    Bad(
        "an empty list",
        "'data.parts=[]'",
        "data.parts: Tuple should have at least 1 item after validation, not 0 (got [])",
    ),
    Bad("a number that is none", "method.eta=nan", "method.eta: Input should be a finite number (got nan)"),
    Bad("infinity", "train.lr=inf", "train.lr: Input should be a finite number (got inf)"),
]
RANGES = [
    Bad("eta of 0", "method.eta=0", "method.eta: Input should be greater than 0 (got 0)"),
    Bad("a negative eta", "method.eta=-1", "method.eta: Input should be greater than 0 (got -1)"),
    Bad("a rate of 0", "train.lr=0", "train.lr: Input should be greater than 0 (got 0)"),
    Bad(
        "a temperature of the estimator of 0",
        "estimator.tau=0",
        "estimator.tau: Input should be greater than 0 (got 0)",
    ),
    Bad(
        "a nucleus of more than all",
        "sampling.top_p=1.01",
        "sampling.top_p: Input should be less than or equal to 1 (got 1.01)",
    ),
    Bad("a negative seed", "seed=-1", "seed: Input should be greater than or equal to 0 (got -1)"),
    Bad("a seed beyond numpy's", "seed=4294967296", "seed: Input should be less than 4294967296 (got 4294967296)"),
    Bad("certainty", "held_out.confidence=1.0", "held_out.confidence: Input should be less than 1 (got 1.0)"),
    Bad(
        "a margin beyond all probabilities",
        "pairing.filters.min_margin=1.5",
        "pairing.filters.min_margin: Input should be less than or equal to 1 (got 1.5)",
    ),
    Bad(
        "a negative gap of lengths",
        "pairing.filters.max_length_gap=-1",
        "pairing.filters.max_length_gap: Input should be greater than or equal to 0 (got -1)",
    ),
    Bad(
        "no iteration",
        "iter=0",
        "iter: 0 trains nothing; choose what to do with the start policy, such as benchmark=ifeval",
    ),
    Bad("a name that is a path", "name=a/b", "name: String should match pattern '^\\w[\\w.-]*$' (got 'a/b')"),
    Bad("a name that is hidden", "name=.hidden", "name: String should match pattern '^\\w[\\w.-]*$' (got '.hidden')"),
    Bad(
        "a device that there is not",
        "hardware.engine.device=tpu",
        "hardware.engine.device: Input should be 'cpu' or 'cuda' (got 'tpu')",
    ),
    Bad(
        "a precision that there is not",
        "ranker.precision=fp8",
        "ranker.precision: Input should be 'float32' or 'bfloat16' (got 'fp8')",
    ),
    Bad(
        "a schedule that there is not",
        "train.schedule=step",
        "train.schedule: Input should be 'linear' or 'cosine' (got 'step')",
    ),
    Bad(
        "an estimator that there is not",
        "estimator.kind=elo",
        "estimator.kind: Input should be 'pairwise' or 'score' (got 'elo')",
    ),
    Bad(
        "a LoRA of rank 0",
        "+lora@train.lora=rank16 train.lora.rank=0",
        "train.lora.rank: Input should be greater than 0 (got 0)",
    ),
    Bad(
        "a range upside down",
        "'ranker.pmi_range=[25.0,-5.0]'",
        "ranker: pmi_range: [25.0, -5.0] is no range; the lower bound comes first",
    ),
]
TOGETHER = [
    Bad("one answer a prompt", "sampling.K=1", "sampling.K: 1 answer cannot make a pair; at least 2"),
    Bad(
        "pairing by scores under a ranker that only compares",
        "pairing=wpo_v1 ranker=pairrm",
        "pairing: wpo_v1 reads scores, and this ranker only compares answers; choose pairing=wpo_v2, or a ranker that scores each answer (ranker=llm_judge_points)",
    ),
    Bad(
        "prompts as long as prompt and answer may be",
        "train.lengths.max_prompt=384",
        "train.lengths: max_prompt 384 leaves no room for an answer in max_total 384",
    ),
    Bad("a schedule shorter than the epochs", "train.epochs=2", "train: schedule_epochs 1 is shorter than epochs 2"),
    Bad(
        "more prompts for the divergence than held out",
        "held_out.divergence_prompts=129",
        "held_out.divergence_prompts: 129 of the 128 data.held_out_prompts cannot be taken; lower it",
    ),
    Bad(
        "several devices without DeepSpeed",
        "hardware.devices.count=2",
        "hardware.devices: count 2: several devices need +deepspeed@hardware.devices.deepspeed=zero2 or zero3",
    ),
    Bad(
        "devices that the machines cannot share",
        "hardware=2x8xh100_80gb hardware.devices.count=9",
        "hardware.devices: count 9 is no multiple of nodes 2",
    ),
    Bad(
        "weights kept off the GPUs that ZeRO-2 does not split",
        "hardware=8xa100_80gb deepspeed@hardware.devices.deepspeed=zero2 hardware.devices.deepspeed.offload_weights=true",
        "hardware.devices.deepspeed: offload_weights needs stage 3",
    ),
    Bad(
        "a stage of ZeRO that there is not",
        "hardware=8xa100_80gb hardware.devices.deepspeed.stage=4",
        "hardware.devices.deepspeed.stage: Input should be 2 or 3 (got 4)",
    ),
    Bad(
        "FlexAttention on CPUs",
        "hardware.devices.attention=flex",
        "hardware.devices: attention flex: FlexAttention has no backward pass on CPUs; choose segments",
    ),
    Bad(
        "a step that takes all pairs",
        "train.batch_pairs=8",
        "train: at most … pairs are one step, and a warm-up begins at rate 0: nothing would be learned; lower "
        "train.batch_pairs, bring more prompts, or set train.warmup=0",
        verb="run",
    ),
]
NOT_THERE = [
    Bad("prompts that are not there", "'data.parts=[nope.jsonl]'", "data.parts: no file nope.jsonl"),
    Bad(
        "held-out prompts that are not there", "data.held_out_file=nope.jsonl", "data.held_out_file: no file nope.jsonl"
    ),
    Bad(
        "more prompts than the file has",
        "data.prompts_per_iteration=1121",
        "data.prompts_per_iteration: src/data/embedded/part1.jsonl has 1,120 prompts, 1 to 1,121 are asked for; lower it",
    ),
    Bad(
        "more iterations than there are prompts for",
        "iter=900",
        "data.prompts_per_iteration: src/data/embedded/part1.jsonl has 1,120 prompts, 1,089 to 1,152 are asked for; lower it",
    ),
    Bad(
        "more held-out prompts than the file has",
        "data.held_out_prompts=481",
        "data.held_out_prompts: src/data/embedded/held_out.jsonl has 480 prompts, 1 to 481 are asked for; lower it",
    ),
    Bad(
        "a package that is not installed",
        "model.package=nope",
        "model.package: no package nope is installed; mend the name, or `make install` where it is right",
    ),
]
GPUS = "hardware=8xa100_80gb engine@hardware.engine=transformers ranker.precision=float32 iter=1"


def present(count: int) -> Given:
    """So many CUDA devices, as torch counts them."""
    return lambda setting: setting.patch.setattr("torch.cuda.device_count", lambda: count)


MACHINE = [
    Bad(
        "GPUs, where there are none",
        GPUS,
        "hardware: a CUDA device is asked for, none is present; try hardware=cpu",
        given=present(0),
        verb="run",
    ),
    Bad(
        "more GPUs than the machine has, for answers",
        GPUS,
        "hardware.generation.workers: 8 a node, but 4 CUDA devices are visible; lower it, or choose the hardware of this machine",
        given=present(4),
        verb="run",
    ),
    Bad(
        "more GPUs than the machine has, for training",
        f"{GPUS} hardware.generation.workers=4",
        "hardware.devices.count: 8 a node, but 4 CUDA devices are visible; lower it, or choose the hardware of this machine",
        given=present(4),
        verb="run",
    ),
]
CONFIGS = Table(
    "The command and its config",
    "Behind `python -m src.main plan`. Types and ranges are those of the classes that the config builds.",
    [*KEYS, *WORDS, *TYPES, *RANGES, *TOGETHER, *NOT_THERE, *MACHINE],
)
