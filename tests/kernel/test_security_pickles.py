"""Nothing that is read runs code of its own: no foreign code without leave, safetensors alone, states as plain data.

A canary is a pickle that would write a file when it is read.
"""

from __future__ import annotations

import ast
import json
import os
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_run import ROOT

from src.kernel.config import Fault, UserError
from src.kernel.processes import hand_over, take_over
from src.modeling.checkpoints import Checkpoint, CheckpointWithCode
from src.modeling.policy import load_policy, load_tokenizer

SOURCES = sorted(path for folder in ("src", "bench", "tools") for path in (ROOT / folder).rglob("*.py"))
CAN_BRING_CODE = ("from_pretrained", "from_config", "EngineArgs", "LLM", "pipeline")
NO_MODELS = ("GenerationConfig", "Shape", "cls")
"""Owners whose method of such a name reads settings alone."""
MAY_TRUST = {"src/ranking/reward_model.py": "trust_remote_code"}
"""The one place that runs foreign code: a ranker whose own key says so."""
UNPICKLERS = {"pickle.load", "pickle.loads", "pickle.Unpickler", "dill.loads", "joblib.load", "pandas.read_pickle"}
UNPICKLES = "src/kernel/processes.py"
OF_TORCH = {"torch.load", "load_state_dict_from_url"}


class Canary:
    """Makes a folder where it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.place),)


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Canary]:
    """It can sing, and has not when the test ends."""
    canary = Canary(tmp_path / "sung")
    pickle.loads(pickle.dumps(canary))
    canary.place.rmdir()
    yield canary
    assert not canary.place.exists(), "foreign code was run"


def test_no_call_can_run_foreign_code_or_read_a_pickle_but_in_the_two_places_that_may() -> None:
    """Without trust_remote_code transformers asks at the terminal, and a `y` meant for something else runs the code.

    Of torch's own reading, transformers asks for `weights_only`, and DeepSpeed is made to.
    """
    wrong = []
    for path in SOURCES:
        source = str(path.relative_to(ROOT))
        for made in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)):
            name, words = ast.unparse(made.func), {one.arg: ast.unparse(one.value) for one in made.keywords}
            owner, _, method = name.rpartition(".")
            trusts = words.get("trust_remote_code") not in {"False", MAY_TRUST.get(source, "False")}
            brings = method in CAN_BRING_CODE and owner not in NO_MODELS and trusts
            reads = name in OF_TORCH or (name in UNPICKLERS and source != UNPICKLES)
            if brings or reads or words.get("allow_pickle", "False") != "False":
                wrong.append(f"{source}:{made.lineno}: {name}")
    assert wrong == []


# Models -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def repo(llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(llama, tmp_path / "repo"))


def refuses(stage: Any, message: str, tmp_path: Path) -> None:
    (out := tmp_path / "refused").mkdir(exist_ok=True)
    with pytest.raises(UserError, match=message):
        stage(out=out)
    assert not list(out.iterdir())


def test_code_beside_a_checkpoint_is_neither_run_nor_asked_about_nor_brought_without_leave(
    repo: Path, tmp_path: Path, canary: Canary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked at the terminal"))
    (repo / "own.py").write_text(f"import os\nos.mkdir({str(canary.place)!r})\n")
    for name, kind in (("config.json", "AutoModelForCausalLM"), ("tokenizer_config.json", "AutoTokenizer")):
        config = json.loads((repo / name).read_text()) | {"model_type": "own", "tokenizer_class": "Own"}
        (repo / name).write_text(json.dumps(config | {"auto_map": {kind: "own.Own", "AutoConfig": "own.Own"}}))
    for load in (lambda: load_policy(repo, "float32", "cpu"), lambda: load_tokenizer(repo)):
        with pytest.raises(UserError, match="that can be loaded"):
            load()
    with_code = CheckpointWithCode(name="x", repo=str(repo), revision="main", trusted=False)
    refuses(with_code, r"ranker.trust_remote_code: .* runs Python files of its own; read them", tmp_path)
    (out := tmp_path / "out").mkdir()
    Checkpoint(name="x", repo=str(repo), revision="main")(out=out)
    assert list(out.iterdir()) and not list(out.glob("*.py"))


def test_a_model_of_pickles_and_an_adapter_which_may_lead_to_one_are_refused(
    repo: Path, tmp_path: Path, canary: Canary
) -> None:
    words: dict[str, Any] = {"name": "x", "repo": str(repo), "revision": "main"}
    (repo / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path)}))
    refuses(Checkpoint(**words), "^model.repo: .* has an adapter_config.json", tmp_path)
    (repo / "adapter_config.json").unlink()
    (repo / "model.safetensors").unlink()
    for name in ("pytorch_model.bin", "consolidated.00.pth"):
        (repo / name).write_bytes(pickle.dumps(canary))
        for stage in (Checkpoint(**words), CheckpointWithCode(**words, trusted=True)):
            refuses(stage, r"^model.repo: .* no safetensors file; ", tmp_path)
        with pytest.raises(UserError, match="no model that can be loaded"):
            load_policy(repo, "float32", "cpu")


# What processes hand to each other ----------------------------------------------------------------------------------


def test_a_planted_job_is_neither_run_nor_written_through(tmp_path: Path, canary: Canary) -> None:
    other = tmp_path / "somebody-elses"
    other.write_text("precious")
    file = hand_over(tmp_path, "ours")
    file.unlink()
    file.symlink_to(other)  # before the process that starts others comes to write
    assert take_over(hand_over(tmp_path, "ours")) == "ours" and other.read_text() == "precious"
    file.write_bytes(pickle.dumps(canary))
    with pytest.raises(Fault, match="who else writes in this folder"):
        take_over(file)
