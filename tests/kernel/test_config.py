"""The config at the door: everything composes, and every mistake is one line.

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


@pytest.mark.full
@pytest.mark.parametrize(
    ("method", "model", "hardware"), list(product(options("method"), options("model"), options("hardware")))
)
def test_every_method_model_and_hardware_make_a_run(method: str, model: str, hardware: str) -> None:
    run = typed(f"method={method}", f"model={model}", f"hardware={hardware}")
    assert isinstance(run, Run)
    assert (run.method.name, run.model.name, run.hardware.name) == (method, model, hardware)


@pytest.mark.full
@pytest.mark.parametrize(("group", "option"), [(group, option) for group in GROUPS for option in options(group)])
def test_every_option_of_every_group_makes_a_run(group: str, option: str) -> None:
    assert isinstance(typed(*f"{PLACED.get(group, group)}={option}".split()), Run)


@pytest.mark.full
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


@pytest.mark.full
def test_the_real_command_ends_with_code_2_and_one_line_before_any_work(tmp_path: Path) -> None:
    done = command("method.eta=nan", *folders(tmp_path))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: method.eta: Input should be a finite number (got nan)\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.full
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
