"""Nothing that is read runs code of its own: no foreign code without leave, safetensors alone, states as plain data.

A canary is a pickle that would write a file when it is read.
"""

from __future__ import annotations

import ast
import json
import os
import pickle
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_run import ROOT, call, folders

from src.kernel.config import Fault, UserError
from src.kernel.processes import hand_over, take_over
from src.modeling.checkpoints import Checkpoint, CheckpointWithCode
from src.modeling.policy import load_policy, load_tokenizer

SOURCES = sorted(path for folder in ("src", "bench", "tools") for path in (ROOT / folder).rglob("*.py"))
CAN_BRING_CODE = ("from_pretrained", "from_config", "EngineArgs", "LLM", "pipeline")
NO_MODELS = ("GenerationConfig", "Shape", "cls")
"""Whose method of such a name reads settings alone."""
MAY_TRUST = {"src/ranking/reward_model.py": "trust_remote_code"}
"""The one place that runs foreign code: a ranker whose own key says so."""
UNPICKLERS = ("pickle.load", "pickle.loads", "pickle.Unpickler", "dill.loads", "joblib.load", "pandas.read_pickle")
UNPICKLES = ["src/kernel/processes.py"]


class Canary:
    """Leaves a file where it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.place),)


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Canary]:
    """It can sing, and has not when the test ends."""
    own = Canary(tmp_path / "sung")
    pickle.loads(pickle.dumps(own))
    own.place.rmdir()
    yield own
    assert not own.place.exists(), "a pickle was run"


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """Every call in a file, under its dotted name."""
    for found in ast.walk(ast.parse(path.read_text())):
        if isinstance(found, ast.Call):
            yield ast.unparse(found.func), found


def keyword(call: ast.Call, name: str) -> str | None:
    return next((ast.unparse(one.value) for one in call.keywords if one.arg == name), None)


def untrusting(source: str, calls: Iterator[tuple[str, ast.Call]]) -> list[str]:
    """Calls that could run foreign code, or ask at a terminal whether they may."""
    found = []
    for name, made in calls:
        owner, _, last = name.rpartition(".")
        if last in CAN_BRING_CODE and owner not in NO_MODELS:
            wanted = {"False", MAY_TRUST.get(source, "False")}
            if keyword(made, "trust_remote_code") not in wanted:
                found.append(f"{source}:{made.lineno}: {name}")
    return found


# Foreign code -------------------------------------------------------------------------------------------------------


def test_no_call_can_run_foreign_code_without_the_models_own_flag() -> None:
    """Left out, transformers asks at the terminal, and a `y` meant for something else runs it."""
    assert [line for path in SOURCES for line in untrusting(str(path.relative_to(ROOT)), calls(path))] == []


def with_code(llama: Path, place: Path, canary: Canary) -> Path:
    """A checkpoint that says that its model and its tokenizer are in a Python file beside them."""
    repo = Path(shutil.copytree(llama, place))
    (repo / "own.py").write_text(f"import os\nos.mkdir({str(canary.place)!r})\n")
    for name, kind in (("config.json", "AutoModelForCausalLM"), ("tokenizer_config.json", "AutoTokenizer")):
        told = json.loads((repo / name).read_text()) | {"model_type": "own", "tokenizer_class": "Own"}
        (repo / name).write_text(json.dumps(told | {"auto_map": {kind: "own.Own", "AutoConfig": "own.Own"}}))
    return repo


def test_code_beside_a_checkpoint_is_neither_run_nor_asked_about(
    llama: Path, tmp_path: Path, canary: Canary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked at the terminal"))
    repo = with_code(llama, tmp_path / "repo", canary)
    for load in (lambda: load_policy(repo, "float32", "cpu"), lambda: load_tokenizer(repo)):
        with pytest.raises(UserError, match="that can be loaded"):
            load()


def test_a_plain_checkpoint_brings_no_code_and_one_with_code_wants_leave(
    llama: Path, tmp_path: Path, canary: Canary
) -> None:
    repo, out = with_code(llama, tmp_path / "repo", canary), tmp_path / "out"
    out.mkdir()
    with pytest.raises(UserError, match=r"ranker.trust_remote_code: .* runs Python files of its own; read them"):
        CheckpointWithCode(name="x", repo=str(repo), revision="main", trusted=False)(out=out)
    Checkpoint(name="x", repo=str(repo), revision="main")(out=out)
    assert not list(out.glob("*.py"))


# Pickles ------------------------------------------------------------------------------------------------------------


def test_one_place_unpickles_and_torch_reads_nothing_here() -> None:
    """Of torch's own reading, transformers asks for `weights_only`, and DeepSpeed is made to."""
    found = {str(path.relative_to(ROOT)): {name for name, _ in calls(path)} for path in SOURCES}
    assert [path for path, names in found.items() if names.intersection(UNPICKLERS)] == UNPICKLES
    assert not [path for path, names in found.items() if names.intersection(("torch.load", "load_state_dict_from_url"))]
    pickled = [keyword(call, "allow_pickle") for path in SOURCES for _, call in calls(path)]
    assert set(pickled) <= {None, "False"}


def test_a_model_of_pickles_is_refused_with_what_to_do(llama: Path, tmp_path: Path, canary: Canary) -> None:
    for name in ("pytorch_model.bin", "consolidated.00.pth"):
        repo, out = Path(shutil.copytree(llama, tmp_path / name)), tmp_path / f"out of {name}"
        (repo / "model.safetensors").unlink()
        (repo / name).write_bytes(pickle.dumps(canary))
        out.mkdir()
        told: dict[str, Any] = {"name": "x", "repo": str(repo), "revision": "main"}
        for brought in (Checkpoint(**told), CheckpointWithCode(**told, trusted=True)):
            with pytest.raises(UserError, match=r"^model.repo: .* no safetensors file; "):
                brought(out=out)
        assert not list(out.iterdir())
        with pytest.raises(UserError, match="no model that can be loaded"):
            load_policy(repo, "float32", "cpu")


def test_an_adapter_is_refused_before_transformers_follows_it(llama: Path, tmp_path: Path, canary: Canary) -> None:
    """Its base may be a folder of pickles, or any repository."""
    repo, out = Path(shutil.copytree(llama, tmp_path / "repo")), tmp_path / "out"
    (repo / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path)}))
    (repo / "adapter_model.bin").write_bytes(pickle.dumps(canary))
    out.mkdir()
    with pytest.raises(UserError, match="^model.repo: .* has an adapter_config.json"):
        Checkpoint(name="x", repo=str(repo), revision="main")(out=out)


def test_pickled_prompts_are_refused(tmp_path: Path, canary: Canary, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("prompts.pkl", "prompts.npy", "prompts.pt"):
        file = tmp_path / name
        file.write_bytes(pickle.dumps(canary))
        words = [f"data.parts=[{file},{file},{file}]", f"data.held_out_file={file}", "tracking=off", *folders(tmp_path)]
        assert call(*words) == 2
        assert f"{name}: " in capsys.readouterr().err
    assert not (tmp_path / "store").exists()


# What processes hand to each other ----------------------------------------------------------------------------------


@given(st.binary())
def test_a_job_that_somebody_else_wrote_is_not_read(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        file = hand_over(Path(name), "ours")
        assert file.read_bytes() != data
        file.write_bytes(data)
        with pytest.raises(Fault, match="not what was written there"):
            take_over(file)


def test_a_planted_job_is_neither_run_nor_written_through(tmp_path: Path, canary: Canary) -> None:
    other = tmp_path / "somebody-elses"
    other.write_text("precious")
    file = hand_over(tmp_path, "ours")
    file.unlink()
    file.symlink_to(other)  # before the process that starts others comes to write
    assert take_over(hand_over(tmp_path, "ours")) == "ours" and other.read_text() == "precious"
    assert len([*tmp_path.glob("job*")]) == 1, "old ones go"
    file.write_bytes(pickle.dumps(canary))
    with pytest.raises(Fault, match="who else writes in this folder"):
        take_over(file)
