"""The config at the door: everything composes, and every mistake is one line.

Run: python -m pytest -q tests/test_config.py
Golden file: `make golden` rewrites tests/golden/config.yaml; review its diff like code.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf
from tiny_run import ROOT, call, composed, folders, typed

from src.main import VERBS, build
from src.pairing.filters import Filters
from src.pairing.rules import BestWorst
from src.pipeline import Run

GOLDEN = ROOT / "tests" / "golden" / "config.yaml"
GROUPS = sorted(path.name for path in (ROOT / "conf").iterdir() if path.is_dir() and path.name != "hydra")


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (ROOT / "conf" / group).glob("*.yaml"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "model", "hardware"), list(product(options("method"), options("model"), options("hardware")))
)
def test_every_method_model_and_hardware_make_a_run(method: str, model: str, hardware: str) -> None:
    run = typed(f"method={method}", f"model={model}", f"hardware={hardware}")
    assert isinstance(run, Run)
    assert (run.method.name, run.model.name, run.hardware.name) == (method, model, hardware)


@pytest.mark.slow
@pytest.mark.parametrize(("group", "option"), [(group, option) for group in GROUPS for option in options(group)])
def test_every_option_of_every_group_makes_a_run(group: str, option: str) -> None:
    assert isinstance(typed(*f"{PLACED.get(group, group)}={option}".split()), Run)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "ranker", "kind", "drop_identical"),
    [("paper", "pairrm", "pairwise", True), ("code", "pairrm_code", "score", False)],
)
def test_a_preset_sets_ranker_estimator_and_pairing_and_any_of_them_can_be_overridden(
    preset: str, ranker: str, kind: str, drop_identical: bool
) -> None:
    run = typed(f"+ranking={preset}")
    assert (run.ranker.name, run.estimator.kind, run.estimator.tau) == (ranker, kind, 1)
    assert isinstance(run.pairing.rule, BestWorst)
    assert run.pairing.filters == Filters(drop_identical=drop_identical, min_margin=None, max_length_gap=None)
    assert typed(f"+ranking={preset}", "ranker=embedded").ranker.name == "embedded"
    assert typed(f"+ranking={preset}", "estimator=two_answers").estimator.opponents == "pair"
    assert typed(f"+ranking={preset}", "pairing.filters.drop_identical=true").pairing.filters.drop_identical


PLACED = {
    "answers": "+answers@data.answers.x",
    "slurm": "launcher=slurm slurm@launcher.site",
    "sweep": "+sweep",
    "deepspeed": "+deepspeed@hardware.devices.deepspeed",
    "engine": "engine@hardware.engine",
    "lora": "+lora@train.lora",
    "ranking": "+ranking",
    "size": "experiment=gemma2_9b_it_wpo_hb +size",
    "variant": "experiment=gemma2_9b_it_wpo_hb +variant",
}
"""Groups that are not there by default or not at the top, and where they go."""

BAD = [
    # (overrides, what the line names)
    ("method.eat=3", "method.eat"),
    ("+method.eat=3", "method.eat: unknown key"),
    ("+foo=1", "foo: unknown key"),
    ("+train.lengths.max=1", "train.lengths.max: unknown key"),
    ("method=nope", "method/nope"),
    ("tracking=nope", "tracking/nope"),
    ("~train.lr", "train.lr: missing"),
    ("sampling.K=???", "sampling.K: missing"),
    ("method.eta=abc", "method.eta: "),
    ('sampling.temperature="0.7"', "sampling.temperature: "),
    ("method.eta=true", "method.eta: "),
    ("method.eta=null", "method.eta: "),
    ("method.eta=nan", "method.eta: "),
    ("method.eta=inf", "method.eta: "),
    ("method.eta=-1", "method.eta: "),
    ("sampling.K=2.5", "sampling.K: "),
    ("sampling.K=true", "sampling.K: "),
    ("sampling.top_p=1.01", "sampling.top_p: "),
    ("iter=0", "iter: "),
    ("seed=-1", "seed: "),
    ("seed=4294967296", "seed: "),  # numpy's limit
    ("name=a/b", "name: "),
    ("name=.hidden", "name: "),
    ("model.name=a/b", "model.name: "),
    ("held_out.confidence=1.0", "held_out.confidence: "),
    ("held_out.confidence=0.0", "held_out.confidence: "),
    ("hardware.engine.device=tpu", "hardware.engine.device: "),
    ("hardware.devices.device=tpu", "device: "),  # the ranker follows it
    ("hardware.engine.attention=flash", "hardware.engine.attention: "),
    ("train.schedule=step", "train.schedule: "),
    ("ranker.precision=fp8", "ranker.precision: "),
    ("estimator.kind=elo", "estimator.kind: "),
    ("estimator.opponents=some", "estimator.opponents: "),
    ("estimator.include_self=1", "estimator.include_self: "),
    ("estimator.tau=0", "estimator.tau: "),
    ("estimator=nope", "Could not find 'estimator/nope'; there are pairwise, score, two_answers"),
    ("pairing.estimator=score", "pairing.estimator: unknown key"),
    ("pairing.filters.min_margin=1.5", "pairing.filters.min_margin: "),
    ("pairing.filters.max_length_gap=-1", "pairing.filters.max_length_gap: "),
    ("pairing.filters.drop_identical=null", "pairing.filters.drop_identical: "),
    ("+pairing.rule.gap=1", "pairing.rule.gap: unknown key"),
    ("pairing=wpo_v1 pairing.rule.gap=0", "pairing.rule.gap: "),
    ("data.parts=[]", "data.parts: "),
    ("train.lengths=null", "train.lengths: "),
    ("ranker.frozen_model=null", "ranker.frozen_model: "),
    ("method._target_=src.methods.sppo.Nope", "method: "),
    ("method.eta=${nope}", "nope"),
    ("method.eta==", "method.eta=="),
    # impossible together
    ("sampling.K=1", "sampling.K: "),
    ("pairing=wpo_v1 ranker=pairrm", "pairing: wpo_v1 reads scores, and this ranker only compares answers; choose"),
    ("held_out.divergence_prompts=129", "held_out.divergence_prompts: 129"),
    ("hardware.devices.attention=flex", "hardware.devices: attention flex: FlexAttention has no backward"),
    (
        "hardware.devices.count=2",
        "hardware.devices: count 2: several devices need +deepspeed@hardware.devices.deepspeed=zero2",
    ),
    ("hardware=2x8xh100_80gb hardware.devices.count=9", "hardware.devices: count 9 is no multiple of nodes 2"),
    ("hardware=8xa100_80gb hardware.devices.deepspeed.stage=4", "hardware.devices.deepspeed.stage: "),
    (
        "hardware=8xa100_80gb deepspeed@hardware.devices.deepspeed=zero2 "
        "hardware.devices.deepspeed.offload_weights=true",
        "hardware.devices.deepspeed: offload_weights needs stage 3",
    ),
    ("+lora@train.lora=rank16 train.lora.rank=0", "train.lora.rank: "),
    ("ranker.pmi_range=[25.0,-5.0]", "ranker: pmi_range: [25.0, -5.0]"),
    ("train.lengths.max_prompt=384", "train.lengths: max_prompt 384"),  # max_total is 384
    ("train.epochs=2", "train: schedule_epochs 1"),
    # not there
    ("data.parts=[nope.jsonl]", "data.parts: no file nope.jsonl"),
    ("data.held_out_file=nope.jsonl", "data.held_out_file: no file nope.jsonl"),
    ("data.prompts_per_iteration=1121", "data.prompts_per_iteration: "),
    ("iter=900", "data.prompts_per_iteration: "),  # 300 turns of 64 prompts
    ("data.held_out_prompts=481", "data.held_out_prompts: "),
    ("model.package=nope", "the package nope"),
    ("ranker.embedding_package=nope", "the package nope"),
    # not words of this command
    ("method=spo", "Could not find 'method/spo'; there are dpo, ipo, sppo, sppo_single, wpo"),
    ("method.etta=5", "method.etta: unknown key; --cfg job shows all keys"),
    (
        "train.lora=rank16",
        "train.lora: 'rank16' is no value of it; choose a file of conf/lora: +lora@train.lora=rank16",
    ),
    (
        "deepspeed@hardware.devices.deepspeed=zero2",
        "To append to your default list use +deepspeed@hardware.devices.deepspeed=zero2",
    ),
    ("status", "status: a verb stands first: python -m src.main status ..."),
    ("comprae", "comprae: neither key=value (without spaces around =) nor a verb; did you mean compare?"),
    ("help", "help: neither key=value (without spaces around =) nor a verb; the verbs are plan, parity, status, "),
    ("method.eta=1,2", "method.eta=1,2: several values are a sweep, which wants -m, or a list: key=[1,2], or a text"),
    ("method.eta=[1", "method.eta=[1: Hydra cannot read this value"),
    ("--bogus", "--bogus"),
    ("--yes", "--yes"),
    ("iter=1 plan", "plan"),
    ("model=null", "model"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("overrides", "named"), BAD)
def test_a_mistake_is_one_line_that_names_the_key(
    overrides: str, named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("plan", *folders(tmp_path), *overrides.split()) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: ")
    assert shown.err.count("\n") == 1
    assert named in shown.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [["plan", "iter=0"], ["compare", "runs=nowhere"]])
def test_debug_shows_where_the_mistake_was_found(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = folders(tmp_path) if words[0] == "plan" else []
    assert call(*words, *places, "debug=true") == 2
    error = capsys.readouterr().err
    assert "Traceback" in error
    assert error.splitlines()[-1].startswith(f"error: {words[1].partition('=')[0]}: ")


def command(*words: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """The real command in a process of its own."""
    words = (sys.executable, *options, "-m", "src.main", *words)
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_the_real_command_ends_with_code_2_and_one_line_before_any_work(tmp_path: Path) -> None:
    done = command("method.eta=nan", *folders(tmp_path))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: method.eta: Input should be a finite number (got nan)\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_planning_never_imports_torch(tmp_path: Path) -> None:
    done = command("plan", *folders(tmp_path), options=("-X", "importtime"))
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert done.returncode == 0
    assert "src.pipeline" in imported, "the list of imports is not what this test thinks it is"
    assert not imported & {"torch", "transformers", "datasets", "matplotlib", "wandb", "scipy"}
    assert list(tmp_path.iterdir()) == []


def test_help_names_the_verbs_and_every_group(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--help") == 0
    shown = capsys.readouterr().out
    assert all(f" {verb} " in shown for verb in VERBS)
    assert all(f"{group}: " in shown for group in GROUPS)


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["iter=1,0"], "iter: "),
        (["name=mine", "method.eta=1,2"], "name: points of the sweep share the run folder"),
        (["iter=1,2"], "name: points of the sweep share the run folder"),
    ],
)
def test_a_sweep_with_a_bad_point_is_refused_before_its_first_one(
    overrides: list[str], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("--multirun", *folders(tmp_path), *overrides) == 2
    assert capsys.readouterr().err.startswith(f"error: {named}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", sorted((ROOT / "conf").rglob("*.yaml")), ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_every_key_has_a_comment(path: Path) -> None:
    """Unit, source or meaning; but for classes, labels, measured rates and what Hydra reads."""
    text = path.read_text().split("\nhydra:")[0].split("\nseconds_per_unit:")[0]
    bare = [line for line in text.splitlines() if re.match(r" *[\w]+: *[^ #]", line) and "#" not in line]
    assert [line for line in bare if line.split(":")[0].strip() not in ("_target_", "name")] == []


def test_cfg_job_prints_a_config_that_makes_the_same_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--cfg", "job", "method.eta=7.0") == 0
    printed = OmegaConf.create(capsys.readouterr().out)
    assert isinstance(printed, DictConfig)
    assert printed.method.eta == 7.0
    assert build(printed) == typed("method.eta=7.0")


def test_the_composed_config_is_the_golden_one() -> None:
    text = OmegaConf.to_yaml(composed(), resolve=True)
    if os.environ.get("GOLDEN"):
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text(), "the default config has changed; if you meant it: make golden, and review"
