"""The config at the door: everything composes, grids speak Hydra's language, and every mistake is one line.

Golden file: `make golden` rewrites tests/golden/config.yaml; review its diff like code.
"""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from quick_compose import hydras_own
from tiny_run import ROOT, call, composed, folders, points_of, typed

from src.experiment.run import Run
from src.kernel.config import UserError
from src.launch.compose import PLACES, build
from src.launch.verbs import VERBS, carry_out

Capture = pytest.CaptureFixture[str]
GOLDEN = ROOT / "tests" / "golden" / "config.yaml"
GROUPS = sorted(path.name for path in (ROOT / "conf").iterdir() if path.is_dir())
PLACED = {name: place.replace("<name>", "x") for name, place in PLACES.items()} | {
    **{"slurm": "launcher=slurm slurm@launcher.site", "sweep": "+sweep"},
    **{"ranker": "hardware=1xa100_80gb ranker", "ranking": "hardware=1xa100_80gb +ranking"},
    "size": "experiment=gemma2_9b_it_wpo_hb +size",
    "template": "model=mistral_7b_instruct_v02 model.chat_template=x +template",
    "variant": "experiment=gemma2_9b_it_wpo_hb +variant",
}
"""Groups that are not there by default or not at the top, and where they go; rankers in half precision need a GPU."""
QUICK = ("method", "model", "hardware")


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "group", [pytest.param(group, marks=[] if group in QUICK else pytest.mark.full) for group in GROUPS]
)
def test_every_choice_of_every_group_makes_a_run(group: str) -> None:
    for choice in sorted(path.stem for path in (ROOT / "conf" / group).glob("*.yaml")):
        assert isinstance(typed(*f"{PLACED.get(group, group)}={choice}".split()), Run), choice


def test_every_key_has_a_comment() -> None:
    """It says unit, source or meaning. Classes, labels, measured rates and what Hydra reads need none."""
    bare = []
    for path in sorted((ROOT / "conf").rglob("*.yaml")):
        text = path.read_text().split("\nhydra:")[0].split("\nseconds_per_unit:")[0]
        keys = [line for line in text.splitlines() if re.match(r" *[\w]+: *[^ #]", line) and "#" not in line]
        bare += [(path.name, key) for key in keys if key.split(":")[0].strip() not in ("_target_", "name")]
    assert bare == []


def test_the_composed_config_is_the_golden_one() -> None:
    text = OmegaConf.to_yaml(composed(), resolve=True)
    if os.environ.get("GOLDEN"):
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text(), "the default config has changed; if you meant it: make golden, and review"


def test_tests_compose_quickly_what_hydra_composes() -> None:
    """Twice, so that the second takes what the first has chosen; what is done to a config stays in it."""

    def seen(words: tuple[str, ...]) -> str:
        try:
            cfg = composed(*words)
        except HydraException as mistake:
            return str(mistake)
        text, cfg.method.name = OmegaConf.to_yaml(cfg), "changed"
        return text

    commands = [(), ("seed=1",), ("method=wpo",), ("method=wpo", "seed=1"), ("+variant=card",), ("~method.eta",)]
    commands += [("method=spo",), ("+method.eta=1",), ("ranker=pairrm", "+engine@hardware.engine=vllm")]
    quick = [seen(words) for words in commands * 2]
    with hydras_own():
        assert quick == [seen(words) for words in commands] * 2


# Commands that show something --------------------------------------------------------------------------------------


def test_help_names_the_verbs_and_every_group(capsys: Capture) -> None:
    assert call("--help") == 0
    text = capsys.readouterr().out
    assert all(f" {verb} " in text for verb in VERBS) and all(f"{group}: " in text for group in GROUPS)


def test_cfg_job_prints_a_config_that_makes_the_same_run(capsys: Capture) -> None:
    assert call("--cfg", "job", "method.eta=7.0") == 0
    printed = OmegaConf.create(capsys.readouterr().out)
    assert isinstance(printed, DictConfig) and printed.method.eta == 7.0
    assert build(printed) == typed("method.eta=7.0")


@pytest.mark.full
def test_the_real_command_plans_without_torch_and_ends_with_code_2_and_one_line(tmp_path: Path) -> None:
    words = [sys.executable, "-X", "importtime", "-m", "src.main", "plan", *folders(tmp_path)]
    planned = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120)
    imported = {line.rpartition("|")[2].strip() for line in planned.stderr.splitlines()}
    assert planned.returncode == 0 and "src.experiment.run" in imported, "the list of imports is read"
    assert not imported & {"torch", "transformers", "datasets", "matplotlib", "wandb", "scipy"}
    words = [sys.executable, "-m", "src.main", "method.eta=nan", *folders(tmp_path)]
    refused = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith("error: method.eta: nan ") and refused.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


# Grids -------------------------------------------------------------------------------------------------------------


def grid(*words: str) -> list[list[str]]:
    return [[word for word in point.overrides if not word.startswith("launcher")] for point in points_of("-m", *words)]


def test_a_python_without_the_packages_and_a_start_as_a_file_are_one_line() -> None:
    for words in (["-S", "-m", "src.main"], ["src/main.py"]):
        done = subprocess.run([sys.executable, *words, "plan"], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 2 and done.stdout == "" and "make install" in done.stderr, done.stderr
        assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("error: ")


def test_a_working_folder_that_is_gone_is_a_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(UserError, match="cd to one"):
        carry_out("plan", [])


def test_grids_speak_hydras_language_and_are_every_combination() -> None:
    """The last key is the fastest."""
    for word, points in {
        "seed=choice(1,2)": ["seed=1", "seed=2"],
        "seed=range(1,10,4)": ["seed=1", "seed=5", "seed=9"],
        "method=glob(*,exclude=[wpo*,sppo*])": ["method=dpo", "method=ipo"],
        "only=[it1/pairs],base/policy": ["only=[it1/pairs]", "only=base/policy"],
    }.items():
        assert grid(word) == [[point] for point in points], word
    wanted = itertools.product(("1", "2"), ("3", "4"))
    points = grid("method.eta=1,2", "seed=0", "sampling.K=3,4")
    assert points == [[f"method.eta={eta}", "seed=0", f"sampling.K={k}"] for eta, k in wanted]


def test_a_grid_of_the_house_needs_no_flag_and_the_words_of_one_point_are_that_point() -> None:
    words = ("+sweep=eta", "iter=1")
    points = points_of(*words)
    assert [point.run.method.eta for point in points] == [10, 30, 100, 300, 1000, 3000]  # type: ignore[attr-defined]
    assert points[1].run == typed("iter=1", "method.eta=30") and points[1].command == words
    (again,) = points_of(*points[1].overrides)
    assert again.run == points[1].run
