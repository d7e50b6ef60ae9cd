"""Every mistake of tests/bad_inputs.md is told in one line, with its exit code, and nothing is written or lost."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from answer_server import Said, answering
from bad_files import DATA, FINE, ODD_PROMPTS
from bad_inputs import Bad, Setting, sections
from bad_models import MODELS
from bad_served import ASK, ASKED, SERVERS, impatient
from bad_stores import CLUSTERS, STORES
from tiny_run import call, folders, tiny

from src.experiment.run_folder import LINKS
from src.kernel.record import RECORD, damage
from src.kernel.rows import PROMPTS, RESPONSES, read_rows
from src.kernel.store import Store
from src.launch.verbs import VERBS

SECTIONS = sections()
GIVEN = DATA | MODELS | SERVERS | STORES | CLUSTERS
"""What arranges a mistake; of the others the words are all there is."""
COMMAND = "The command and its config"
Capture = pytest.CaptureFixture[str]


def test_the_page_has_what_is_arranged_here_once_and_no_other() -> None:
    rows = [row.what for section in SECTIONS.values() for row in section.bad]
    assert len(rows) == len(set(rows)) >= 100
    assert GIVEN.keys() <= set(rows)
    assert [what for section in SECTIONS.values() for what in section.fine] == list(ODD_PROMPTS | FINE)


def files(at: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(at.rglob("*")) if path.is_file()}


OF_STORE = re.compile(r"\.locks/[^/]+|\.store\.json|\.cells/[^/]+/[^/]+|([a-z_]+)/[0-9a-f]{20}(\.partial[^/]*)?/.+")
OF_RUN = re.compile(r"[^/]+/(config\.yaml|command\.txt|\.lock(\.beat)?|metrics\.jsonl|artifacts/.+)")


def in_store(at: Path) -> tuple[list[Path], list[Path]]:
    """Artifacts, and what is begun of others."""
    folders = [path for path in sorted((at / "store").glob("[!.]*/*")) if path.is_dir()]
    made = [path for path in folders if path.name.isalnum() and (path / RECORD).is_file()]
    return made, [path for path in folders if path not in made]


def strange(new: set[Path], at: Path, row: Bad) -> list[Path]:
    """Of new files of a run, those that the row does not account for."""

    def known(path: Path) -> bool:
        if path.is_relative_to(at / "runs"):
            return bool(OF_RUN.fullmatch(path.relative_to(at / "runs").as_posix()))
        found = path.is_relative_to(at / "store") and OF_STORE.fullmatch(path.relative_to(at / "store").as_posix())
        return bool(found) and found[1] in (None, *(row.begun if found[2] else row.made))

    return sorted(path for path in new if not known(path))


def run(llama: Path, at: Path, words: list[str]) -> list[str]:
    """The tiny run, with its own ranker where the words have none."""
    return tiny(llama, at, *words, ranker=[] if any(word.startswith("ranker=") for word in words) else None)


@contextmanager
def placed(at: Path, llama: Path) -> Iterator[Setting]:
    """An empty folder, and what is undone afterwards."""
    at.mkdir()
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        yield Setting(at, llama, patch, stack)


def wrong(row: Bad, lead: list[str], setting: Setting, capsys: Capture) -> list[str]:
    """What is wrong with how the mistake is told, and with what it leaves."""
    at, verb = setting.at, lead or [word for word in row.words[:1] if word in VERBS]
    given = GIVEN[row.what](setting) if row.what in GIVEN else None
    words = [*(given or []), *row.words[len(verb) - len(lead) :]]
    words = [*verb, *folders(at), *words] if verb else run(setting.model, at, words)
    before, stood = files(at), in_store(at)
    capsys.readouterr()
    code = call(*words)
    said, shown = capsys.readouterr()
    lines = [line.rpartition("\r")[2] for line in shown.splitlines() if "error: " in line]
    after = files(at)
    new = after.keys() - before.keys()
    made, begun = (sorted(set(now) - set(then)) for now, then in zip(in_store(at), stood, strict=True))
    laws = {
        f"it is told so: {shown[-1000:]}": [line.startswith("error: ") and row.matches(line[7:]) for line in lines]
        == [True],
        "no traceback": "Traceback" not in said + shown,
        f"code {row.code}, not {code}": code == row.code,
        "nothing is lost": {path: after.get(path) for path in before} == before,
        f"nothing strange is written: {new}": not (new if verb else strange(new, at, row)),
        f"kept: {made}": sorted(path.parent.name for path in made) == row.made and not any(map(damage, made)),
        f"begun: {begun}": [path.parent.name for path in begun] == row.begun,
    }
    return [f"{row.what}: {law}" for law, holds in laws.items() if not holds]


@pytest.mark.parametrize("title", SECTIONS)
def test_a_mistake_is_one_line(title: str, llama: Path, tmp_path: Path, capsys: Capture) -> None:
    found = []
    for number, row in enumerate(SECTIONS[title].bad):
        with placed(tmp_path / str(number), llama) as setting:
            found += wrong(row, ["plan"] if title == COMMAND else [], setting, capsys)
    assert found == []


def test_a_verb_shows_where_a_mistake_rose_when_asked(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And ends with the same line and code; without HYDRA_FULL_ERROR there is nothing else."""
    for verb in ("", "plan", "compare", "verify"):
        mistaken = {"compare": ["runs=nowhere"], "verify": folders(tmp_path)}
        words = [*verb.split(), *mistaken.get(verb, ["method.etta=3", *folders(tmp_path)])]
        assert call(*words) == 2, verb
        line = capsys.readouterr().err
        assert line.startswith("error: ") and line.count("\n") == 1, verb
        with monkeypatch.context() as patch:
            patch.setenv("HYDRA_FULL_ERROR", "1")
            assert call(*words) == 2
        shown = capsys.readouterr().err
        assert shown.startswith("Traceback (most recent call last):\n") and shown.endswith(line), verb
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_mistake_works(llama: Path, tmp_path: Path) -> None:
    for number, (what, (words, given)) in enumerate(FINE.items()):
        with placed(tmp_path / str(number), llama) as setting:
            assert call(*run(llama, setting.at, [*(given(setting) or []), *words.split()])) == 0, what
            made = list(Store(setting.at / "store").artifacts())
            assert made and all(damage(path) == [] for path in made)


@pytest.mark.full
def test_odd_prompts_come_back_as_they_were(llama: Path, tmp_path: Path) -> None:
    """Through a whole iteration: sampled, ranked, trained on, evaluated; but for what is too long."""
    texts = list(ODD_PROMPTS.values())
    for name in ("part0.jsonl", "held_out.jsonl"):
        held_out = "" if name == "part0.jsonl" else "held out: "
        (tmp_path / name).write_text("".join(json.dumps({"prompt": held_out + text}) + "\n" for text in texts))
    counts = [f"data.{key}={len(texts)}" for key in ("prompts_per_iteration", "held_out_prompts")]
    assert call(*run(llama, tmp_path, ["iter=1", *counts])) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    asked = read_rows(folder / LINKS / "it1/prompts", PROMPTS)
    assert [row["messages"] for row in asked] == [[{"role": "user", "content": text}] for text in texts]
    answered = read_rows(folder / LINKS / "it1/responses", RESPONSES)
    short = [text for text in texts if len(text) < 1000]
    assert [row["messages"][0]["content"] for row in answered] == short and len(short) == len(texts) - 1


def test_paid_answers_are_kept_when_a_server_fails(llama: Path, tmp_path: Path) -> None:
    """Two of four answers come before it is down for good; the next command asks for the other two."""
    with answering() as server:
        words = run(llama, tmp_path, [*ASK.split(), *impatient(ASKED, server.url)])
        server.say = lambda body, number: "an answer" if number < 2 else Said(status=429, body="{}")
        assert call(*words) == 3
        paid = [text for text, _ in server.asked[:2]]
        server.bodies.clear()
        server.say = lambda body, number: "an answer"
        assert call(*words) == 0
        assert len(server.asked) == 2 and not set(paid) & {text for text, _ in server.asked}
