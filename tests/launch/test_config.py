"""The config at the door: everything composes, and every mistake is one line.

Golden file: `make golden` rewrites tests/golden/config.yaml; review its diff like code.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf
from tiny_run import ROOT, call, composed, folders, typed

from src.experiment.run import Run
from src.launch.compose import build
from src.launch.verbs import VERBS

GOLDEN = ROOT / "tests" / "golden" / "config.yaml"
GROUPS = sorted(path.name for path in (ROOT / "conf").iterdir() if path.is_dir() and path.name != "hydra")


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (ROOT / "conf" / group).glob("*.yaml"))


def test_every_method_model_and_hardware_makes_a_run() -> None:
    for group in ("method", "model", "hardware"):
        for option in options(group):
            assert getattr(typed(f"{group}={option}"), group).name == option


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_every_option_of_every_group_makes_a_run() -> None:
    for group in GROUPS:
        for option in options(group):
            assert isinstance(typed(*f"{PLACED.get(group, group)}={option}".split()), Run), (group, option)


PLACED = {
    "answers": "+answers@data.answers.x",
    "slurm": "launcher=slurm slurm@launcher.site",
    "sweep": "+sweep",
    "deepspeed": "+deepspeed@hardware.devices.deepspeed",
    "engine": "engine@hardware.engine",
    "lora": "+lora@train.lora",
    "ranker": "hardware=1xa100_80gb ranker",
    "ranking": "hardware=1xa100_80gb +ranking",
    "size": "experiment=gemma2_9b_it_wpo_hb +size",
    "variant": "experiment=gemma2_9b_it_wpo_hb +variant",
}
"""Groups that are not there by default or not at the top, and where they go; rankers in half precision need a GPU."""


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
    assert "src.experiment.run" in imported, "the list of imports is not what this test thinks it is"
    assert not imported & {"torch", "transformers", "datasets", "matplotlib", "wandb", "scipy"}
    assert list(tmp_path.iterdir()) == []


def test_help_names_the_verbs_and_every_group(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--help") == 0
    shown = capsys.readouterr().out
    assert all(f" {verb} " in shown for verb in VERBS)
    assert all(f"{group}: " in shown for group in GROUPS)


def test_a_sweep_with_a_bad_point_is_refused_before_its_first_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for overrides, key in ((["iter=1,0"], "iter"), (["name=mine", "method.eta=1,2"], "name"), (["iter=1,2"], "name")):
        assert call("--multirun", *folders(tmp_path), *overrides) == 2
        assert capsys.readouterr().err.startswith(f"error: {key}: ")
        assert list(tmp_path.iterdir()) == []


def test_every_key_has_a_comment() -> None:
    """Unit, source or meaning; but for classes, labels, measured rates and what Hydra reads."""
    bare = []
    for path in sorted((ROOT / "conf").rglob("*.yaml")):
        text = path.read_text().split("\nhydra:")[0].split("\nseconds_per_unit:")[0]
        keys = [line for line in text.splitlines() if re.match(r" *[\w]+: *[^ #]", line) and "#" not in line]
        bare += [(path.name, key) for key in keys if key.split(":")[0].strip() not in ("_target_", "name")]
    assert bare == []


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
